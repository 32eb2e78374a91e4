package regions

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
)

// Config is what an agent's Links are.
type Config struct {
	Region, Agent, Version string
	// Dial opens a connection to an agent of another region. It does not wait until there is one.
	Dial    func(region, address string) (*grpc.ClientConn, error)
	Applier *Applier // for fences at home
	Log     *slog.Logger
}

// Links follow the journals of those shards that are this agent's to follow, and send what they say to the other regions.
type Links struct {
	config   Config
	topology atomic.Pointer[mesh.Topology]
	wake     chan struct{}
	notices  notices
	direct   direct

	mu       sync.Mutex
	followed map[string]bool     // shards, and whether a region has read their journals before
	pairs    map[pairName]*pair  // also of shards that were followed once
	clients  map[string]*keeping // of Gap, by shard
}

type pairName struct{ shard, region string }

// NewLinks follows nothing before Run, Update and Follow.
func NewLinks(c Config) *Links {
	l := &Links{config: c, wake: make(chan struct{}, 1), followed: map[string]bool{}, pairs: map[pairName]*pair{}, clients: map[string]*keeping{}}
	l.direct.init(l)
	return l
}

// Update says what the region is like from now on. It does not wait.
func (l *Links) Update(t *mesh.Topology) {
	l.topology.Store(t)
	signal(l.wake)
}

// Follow says which shards' journals are this agent's to follow. The value says that a region has read the shard's journals before.
func (l *Links) Follow(shards map[string]bool) {
	l.mu.Lock()
	l.followed = maps.Clone(shards)
	l.mu.Unlock()
	signal(l.wake)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// spec is all that makes a tail what it is. Another spec is another tail.
type spec struct {
	pool, shard string
	place       place
	ring        *Ring
	regions     []string
	coming      bool // to the ring: nothing has been written there that regions should have heard of
}

func (s spec) equal(t spec) bool {
	return s.pool == t.pool && s.shard == t.shard && reflect.DeepEqual(s.place, t.place) && proto.Equal(s.ring, t.ring) && slices.Equal(s.regions, t.regions) && s.coming == t.coming
}

// running is a tail at work.
type running struct {
	spec spec
	stop context.CancelFunc
	done chan struct{}
}

// Run follows and sends until ctx ends.
func (l *Links) Run(ctx context.Context) error {
	tails := map[string]*running{}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { l.direct.run(ctx) })
	for {
		wanted := l.wanted()
		for shard, r := range tails {
			if s, ok := wanted[shard]; !ok || !s.equal(r.spec) {
				r.stop()
				<-r.done
				delete(tails, shard)
			}
		}
		for shard, s := range wanted {
			if tails[shard] != nil {
				continue
			}
			inner, stop := context.WithCancel(ctx)
			r := &running{s, stop, make(chan struct{})}
			tails[shard] = r
			t := newTail(l, s)
			work.Go(func() {
				defer close(r.done)
				defer stop()
				t.run(inner)
			})
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// Close lets go of what Gap needs. Call it after Run.
func (l *Links) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.clients {
		k.redis.Close()
	}
}

// wanted are the tails that there should be, by shard.
func (l *Links) wanted() map[string]spec {
	all := map[string]spec{}
	t := l.topology.Load()
	if t == nil {
		return all
	}
	others := slices.Sorted(maps.Keys(t.Links))
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range t.Pools {
		p := &t.Pools[i]
		if !coherent(p) {
			continue
		}
		for n, s := range p.Members() {
			if _, ok := l.followed[s.Name]; !ok {
				continue
			}
			all[s.Name] = spec{pool: p.Name, shard: s.Name, ring: tellRing(p, n), regions: others, place: placeOf(p, s), coming: p.Handoff.Adds(s.Name)}
		}
	}
	return all
}

// coherent says whether other regions learn of writes of the pool.
func coherent(p *mesh.Pool) bool {
	return slices.ContainsFunc(p.Routes, func(r mesh.Route) bool { return r.Coherence == mesh.Invalidate })
}

// tellRing is a pool's ring, and one of its shards. While keys move it is a ring of one: what a shard's journal lacks may be about keys that the
// shard has no more, and a fence is then of all keys.
func tellRing(p *mesh.Pool, shard int) *Ring {
	if p.Handoff != nil {
		return &Ring{Algorithm: string(p.Hashing.Algorithm), Size: p.Hashing.Size, Hosts: []*Host{{Name: p.Name, Weight: 1}}}
	}
	r := &Ring{Algorithm: string(p.Hashing.Algorithm), Size: p.Hashing.Size, Shard: uint32(shard)}
	for _, s := range p.Shards {
		r.Hosts = append(r.Hosts, &Host{Name: s.Name, Weight: s.Weight})
	}
	return r
}

// known says whether a region has read a shard's journals before, as far as the control plane knows.
func (l *Links) known(shard string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.followed[shard]
}

// addresses are where agents of a region listen.
func (l *Links) addresses(region string) []string {
	if t := l.topology.Load(); t != nil {
		return t.Links[region]
	}
	return nil
}

// pair is the shard's and region's, made if there is none.
func (l *Links) pair(pool, shard, region string) *pair {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := pairName{shard, region}
	p := l.pairs[name]
	if p == nil {
		p = &pair{links: l, status: Pair{Shard: shard, Region: region}}
		l.pairs[name] = p
	}
	p.mu.Lock()
	p.status.Pool = pool
	p.mu.Unlock()
	return p
}

// Pair is how one shard's journals fare on their way to one region.
type Pair struct {
	Shard, Pool, Region string
	Epoch               uint64
	To                  string // IP:port of the other region's agent; "" while there is none
	Paused              bool
	Problem             string // why nothing is acknowledged; "" if something is
	Cursor              journal.Cursor
	Lag                 time.Duration   // from when the last entry was written until it was acknowledged, or has not been
	Backlog             uint64          // entries of the current journal that are not acknowledged
	Pending             []journal.Fence // that are not carried out, the oldest first
	Gaps, Fences        uint64          // since the agent began
	FencedKeys          uint64
	Entries, Keys       uint64 // sent
	Bytes               uint64 // of removals, as they were sent
}

// Pairs are those of the shards that this agent follows, by shard and region.
func (l *Links) Pairs() []Pair {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []Pair{}
	for name, p := range l.pairs {
		if _, ok := l.followed[name.shard]; ok {
			all = append(all, p.now())
		}
	}
	slices.SortFunc(all, func(a, b Pair) int { return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Region, b.Region)) })
	return all
}

// Notice tells of a gap, or of a fence that was carried out.
type Notice struct {
	ID          uint64 // grows by one within an agent's life
	Fence       bool
	Time        time.Time
	Shard, Pool string
	Region      string // that lacks something, or removed it
	Epoch       uint64
	Reason      journal.Reason
	Keys        uint64        // removed
	After       time.Duration // of a fence: since the agent learned of it
}

// maxNotices is how many are remembered.
const maxNotices = 1000

type notices struct {
	mu    sync.Mutex
	last  uint64
	all   []Notice
	added func()
}

func (n *notices) add(e Notice) {
	n.mu.Lock()
	n.last++
	e.ID, e.Time = n.last, time.Now()
	if len(n.all) >= maxNotices {
		n.all = append(n.all[:0], n.all[maxNotices/4:]...)
	}
	n.all = append(n.all, e)
	added := n.added
	n.mu.Unlock()
	if added != nil {
		added()
	}
}

// Notices are those after an ID, the oldest first.
func (l *Links) Notices(after uint64) []Notice {
	l.notices.mu.Lock()
	defer l.notices.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.notices.all, after+1, func(e Notice, id uint64) int { return cmp.Compare(e.ID, id) })
	return slices.Clone(l.notices.all[i:])
}

// OnNotice has f called after each notice. Call it before Run.
func (l *Links) OnNotice(f func()) { l.notices.added = f }
