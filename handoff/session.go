package handoff

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// session is a time in which every change of a moving key is seen: one link to each shard, none of which was lost. What a session knows is
// worth nothing to the next.
type session struct {
	*Mover
	links    []*link            // by shard
	dirty    []*changes         // by donor: to be copied
	bridges  []*changes         // by shard: to be made there what they are at their other owner
	bridging chan struct{}      // has a token while there may be some
	flush    chan chan struct{} // asks to be closed when there are none
	end      context.CancelCauseFunc

	mu      sync.Mutex
	mode    mode
	settled map[int]bool // donors with little left
}

// mode is what a change means.
type mode int

const (
	idle     mode = iota
	copying       // one at a donor is copied
	bridging      // one at either owner is brought to the other
)

// keepAlive is how often a link is asked whether it still is one. What was not told then will never be.
const keepAlive = 500 * time.Millisecond

var errClosed = errors.New("it is not needed any more")

// errFlushed is the end of a session: nobody can tell what else changed.
var errFlushed = errors.New("its keys were flushed")

// open connects to all shards. The session ends with ctx, which ends with the first link.
func (m *Mover) open(ctx context.Context, watch bool) (*session, context.Context, error) {
	n := len(m.arcs.names)
	s := &session{Mover: m, links: make([]*link, n), settled: map[int]bool{}, bridging: make(chan struct{}, 1), flush: make(chan chan struct{})}
	for range n {
		s.dirty, s.bridges = append(s.dirty, newChanges(make(chan struct{}, 1))), append(s.bridges, newChanges(s.bridging))
	}
	ctx, s.end = context.WithCancelCause(ctx)
	addresses := m.primaries()
	group, dialing := errgroup.WithContext(ctx)
	for i, name := range m.arcs.names {
		group.Go(func() (err error) {
			var w *watching
			if watch {
				w = &watching{m.arcs.prefixes(), func(key []byte) { s.changed(i, key) }}
			}
			if s.links[i], err = dialLink(dialing, name, addresses[name], m.spec.Access, w); err != nil {
				return err
			}
			return s.links[i].alone(dialing)
		})
	}
	if err := group.Wait(); err != nil {
		s.close(err)
		return nil, nil, err
	}
	for _, l := range s.links {
		go func() {
			for {
				select {
				case <-l.lost:
					s.end(l.failure())
					return
				case <-ctx.Done():
					return
				case <-time.After(keepAlive):
				}
				_ = l.ping(ctx) // if it fails, the link is lost
			}
		}()
	}
	return s, ctx, nil
}

func (s *session) close(why error) {
	s.end(why)
	for _, l := range s.links {
		if l != nil {
			l.close(errClosed)
		}
	}
}

// changed is told by the links.
func (s *session) changed(shard int, key []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode == idle {
		return
	}
	if key == nil {
		s.end(fmt.Errorf("shard %s: %w", s.arcs.names[shard], errFlushed))
		return
	}
	m, moves := s.arcs.moves(key)
	if !moves {
		return
	}
	var err error
	switch {
	case s.mode == copying && shard == m.from:
		err = s.dirty[m.from].add(key)
	case s.mode == copying || m.onLanes:
		// A copy went, or lanes see to it.
	case shard == m.from:
		err = s.bridges[m.to].add(key)
	case shard == m.to:
		err = s.bridges[m.from].add(key)
	}
	if err != nil {
		s.end(err)
	}
}

func (s *session) become(mode mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = mode
}

// settles says whether little is left of a donor's, and so whether copying is as good as done.
func (s *session) settles(donor int, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled[donor] = yes
	n := 0
	for _, is := range s.settled {
		if is {
			n++
		}
	}
	s.done(Copy, n == len(s.arcs.from.shards))
}

// copyAll copies until stop is closed and little is left.
func (s *session) copyAll(ctx context.Context, stop <-chan struct{}) error {
	s.become(copying)
	// What a recipient has of moving keys now, nobody has kept up to date.
	if _, err := s.sweepAll(ctx, before); err != nil {
		return err
	}
	s.count.keys.Store(0)
	s.count.copied.Store(0)
	group, ctx := errgroup.WithContext(ctx)
	for _, donor := range s.arcs.from.shards {
		c := &copier{session: s, donor: donor}
		group.Go(func() error { return c.run(ctx, stop) })
	}
	return group.Wait()
}

// pingAll returns when all is told that changed before it was called.
func (s *session) pingAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range s.links {
		group.Go(func() error { return l.ping(ctx) })
	}
	return group.Wait()
}

// drain makes the recipients equal to the donors: after it, changes are for the bridge and for lanes.
func (s *session) drain(ctx context.Context) error {
	if err := s.pingAll(ctx); err != nil {
		return err
	}
	// What is told from now on happened after all copies were made.
	s.mu.Lock()
	s.mode = bridging
	left := make([][][]byte, len(s.links))
	var full error
	for _, dirty := range s.dirty {
		for _, key := range dirty.take(maxChanges) {
			if m, moves := s.arcs.moves(key); moves && m.onLanes {
				left[m.to] = append(left[m.to], key)
			} else if moves {
				full = errors.Join(full, s.bridges[m.to].add(key))
			}
		}
	}
	s.mu.Unlock()
	if full != nil {
		return full
	}
	if err := s.flushBridge(ctx); err != nil {
		return err
	}
	for to, keys := range left {
		n, err := unlinkAll(ctx, s.links[to], keys)
		s.count.unlinked.Add(n)
		if err != nil {
			return err
		}
	}
	return s.carryMarks(ctx)
}
