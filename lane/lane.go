// Package lane carries the writes of one shard from a sidecar's Envoy to the shard's primary, and writes into the shard's journal what
// other regions must learn, so that a write and its entry are one atomic unit.
//
// Connections bring pipelined commands. What they have brought while the batch before was at the shard is the next batch: a transaction with
// one entry for all, or a plain pipeline if nothing must be journaled. Replies come in order, and a command that Redis refuses fails alone. A
// batch whose fate is not known is answered with an error and never sent again; one that certainly did nothing waits for a primary
// that takes it, within the Timeout.
//
// The package decides no shard: Envoy does. It reads no journal and knows no other region. The agent calls it, with one Server a shard.
package lane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
)

// Config is what stays of a Server's.
type Config struct {
	Shard string
	// Timeout is how long a command may take before it is answered with an error (default 400 ms). It should be less than Envoy's op_timeout.
	Timeout time.Duration
	// Writer is the name of this life of the agent among the shard's writers, see regions/writers. Without it the Server does not join them.
	Writer string
	// Encode appends a journal's entry to dst, which says that the keys are to be removed. It is called by several goroutines.
	Encode func(dst []byte, removed [][]byte) []byte
	// Gap is told what the journal does not say, before the write is answered. It is called by several goroutines, and must not keep the keys.
	Gap func(Gap)
	// Both removes keys of a View's Pair at their other owner.
	Both *handoff.Coexistence
	Log  *slog.Logger
}

// View is what a Server must know of its shard and pool, and what changes.
type View struct {
	Address string // IP:port of the primary
	StandIn mesh.StandIn
	Epoch   uint64
	Access  *mesh.RedisAccess
	Routes  []mesh.Route // of the pool
	// ShardOf names the shard that has a key, "" for none. Keys of a transaction or a script must have one in common. Without it they are not checked.
	ShardOf func(key []byte) string
	// Pair knows the keys that move, which are removed at their other owner before a write of them is answered; nil while none moves.
	Pair *handoff.Pair
	// Login is that of the lane's connections to the shard. A shard may want a later one.
	Login uint64
}

// Gap is what a journal lacks. Other regions may have stale values of the keys, or if there are none, of any of the shard's.
type Gap struct {
	Epoch   uint64
	Reason  GapReason
	Removed [][]byte
}

// GapReason says why a journal lacks something.
type GapReason string

const (
	GapLost    GapReason = "lost"    // there is no journal any more: it was evicted or flushed
	GapRefused GapReason = "refused" // the shard took the removal, but not the entry: its memory is full
	GapNull    GapReason = "null"    // no node of the shard is left
	GapTail    GapReason = "tail"    // a primary was lost, and the lane does not remember all that it had written last
)

// Stats count since the Server began.
type Stats struct {
	Batches, Commands, Entries uint64
	Failed                     uint64 // batches that were answered with an error of the lane's
	Unknown                    uint64 // those of them whose writes may have taken effect
	Unreplicated               uint64 // writes that no replica confirmed in time
	Gaps                       uint64
	Suspect                    uint64 // writes of keys that were in a hold-off
	Again                      uint64 // keys that were journaled once more at its end
	Unheld                     uint64 // batches of which the shard did not note what is in a hold-off
	Connections                int
	Tail                       int // bytes of keys that no replica has confirmed
}

// maxBuffers bounds the memory that a lane's connections take for commands that are not complete, beyond their first buffers.
const maxBuffers = 64 << 20

// maxConnections bounds a lane's: Envoy has one a worker and listener, and one a client with a transaction.
const maxConnections = 4096

// Server is the lane of one shard.
type Server struct {
	config    Config
	target    atomic.Pointer[target]
	policy    atomic.Pointer[policy]
	executors [2]*executor // for RESP2 and RESP3
	buffers   atomic.Int64
	ahead     atomic.Int64 // how far Redis's clock is ahead, in nanoseconds
	began     time.Time
	clock     atomic.Int64  // Redis's when the Server began, in nanoseconds since 1970
	streams   chan struct{} // a token for each large value that may be on its way
	unsettled atomic.Int64
	running   sync.WaitGroup
	serving   sync.WaitGroup // executors
	ended     chan struct{}

	batches, commands, entries, failures, unknown, unreplicated, gaps, suspect, again, unheld atomic.Uint64

	mu        sync.Mutex
	known     identity // of the primary, as last seen
	listeners []net.Listener
	conns     map[*conn]bool
	empty     chan struct{} // closed when draining and no connection is left
	draining  bool
	closed    bool
}

// target is a View and what belongs to it.
type target struct {
	View
	heldUntil atomic.Int64  // when patience with a hold ends, in Unix nanoseconds; 0 until something waits
	changed   chan struct{} // closed when another View comes
}

// New returns a Server that serves no connection yet. A View with no Address and no StandIn is of a shard of which nothing is known yet:
// commands wait for an Update.
func New(c Config, v View) *Server {
	c.Timeout = cmp.Or(c.Timeout, 400*time.Millisecond)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: c, began: time.Now(), conns: map[*conn]bool{}, empty: make(chan struct{}), ended: make(chan struct{}), streams: make(chan struct{}, 2)}
	s.target.Store(&target{View: v, changed: make(chan struct{})})
	s.policy.Store(newPolicy(c.Shard, v))
	for i := range s.executors {
		s.executors[i] = newExecutor(s, i == 1)
		s.serving.Go(s.executors[i].run)
	}
	s.serving.Go(s.tick)
	return s
}

// Update says what is true of the shard from now on. Batches that are on their way end as they began.
func (s *Server) Update(v View) {
	s.mu.Lock()
	before := s.target.Swap(&target{View: v, changed: make(chan struct{})})
	policy := s.policy.Swap(newPolicy(s.config.Shard, v))
	s.mu.Unlock()
	close(before.changed)
	s.wake()
	if before.Login != v.Login || before.Pair != v.Pair {
		s.settle(policy)
	}
}

// wake has the executors keep the house.
func (s *Server) wake() {
	for _, e := range s.executors {
		e.mu.Lock()
		e.tick = true
		e.work.Signal()
		e.mu.Unlock()
	}
}

// Serve accepts connections until the listener or the Server is closed.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed || s.draining {
		s.mu.Unlock()
		l.Close()
		return net.ErrClosed
	}
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	for {
		n, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			s.config.Log.Error("a lane accepts no connection", "shard", s.config.Shard, "error", err)
			select {
			case <-s.ended:
				return net.ErrClosed
			case <-time.After(100 * time.Millisecond): // file descriptors may be free again
			}
			continue
		}
		s.open(n)
	}
}

func (s *Server) open(n net.Conn) {
	unix, ok := n.(*net.UnixConn)
	if !ok {
		n.Close()
		return
	}
	c, err := newConn(s, unix)
	if err != nil {
		s.config.Log.Error("a lane cannot serve a connection", "shard", s.config.Shard, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= maxConnections {
		c.peer.Close()
		return
	}
	s.conns[c] = true
	s.running.Go(c.serve)
}

func (s *Server) gone(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.draining && len(s.conns) == 0 && !s.closed {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// Drain takes no more connections and serves those that there are until their peers have closed them, or ctx ends.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	for _, l := range s.listeners {
		l.Close()
	}
	left := len(s.conns)
	s.mu.Unlock()
	if left == 0 {
		return nil
	}
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends the connections, each after what it has brought is answered.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	close(s.ended)
	for _, l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.peer.closeRead() // its reader ends, then what is outstanding, then it
	}
	s.mu.Unlock()
	s.running.Wait()
	for _, e := range s.executors {
		e.mu.Lock()
		e.closing = true
		e.work.Signal()
		e.mu.Unlock()
	}
	s.serving.Wait()
}

// housekeeping is how often lanes look what replicas have, while there is something that they may not have, and whether the primary is another.
const housekeeping = time.Second

func (s *Server) tick() {
	t := time.NewTicker(housekeeping)
	defer t.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-t.C:
		}
		due := len(s.policy.Load().holds) > 0
		for _, e := range s.executors {
			e.mu.Lock()
			e.tick, e.due = true, e.due || due
			e.work.Signal()
			e.mu.Unlock()
		}
	}
}

// pause waits a moment, or until something about the shard changes.
func (s *Server) pause(deadline time.Time) {
	wait := min(20*time.Millisecond, time.Until(deadline))
	if wait <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-s.target.Load().changed:
	case <-t.C:
	}
}

// knownPolicy is the policy, for which it waits while a new Server knows nothing of its shard yet.
func (s *Server) knownPolicy() *policy {
	deadline := time.Now().Add(s.config.Timeout)
	for {
		if p := s.policy.Load(); p.known || !time.Now().Before(deadline) {
			return p
		}
		s.pause(deadline)
	}
}

// holdAtMost is less than a command may take: what is held then goes to the node before.
const holdAtMost = 300 * time.Millisecond

// held says whether commands are to wait longer for the end of a switch.
func (s *Server) held(t *target) bool {
	now := time.Now()
	t.heldUntil.CompareAndSwap(0, now.Add(holdAtMost).UnixNano())
	return now.UnixNano() < t.heldUntil.Load()
}

// recognize refuses a primary that was another process when it was last seen in its epoch: it restarted, and is empty.
func (s *Server) recognize(id identity) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := s.known.epoch == id.epoch && s.known.address == id.address
	if same && id.epoch > 0 && s.known.runID != id.runID {
		return fmt.Errorf("%w: the node restarted", errNotYet)
	}
	if id.epoch >= s.known.epoch {
		s.known = id
	}
	return nil
}

func (s *Server) gap(g Gap) {
	s.gaps.Add(1)
	if s.config.Gap != nil {
		s.config.Gap(g)
	}
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	connections := len(s.conns)
	s.mu.Unlock()
	stats := Stats{
		Batches: s.batches.Load(), Commands: s.commands.Load(), Entries: s.entries.Load(), Failed: s.failures.Load(),
		Unknown: s.unknown.Load(), Unreplicated: s.unreplicated.Load(), Gaps: s.gaps.Load(), Connections: connections,
		Suspect: s.suspect.Load(), Again: s.again.Load(), Unheld: s.unheld.Load(),
	}
	for _, e := range s.executors {
		stats.Tail += e.tail.size()
	}
	return stats
}
