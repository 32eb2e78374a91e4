package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/resp"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/queue"
	"github.com/cachemesh/cachemesh/warming/source"
)

const (
	// What goes to a shard at once is what the budget has for a while, within bounds, or about so many bytes: meanwhile the shard serves nobody else.
	atOnce      = 5 * time.Millisecond
	keysAtLeast = 64
	keysAtMost  = 512
	bytesAtOnce = 64 << 10
	// shardTimeout bounds what a shard takes for that.
	shardTimeout = time.Second
	// fresh is how old a value may be when it is loaded, on a route whose removals leave no marks. Where they do, it is three quarters of the time
	// for which those stay.
	fresh = 10 * time.Second
)

// hands put a chunk's values into shards. One goroutine uses them at a time.
type hands struct {
	job    *job
	shards map[string]*hand
	busy   []*hand // that have keys of the chunk

	problem string // of a shard; "" is none
}

// hand is a connection to one shard.
type hand struct {
	shard   *place.Shard
	pipe    *node.Pipe
	pending []int32       // items that are to be sent
	sent    []int32       // of them, those that are to be answered
	marked  bool          // the removal of some of these keys would leave a mark
	fresh   time.Duration // how old values of these keys may be, by the strictest of their routes
	out     []byte
	err     error
}

func (h *hands) close() {
	for _, s := range h.shards {
		s.disconnect()
	}
}

func (s *hand) disconnect() {
	if s.pipe != nil {
		s.pipe.Close()
		s.pipe = nil
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

func (s *hand) connect(ctx context.Context) {
	if s.shard.Address == "" {
		s.err = fmt.Errorf("shard %s has no primary now", s.shard.Name)
		return
	}
	if s.pipe, s.err = node.OpenPipe(ctx, s.shard.Address, s.shard.Epoch, s.shard.Access, shardTimeout); s.err != nil {
		return
	}
	out, replies := holdoff.AppendLoadPrepare(nil), 1
	// A primary that took over lacks marks that the one before had. Before the first epoch there was nothing to be invalidated.
	if routes := holdoff.OfAll(s.shard.Routes); len(routes) > 0 && s.shard.Epoch != 1 {
		out, replies = holdoff.AppendBegin(out, routes), 2
	}
	s.err = s.pipe.Send(out)
	for range replies {
		if s.err == nil {
			_, s.err = s.pipe.Value()
		}
	}
	if s.err != nil {
		s.disconnect()
	}
}

// send sends some of what is pending, and returns how many.
func (s *hand) send(j *job, b *source.Batch, o *outcome) int {
	s.sent = s.sent[:0]
	if s.err != nil {
		return 0
	}
	if s.err = j.loader.rooms.look(s); s.err != nil {
		return 0
	}
	age := time.Since(b.Began)
	out, size := s.out[:0], 0
	taken := 0
	for _, i := range s.pending {
		it := &b.Items[i]
		if len(s.sent) == j.atOnce || size > bytesAtOnce {
			break
		}
		taken++
		ttl := it.TTL
		if ttl > 0 {
			if ttl -= age; j.r.Spread > 0 {
				ttl -= time.Duration(rand.Float64() * j.r.Spread * float64(ttl))
			}
			if ttl < time.Millisecond {
				o.counts.Missing++
				continue
			}
		}
		if age > s.fresh {
			b.Later = append(b.Later, it.Key)
			continue
		}
		bytes := len(it.Key) + len(it.Value)
		if !j.loader.rooms.take(s.shard.Name, bytes) {
			o.counts.Memory++
			continue
		}
		size += bytes
		s.sent = append(s.sent, i)
		if s.marked {
			out = holdoff.AppendLoadEntry(out, it.Key, ttl.Milliseconds(), it.Value, it.Dump)
		} else {
			out = appendLoad(out, it, ttl.Milliseconds())
		}
	}
	s.pending = s.pending[taken:]
	s.out = out
	if len(s.sent) == 0 {
		return 0
	}
	if s.marked {
		s.out = append(holdoff.AppendLoad(nil, len(s.sent)), out...)
	}
	s.err = s.pipe.Send(s.out)
	return len(s.sent)
}

// appendLoad appends the command that loads an item, unless there is one.
func appendLoad(b []byte, it *source.Item, ms int64) []byte {
	if it.Dump {
		b = resp.AppendBulk(append(b, "*4\r\n$7\r\nRESTORE\r\n"...), it.Key)
		return resp.AppendBulk(resp.AppendInt(b, ms), it.Value)
	}
	if ms == 0 {
		b = append(b, "*4\r\n$3\r\nSET\r\n"...)
	} else {
		b = append(b, "*6\r\n$3\r\nSET\r\n"...)
	}
	b = append(resp.AppendBulk(resp.AppendBulk(b, it.Key), it.Value), "$2\r\nNX\r\n"...)
	if ms > 0 {
		b = resp.AppendInt(append(b, "$2\r\nPX\r\n"...), ms)
	}
	return b
}

// answers reads what became of what was sent. If the shard does not say, all that is pending is left.
func (s *hand) answers(j *job, b *source.Batch, o *outcome, left []int32) []int32 {
	if s.err == nil && len(s.sent) > 0 {
		if s.marked {
			s.err = s.marks(j, b, o)
		} else {
			s.err = s.replies(j, b, o)
		}
	}
	if s.err != nil {
		left = append(append(left, s.sent...), s.pending...)
		s.pending, s.sent = nil, s.sent[:0]
		s.disconnect()
	}
	return left
}

func (s *hand) replies(j *job, b *source.Batch, o *outcome) error {
	for len(s.sent) > 0 {
		l, err := s.pipe.Line()
		if err != nil {
			return err
		}
		fate := byte(holdoff.LoadDone)
		switch {
		case l[0] == '+':
		case l[0] == '$':
			fate = holdoff.LoadThere
		case l[0] == '-':
			if fate, err = refusal(string(l[1:])); err != nil {
				return err
			}
		default:
			return fmt.Errorf("shard %s answers %q", s.shard.Name, l)
		}
		j.count(&b.Items[s.sent[0]], fate, o)
		s.sent = s.sent[1:]
	}
	return nil
}

// refusal says what an error of Redis's means for a key, or that it is the node's.
func refusal(text string) (byte, error) {
	switch word, _, _ := strings.Cut(text, " "); word {
	case "BUSYKEY":
		return holdoff.LoadThere, nil
	case "OOM":
		return holdoff.LoadMemory, nil
	case "ERR":
		return holdoff.LoadRefused, nil
	}
	return 0, fmt.Errorf("Redis answers %s", text)
}

// marks reads the script's reply.
func (s *hand) marks(j *job, b *source.Batch, o *outcome) error {
	v, err := s.pipe.Value()
	if node.Refused(err) && strings.HasPrefix(err.Error(), "OOM") {
		for _, i := range s.sent {
			j.count(&b.Items[i], holdoff.LoadMemory, o)
		}
		s.sent = s.sent[:0]
		return nil
	}
	if err != nil {
		return err
	}
	fates, _ := v.(string)
	if len(fates) != len(s.sent) {
		return fmt.Errorf("shard %s answers about %d keys of %d", s.shard.Name, len(fates), len(s.sent))
	}
	for k, i := range s.sent {
		j.count(&b.Items[i], fates[k], o)
	}
	s.sent = s.sent[:0]
	return nil
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
