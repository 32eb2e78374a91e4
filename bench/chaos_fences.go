package main

import (
	"context"
	"encoding/json"
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
}

// explains says that a value of the finding was waiting for the fence.
func (s seenFence) explains(f checker.Finding) bool {
	return s.To == f.Region && s.From == f.Home && s.Last.After(f.Acked) && s.Since.Before(f.Acked.Add(time.Duration(f.Age*float64(time.Second))))
}

// fenceWatch asks the control planes, time and again, which fences there are.
type fenceWatch struct {
	mesh *meshRegions

	mu     sync.Mutex
	fences map[string]*seenFence // by From, To and ID
	after  map[string]uint64     // by region: the last event that was read
}

func newFenceWatch(m *meshRegions) *fenceWatch {
	return &fenceWatch{mesh: m, fences: map[string]*seenFence{}, after: map[string]uint64{}}
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
}

func (w *fenceWatch) saw(f seenFence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := strings.Join([]string{f.From, f.To, f.ID}, " ")
	if known := w.fences[id]; known != nil {
		known.Last = f.Last
		return
	}
	w.fences[id] = &f
}

func (w *fenceWatch) seen() (all []seenFence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.fences {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b seenFence) int { return a.Since.Compare(b.Since) })
	return all
}
