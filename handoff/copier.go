package handoff

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/resp"
)

const (
	// workers copy from one donor at a time, each keys of its own, so that of two copies of a key the later one counts.
	workers = 2
	// scanAtOnce is how many keys a node is asked for at once, and batchKeys and batchBytes how much is copied at once: Redis serves nobody else
	// meanwhile.
	scanAtOnce = 500
	batchKeys  = 64
	batchBytes = 1 << 20
	// maxLater bounds the keys that a worker copies later because they are cold.
	maxLater = 1 << 17
	// roundEvery is the least time between two rounds of what changed: what changes all the time is copied once a round.
	roundEvery = 20 * time.Millisecond
	// little is how long a round takes when little is left.
	little = 250 * time.Millisecond
	// lastRounds bounds the rounds that are copied once copying is to end.
	lastRounds = 10
	// fewKeys are copied in a few rounds more at the end, rather than unlinked.
	fewKeys = 16
)

// copier copies from one donor.
type copier struct {
	*session
	donor   int
	hottest int // age up to which keys are copied first
	seed    maphash.Seed
	workers [workers]worker
}

func (c *copier) from() *link { return c.links[c.donor] }

// ages are how cold keys are: seconds since their last use, or how seldom they are used.
const (
	anyAge = 1<<31 - 1
	maxLFU = 255
)

// work is keys for a worker.
type work struct {
	keys  [][]byte
	again bool // they had changed
}

// run copies all that moves from the donor, the hottest first, and then what changes, until stop is closed and little is left.
func (c *copier) run(ctx context.Context, stop <-chan struct{}) error {
	c.seed = maphash.MakeSeed()
	for i := range c.workers {
		c.workers[i] = worker{copier: c, tried: map[string]int{}}
	}
	var err error
	if c.hottest, err = c.sample(ctx); err != nil {
		return err
	}
	if err := c.pass(ctx); err != nil {
		return err
	}
	return c.rounds(ctx, stop)
}

// hotFrom is of how many keys on the hottest quarter is copied first.
const hotFrom = 20_000

// sample returns how old a key may be that is among the hottest quarter.
func (c *copier) sample(ctx context.Context) (age int, err error) {
	s, err := sampleDonor(ctx, c.arcs, c.donor, c.from())
	if err != nil {
		return 0, err
	}
	c.count.keys.Add(s.keys)
	if s.keys < hotFrom || len(s.ages) < 8 {
		return anyAge, nil
	}
	slices.Sort(s.ages)
	return s.ages[len(s.ages)/4], nil
}

// spread has the workers do what feed gives out, until feed returns and all is done.
func (c *copier) spread(ctx context.Context, feed func(give func(work) error) error) error {
	group, ctx := errgroup.WithContext(ctx)
	queues := make([]chan work, workers)
	for i := range queues {
		queues[i] = make(chan work, 4)
		w := &c.workers[i]
		group.Go(func() error {
			for job := range queues[i] {
				if err := w.copy(ctx, job); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer func() {
			for _, q := range queues {
				close(q)
			}
		}()
		return feed(func(job work) error {
			parts := make([][][]byte, workers)
			for _, k := range job.keys {
				i := maphash.Bytes(c.seed, k) % workers
				parts[i] = append(parts[i], k)
			}
			for i, keys := range parts {
				for part := range slices.Chunk(keys, batchKeys) {
					job.keys = part
					select {
					case queues[i] <- job:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			}
			return nil
		})
	})
	return group.Wait()
}

// pass copies once what moves.
func (c *copier) pass(ctx context.Context) error {
	err := c.spread(ctx, func(give func(work) error) error {
		return scan(ctx, c.from(), func(keys [][]byte) error {
			return give(work{keys: slices.DeleteFunc(keys, func(k []byte) bool {
				m, moves := c.arcs.moves(k)
				return !moves || m.from != c.donor
			})})
		})
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for i := range c.workers {
		group.Go(func() error { return c.workers[i].rest(ctx) })
	}
	return group.Wait()
}

// rounds copy what has changed.
func (c *copier) rounds(ctx context.Context, stop <-chan struct{}) error {
	dirty := c.dirty[c.donor]
	last := 0
	for {
		stopping := false
		select {
		case <-stop:
			stopping = true
			last++
		default:
		}
		began := time.Now()
		keys := dirty.take(maxChanges)
		err := c.spread(ctx, func(give func(work) error) error { return give(work{keys: keys, again: true}) })
		if err != nil {
			return err
		}
		took := time.Since(began)
		c.settles(c.donor, took < little)
		if stopping {
			if last == lastRounds || len(keys) <= fewKeys {
				return nil
			}
			continue
		}
		wait := time.NewTimer(max(roundEvery-took, 0))
		select {
		case <-wait.C:
		case <-stop:
		case <-ctx.Done():
		}
		wait.Stop()
		if len(keys) == 0 {
			select {
			case <-dirty.some:
			case <-stop:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// worker copies keys that no other worker copies.
type worker struct {
	*copier
	out   []byte
	later []entry        // of cold keys
	tried map[string]int // how often it has copied a large value
}

// entry is a key on its way.
type entry struct {
	key     []byte
	to      int
	age     int
	size    int64
	ttl     int64 // in milliseconds; 0 is none
	payload []byte
	gone    bool
	looked  time.Time
}

// copy copies keys, and removes at the recipients those that are no more.
func (w *worker) copy(ctx context.Context, job work) error {
	entries, err := w.look(ctx, job.keys)
	if err != nil {
		return err
	}
	if !job.again {
		entries = slices.DeleteFunc(entries, func(e entry) bool {
			cold := e.age > w.hottest && len(w.later) < maxLater
			if cold {
				w.later = append(w.later, e)
			}
			return cold
		})
	}
	return w.put(ctx, entries, job.again)
}

// rest copies the keys that are cold. Those that have changed meanwhile, and so may have grown, are copied when all others are.
func (w *worker) rest(ctx context.Context) error {
	slices.SortFunc(w.later, func(a, b entry) int { return cmp.Compare(a.age, b.age) })
	changed := w.dirty[w.donor]
	for part := range slices.Chunk(w.later, batchKeys) {
		part = slices.DeleteFunc(part, func(e entry) bool { return changed.has(e.key) })
		for i := range part {
			if !w.from().lfu {
				part[i].age += int(time.Since(part[i].looked).Seconds())
			}
		}
		if err := w.put(ctx, part, false); err != nil {
			return err
		}
	}
	w.later = nil
	return nil
}

// put copies keys, a batch after the other.
func (w *worker) put(ctx context.Context, entries []entry, again bool) error {
	var err error
	for len(entries) > 0 {
		n, size := 0, int64(0)
		for n < len(entries) && (n == 0 || size+entries[n].size <= batchBytes) {
			size += entries[n].size
			n++
		}
		part, large := entries[:n], size > maxWhole
		if large {
			size = chunk // it waits for the others itself
		}
		if err := w.pace.wait(ctx, n, size); err != nil {
			return err
		}
		if large {
			err = w.large(ctx, part[0])
		} else {
			err = w.whole(ctx, part)
		}
		if err != nil {
			return err
		}
		if again {
			w.count.again.Add(int64(n))
		} else {
			w.count.copied.Add(int64(n))
		}
		entries = entries[n:]
	}
	return nil
}

// look finds out how large and how old keys are.
func (w *worker) look(ctx context.Context, keys [][]byte) ([]entry, error) {
	out, lfu := w.out[:0], w.from().lfu
	for _, k := range keys {
		out = appendLook(out, k, lfu)
	}
	out = lookups.AppendMarks(out, len(keys)) // OBJECT
	w.out = out
	replies, err := w.from().do(ctx, out, 2*len(keys)+1)
	if err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(keys))
	now := time.Now()
	for i, k := range keys {
		m, moves := w.arcs.moves(k)
		if !moves {
			continue
		}
		size, there := replies[2*i].(int64)
		e := entry{key: k, to: m.to, size: size, gone: !there, age: age(replies[2*i+1], lfu), looked: now}
		entries = append(entries, e)
	}
	return entries, nil
}

// appendLook asks for a key's size and age. Neither counts as a use of the key.
func appendLook(b, key []byte, lfu bool) []byte {
	b = resp.AppendBulk(resp.AppendBulk(resp.AppendArray(b, 3), "MEMORY"), "USAGE")
	b = resp.AppendBulk(b, key)
	b = resp.AppendBulk(resp.AppendArray(b, 3), "OBJECT")
	if lfu {
		b = resp.AppendBulk(b, "FREQ")
	} else {
		b = resp.AppendBulk(b, "IDLETIME")
	}
	return resp.AppendBulk(b, key)
}

func age(reply any, lfu bool) int {
	n, _ := reply.(int64)
	if lfu {
		return maxLFU - int(min(n, maxLFU))
	}
	return int(min(n, anyAge-1))
}

// whole copies keys as Redis dumps them.
func (w *worker) whole(ctx context.Context, entries []entry) error {
	for _, e := range entries {
		w.dirty[w.donor].drop(e.key) // from now on each change counts again
	}
	if err := w.fetch(ctx, entries); err != nil {
		return err
	}
	return w.restore(ctx, entries)
}

// fetch reads values, of those that are not gone.
func (w *worker) fetch(ctx context.Context, entries []entry) error {
	out := w.out[:0]
	for _, e := range entries {
		out = resp.AppendBulk(resp.AppendBulk(resp.AppendArray(out, 2), "PTTL"), e.key)
		out = resp.AppendBulk(resp.AppendBulk(resp.AppendArray(out, 2), "DUMP"), e.key)
	}
	out = lookups.AppendMarks(out, 2*len(entries))
	w.out = out
	asked := time.Now()
	replies, err := w.from().do(ctx, out, 2*len(entries)+1)
	if err != nil {
		return err
	}
	// Time that passes until the copy is there must not make it live longer.
	passed := time.Since(asked).Milliseconds() + 1
	for i := range entries {
		e := &entries[i]
		ttl, _ := replies[2*i].(int64)
		e.payload, _ = replies[2*i+1].([]byte)
		if e.ttl = 0; ttl > 0 {
			e.ttl = ttl - passed
		}
		e.gone = e.gone || e.payload == nil || ttl == -2 || ttl == 0 || e.ttl < 0 || ttl > 0 && e.ttl == 0
	}
	return nil
}

// restore puts copies where they belong.
func (w *worker) restore(ctx context.Context, entries []entry) error {
	byRecipient := map[int][]entry{}
	for _, e := range entries {
		byRecipient[e.to] = append(byRecipient[e.to], e)
	}
	for to, part := range byRecipient {
		out, bytes := w.out[:0], int64(0)
		for i := range part {
			out = part[i].appendRestore(out, w.from().lfu)
			bytes += int64(len(part[i].payload))
		}
		w.out = out
		replies, err := w.links[to].do(ctx, out, len(part))
		if err != nil {
			return err
		}
		w.count.bytes.Add(bytes)
		var refused [][]byte
		for i, v := range replies {
			if f, failed := v.(resp.Failure); failed {
				w.problem(errors.New("shard " + w.links[to].shard + " refuses a copy: " + f.Error()))
				refused = append(refused, part[i].key)
			}
		}
		if err := w.cold(ctx, to, refused); err != nil {
			return err
		}
	}
	return nil
}

// cold leaves keys without a copy: an old one must not stay.
func (w *worker) cold(ctx context.Context, to int, keys [][]byte) error {
	w.count.cold.Add(int64(len(keys)))
	_, err := w.links[to].unlink(ctx, keys)
	return err
}

func (e *entry) appendRestore(b []byte, lfu bool) []byte {
	if e.gone {
		return resp.AppendBulk(resp.AppendBulk(resp.AppendArray(b, 2), "UNLINK"), e.key)
	}
	b = resp.AppendBulk(resp.AppendBulk(resp.AppendArray(b, 7), "RESTORE"), e.key)
	b = resp.AppendBulk(b, strconv.FormatInt(e.ttl, 10))
	b = resp.AppendBulk(resp.AppendBulk(b, e.payload), "REPLACE")
	if lfu {
		return resp.AppendBulk(resp.AppendBulk(b, "FREQ"), strconv.Itoa(maxLFU-e.age))
	}
	return resp.AppendBulk(resp.AppendBulk(b, "IDLETIME"), strconv.Itoa(e.age))
}

// counts are those of Progress.
type counts struct {
	keys, copied, bytes, again, cold, unlinked, removed, restarts atomic.Int64
}
