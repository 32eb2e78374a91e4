package sidecar

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/cachemesh/cachemesh/reports"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/load"
)

// warmth is this agent's part of warming: it works on the runs that control planes give it.
type warmth struct {
	loader *load.Loader
	log    *slog.Logger

	mu sync.Mutex
	// runs are what each control plane gives. What the last one said stays when none is left.
	runs   map[any][]warming.Run
	newest []any // who said something, the last one last
}

func newWarmth(c Config, l *link) *warmth {
	return &warmth{log: c.Logger, runs: map[any][]warming.Run{},
		loader: load.New(load.Config{Region: c.Region, Agent: c.Name, Version: c.Version, Dial: l.dial, Log: c.Logger})}
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
