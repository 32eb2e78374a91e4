// Package handoff moves the data of keys that change their shard, from one ring of a pool to the next, while the pool serves.
//
// A Mover watches every change of a moving key with Redis's client tracking, on the very connections that copy and unlink, and copies the
// keys from their donors to their recipients until both have the same. It does one Task at a time and says how far it is. It keeps nothing:
// another Mover goes on from any Task. Estimate says beforehand what a handoff will move.
//
// It decides no step of a handoff and writes no state: who leads the region's control planes runs it. It never touches keys that both rings
// place on one shard, nor those of cachemesh's own but for the marks of hold-offs.
package handoff

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/mesh"
)

// Spec is what is to move.
type Spec struct {
	Pool    string
	Access  *mesh.RedisAccess
	Hashing mesh.Hashing
	// From and To are the rings, in the order in which Envoy is told of them. Their nodes are those that Update changes.
	From, To []mesh.Shard
	Routes   []mesh.Route // of the pool
	// OnLanes says whether agents carry a route's writes: then they keep its keys alike on both owners, from their coexistence on.
	OnLanes func(mesh.Route) bool
	Limits  Limits
}

// Limits bound what a handoff takes from those that it serves beside. What is 0 has a default.
type Limits struct {
	KeysPerSecond  int
	BytesPerSecond int
	// DonorCPU is the share of one core that a donor may use, for all that it does, before copying slows down.
	DonorCPU float64
}

// Task is what a Mover does.
type Task string

// The tasks. Copy, Drain, Bridge and Purge follow each other; Undo may follow Copy and Drain.
const (
	// Copy copies what moves and then, again and again, what changed meanwhile. It is done when little is left, and goes on all the same.
	Copy Task = "copy"
	// Drain copies no more, and removes at the recipients what is not as it is at the donors. It is done when all is, and goes on as Bridge does.
	// The donors are still who is right: a Mover that had to begin anew, because a connection was lost, copies again first.
	Drain Task = "drain"
	// Bridge brings to a moving key's other owner what changes at one, for routes that are not on lanes. The recipients may have been written to.
	// A Mover that has not drained them itself compares both owners first, and removes what differs. The rings must not change before it is done.
	Bridge Task = "bridge"
	// Purge removes from all shards what the ring To does not place there. It is done when a whole look finds nothing.
	Purge Task = "purge"
	// Undo removes from all shards what the ring From does not place there. It is done when a whole look finds nothing.
	Undo Task = "undo"
)

// Progress is how far a Mover is with its Task. Counts are since the handoff's first Task of this Mover.
type Progress struct {
	Task Task `json:"task"`
	Done bool `json:"done"`
	// Keys are about how many move, and Copied how many the recipients have got, each counted once; Bytes are what was copied in all.
	Keys   int64 `json:"keys"`
	Copied int64 `json:"copied"`
	Bytes  int64 `json:"bytes"`
	// Again are copies of keys that had changed; Dirty is how many wait for one now.
	Again int64 `json:"again"`
	Dirty int64 `json:"dirty"`
	// Cold are keys that could not be copied: too large for their type, or refused by a recipient that is full. They are misses.
	Cold int64 `json:"cold"`
	// Unlinked are keys removed because they changed, and could not be copied any more: misses, most of them.
	Unlinked int64 `json:"unlinked"`
	// Removed are keys of arcs that were cleared: by Purge, Undo, or before copying.
	Removed int64 `json:"removed"`
	// Restarts are how often copying began anew because a node or a connection was lost.
	Restarts int64 `json:"restarts"`
	// KeysPerSecond is the pace now, and Left about how long copying takes still; 0 is unknown.
	KeysPerSecond float64       `json:"keys_per_second"`
	Left          time.Duration `json:"left_ns"`
	// DonorCPU is the busiest donor's use of one core.
	DonorCPU float64 `json:"donor_cpu"`
	// Problem is why it does not get on; "" is none.
	Problem string `json:"problem,omitempty"`
}

// Plan is what a handoff would move, by a sample.
type Plan struct {
	Keys  int64 `json:"keys"`
	Bytes int64 `json:"bytes"`
	// Share is the part of the hash space that moves, and Ideal the least that any way of placing keys could move.
	Share float64 `json:"share"`
	Ideal float64 `json:"ideal"`
	// Took is about how long copying takes.
	Took time.Duration `json:"took_ns"`
	// Cold are keys that will be left cold because they are too large, and Misses about how many reads will miss, these included.
	Cold   int64 `json:"cold"`
	Misses int64 `json:"misses"`
	// DonorCPU is the part of a core that copying takes from the busiest donor.
	DonorCPU float64 `json:"donor_cpu"`
	Donors   []Donor `json:"donors"`
}

// Donor is what one shard gives.
type Donor struct {
	Shard string `json:"shard"`
	Keys  int64  `json:"keys"`
	Bytes int64  `json:"bytes"`
}

// Mover moves keys. Its methods may be called by several goroutines.
type Mover struct {
	spec  Spec
	arcs  *arcs
	pace  *pace
	count counts

	mu        sync.Mutex
	addresses map[string]string // of primaries, by shard
	task      Task
	finished  bool
	trouble   string
	changed   chan struct{} // closed when task or addresses are others
	rate      rate
	session   *session // the last
}

// New refuses rings that cannot be. It connects to nothing before Run.
func New(s Spec) (*Mover, error) {
	a, err := newArcs(s)
	if err != nil {
		return nil, err
	}
	s.Limits = s.Limits.orDefaults()
	m := &Mover{spec: s, arcs: a, pace: newPace(s.Limits), addresses: map[string]string{}, changed: make(chan struct{})}
	m.Update(slices.Concat(s.From, s.To))
	return m, nil
}

// Update says which nodes are primaries from now on: of each shard of both rings, one with the name. It does not wait.
func (m *Mover) Update(shards []mesh.Shard) {
	now := map[string]string{}
	for _, s := range shards {
		if primary, ok := s.Primary(); ok {
			now[s.Name] = primary.Address
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !maps.Equal(now, m.addresses) {
		m.addresses = now
		m.signal()
	}
}

// signal tells Run that there is something else to do. The caller holds the lock.
func (m *Mover) signal() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Set says what is to be done from now on. It does not wait: Progress says the Task and that it is done.
func (m *Mover) Set(t Task) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t != m.task {
		m.task, m.finished, m.trouble = t, false, ""
		m.signal()
	}
}

// now is the Task, and what is closed when it or the primaries are others.
func (m *Mover) now() (Task, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.task, m.changed
}

func (m *Mover) primaries() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addresses
}

// done says whether the Task is done, if it is still the one.
func (m *Mover) done(t Task, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t == m.task {
		m.finished = yes
	}
}

// undone says that the Task is to be done, whatever was.
func (m *Mover) undone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finished = false
}

func (m *Mover) problem(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trouble = ""
	if err != nil {
		m.trouble = err.Error()
	}
}

// retryEvery is how soon what went wrong is tried again.
const retryEvery = 200 * time.Millisecond

// Run works on the Task, from the first Set on, until ctx ends, and returns why it did. What goes wrong is tried again, and is a Problem.
func (m *Mover) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		task, changed := m.now()
		if task == "" {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		watched := task != Purge && task != Undo
		s, during, err := m.open(ctx, watched)
		if err == nil {
			m.begin(s)
			if watched {
				err = s.move(during)
			} else {
				err = s.remove(during)
			}
			if errors.Is(err, context.Canceled) {
				err = context.Cause(during)
			}
			s.close(errClosed)
		}
		m.undone()
		if errors.Is(err, errChanged) {
			continue
		}
		m.problem(err)
		if watched {
			m.count.restarts.Add(1)
		}
		select {
		case <-changed:
		case <-time.After(retryEvery):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (m *Mover) begin(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session, m.trouble = s, ""
}

// errChanged is the end of a session because of another Task, or other primaries.
var errChanged = errors.New("there is something else to do")

// move copies, drains and bridges, as the Task says, until there is another kind of Task.
func (s *session) move(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.bridge(ctx) })
	for _, donor := range s.arcs.from.shards {
		group.Go(func() error { return s.pace.watchCPU(ctx, s.links[donor]) })
	}
	stop := make(chan struct{})
	stopping := sync.OnceFunc(func() { close(stop) })
	copied := make(chan error, 1)
	begun, whole := false, false
	group.Go(func() error {
		addresses := s.primaries()
		for {
			task, changed := s.now()
			if whole && task == Purge {
				// What a sidecar wrote last before it went by the other ring.
				if err := s.flushBridge(ctx); err != nil {
					return err
				}
			}
			if !maps.Equal(addresses, s.primaries()) || task == Purge || task == Undo || task == Copy && whole {
				return errChanged
			}
			switch {
			case whole:
				s.done(task, true)
			case task == Bridge:
				if begun {
					return errChanged // what is half copied is worth less than a look at it all
				}
				if err := s.reconcile(ctx); err != nil {
					return err
				}
				whole = true
				continue
			default:
				if task == Drain {
					stopping()
				}
				if !begun {
					begun = true
					group.Go(func() error {
						err := s.copyAll(ctx, stop)
						copied <- err
						return err
					})
				}
			}
			select {
			case <-changed:
			case err := <-copied:
				if err == nil {
					err = s.drain(ctx)
				}
				if err != nil {
					return err
				}
				whole = true
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return group.Wait()
}

// Of looks for what does not belong where it is, the first and the longest pause between two.
const (
	lookAgain  = time.Second
	lookSeldom = time.Minute
)

// remove looks for keys that are where they do not belong, as the Task says, until there is another.
func (s *session) remove(ctx context.Context) error {
	addresses := s.primaries()
	task, _ := s.now()
	home := after
	if task == Undo {
		home = before
	}
	for pause := lookAgain; ; {
		n, err := s.sweepAll(ctx, home)
		if err != nil {
			return err
		}
		s.problem(nil)
		s.done(task, n == 0)
		if n > 0 {
			pause = 0
		}
		now, changed := s.now()
		if now != task || !maps.Equal(addresses, s.primaries()) {
			return errChanged
		}
		select {
		case <-changed:
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(max(2*pause, lookAgain), lookSeldom)
	}
}

// Progress is how far the Task is.
func (m *Mover) Progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := Progress{
		Task: m.task, Done: m.finished, Problem: m.trouble, DonorCPU: m.pace.busiest(),
		Keys: m.count.keys.Load(), Copied: m.count.copied.Load(), Bytes: m.count.bytes.Load(), Again: m.count.again.Load(), Cold: m.count.cold.Load(),
		Unlinked: m.count.unlinked.Load(), Removed: m.count.removed.Load(), Restarts: m.count.restarts.Load(),
	}
	if m.session != nil {
		for _, dirty := range m.session.dirty {
			p.Dirty += int64(dirty.len())
		}
	}
	p.KeysPerSecond = m.rate.of(p.Copied + p.Again)
	if left := p.Keys - p.Copied; left > 0 && p.KeysPerSecond > 0 {
		p.Left = time.Duration(float64(left) / p.KeysPerSecond * float64(time.Second))
	}
	return p
}

// rate is how fast a count grows.
type rate struct {
	last  int64
	at    time.Time
	value float64
}

// of is how much the count has grown a second, of late.
func (r *rate) of(count int64) float64 {
	const least = 500 * time.Millisecond
	if passed := time.Since(r.at); passed > least {
		if r.value = 0; !r.at.IsZero() && count >= r.last {
			r.value = float64(count-r.last) / passed.Seconds()
		}
		r.last, r.at = count, time.Now()
	}
	return r.value
}
