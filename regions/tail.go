package regions

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/regions/writers"
)

const (
	beatEvery = time.Second
	trimEvery = 5 * time.Second
	retryMost = time.Second
)

// tail follows the journals of one shard, for all other regions.
type tail struct {
	links *Links
	spec  spec
	redis *redis.Client
	shard *journal.Shard
	ahead atomic.Int64 // the shard's clock against this host's, in nanoseconds
	pairs []*pair

	// Of the shard's writers, see missing.go.
	began time.Time
	seen  map[writers.Writer]sighting
}

func newTail(l *Links, s spec) *tail { return &tail{links: l, spec: s, began: time.Now()} }

// run follows until ctx ends.
func (t *tail) run(ctx context.Context) {
	if t.spec.place.standIn == mesh.Null {
		return // there is no journal until there is a node
	}
	t.redis = dialPrimary(&t.spec.place)
	defer t.redis.Close()
	t.shard = journal.Open(t.redis, t.spec.place.epoch)
	var work sync.WaitGroup
	defer work.Wait()
	for _, region := range t.spec.regions {
		p := t.links.pair(t.spec.pool, t.spec.shard, region)
		t.pairs = append(t.pairs, p)
		work.Go(func() { p.run(ctx, t) })
	}
	t.keep(ctx)
}

// keep has the journal show that it lives, trims it, and looks after what is on the shard beside it.
func (t *tail) keep(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	var trimmed time.Time
	told := ""
	for {
		err := t.beat(ctx)
		if err == nil && time.Since(trimmed) >= trimEvery {
			trimmed = time.Now()
			err = t.shard.Trim(ctx, t.spec.regions, time.Duration(t.ahead.Load()))
		}
		if err == nil {
			err = t.muster(ctx)
		}
		if err == nil {
			err = t.fenceHome(ctx)
		}
		switch {
		case err == nil:
			told = ""
		case ctx.Err() == nil && err.Error() != told:
			told = err.Error()
			t.links.config.Log.Warn("a shard's journal is not looked after", "shard", t.spec.shard, "epoch", t.spec.place.epoch, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (t *tail) beat(ctx context.Context) error {
	ahead, err := t.shard.Beat(ctx)
	if err != nil {
		return err
	}
	t.ahead.Store(int64(ahead))
	paused, errPaused := t.shard.Paused(ctx)
	length, errLength := t.shard.Length(ctx)
	if err := errors.Join(errPaused, errLength); err != nil {
		return err
	}
	for _, p := range t.pairs {
		p.beat(t, paused[p.status.Region], length)
	}
	return nil
}

// now is the shard's time.
func (t *tail) now() time.Time { return time.Now().Add(time.Duration(t.ahead.Load())) }

// fenceHome carries out the fences of this region itself.
func (t *tail) fenceHome(ctx context.Context) error {
	home := t.links.config.Region
	fences, err := t.shard.Fences(ctx, home)
	if err != nil || len(fences) == 0 || !t.links.config.Applier.Ready() {
		return err
	}
	for _, f := range fences {
		began := time.Now()
		n, err := t.links.config.Applier.Fence(ctx, t.spec.pool, f.Prefix, t.spec.ring)
		if err != nil {
			return err
		}
		if err := t.shard.Confirm(ctx, home, f.ID); err != nil {
			return err
		}
		t.links.notices.add(Notice{Fence: true, Shard: t.spec.shard, Pool: t.spec.pool, Region: home, Epoch: t.spec.place.epoch, Reason: f.Reason, Keys: uint64(n), After: time.Since(began)})
	}
	return nil
}
