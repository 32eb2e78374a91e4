package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	// lookAtMover is how often a mover is asked how far it is.
	lookAtMover = 50 * time.Millisecond
	// moveAgain is how long after a move that failed it is tried again.
	moveAgain = time.Second
)

// movers runs a handoff.Mover for each pool whose handoff this control plane leads. It does what moves say and decides nothing.
type movers struct {
	// spec is what a move is about, if all shards have primaries.
	spec func(shards.Move) (told, bool)
	// fence keeps lanes with an earlier login from writing to a node.
	fence func(ctx context.Context, address string, login uint64) error
	// moved is told how moves fare.
	moved func(shards.Move, error)
	log   *slog.Logger

	running map[string]*running // by pool; follow's own

	mu    sync.Mutex
	shown map[string]*running // by pool
}

// running is one mover at work. All but its channel and what it shows is its own goroutine's.
type running struct {
	move  shards.Move // that it was told of last; follow's own
	moves chan told   // holds the newest
	end   context.CancelFunc
	ended chan struct{}
	shows atomic.Pointer[handoff.Progress]
}

// told is a move with the rings as they are now.
type told struct {
	shards.Move
	spec    handoff.Spec
	members []mesh.Shard // of the pool
	login   uint64       // of its lanes
}

func newMovers(log *slog.Logger) *movers {
	return &movers{log: log, running: map[string]*running{}, shown: map[string]*running{}}
}

// follow has just these moves under way. It does not wait.
func (m *movers) follow(ctx context.Context, work *sync.WaitGroup, moves []shards.Move) {
	wanted := map[string]shards.Move{}
	for _, move := range moves {
		wanted[move.Pool] = move
	}
	for pool, r := range m.running {
		if move, ok := wanted[pool]; !ok || move.Handoff != r.move.Handoff {
			r.end()
			select {
			case <-r.ended:
				delete(m.running, pool)
				m.show(pool, nil)
			default:
			}
		}
	}
	for pool, move := range wanted {
		r := m.running[pool]
		if r != nil && (r.move == move || r.move.Handoff != move.Handoff) {
			continue
		}
		now, ok := m.spec(move)
		if !ok {
			continue
		}
		if r == nil {
			begun, end := context.WithCancel(ctx)
			r = &running{moves: make(chan told, 1), end: end, ended: make(chan struct{})}
			m.running[pool] = r
			m.show(pool, r)
			work.Go(func() {
				defer close(r.ended)
				m.run(begun, r)
			})
		}
		r.move = move
		select {
		case <-r.moves:
		default:
		}
		r.moves <- now
	}
}

func (m *movers) show(pool string, r *running) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r == nil {
		delete(m.shown, pool)
		return
	}
	m.shown[pool] = r
}

// progress is how far a pool's mover is; nil if there is none here.
func (m *movers) progress(pool string) *handoff.Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.shown[pool]; r != nil {
		return r.shows.Load()
	}
	return nil
}

// run does moves until ctx ends.
func (m *movers) run(ctx context.Context, r *running) {
	var first told
	select {
	case first = <-r.moves:
	case <-ctx.Done():
		return
	}
	mover, err := handoff.New(first.spec)
	if err != nil {
		m.moved(first.Move, err)
		<-ctx.Done()
		return
	}
	if first.Step != mesh.Fencing { // late agents are fenced before it drains; until then it copies
		mover.Set(taskOf(first.Step))
	}
	var working sync.WaitGroup
	defer working.Wait()
	working.Go(func() { mover.Run(ctx) })
	for now, more := first, true; more; now, more = m.do(ctx, r, mover, now) {
		mover.Update(now.members)
	}
}

// do works on a move until there is another, which it returns, or ctx ends.
func (m *movers) do(ctx context.Context, r *running, mover *handoff.Mover, now told) (next told, more bool) {
	ticker := time.NewTicker(lookAtMover)
	defer ticker.Stop()
	ready, done, problem := false, false, ""
	var again time.Time
	for {
		if !ready && !time.Now().Before(again) {
			if err := m.fenceLate(ctx, now); err != nil {
				again = time.Now().Add(moveAgain)
				m.tell(now.Move, err, &problem)
			} else {
				ready = true
				mover.Set(taskOf(now.Step))
			}
		}
		p := mover.Progress()
		r.shows.Store(&p)
		if ready && p.Task == taskOf(now.Step) {
			switch {
			case p.Done && !done:
				done, problem = true, ""
				m.log.Info("a step of a handoff is done", "pool", now.Move.Pool, "handoff", now.Handoff, "step", now.Step, "keys", p.Copied, "bytes", p.Bytes, "cold", p.Cold)
				m.moved(now.Move, nil)
			case !p.Done && p.Problem != "":
				m.tell(now.Move, errors.New(p.Problem), &problem)
			}
		}
		select {
		case <-ctx.Done():
			return next, false
		case next = <-r.moves:
			return next, true
		case <-ticker.C:
		}
	}
}

// tell passes a problem on, and logs it once.
func (m *movers) tell(move shards.Move, err error, last *string) {
	if text := err.Error(); text != *last {
		*last = text
		m.log.Warn("a handoff does not get on", "pool", move.Pool, "handoff", move.Handoff, "step", move.Step, "error", err)
	}
	m.moved(move, err)
}

// taskOf is what a mover does in a step of a handoff.
func taskOf(step mesh.HandoffStep) handoff.Task {
	switch step {
	case mesh.Fencing:
		return handoff.Drain
	case mesh.Flipping:
		return handoff.Bridge
	case mesh.Purging:
		return handoff.Purge
	case mesh.Undoing:
		return handoff.Undo
	}
	return handoff.Copy
}

// fenceLate keeps agents that have not acknowledged that they are to log in anew from writing. Who is promoted later has it with its data,
// unless it began empty.
func (m *movers) fenceLate(ctx context.Context, now told) error {
	if now.login == 0 || now.Step == mesh.Copying || now.Step == mesh.Preparing {
		return nil
	}
	for _, s := range now.members {
		if primary, ok := s.Primary(); ok {
			if err := m.fence(ctx, primary.Address, now.login); err != nil {
				return fmt.Errorf("shard %s: %w", s.Name, err)
			}
		}
	}
	return nil
}

// spec is what a move is about now.
func (m *manager) spec(move shards.Move) (now told, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, _ := m.machine.State()
	t, _ := shards.Topology(m.base, state)
	for _, p := range t.Pools {
		if p.Name != move.Pool {
			continue
		}
		s := handoff.Spec{Pool: p.Name, Access: p.Redis, Hashing: p.Hashing, From: p.Shards, To: p.Shards, Routes: p.Routes, OnLanes: t.OnLanes}
		if h := p.Handoff; h != nil && h.ID == move.Handoff {
			l := state.Handoffs[p.Name].Limits
			s.From, s.To = h.From, h.To
			s.Limits = handoff.Limits{KeysPerSecond: l.KeysPerSecond, BytesPerSecond: l.BytesPerSecond, DonorCPU: l.DonorCPU}
		} else if move.Handoff != 0 {
			return now, false
		}
		return told{move, s, p.Members(), p.Login}, true
	}
	return now, false
}

// fence keeps lanes with an earlier login from writing to a node.
func (m *manager) fence(ctx context.Context, address string, login uint64) error {
	ctx, cancel := context.WithTimeout(ctx, actionTimeout)
	defer cancel()
	return m.client(address).Fence(ctx, login)
}

// clearTimeout bounds how long a node is cleared that is to be promoted.
const clearTimeout = 30 * time.Second

// clear removes the keys on a node that its pool's handoff moves.
func (m *manager) clear(ctx context.Context, a shards.Action) error {
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	m.mu.Lock()
	pool := m.pools[a.Shard].Name
	state, _ := m.machine.State()
	m.mu.Unlock()
	now, ok := m.spec(shards.Move{Pool: pool, Handoff: state.Handoffs[pool].ID})
	if !ok || now.Handoff == 0 {
		return fmt.Errorf("pool %q is in no handoff any more", pool)
	}
	keys, err := handoff.Clear(ctx, now.spec, a.Shard, a.Node)
	if err == nil {
		m.log.Info("a node that is promoted has none of the keys that move", "shard", a.Shard, "node", a.Node, "removed", keys)
	}
	return err
}

// unread takes in of which pools a shard that leaves has a journal that is not read to its end.
func (m *manager) unread(pools map[string]string) {
	m.with(func(time.Time) { m.machine.Unread(pools) })
}

// moved takes in how a move fares.
func (m *manager) moved(move shards.Move, err error) {
	m.with(func(time.Time) { m.machine.Moved(move, err) })
	signal(m.wake)
}

// estimate says what a handoff would move.
func (m *manager) estimate(ctx context.Context, pool mesh.Pool, to []mesh.Shard, t mesh.Topology) (handoff.Plan, error) {
	plan, err := handoff.Estimate(ctx, handoff.Spec{Pool: pool.Name, Access: pool.Redis, Hashing: pool.Hashing, From: pool.Shards, To: to, Routes: pool.Routes, OnLanes: t.OnLanes})
	if err != nil {
		return plan, fmt.Errorf("pool %q: %w", pool.Name, err)
	}
	return plan, nil
}
