package handoff

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/holdoff"
)

// Coexistence is an agent's part in handoffs: who writes a moving key at one of its owners has it removed at the other one before the write is
// answered. So sidecars that go by different rings never read what another has replaced. Several goroutines may use it.
type Coexistence struct {
	log *slog.Logger

	mu     sync.Mutex
	pools  map[string]*Pair
	others map[string]*other // by shard
}

// NewCoexistence knows of no handoff before the first Update.
func NewCoexistence(log *slog.Logger) *Coexistence {
	return &Coexistence{log: log, pools: map[string]*Pair{}, others: map[string]*other{}}
}

// Update says what the region is like from now on. It does not wait.
func (c *Coexistence) Update(t *mesh.Topology) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pools, others := map[string]*Pair{}, map[string]*other{}
	for _, p := range t.Pools {
		pair, err := c.pools[p.Name].Of(p)
		if err != nil {
			c.log.Error("keys that move are not kept alike", "pool", p.Name, "error", err)
		}
		if pair == nil {
			continue
		}
		pools[p.Name] = pair
		for _, s := range p.Members() {
			o := c.others[s.Name]
			if o == nil {
				o = newOther(s.Name, c.log)
			}
			primary, _ := s.Primary()
			o.move(place{primary.Address, s.StandIn, p.Redis, p.Login})
			others[s.Name] = o
		}
	}
	for name, o := range c.others {
		if others[name] == nil {
			o.end()
		}
	}
	c.pools, c.others = pools, others
}

// Pair is the pool's; nil if agents are not to coexist.
func (c *Coexistence) Pair(pool string) *Pair {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pools[pool]
}

// of are the shards of a pair.
func (c *Coexistence) of(p *Pair) (all map[string]*other) {
	if p == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all = map[string]*other{}
	for _, name := range p.arcs.names {
		if o := c.others[name]; o != nil {
			all[name] = o
		}
	}
	return all
}

// Kept are the keys of a pool that were written at one owner and are still to be removed at the other, for longer than a write waits.
func (c *Coexistence) Kept(pool string) (n int) {
	for _, o := range c.of(c.Pair(pool)) {
		n += o.kept()
	}
	return n
}

// Close ends the work. What is not removed is not.
func (c *Coexistence) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.others {
		o.end()
	}
	c.pools, c.others = map[string]*Pair{}, map[string]*other{}
}

// patience is how long a write waits for the other owner. It is then answered all the same, and the key is kept until it is removed.
const patience = 100 * time.Millisecond

// Removal is a key that was written.
type Removal struct {
	Key []byte
	// Hold is how long the other owner is to hold it, too: it was removed. 0 is not at all.
	Hold time.Duration
}

// Unlink removes keys, which were written at a shard, at the other shards that own them, and returns when they are gone or are kept. A key
// of one owner is passed over. It keeps none of the caller's memory.
func (c *Coexistence) Unlink(p *Pair, here string, removals []Removal) {
	if p == nil {
		return
	}
	others := c.of(p)
	parts := map[*other][]Removal{}
	for _, r := range removals {
		m, moves := p.arcs.moves(r.Key)
		if !moves {
			continue
		}
		for _, i := range []int{m.from, m.to} {
			owner := p.arcs.names[i]
			if o := others[owner]; o != nil && owner != here {
				parts[o] = append(parts[o], r)
			}
		}
	}
	if len(parts) == 0 {
		return
	}
	var tickets []ticket
	for o, part := range parts {
		tickets = append(tickets, o.submit(part))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, t := range tickets {
		t.wait(ctx)
	}
}

// maxKept bounds the keys that wait for a shard, but for those of writes that are on their way.
const maxKept = 200_000

// Full says why no key that moves may be written now.
func (c *Coexistence) Full(p *Pair) error {
	for _, o := range c.of(p) {
		if o.kept() >= maxKept {
			return fmt.Errorf("keys that move wait to be removed from shard %s, which does not answer, and there are too many", o.shard)
		}
	}
	return nil
}

// place is where an other is.
type place struct {
	address string
	standIn mesh.StandIn
	access  *mesh.RedisAccess
	login   uint64
}

// other removes keys at one shard, however often it must try.
type other struct {
	shard string
	log   *slog.Logger
	ctx   context.Context
	end   context.CancelFunc
	wake  chan struct{}

	mu      sync.Mutex
	place   place
	pending map[string]time.Duration // keys, and for how long they are held
	sending int                      // keys that are on their way
	last    uint64                   // number of the last submission
	late    uint64                   // of the last one that was not waited for to its end
	done    uint64                   // all until this one are done
	more    chan struct{}            // closed when done grows
}

func newOther(shard string, log *slog.Logger) *other {
	o := &other{shard: shard, log: log, wake: make(chan struct{}, 1), pending: map[string]time.Duration{}, more: make(chan struct{})}
	o.ctx, o.end = context.WithCancel(context.Background())
	go o.run()
	return o
}

func (o *other) move(p place) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !reflect.DeepEqual(p, o.place) {
		o.place = p
		o.signal()
	}
}

func (o *other) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// ticket is for a submission.
type ticket struct {
	*other
	number uint64
}

// submit has keys removed. A key that waits already waits once.
func (o *other) submit(removals []Removal) ticket {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range removals {
		o.pending[string(r.Key)] = max(o.pending[string(r.Key)], r.Hold)
	}
	o.last++
	o.signal()
	return ticket{o, o.last}
}

// wait waits until the ticket's keys are removed, or ctx ends: then they are kept.
func (t ticket) wait(ctx context.Context) {
	for {
		t.mu.Lock()
		done, more := t.done >= t.number, t.more
		if !done && ctx.Err() != nil {
			t.late = max(t.late, t.number)
			done = true
		}
		t.mu.Unlock()
		if done {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
		case <-t.ctx.Done():
			return // nothing moves any more
		}
	}
}

func (o *other) kept() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done >= o.late {
		return 0
	}
	return len(o.pending) + o.sending
}

// tryEvery is how soon what failed is tried again.
const tryEvery = 20 * time.Millisecond

func (o *other) run() {
	var l *link
	var at place
	told := false
	defer func() {
		if l != nil {
			l.close(errClosed)
		}
	}()
	for {
		select {
		case <-o.wake:
		case <-o.ctx.Done():
			return
		}
		o.mu.Lock()
		keys, number, now := o.pending, o.last, o.place
		o.pending, o.sending = map[string]time.Duration{}, len(keys)
		o.mu.Unlock()
		if l != nil && !reflect.DeepEqual(at, now) {
			l.close(errClosed)
			l = nil
		}
		var err error
		switch {
		case len(keys) == 0:
		case now.standIn == mesh.Null:
			// Nothing is there, and what comes back is emptied first.
		default:
			if l == nil {
				at = now
				l, err = dialWriter(o.ctx, o.shard, now)
			}
			if err == nil {
				err = remove(o.ctx, l, keys)
			}
		}
		o.mu.Lock()
		o.sending = 0
		if err == nil {
			o.done = number
			close(o.more)
			o.more = make(chan struct{})
		} else {
			for k, hold := range keys {
				o.pending[k] = max(o.pending[k], hold)
			}
		}
		o.mu.Unlock()
		if err == nil {
			told = false
			continue
		}
		if l != nil {
			l.close(errClosed)
			l = nil
		}
		if !told && o.ctx.Err() == nil {
			told = true
			o.log.Warn("keys that move wait to be removed at their other owner", "shard", o.shard, "error", err)
		}
		if sleep(o.ctx, tryEvery) != nil {
			return
		}
		o.signal()
	}
}

// remove removes keys, and has those held that are to be.
func remove(ctx context.Context, l *link, keys map[string]time.Duration) error {
	for part := range slices.Chunk(slices.Collect(maps.Keys(keys)), unlinkAtOnce) {
		names := make([][]byte, len(part))
		note := holdoff.Note{}
		for i, k := range part {
			names[i] = []byte(k)
			if hold := keys[k]; hold > 0 {
				note.Removed = append(note.Removed, holdoff.Mark{Key: names[i], For: hold})
			}
		}
		if !note.Empty() {
			if _, err := ask(ctx, l, note.Append(nil)); err != nil {
				return err
			}
		}
		if _, err := l.unlink(ctx, names); err != nil {
			return err
		}
	}
	return nil
}
