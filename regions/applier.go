package regions

import (
	"bytes"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/ring"
)

// Applier removes keys at the shards of its region. Several goroutines may use it.
type Applier struct {
	writer string
	log    *slog.Logger
	view   atomic.Pointer[view]

	mu      sync.Mutex
	targets map[string]*target // by shard
	before  []*view            // that removals still go by
	closed  bool
	running sync.WaitGroup

	removed atomic.Uint64
}

// view is a topology, made ready to find keys' shards.
type view struct {
	topology *mesh.Topology
	pairs    map[string]*handoff.Pair // by pool
	users    atomic.Int64             // removals that go by it and are not done
	routes   []routed                 // longest prefix first
}

// routed is a route and where its keys are.
type routed struct {
	mesh.Route
	pool    *mesh.Pool
	ring    *ring.Ring // nil without shards
	targets []*target  // by host of the ring
	pair    *handoff.Pair
	owners  map[string]*target // of keys that move; nil while none does
}

// at are the shards that may have a key: two while it moves.
func (r *routed) at(key []byte) []*target {
	if r.pair.Moves(key) {
		from, to := r.pair.Owners(key)
		return []*target{r.owners[from], r.owners[to]}
	}
	return []*target{r.targets[r.ring.Find(key)]}
}

// NewApplier knows no shard before the first Update. writer is its name among the shards' writers, see regions/writers; "" joins none.
func NewApplier(writer string, log *slog.Logger) *Applier {
	return &Applier{writer: writer, log: log, targets: map[string]*target{}}
}

// Update says what the region is like from now on. It does not wait.
func (a *Applier) Update(t *mesh.Topology) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	v := &view{topology: t, pairs: map[string]*handoff.Pair{}}
	before := a.view.Load()
	named := map[string]bool{}
	for i := range t.Pools {
		p := &t.Pools[i]
		var r *ring.Ring
		var targets []*target
		if len(p.Shards) > 0 {
			var err error
			if r, err = poolRing(p); err != nil {
				a.log.Error("a pool's keys are not removed as other regions want it", "pool", p.Name, "error", err)
				continue
			}
		}
		for _, s := range p.Shards {
			named[s.Name] = true
			targets = append(targets, a.target(p, s))
		}
		var known *handoff.Pair
		if before != nil {
			known = before.pairs[p.Name]
		}
		pair, err := known.Of(*p)
		if err != nil {
			a.log.Error("keys that move are not removed at both of their shards", "pool", p.Name, "error", err)
		}
		owners := map[string]*target{}
		if pair != nil {
			v.pairs[p.Name] = pair
			for _, s := range p.Members() {
				named[s.Name] = true
				owners[s.Name] = a.target(p, s)
			}
		}
		for _, route := range p.Routes {
			v.routes = append(v.routes, routed{route, p, r, targets, pair, owners})
		}
	}
	slices.SortStableFunc(v.routes, func(x, y routed) int { return len(y.Prefix) - len(x.Prefix) })
	for name, t := range a.targets {
		if !named[name] {
			t.close()
			delete(a.targets, name)
		}
	}
	a.view.Store(v)
	if before != nil {
		a.before = append(a.before, before)
	}
	a.before = slices.DeleteFunc(a.before, func(v *view) bool { return v.users.Load() == 0 })
}

// Settled says whether all removals that are on their way go by the last topology: to both owners of a key that moves, with its login.
func (a *Applier) Settled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.targets {
		if at := t.using.Load(); at != nil && at != t.place.Load() {
			return false
		}
	}
	return !slices.ContainsFunc(a.before, func(v *view) bool { return v.users.Load() > 0 })
}

// goBy is the view that a removal goes by, until it is done.
func (a *Applier) goBy() *view {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.view.Load()
	v.users.Add(1)
	return v
}

// target is the shard's, with what is true of it now. The caller holds the lock.
func (a *Applier) target(p *mesh.Pool, s mesh.Shard) *target {
	now := placeOf(p, s)
	if t, ok := a.targets[s.Name]; ok {
		t.move(now)
		return t
	}
	t := newTarget(a, s.Name, now)
	a.targets[s.Name] = t
	a.running.Go(t.run)
	return t
}

func poolRing(p *mesh.Pool) (*ring.Ring, error) {
	hosts := make([]ring.Host, len(p.Shards))
	for i, s := range p.Shards {
		hosts[i] = ring.Host{HashKey: s.Name, Weight: s.Weight}
	}
	return ring.New(ring.Config{Algorithm: ring.Algorithm(p.Hashing.Algorithm), Size: p.Hashing.Size}, hosts)
}

// Ready says whether the region is known.
func (a *Applier) Ready() bool { return a.view.Load() != nil }

var reserved = []byte(mesh.ReservedPrefix)

// route is the one that takes a key; nil for none.
func (v *view) route(key []byte) *routed {
	if bytes.HasPrefix(key, reserved) {
		return nil
	}
	for i := range v.routes {
		if p := v.routes[i].Prefix; len(key) >= len(p) && string(key[:len(p)]) == p {
			return &v.routes[i]
		}
	}
	return nil
}

// Remove removes keys and calls done when they are gone, which is at once if no shard of this region can have any. It waits while
// too much is on its way to a shard. The keys must not change until done.
func (a *Applier) Remove(keys [][]byte, done func()) {
	v := a.goBy()
	ended := func() {
		v.users.Add(-1)
		done()
	}
	parts := map[*target][]removal{}
	for _, k := range keys {
		if r := v.route(k); r != nil && r.ring != nil {
			for _, t := range r.at(k) {
				parts[t] = append(parts[t], removal{k, &r.Route})
			}
		}
	}
	if len(parts) == 0 {
		ended()
		return
	}
	var left atomic.Int32
	left.Store(int32(len(parts)))
	for t, part := range parts {
		t.submit(job{part, func() {
			if left.Add(-1) == 0 {
				ended()
			}
		}})
	}
}

// Removed counts the keys that shards were told to remove.
func (a *Applier) Removed() uint64 { return a.removed.Load() }

// Close ends the work. What is not done is not done.
func (a *Applier) Close() {
	a.mu.Lock()
	a.closed = true
	for _, t := range a.targets {
		t.close()
	}
	a.mu.Unlock()
	a.running.Wait()
}
