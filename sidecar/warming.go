package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/reports"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/load"
	"github.com/cachemesh/cachemesh/warming/workingset"
)

// warmth is this agent's part of warming: it works on the runs that control planes give it, and passes on what the application tells of.
type warmth struct {
	loader *load.Loader
	events *events
	stream *eventStream // nil without one
	hours  *workingset.Recorder
	log    *slog.Logger

	mu sync.Mutex
	// runs are what each control plane gives. What the last one said stays when none is left.
	runs   map[any][]warming.Run
	newest []any // who said something, the last one last
}

func newWarmth(c Config, l *link) *warmth {
	w := &warmth{log: c.Logger, runs: map[any][]warming.Run{}, events: newEvents(), hours: workingset.New(c.Name, c.Logger),
		loader: load.New(load.Config{Region: c.Region, Agent: c.Name, Version: c.Version, Dial: l.dial, Log: c.Logger})}
	w.events.tell, l.heard = l.teller.Tell, func(events [][]byte) { w.events.add(events, true) }
	if c.EventsStream != "" {
		w.stream = &eventStream{key: c.EventsStream, agent: c.Name, events: w.events, at: w.loader.At, log: c.Logger}
	}
	return w
}

// update says what the region is like from now on.
func (w *warmth) update(t *mesh.Topology) {
	w.loader.Update(t)
	w.hours.Update(t)
}

// run works until ctx ends.
func (w *warmth) run(ctx context.Context) error {
	var group errgroup.Group
	if w.stream != nil {
		group.Go(func() error { return w.stream.run(ctx) })
	}
	group.Go(func() error { return w.loader.Run(ctx) })
	group.Go(func() error { return w.hours.Run(ctx) })
	return group.Wait()
}

var (
	warmedKeys  = desc("warming_keys_total", "Keys of warming runs that this agent has worked on, by what became of them.", "result")
	warmedBytes = desc("warming_bytes_total", "Bytes of keys and values that it has loaded.")
	eventsTotal = desc("events_total", "Events of the application, by whether they were taken or dropped.", "result")
)

// collect sends what was counted.
func (w *warmth) collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	n := w.loader.Counts()
	for result, count := range n.Results() {
		counter(warmedKeys, count, result)
	}
	counter(warmedBytes, n.Bytes)
	taken, dropped := w.events.counts()
	counter(eventsTotal, taken, "taken")
	counter(eventsTotal, dropped, "dropped")
}

// follow takes in the runs that a control plane gives, or says why it cannot, and then those before stay.
func (w *warmth) follow(from any, text []byte) error {
	var runs []warming.Run
	if len(text) > reports.MaxWarming {
		return fmt.Errorf("runs: they have %d bytes and may have %d", len(text), reports.MaxWarming)
	}
	if err := json.Unmarshal(text, &runs); err != nil {
		return fmt.Errorf("runs: they are not what this version understands: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.runs, nil)
	w.newest = slices.DeleteFunc(w.newest, func(f any) bool { return f == from || f == nil })
	w.newest = append(w.newest, from)
	w.runs[from] = runs
	w.settle()
	return nil
}

// forget forgets what a control plane gave that is gone, unless it is the last.
func (w *warmth) forget(from any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, ok := w.runs[from]
	if !ok {
		return
	}
	delete(w.runs, from)
	w.newest = slices.DeleteFunc(w.newest, func(f any) bool { return f == from })
	if len(w.runs) == 0 {
		w.runs[nil], w.newest = last, []any{nil}
	}
	w.settle()
}

// settle has the runs worked on. Of one that control planes see differently, what was said last counts. The caller holds the lock.
func (w *warmth) settle() {
	all := map[string]warming.Run{}
	for _, from := range w.newest {
		for _, r := range w.runs[from] {
			all[r.ID] = r
		}
	}
	w.loader.Follow(slices.Collect(maps.Values(all)))
}
