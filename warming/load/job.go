package load

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/queue"
	"github.com/cachemesh/cachemesh/warming/source"
)

const (
	// idle is how long an agent waits when there is nothing for it to do in a run.
	idle = 500 * time.Millisecond
	// patience is how long the shards of a chunk may take none of its keys.
	patience = 30 * time.Second
	// A source that fails is asked again after a while, at most so long.
	againFirst = 200 * time.Millisecond
	againMost  = 8 * time.Second
	// tries is how often a source is asked about the same keys that it does not understand, or that an origin gives no answer about.
	tries       = 3
	triesOrigin = 6
)

// job is a run as this agent works on it.
type job struct {
	loader *Loader
	r      warming.Run
	queue  *queue.Queue
	pace   pace          // of keys that are loaded
	origin pace          // of keys that an origin is asked for
	atOnce int           // keys that go to a shard at once
	slots  chan *hands   // of who works on no chunk
	more   chan struct{} // there may be something to claim
	log    *slog.Logger

	mu      sync.Mutex
	working map[string]context.CancelFunc // chunks
	problem string
}

func newJob(l *Loader, r warming.Run) *job {
	j := &job{loader: l, r: r, queue: queue.New(r.Pool, r.ID, l.at.Load), slots: make(chan *hands, r.Budget.Concurrency), more: make(chan struct{}, 1), working: map[string]context.CancelFunc{},
		log: l.config.Log.With("run", r.ID)}
	j.atOnce = min(keysAtMost, max(keysAtLeast, int(atOnce.Seconds()*float64(r.Budget.KeysPerSecond))))
	j.pace.rate, j.origin.rate = float64(r.Budget.KeysPerSecond), float64(r.Budget.OriginPerSecond)
	for range r.Budget.Concurrency {
		j.slots <- &hands{job: j, shards: map[string]*hand{}}
	}
	return j
}

// run claims chunks and has them worked on, until ctx ends.
func (j *job) run(ctx context.Context) {
	defer j.queue.Close()
	var work sync.WaitGroup
	defer func() {
		work.Wait()
		for len(j.slots) > 0 {
			(<-j.slots).close()
		}
	}()
	work.Go(func() { j.look(ctx) })
	if j.r.State.Over() {
		<-ctx.Done()
		return
	}
	from, err := source.New(j.loader.sources(), &j.r)
	if err != nil {
		j.log.Error("a run is not carried out by this agent", "error", err)
		j.tell(ctx, err.Error())
		<-ctx.Done()
		return
	}
	work.Go(func() { j.keep(ctx) })
	defer from.Close()
	defer work.Wait()
	for ctx.Err() == nil {
		var h *hands
		select {
		case h = <-j.slots:
		case <-ctx.Done():
			return
		}
		c, wait, err := j.claim(ctx)
		if err != nil {
			wait = idle
			if !errors.Is(err, queue.ErrGone) && !errors.Is(err, queue.ErrPaused) && !errors.Is(err, queue.ErrOver) && ctx.Err() == nil {
				j.log.Debug("nothing to claim", "error", err)
			}
		}
		if c == nil {
			j.slots <- h
			select {
			case <-time.After(wait):
			case <-j.more:
			case <-ctx.Done():
			}
			continue
		}
		inner, stop := context.WithCancel(ctx)
		j.mu.Lock()
		j.working[c.ID] = stop
		j.mu.Unlock()
		work.Go(func() {
			defer stop()
			j.work(inner, from, h, c)
			j.mu.Lock()
			delete(j.working, c.ID)
			j.mu.Unlock()
			j.slots <- h
		})
	}
}

func (j *job) claim(ctx context.Context) (*queue.Chunk, time.Duration, error) {
	if m := j.loader.at.Load(); m == nil || m.Moving(j.r.Pool) {
		return nil, idle, nil // keys on their way to another shard are not loaded at either
	}
	return j.queue.Claim(ctx, j.loader.config.Agent, &j.r)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// keep says which chunks this agent works on.
func (j *job) keep(ctx context.Context) {
	tick := time.NewTicker(queue.KeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		j.mu.Lock()
		ids := slices.Collect(maps.Keys(j.working))
		j.mu.Unlock()
		if len(ids) == 0 {
			continue
		}
		lost, err := j.queue.Keep(ctx, j.loader.config.Agent, ids)
		if errors.Is(err, queue.ErrGone) {
			lost = ids
		}
		j.mu.Lock()
		for _, id := range lost {
			if stop := j.working[id]; stop != nil {
				stop()
			}
		}
		j.mu.Unlock()
	}
}

// tell notes what keeps the run from going on, for people; "" is nothing.
func (j *job) tell(ctx context.Context, problem string) {
	j.mu.Lock()
	before := j.problem
	j.problem = problem
	j.mu.Unlock()
	if problem == before {
		return
	}
	if problem != "" {
		j.log.Warn("a run waits", "reason", problem)
	}
	_ = j.queue.Tell(ctx, problem) // it is told again if it stays
}

// work loads a chunk, and says what became of its keys. What it does not finish it puts back.
func (j *job) work(ctx context.Context, from source.Source, h *hands, c *queue.Chunk) {
	o := &outcome{}
	err := j.chunk(ctx, from, h, c, o)
	o.bound()
	if err == nil && o.counts.Memory > 0 && j.full() {
		err = j.queue.Fill(ctx)
	}
	if err == nil {
		var first bool
		if first, err = j.done(ctx, c, o); first {
			j.loader.count(o.counts)
		}
	}
	if err == nil {
		return
	}
	if !errors.Is(err, queue.ErrGone) {
		// Whether or not this agent is about to end.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = j.queue.Release(ctx, j.loader.config.Agent, c.ID) // otherwise it is taken over in a while
	}
}

// done ends a chunk, and says whether this agent is the first to do so. It tries until ctx ends, or the queue is gone.
func (j *job) done(ctx context.Context, c *queue.Chunk, o *outcome) (first bool, err error) {
	for wait := againFirst; ; wait = min(2*wait, againMost) {
		first, err = j.queue.Done(ctx, c, &j.r, o.counts, o.bytes, o.samples)
		if err == nil || errors.Is(err, queue.ErrGone) || ctx.Err() != nil {
			return first, err
		}
		// A shard in a failover. Should it have ended the chunk before, it says so then.
		pause(ctx, wait)
	}
}

// outcome is what became of a chunk's keys so far.
type outcome struct {
	counts  warming.Counts
	bytes   uint64
	samples []queue.Sample
	held    [][]byte // keys of the last batch that are in a hold-off
}

// maxSamples bounds what one chunk adds to the run's sample.
const maxSamples = 200

// bound leaves samples of the least hashes.
func (o *outcome) bound() {
	slices.SortFunc(o.samples, func(a, b queue.Sample) int { return cmp.Compare(a.Hash, b.Hash) })
	o.samples = o.samples[:min(len(o.samples), maxSamples)]
}

// full says whether no shard of the pool has room.
func (j *job) full() bool {
	for _, s := range j.loader.at.Load().Shards {
		if s.Pool == j.r.Pool && !j.loader.rooms.full(s.Name) {
			return false
		}
	}
	return true
}

// chunk loads all of a chunk.
func (j *job) chunk(ctx context.Context, from source.Source, h *hands, c *queue.Chunk, o *outcome) error {
	if !c.Lists() {
		return j.fetch(ctx, from, h, c.Keys, o)
	}
	page, err := j.list(ctx, from, c.Cursor, "")
	if err != nil {
		return err
	}
	named := page.Named
	if len(named) > 0 {
		ahead, err := j.queue.Ahead(ctx)
		if err != nil {
			return err
		}
		if ahead {
			named = nil // this agent loads them
		}
	}
	ends, queued, err := j.queue.Listed(ctx, c, &j.r, page.Next, page.Keys, named)
	if err != nil {
		return err
	}
	select {
	case j.more <- struct{}{}:
	default:
	}
	if slices.Equal(ends, page.Next) {
		return j.page(ctx, from, h, page, queued, o)
	}
	// Another agent, which is gone, has found that the chunk ends elsewhere, and what follows is somebody's already.
	until := ""
	if len(ends) > 0 {
		until = ends[0]
	}
	for cursor := c.Cursor; ; {
		if page, err = j.list(ctx, from, cursor, until); err != nil {
			return err
		}
		if err := j.page(ctx, from, h, page, queued, o); err != nil {
			return err
		}
		if len(page.Next) == 0 || page.Next[0] == until || page.Next[0] == cursor {
			return nil
		}
		cursor = page.Next[0]
	}
}

// list asks the source for a page, until it answers. If it never will, the run has failed.
func (j *job) list(ctx context.Context, from source.Source, cursor, until string) (source.Page, error) {
	var page source.Page
	err := j.ask(ctx, 0, func() (err error) {
		page, err = from.List(ctx, cursor, until)
		return err
	})
	if errors.Is(err, source.ErrKeys) {
		// Nobody knows what is missing.
		err = errors.Join(err, j.queue.Set(ctx, warming.Failed))
	}
	return page, err
}

// ask calls f until the source answers. What it does not understand is given up after some tries, and what it does not answer after
// giveUp of them, 0 for never, with an ErrKeys.
func (j *job) ask(ctx context.Context, giveUp int, f func() error) error {
	wait := againFirst
	for n := 1; ; n++ {
		err := f()
		if err == nil {
			j.tell(ctx, "")
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		j.tell(ctx, err.Error())
		switch {
		case errors.Is(err, source.ErrKeys) && n >= tries:
			return err
		case n == giveUp:
			return errors.Join(source.ErrKeys, err)
		}
		pause(ctx, wait)
		wait = min(2*wait, againMost)
	}
}

// page loads what a page has, and what it says is to be fetched, but for keys that are queued.
func (j *job) page(ctx context.Context, from source.Source, h *hands, p source.Page, queued bool, o *outcome) error {
	if _, err := j.batch(ctx, h, &p.Batch, o); err != nil {
		return err
	}
	keys := p.Later
	if !queued {
		keys = append(keys, p.Named...)
	}
	for keys := range slices.Chunk(keys, queue.ChunkSize(&j.r)) {
		if err := j.fetch(ctx, from, h, keys, o); err != nil {
			return err
		}
	}
	return nil
}

// batch loads what the source told, and leaves in Later what has become too old meanwhile, too. It says whether the shards hold so much that
// it is better to come back, since a primary begins with all keys held: then what is held is in Later.
func (j *job) batch(ctx context.Context, h *hands, b *source.Batch, o *outcome) (held bool, err error) {
	o.counts.Missing += uint64(b.Missing)
	o.counts.Failed += uint64(b.Failed)
	o.held = nil
	if err := h.load(ctx, b, o); err != nil {
		return false, err
	}
	if held = len(o.held) >= manyHeld && 2*len(o.held) > len(b.Items); held {
		b.Later = append(b.Later, o.held...)
	} else {
		o.counts.Refused += uint64(len(o.held))
	}
	return held, nil
}

const (
	manyHeld = 8
	// heldAgain is when a shard that holds much is tried again, heldMost how long.
	heldAgain = 250 * time.Millisecond
	heldMost  = 30 * time.Second
)

// fetch loads keys by name.
func (j *job) fetch(ctx context.Context, from source.Source, h *hands, keys [][]byte, o *outcome) error {
	giveUp := 0
	if j.r.ReadsOrigin() {
		giveUp = triesOrigin
	}
	began := time.Now()
	for n := 1; len(keys) > 0; n++ {
		if j.r.ReadsOrigin() {
			j.origin.wait(ctx, len(keys))
		}
		var b source.Batch
		err := j.ask(ctx, giveUp, func() (err error) {
			b, err = from.Fetch(ctx, keys)
			return err
		})
		if errors.Is(err, source.ErrKeys) {
			o.counts.Failed += uint64(len(keys))
			return nil
		}
		if err != nil {
			return err
		}
		if told := len(b.Items) + b.Missing + b.Failed + len(b.Later); told < len(keys) {
			b.Failed += len(keys) - told
		}
		progress := len(b.Later) < len(keys)
		before := len(b.Later)
		held, err := j.batch(ctx, h, &b, o)
		if err != nil {
			return err
		}
		if held && time.Since(began) < heldMost {
			pause(ctx, heldAgain)
			n, keys = n-1, b.Later
			continue
		}
		if old := len(b.Later) - before; n >= tries && old > 0 || !progress {
			// The source takes longer than a value stays true for certain.
			o.counts.Refused += uint64(len(b.Later))
			return nil
		}
		keys = b.Later
	}
	return nil
}
