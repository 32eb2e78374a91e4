package regions

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/regions/writers"
)

// joinWithin is how long a new epoch's primary waits for who wrote to the one before. They come within milliseconds, or at the next of their
// looks, which are a second apart.
const joinWithin = 3 * time.Second

// sighting is of a writer as it joined last.
type sighting struct {
	at     time.Time // when it was first seen so
	offset int64     // before which the primary had all that it wrote; 0 while it may write
}

// muster looks which of the shard's writers have made good what they wrote to a primary that was lost. Where one is missing, nobody knows all
// that was lost: the shard's keys are removed everywhere.
func (t *tail) muster(ctx context.Context) error {
	all, err := writers.List(ctx, t.redis)
	if err != nil {
		return fmt.Errorf("look who writes: %w", err)
	}
	var missing, here []writers.Writer
	for _, w := range all {
		if w.Epoch < t.spec.place.epoch {
			missing = append(missing, w)
		} else {
			here = append(here, w)
		}
	}
	if len(missing) > 0 && time.Since(t.began) > joinWithin {
		if err := t.miss(ctx, missing); err != nil {
			return err
		}
	}
	return t.forget(ctx, here)
}

// miss has fences kept before writers are forgotten: a fence more is no harm.
func (t *tail) miss(ctx context.Context, missing []writers.Writer) error {
	f := journal.Fence{ID: fmt.Sprintf("tail-%d", t.spec.place.epoch), Reason: journal.Tail, Since: time.Now().UTC()}
	for _, region := range append([]string{t.links.config.Region}, t.spec.regions...) {
		if err := t.shard.Fence(ctx, region, f); err != nil {
			return err
		}
	}
	if err := writers.Forget(ctx, t.redis, missing); err != nil {
		return fmt.Errorf("forget writers: %w", err)
	}
	for _, p := range t.pairs {
		p.gap(t, f.Reason)
	}
	t.links.notices.add(Notice{Shard: t.spec.shard, Pool: t.spec.pool, Region: t.links.config.Region, Epoch: t.spec.place.epoch, Reason: f.Reason})
	t.links.config.Log.Error("a primary was lost with some that wrote to it: the shard's keys are removed in all regions", "shard", t.spec.shard, "epoch", t.spec.place.epoch, "writers", len(missing), "first", missing[0].Name)
	return nil
}

// forget forgets writers that write no more, once replicas have all that they can have written.
func (t *tail) forget(ctx context.Context, all []writers.Writer) error {
	seen := map[writers.Writer]sighting{}
	idle := false
	for _, w := range all {
		s, known := t.seen[w]
		if !known {
			s.at = time.Now()
		}
		seen[w] = s
		idle = idle || time.Since(s.at) > writers.Gone
	}
	t.seen = seen
	if !idle {
		return nil
	}
	info, err := t.redis.Info(ctx, "replication").Result()
	if err != nil {
		return err
	}
	offset, err := strconv.ParseInt(node.Field(info, "master_repl_offset"), 10, 64)
	if err != nil {
		return fmt.Errorf("its offset: %w", err)
	}
	replicated, ok := node.Replicated(info)
	var gone []writers.Writer
	for w, s := range seen {
		switch {
		case time.Since(s.at) <= writers.Gone:
		case s.offset == 0:
			s.offset = offset
			seen[w] = s
		case ok && replicated >= s.offset:
			gone = append(gone, w)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return writers.Forget(ctx, t.redis, gone)
}
