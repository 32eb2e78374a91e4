package load

import (
	"context"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/queue"
	"github.com/cachemesh/cachemesh/warming/source"
)

// hands put a chunk's values into shards. One goroutine uses them at a time.
type hands struct {
	job    *job
	shards map[string]*hand
	busy   []*hand // that have keys of the chunk

	problem string // of a shard; "" is none
}

func (h *hands) close() {
	for _, s := range h.shards {
		s.disconnect()
	}
}

// load puts the items of a batch into shards, however often it must try, and appends to Later those that have become too old. It fails only when ctx ends.
func (h *hands) load(ctx context.Context, b *source.Batch, o *outcome) error {
	left := make([]int32, len(b.Items))
	for i := range left {
		left[i] = int32(i)
	}
	var began time.Time
	for {
		before := len(left)
		left = h.round(ctx, b, left, o)
		switch {
		case len(left) == 0:
			if h.problem != "" {
				h.problem = ""
				h.job.tell(ctx, "")
			}
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case len(left) < before || began.IsZero():
			began = time.Now()
		case time.Since(began) > patience:
			o.counts.Failed += uint64(len(left))
			return nil
		}
		h.job.tell(ctx, h.problem)
		pause(ctx, 50*time.Millisecond)
	}
}

// round tries once, and returns the items that a shard has not answered about.
func (h *hands) round(ctx context.Context, b *source.Batch, items []int32, o *outcome) (left []int32) {
	m := h.job.loader.at.Load()
	h.busy = h.busy[:0]
	for _, i := range items {
		it := &b.Items[i]
		shard, route := m.Find(it.Key)
		if shard == nil {
			o.counts.Failed++
			continue
		}
		s := h.shards[shard.Name]
		if s == nil {
			s = &hand{}
			h.shards[shard.Name] = s
		}
		if len(s.pending) == 0 {
			h.ready(ctx, s, shard)
		}
		s.pending = append(s.pending, i)
		if hold := holdoff.Of(route); hold > 0 {
			s.marked, s.fresh = true, min(s.fresh, hold*3/4)
		}
	}
	for len(h.busy) > 0 {
		if ctx.Err() != nil {
			for _, s := range h.busy {
				left = append(left, s.pending...)
				s.pending = s.pending[:0]
			}
			return left
		}
		n := 0
		for _, s := range h.busy {
			n += s.send(h.job, b, o)
		}
		for _, s := range h.busy {
			if left = s.answers(h.job, b, o, left); s.err != nil {
				h.problem = s.err.Error()
			}
		}
		h.busy = slices.DeleteFunc(h.busy, func(s *hand) bool { return len(s.pending) == 0 })
		h.job.pace.wait(ctx, n)
	}
	return left
}

// ready makes a shard's turn.
func (h *hands) ready(ctx context.Context, s *hand, shard *place.Shard) {
	h.busy = append(h.busy, s)
	if s.pipe != nil && (s.shard.Address != shard.Address || s.shard.Epoch != shard.Epoch) {
		s.disconnect()
	}
	s.shard, s.err, s.marked, s.fresh = shard, nil, false, fresh
	if s.pipe == nil {
		s.connect(ctx)
	}
}

// count notes what became of an item.
func (j *job) count(it *source.Item, fate byte, o *outcome) {
	switch fate {
	case holdoff.LoadDone:
		n := uint64(len(it.Key) + len(it.Value))
		o.counts.Loaded++
		o.counts.Bytes += n
		o.bytes += n
		if hash := xxhash.Sum64(it.Key); j.queue.Wants(hash) {
			s := queue.Sample{Key: string(it.Key), Hash: hash, Loaded: time.Now(), Fate: queue.Unread}
			if it.TTL > 0 {
				s.Ends = s.Loaded.Add(time.Duration(float64(it.TTL) * (1 - j.r.Spread)))
			}
			o.samples = append(o.samples, s)
		}
	case holdoff.LoadThere:
		o.counts.There++
		o.bytes += uint64(len(it.Key) + len(it.Value))
	case holdoff.LoadHeld:
		o.held = append(o.held, it.Key)
	case holdoff.LoadMemory:
		o.counts.Memory++
	default:
		o.counts.Failed++
	}
}
