package regions

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
)

const (
	// maxDirect bounds what waits for one region, in bytes of keys. What is more is left to fences.
	maxDirect = 8 << 20
	// keepWithin bounds how long a write waits for its fence to be kept.
	keepWithin = 300 * time.Millisecond
	// directIdle is how long a stream of removals stays open without any.
	directIdle = 5 * time.Second
	maxUnkept  = 10_000
	// sayEvery is the least time between two notices of a shard that lacks something for the same reason.
	sayEvery = 10 * time.Second
)

// keeping is a client of a shard, for fences.
type keeping struct {
	place place
	redis *redis.Client
	shard *journal.Shard
}

// unkept is a fence that the shard does not have yet.
type unkept struct {
	shard, region string
	fence         journal.Fence
}

// direct carries to other regions what no journal took.
type direct struct {
	links *Links

	mu     sync.Mutex
	queues map[string]*queue // by region
	unkept []unkept
	said   map[string]time.Time
	count  uint64
	wake   chan struct{}
}

// queue is what one region is to be told.
type queue struct {
	items []item
	bytes int
	wake  chan struct{}
}

type item struct {
	pool, shard, fence string
	keys               [][]byte
}

func (d *direct) init(l *Links) {
	d.links, d.queues, d.said, d.wake = l, map[string]*queue{}, map[string]time.Time{}, make(chan struct{}, 1)
}

// Gap says that a shard's journal lacks something of the epoch. A fence is kept on the shard before it returns, if the shard takes it in time,
// and otherwise as soon as it does; where removed says what is missing, it is sent at once, and there is no fence in the regions
// that confirm it within 3 s. It keeps no key.
func (l *Links) Gap(shard string, epoch uint64, reason journal.Reason, removed [][]byte) {
	t := l.topology.Load()
	if t == nil {
		return
	}
	pool, now, ok := find(t, shard)
	if !ok {
		return
	}
	d := &l.direct
	d.mu.Lock()
	d.count++
	fence := journal.Fence{ID: fmt.Sprintf("%s-%d-%d", l.config.Agent, time.Now().UnixNano(), d.count), Reason: reason, Since: time.Now().UTC()}
	d.mu.Unlock()
	var all []unkept
	for region := range t.Links {
		all = append(all, unkept{shard, region, fence})
	}
	if reason == journal.Tail {
		all = append(all, unkept{shard, l.config.Region, fence})
	}
	ctx, cancel := context.WithTimeout(context.Background(), keepWithin)
	defer cancel()
	var left []unkept
	for _, u := range all {
		if now.standIn != "" || l.keeper(shard, now).Fence(ctx, u.region, u.fence) != nil {
			left = append(left, u)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if room := maxUnkept - len(d.unkept); len(left) > room {
		left = left[:room] // there are fences of the shard enough
	}
	d.unkept = append(d.unkept, left...)
	if len(removed) > 0 {
		size := 0
		keys := make([][]byte, len(removed))
		for i, k := range removed {
			keys[i] = slices.Clone(k)
			size += len(k)
		}
		for region := range t.Links {
			q := d.queue(region)
			if q.bytes+size <= maxDirect {
				q.bytes += size
				q.items = append(q.items, item{pool, shard, fence.ID, keys})
				signal(q.wake)
			}
		}
	}
	signal(d.wake)
	for region := range t.Links {
		name := shard + " " + region + " " + string(reason)
		if time.Since(d.said[name]) < sayEvery {
			continue
		}
		d.said[name] = time.Now()
		l.config.Log.Error("a journal lacks what a region should know", "shard", shard, "region", region, "reason", reason)
		l.notices.add(Notice{Shard: shard, Pool: pool, Region: region, Epoch: epoch, Reason: reason})
	}
}

func find(t *mesh.Topology, shard string) (pool string, now place, ok bool) {
	for _, p := range t.Pools {
		for _, s := range p.Members() {
			if s.Name == shard {
				return p.Name, placeOf(&p, s), true
			}
		}
	}
	return "", place{}, false
}

// keeper is the way to what is kept on a shard.
func (l *Links) keeper(shard string, now place) *journal.Shard {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.clients[shard]
	if k == nil || !reflect.DeepEqual(k.place, now) {
		if k != nil {
			k.redis.Close()
		}
		client := dialPrimary(&now)
		k = &keeping{now, client, journal.Open(client, now.epoch)}
		l.clients[shard] = k
	}
	return k.shard
}

// queue is the region's. The caller holds the lock.
func (d *direct) queue(region string) *queue {
	q := d.queues[region]
	if q == nil {
		q = &queue{wake: make(chan struct{}, 1)}
		d.queues[region] = q
		signal(d.wake)
	}
	return q
}

// run keeps what could not be kept, and sends, until ctx ends.
func (d *direct) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	begun := map[string]bool{}
	for {
		d.mu.Lock()
		for region, q := range d.queues {
			if !begun[region] {
				begun[region] = true
				work.Go(func() { d.serve(ctx, region, q) })
			}
		}
		waiting := d.unkept
		d.unkept = nil
		d.mu.Unlock()
		var left []unkept
		for _, u := range waiting {
			if !d.keep(ctx, u) {
				left = append(left, u)
			}
		}
		d.mu.Lock()
		d.unkept = append(d.unkept, left...)
		d.mu.Unlock()
		var again <-chan time.Time
		if len(left) > 0 {
			again = time.After(500 * time.Millisecond)
		}
		select {
		case <-d.wake:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// keep says whether a fence is where it belongs, or need not be kept any more.
func (d *direct) keep(ctx context.Context, u unkept) bool {
	t := d.links.topology.Load()
	_, now, ok := find(t, u.shard)
	if !ok {
		return true
	}
	if now.standIn != "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, keepWithin)
	defer cancel()
	return d.links.keeper(u.shard, now).Fence(ctx, u.region, u.fence) == nil
}

// serve sends to one region what there is.
func (d *direct) serve(ctx context.Context, region string, q *queue) {
	wait := 50 * time.Millisecond
	for tries := 0; ; tries++ {
		d.mu.Lock()
		n := len(q.items)
		d.mu.Unlock()
		if n == 0 {
			select {
			case <-q.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if d.stream(ctx, region, q, tries) == nil {
			wait = 50 * time.Millisecond
			continue
		}
		select {
		case <-time.After(wait):
			wait = min(2*wait, retryMost)
		case <-ctx.Done():
			return
		}
	}
}

// stream sends until there is nothing to be sent for a while, or something fails.
func (d *direct) stream(ctx context.Context, region string, q *queue, tries int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := d.links
	addresses := l.addresses(region)
	if len(addresses) == 0 {
		return fmt.Errorf("no agent of region %q listens for others", region)
	}
	conn, err := l.config.Dial(region, addresses[tries%len(addresses)])
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := NewLinkClient(conn).Deliver(ctx)
	if err != nil {
		return err
	}
	c := l.config
	batch := &Batch{Hello: &Hello{Region: c.Region, Agent: c.Agent, Version: c.Version, To: region}}
	for {
		d.mu.Lock()
		items := slices.Clone(q.items)
		d.mu.Unlock()
		if len(items) == 0 {
			select {
			case <-q.wake:
				continue
			case <-time.After(directIdle):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var removals [][]byte
		for _, i := range items {
			removals = append(removals, i.keys...)
		}
		batch.Sequence++
		batch.Removals, batch.Uncompressed = pack(journal.Append(nil, removals))
		stopped := time.AfterFunc(patience, cancel)
		if err := stream.Send(batch); err != nil {
			_, err = stream.Recv() // which says why
			return err
		}
		for ack := new(Ack); ack.GetApplied() < batch.GetSequence(); {
			if ack, err = stream.Recv(); err != nil {
				return err
			}
		}
		stopped.Stop()
		batch.Hello = nil
		d.confirmed(ctx, region, q, items)
	}
}

// confirmed forgets items, and the fences in whose place they were sent. A fence that stays is carried out, which harms nobody.
func (d *direct) confirmed(ctx context.Context, region string, q *queue, items []item) {
	d.mu.Lock()
	q.items = append(q.items[:0], q.items[len(items):]...)
	for _, i := range items {
		for _, k := range i.keys {
			q.bytes -= len(k)
		}
		d.unkept = slices.DeleteFunc(d.unkept, func(u unkept) bool { return u.region == region && u.fence.ID == i.fence })
	}
	d.mu.Unlock()
	t := d.links.topology.Load()
	for _, i := range items {
		if _, now, ok := find(t, i.shard); ok && now.standIn == "" {
			ctx, cancel := context.WithTimeout(ctx, keepWithin)
			_ = d.links.keeper(i.shard, now).Confirm(ctx, region, i.fence)
			cancel()
		}
	}
}
