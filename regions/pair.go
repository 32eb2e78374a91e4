package regions

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cachemesh/cachemesh/regions/journal"
)

const (
	// window is how many batches may be without an acknowledgement, and patience how long one may be.
	window   = 64
	patience = 10 * time.Second
	// saveEvery is how often a cursor is kept. What lies between is sent twice after a crash.
	saveEvery = 100 * time.Millisecond
	// fenceEvery is the least time between two fences of a shard's keys in one region: those that are asked for meanwhile come to one.
	fenceEvery = 10 * time.Second
	// fenceAgain is when a fence is asked for again that was not confirmed.
	fenceAgain = time.Minute
	// directFirst is how long removals that no journal took have to be confirmed before there is a fence in their place.
	directFirst = 3 * time.Second
	// fenceLook is how often pending fences are looked for.
	fenceLook = time.Second
	// removalsAtOnce bounds a batch's removals, in bytes.
	removalsAtOnce = 1 << 20
)

// pair is one shard's journals on their way to one region. It lives as long as the agent.
type pair struct {
	links *Links

	mu      sync.Mutex
	status  Pair
	started bool      // the region has acknowledged something of this shard
	heard   time.Time // of the last acknowledgement
	cancel  context.CancelFunc
	tries   int
}

func (p *pair) now() Pair {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *pair) set(f func(*Pair)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.status)
}

// beat takes in what the shard says of the region.
func (p *pair) beat(t *tail, paused bool, length uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.status
	s.Epoch = t.spec.place.epoch
	if s.Paused = paused; paused && p.cancel != nil {
		p.cancel()
	}
	s.Backlog = length
	if s.Cursor.Epoch == s.Epoch {
		s.Backlog = length - min(length, s.Cursor.Read)
	}
	// There is an entry a second: if none is acknowledged for longer, the lag grows.
	if age := t.now().Sub(time.UnixMilli(int64(s.Cursor.ID.Milliseconds))); s.Cursor.ID.Milliseconds > 0 && s.Backlog > 0 && age > 2*beatEvery && time.Since(p.heard) > 2*beatEvery {
		s.Lag = age
	}
}

// run sends until ctx ends.
func (p *pair) run(ctx context.Context, t *tail) {
	wait := 50 * time.Millisecond
	for ctx.Err() == nil {
		begun := time.Now()
		err := p.stream(ctx, t)
		if ctx.Err() != nil {
			return
		}
		p.mu.Lock()
		problem := status.Convert(err).Message()
		if p.status.Paused {
			problem = ""
		}
		if problem != "" && problem != p.status.Problem {
			p.links.config.Log.Warn("another region is not told of writes: they wait in the journal", "shard", p.status.Shard, "region", p.status.Region, "to", p.status.To, "reason", problem)
		}
		p.status.Problem, p.status.To = problem, ""
		p.tries++
		p.mu.Unlock()
		if time.Since(begun) > 5*time.Second {
			wait = 50 * time.Millisecond
		}
		select {
		case <-time.After(wait):
			wait = min(2*wait, retryMost)
		case <-ctx.Done():
		}
	}
}

var errPaused = errors.New("paused")

// stream sends over one stream until it ends, and returns why it did.
func (p *pair) stream(ctx context.Context, t *tail) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.cancel = cancel
	paused, region := p.status.Paused, p.status.Region
	addresses := p.links.addresses(region)
	tries := p.tries
	p.mu.Unlock()
	if paused {
		return errPaused
	}
	if len(addresses) == 0 {
		return fmt.Errorf("no agent of region %q listens for others: start some with --link", region)
	}
	h := fnv.New32a()
	h.Write([]byte(t.spec.shard))
	address := addresses[(int(h.Sum32()&0xffff)+tries)%len(addresses)]
	conn, err := p.links.config.Dial(region, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := NewLinkClient(conn).Deliver(ctx)
	if err != nil {
		return err
	}
	c := p.links.config
	f := &flow{pair: p, tail: t, stream: raw, slots: make(chan struct{}, window), saved: make(chan struct{}, 1), fenceNow: make(chan struct{}, 1), asked: map[string]time.Time{}}
	if err := f.send(&Batch{Hello: &Hello{Region: c.Region, Agent: c.Agent, Version: c.Version, To: region, Pool: t.spec.pool, Shard: t.spec.shard}}); err != nil {
		_, err = raw.Recv() // which says why
		return err
	}
	p.set(func(s *Pair) { s.To = address })
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.acknowledged(ctx) })
	group.Go(func() error { return f.read(ctx) })
	group.Go(func() error { return f.save(ctx) })
	group.Go(func() error { return f.fences(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		cancel() // Recv and Send end, too
		return nil
	})
	return group.Wait()
}

// flow is a stream at work.
type flow struct {
	pair     *pair
	tail     *tail
	stream   Link_DeliverClient
	slots    chan struct{}
	saved    chan struct{} // there is a cursor to be kept
	fenceNow chan struct{}

	sending sync.Mutex

	mu       sync.Mutex
	flights  []flight
	sequence uint64
	cursor   journal.Cursor // acknowledged
	asked    map[string]time.Time
}

// flight is a batch that is not acknowledged.
type flight struct {
	sequence uint64
	to       journal.Cursor
	ends     bool // the cursor may move to where it ends
	written  time.Time
	sent     time.Time
}

func (f *flow) send(b *Batch) error {
	f.sending.Lock()
	defer f.sending.Unlock()
	return f.stream.Send(b)
}

// read sends what the journals say.
func (f *flow) read(ctx context.Context) error {
	own := dialPrimary(&f.tail.spec.place)
	defer own.Close()
	stop := context.AfterFunc(ctx, func() { own.Close() }) // it may be waiting
	defer stop()
	f.pair.mu.Lock()
	region, read := f.pair.status.Region, f.pair.started
	f.pair.mu.Unlock()
	s := f.tail.spec
	past := !s.coming && (read || s.place.epoch > 1 || f.pair.links.known(s.shard))
	reader := journal.NewReader(f.tail.shard, own, region, past)
	for {
		b, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		if b.Gap != "" {
			f.pair.gap(f.tail, b.Gap)
			signal(f.fenceNow)
		}
		if err := f.deliver(ctx, b); err != nil {
			return err
		}
	}
}

func (p *pair) gap(t *tail, why journal.Reason) {
	p.set(func(s *Pair) { s.Gaps++ })
	p.links.config.Log.Error("a journal lacks what a region should know: its keys are removed there", "shard", t.spec.shard, "region", p.status.Region, "reason", why)
	p.links.notices.add(Notice{Shard: t.spec.shard, Pool: t.spec.pool, Region: p.status.Region, Epoch: t.spec.place.epoch, Reason: why})
}

// deliver sends a batch, in parts if it is a large one. The cursor moves to its end with the last.
func (f *flow) deliver(ctx context.Context, b journal.Batch) error {
	if b.Entries == 0 && b.From == b.To && b.Gap == "" {
		return f.overdue()
	}
	var part []journal.Removal
	size := 0
	for _, r := range b.Removals {
		if r.Op != journal.RemoveKey {
			// It takes longer than what follows may wait.
			fence := journal.Fence{ID: fmt.Sprintf("%s-%d", b.To.ID, len(part)), Reason: journal.Asked, Prefix: r.Key, Since: time.Now().UTC()}
			if r.Op == journal.RemoveAll {
				fence.Prefix = nil
			}
			if err := f.tail.shard.Fence(ctx, f.pair.status.Region, fence); err != nil {
				return err
			}
			signal(f.fenceNow)
			continue
		}
		part = append(part, r)
		if size += len(r.Key); size > removalsAtOnce {
			if err := f.part(ctx, part, b, false); err != nil {
				return err
			}
			part, size = part[:0], 0
		}
	}
	f.pair.set(func(s *Pair) { s.Entries += uint64(b.Entries) })
	return f.part(ctx, part, b, true)
}

func (f *flow) part(ctx context.Context, removals []journal.Removal, b journal.Batch, ends bool) error {
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return errPatience
	}
	batch := &Batch{}
	if len(removals) > 0 {
		batch.Removals, batch.Uncompressed = pack(journal.AppendRemovals(nil, removals))
	}
	f.mu.Lock()
	f.sequence++
	batch.Sequence = f.sequence
	f.flights = append(f.flights, flight{f.sequence, b.To, ends, b.Written, time.Now()})
	f.mu.Unlock()
	f.pair.set(func(s *Pair) {
		s.Keys += uint64(len(removals))
		s.Bytes += uint64(len(batch.Removals))
	})
	return f.send(batch)
}

var errPatience = errors.New("nothing is acknowledged: another agent is tried")

// overdue says that the oldest batch should have been acknowledged.
func (f *flow) overdue() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.flights) > 0 && time.Since(f.flights[0].sent) > patience {
		return errPatience
	}
	return nil
}

// acknowledged takes in what the other side has done.
func (f *flow) acknowledged(ctx context.Context) error {
	for {
		ack, err := f.stream.Recv()
		if err != nil {
			return err
		}
		if ids := ack.GetFenced(); len(ids) > 0 {
			if err := f.confirm(ctx, ids, ack.GetKeys()); err != nil {
				return err
			}
		}
		if ack.GetApplied() == 0 {
			continue
		}
		f.mu.Lock()
		n := 0
		for n < len(f.flights) && f.flights[n].sequence <= ack.GetApplied() {
			n++
		}
		moved, written := false, time.Time{}
		for _, l := range f.flights[:n] {
			if !l.written.IsZero() {
				written = l.written
			}
			if l.ends {
				f.cursor, moved = l.to, true
			}
		}
		f.flights = append(f.flights[:0], f.flights[n:]...)
		cursor := f.cursor
		f.mu.Unlock()
		for range n {
			<-f.slots
		}
		f.pair.mu.Lock()
		f.pair.heard = time.Now()
		f.pair.status.Problem = ""
		if moved {
			f.pair.status.Cursor = cursor
		}
		if !written.IsZero() {
			f.pair.status.Lag = max(0, f.tail.now().Sub(written))
		}
		f.pair.mu.Unlock()
		if moved {
			signal(f.saved)
		}
	}
}

// save keeps the cursor.
func (f *flow) save(ctx context.Context) error {
	for {
		select {
		case <-f.saved:
		case <-ctx.Done():
			return ctx.Err()
		}
		f.mu.Lock()
		cursor := f.cursor
		f.mu.Unlock()
		if err := f.tail.shard.Advance(ctx, f.pair.status.Region, cursor); err != nil {
			return err
		}
		f.pair.mu.Lock()
		f.pair.started = true
		f.pair.mu.Unlock()
		select {
		case <-time.After(saveEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fences asks for those that are pending.
func (f *flow) fences(ctx context.Context) error {
	tick := time.NewTicker(fenceLook)
	defer tick.Stop()
	seen := map[string]time.Time{}
	var last time.Time // when one of the shard's keys was asked for
	region := f.pair.status.Region
	for {
		all, err := f.tail.shard.Fences(ctx, region)
		if err != nil {
			return err
		}
		f.pair.set(func(s *Pair) { s.Pending = all })
		whole := &Fence{Ring: proto.CloneOf(f.tail.spec.ring)} // marshalling writes to a message, and others have this one
		var send []*Fence
		for _, fence := range all {
			if _, ok := seen[fence.ID]; !ok {
				seen[fence.ID] = time.Now()
			}
			f.mu.Lock()
			asked, ok := f.asked[fence.ID]
			f.mu.Unlock()
			switch {
			case ok && time.Since(asked) < fenceAgain:
			case fence.Reason == journal.Refused && time.Since(seen[fence.ID]) < directFirst:
			case fence.Prefix != nil:
				send = append(send, &Fence{Ids: []string{fence.ID}, Reason: string(fence.Reason), Prefix: fence.Prefix})
			case time.Since(last) >= fenceEvery && len(whole.Ids) < maxIDs:
				whole.Ids, whole.Reason = append(whole.Ids, fence.ID), string(fence.Reason)
			}
		}
		if len(whole.Ids) > 0 {
			last = time.Now()
			send = append(send, whole)
		}
		send = send[:min(len(send), maxFences/2)]
		f.mu.Lock()
		for _, fence := range send {
			for _, id := range fence.GetIds() {
				f.asked[id] = time.Now()
			}
		}
		f.mu.Unlock()
		if len(send) > 0 {
			if err := f.send(&Batch{Fences: send}); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-f.fenceNow:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// confirm forgets fences that the region has carried out.
func (f *flow) confirm(ctx context.Context, ids []string, keys uint64) error {
	region := f.pair.status.Region
	if err := f.tail.shard.Confirm(ctx, region, ids...); err != nil {
		return err
	}
	f.mu.Lock()
	since := f.asked[ids[0]]
	for _, id := range ids {
		delete(f.asked, id)
	}
	f.mu.Unlock()
	f.pair.set(func(s *Pair) {
		s.Fences++
		s.FencedKeys += keys
		s.Pending = slices.DeleteFunc(slices.Clone(s.Pending), func(f journal.Fence) bool { return slices.Contains(ids, f.ID) })
	})
	t := f.tail
	f.pair.links.notices.add(Notice{Fence: true, Shard: t.spec.shard, Pool: t.spec.pool, Region: region, Epoch: t.spec.place.epoch, Keys: keys, After: time.Since(since)})
	signal(f.fenceNow)
	return nil
}
