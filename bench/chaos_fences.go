package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/bench/checker"
)

// seenFence is a fence that a control plane spoke of: all keys of a shard's arcs that another region may have stale are removed there.
type seenFence struct {
	ID     string    `json:"id"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Shard  string    `json:"shard"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Last   time.Time `json:"last_seen"`

	ended bool // an event told so
}

// explains says that a value of the finding was waiting for the fence.
func (s seenFence) explains(f checker.Finding) bool {
	return s.To == f.Region && s.From == f.Home && s.Last.After(f.Acked) && s.Since.Before(f.Acked.Add(time.Duration(f.Age*float64(time.Second))))
}

// fenceWatch asks the control planes, time and again, which fences there are, and which gaps and fences their events tell of.
type fenceWatch struct {
	mesh *meshRegions

	mu     sync.Mutex
	fences map[string]*seenFence
	heard  map[string]bool // events
}

func newFenceWatch(m *meshRegions) *fenceWatch {
	return &fenceWatch{mesh: m, fences: map[string]*seenFence{}, heard: map[string]bool{}}
}

const askFences = 250 * time.Millisecond

func (w *fenceWatch) run(ctx context.Context) {
	for sleep(ctx, askFences) == nil {
		for _, region := range w.mesh.regions {
			asked, cancel := context.WithTimeout(ctx, time.Second)
			w.ask(asked, region)
			cancel()
		}
	}
}

// ask may fail: a control plane may be down.
func (w *fenceWatch) ask(ctx context.Context, region *meshRegion) {
	if body, err := ask(ctx, region.http, "/v1/regions"); err == nil {
		var status struct {
			Links []struct {
				From, To string
				Journals []struct {
					Shard  string
					Fences []struct {
						ID, Reason string
						Since      time.Time
					}
				}
			}
		}
		if json.Unmarshal(body, &status) == nil {
			for _, link := range status.Links {
				for _, journal := range link.Journals {
					for _, f := range journal.Fences {
						w.saw(seenFence{ID: f.ID, From: link.From, To: link.To, Shard: journal.Shard, Reason: f.Reason, Since: f.Since, Last: time.Now()})
					}
				}
			}
		}
	}
	if body, err := ask(ctx, region.http, "/v1/events?kind=gap&kind=fence"); err == nil {
		lines := bufio.NewScanner(bytes.NewReader(body))
		for lines.Scan() {
			var e gapEvent
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				w.told(region.name, e)
			}
		}
	}
}

// gapEvent is of a gap, from which a fence follows, or of a fence that was carried out.
type gapEvent struct {
	ID                      uint64
	Time                    time.Time
	Kind, Shard, To, Reason string
	Epoch                   uint64
}

// told takes in an event of a region, in their order. From a gap on there is a fence in the other region, or in all, until the event that
// tells of it.
func (w *fenceWatch) told(home string, e gapEvent) {
	// A control plane that starts over may number events anew.
	id := fmt.Sprintf("%s %d %s", home, e.ID, e.Time)
	w.mu.Lock()
	heard := w.heard[id]
	w.heard[id] = true
	w.mu.Unlock()
	if heard {
		return
	}
	to := []string{e.To}
	if e.To == "" {
		to = nil
		for _, region := range w.mesh.regions {
			to = append(to, region.name)
		}
	}
	for _, to := range to {
		f := seenFence{ID: "event " + id, From: home, To: to, Shard: e.Shard, Reason: e.Reason, Since: e.Time, Last: e.Time, ended: e.Kind == "fence"}
		if !f.ended || !w.carriedOut(f) {
			w.saw(f)
		}
	}
}

// carriedOut ends the fences to a region that began before, and says whether there were any.
func (w *fenceWatch) carriedOut(done seenFence) (known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.fences {
		if f.From == done.From && f.To == done.To && f.Shard == done.Shard && !f.ended && !f.Since.After(done.Since) {
			f.ended, known = true, true
			if f.Last.Before(done.Since) {
				f.Last = done.Since
			}
		}
	}
	return known
}

func (w *fenceWatch) saw(f seenFence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := strings.Join([]string{f.From, f.To, f.Shard, f.ID}, " ")
	switch known := w.fences[id]; {
	case known == nil:
		w.fences[id] = &f
	case f.Last.After(known.Last):
		known.Last = f.Last
	}
}

// seen are all, the first begun first.
func (w *fenceWatch) seen() (all []seenFence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.fences {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b seenFence) int { return a.Since.Compare(b.Since) })
	return all
}
