package controlplane

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/shards"
	"github.com/cachemesh/cachemesh/warming"
)

const (
	// Shards that come back empty do so one after the other: a run begins when no more have for settleReturn and all have primaries, but not
	// later than maxReturn.
	settleReturn = 300 * time.Millisecond
	maxReturn    = 5 * time.Second
)

// probed takes in which process answers at an address.
func (w *warmer) probed(n shards.Node, err error) {
	if err != nil || n.RunID == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[n.Address] = n.RunID
}

// recovered takes in that a shard began empty.
func (w *warmer) recovered(shard string) {
	m := w.place.Load()
	if m == nil {
		return
	}
	for _, s := range m.Shards {
		if s.Name == shard {
			w.mu.Lock()
			w.returned[s.Pool] = time.Now()
			w.mu.Unlock()
		}
	}
	signal(w.wake)
}

// notice finds shards whose primary is another process than before at the same address: it began without what it had. That also holds if this
// control plane did not run meanwhile.
func (w *warmer) notice(ctx context.Context) {
	m := w.place.Load()
	if m == nil || !w.waitsForReturns() {
		return
	}
	served := maps.Clone(w.book.Served)
	if served == nil {
		served = map[string]string{}
	}
	w.mu.Lock()
	for _, s := range m.Shards {
		id := w.nodes[s.Address]
		if s.Address == "" || id == "" {
			continue
		}
		if address, process, _ := strings.Cut(served[s.Name], " "); address == s.Address && process != id {
			w.returned[s.Pool] = time.Now()
		}
		served[s.Name] = s.Address + " " + id
	}
	w.mu.Unlock()
	if !maps.Equal(served, w.book.Served) {
		w.change(ctx, func(b *warming.Book) error { b.Served = served; return nil }) // else in the next round
	}
}

func (w *warmer) waitsForReturns() bool {
	for _, name := range w.names() {
		if w.plans[name].OnReturn {
			return true
		}
	}
	return false
}

// refill begins the plans of pools whose shards came back empty, as soon as all of them have primaries.
func (w *warmer) refill(ctx context.Context) {
	w.mu.Lock()
	returned := maps.Clone(w.returned)
	w.mu.Unlock()
	for pool, at := range returned {
		since := time.Since(at)
		if since < settleReturn || since < maxReturn && !w.whole(pool) {
			continue
		}
		waits := false
		for _, name := range w.names() {
			p := w.plans[name]
			if !p.OnReturn || p.Pool() != pool {
				continue
			}
			if w.book.Active(name) != nil {
				waits = true // what was loaded before the shard came back is loaded once more
				continue
			}
			if err := w.begin(ctx, p.Run(w.region, time.Now()), p.Trigger(), time.Time{}, nil); err != nil {
				w.refused(name, err)
				waits = true
			}
		}
		if waits {
			continue
		}
		w.mu.Lock()
		if w.returned[pool].Equal(at) {
			delete(w.returned, pool)
		}
		w.mu.Unlock()
	}
}

// whole says whether every shard of a pool has a primary.
func (w *warmer) whole(pool string) bool {
	m := w.place.Load()
	if m == nil {
		return false
	}
	for _, s := range m.Shards {
		if s.Pool == pool && s.Address == "" {
			return false
		}
	}
	return true
}
