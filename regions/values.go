package regions

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/resp"
)

const (
	// A page ends after so many keys, unless fewer or more are asked for, after so many bytes for each of them, or after so long, whatever is first.
	pageKeys    = 2000
	maxPageKeys = 8000
	pageBytes   = 128
	pageTime    = 100 * time.Millisecond
	// MaxFetch is how many keys are fetched at once.
	MaxFetch = 1000
	// MaxValue bounds a value that is told.
	MaxValue = 4 << 20
	// askers is how many requests for values are answered at a time.
	askers = 4
)

// values tells other regions what this one has cached.
type values struct {
	applier *Applier
	asking  chan struct{} // a token for each request that is answered now

	mu    sync.Mutex
	idle  map[*place][]*node.Pipe
	usual map[*place]usual
}

func newValues(a *Applier) *values {
	return &values{applier: a, asking: make(chan struct{}, askers), idle: map[*place][]*node.Pipe{}, usual: map[*place]usual{}}
}

// List tells a page of what is cached.
func (r *Receiver) List(ctx context.Context, in *ListRequest) (*Page, error) {
	if err := r.greet(ctx, in.GetHello()); err != nil {
		return nil, err
	}
	if len(in.GetPrefix()) > journal.MaxKey || len(in.GetCursor()) > 2*maxName || len(in.GetUntil()) > 2*maxName {
		return nil, status.Error(codes.InvalidArgument, "prefix, cursor or until is too long")
	}
	return r.values.answer(ctx, func() (*Page, error) { return r.values.list(ctx, in) })
}

// Fetch tells what is cached under keys.
func (r *Receiver) Fetch(ctx context.Context, in *FetchRequest) (*Page, error) {
	if err := r.greet(ctx, in.GetHello()); err != nil {
		return nil, err
	}
	if n := len(in.GetKeys()); n == 0 || n > MaxFetch {
		return nil, status.Errorf(codes.InvalidArgument, "%d keys are asked for, and at most %d may be", n, MaxFetch)
	}
	for _, k := range in.GetKeys() {
		if len(k) > journal.MaxKey {
			return nil, status.Errorf(codes.InvalidArgument, "a key has %d bytes and may have %d", len(k), journal.MaxKey)
		}
	}
	return r.values.answer(ctx, func() (*Page, error) { return r.values.fetch(ctx, in) })
}

// answer waits for its turn.
func (v *values) answer(ctx context.Context, f func() (*Page, error)) (*Page, error) {
	select {
	case v.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-v.asking }()
	page, err := f()
	if _, is := status.FromError(err); err != nil && !is {
		err = status.Error(codes.Unavailable, err.Error())
	}
	return page, err
}

// at says where the keys of a shard are now.
func (v *values) at(shard string) (*place, error) {
	v.applier.mu.Lock()
	t := v.applier.targets[shard]
	v.applier.mu.Unlock()
	if t == nil {
		return nil, status.Errorf(codes.NotFound, "there is no shard %q in this region any more: list from the beginning", shard)
	}
	p := t.place.Load()
	if p.standIn != "" || p.address == "" {
		return nil, fmt.Errorf("shard %q has no primary now", shard)
	}
	return p, nil
}

// with lends a connection to a shard's primary.
func (v *values) with(ctx context.Context, p *place, f func(*node.Pipe) error) error {
	v.mu.Lock()
	var pipe *node.Pipe
	if idle := v.idle[p]; len(idle) > 0 {
		pipe, v.idle[p] = idle[len(idle)-1], idle[:len(idle)-1]
	}
	v.mu.Unlock()
	if pipe == nil {
		var err error
		if pipe, err = node.OpenPipe(ctx, p.address, p.epoch, p.access, shardTimeout); err != nil {
			return err
		}
	}
	if err := f(pipe); err != nil {
		pipe.Close()
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.idle[p] = append(v.idle[p], pipe)
	return nil
}

// tidy closes connections to where shards are no more.
func (v *values) tidy(all bool) {
	current := map[*place]bool{}
	v.applier.mu.Lock()
	for _, t := range v.applier.targets {
		current[t.place.Load()] = !all
	}
	v.applier.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	for p, idle := range v.idle {
		if current[p] {
			continue
		}
		for _, pipe := range idle {
			pipe.Close()
		}
		delete(v.idle, p)
		delete(v.usual, p)
	}
}

// Close ends what Receiver keeps open to shards. Call it after the server has stopped.
func (r *Receiver) Close() { r.values.tidy(true) }

// list tells a page. A cursor names the shard, and says where in Redis's own scan the page begins.
func (v *values) list(ctx context.Context, in *ListRequest) (*Page, error) {
	pool, prefix := in.GetHello().GetPool(), in.GetPrefix()
	if in.GetCursor() == "" {
		return v.begin(ctx, pool, prefix)
	}
	shard, cursor, err := parseCursor(in.GetCursor())
	if err != nil {
		return nil, err
	}
	last := uint64(0)
	if in.GetUntil() != "" {
		var other string
		if other, last, err = parseCursor(in.GetUntil()); err != nil || other != shard {
			return nil, status.Errorf(codes.InvalidArgument, "until is of shard %q, and cursor of %q", other, shard)
		}
	}
	at, err := v.at(shard)
	if err != nil {
		return nil, err
	}
	view := v.applier.view.Load()
	here := func(key []byte) bool {
		r := view.route(key)
		return r != nil && r.pool.Name == pool && r.ring != nil && r.targets[r.ring.Find(key)].shard == shard
	}
	page, most := &Page{}, pageKeys
	if n := in.GetKeys(); n > 0 {
		most = int(min(n, maxPageKeys))
	}
	err = v.with(ctx, at, func(p *node.Pipe) error {
		told := v.telling(at, p, most*pageBytes)
		defer v.told(at, told)
		size := uint64(0)
		if last != 0 {
			if size, err = sizeOf(p); err != nil {
				return err
			}
		}
		for began := time.Now(); ; {
			var keys [][]byte
			count := min(scanAtOnce, 4*told.atOnce, most-told.keys)
			if last != 0 {
				count = closing(cursor, last, size, count)
			}
			if keys, cursor, err = scan(p, cursor, prefix, count, here); err != nil {
				return err
			}
			over := cursor == 0 || last != 0 && !before(cursor, last)
			if over && last != 0 && cursor != last && count == 1 {
				keys = nil // they lie behind the end
			}
			if err := told.all(keys); err != nil {
				return err
			}
			if over || told.keys >= most || len(told.items) >= most*pageBytes || time.Since(began) > pageTime || ctx.Err() != nil {
				page.Items = told.items
				if !over {
					page.Next = []string{shard + " " + strconv.FormatUint(cursor, 10)}
				} else if cursor != 0 {
					page.Next = []string{in.GetUntil()}
				}
				return ctx.Err()
			}
		}
	})
	return page, err
}

// before says whether Redis's scan comes to a before b: it counts from the highest bit down.
func before(a, b uint64) bool { return bits.Reverse64(a) < bits.Reverse64(b) }

// closing is how many keys to scan for, to come to the end and not beyond: half of those that are about to lie before it. A scan for one key ends
// with the first place that has any.
func closing(cursor, last, size uint64, most int) int {
	part := float64(bits.Reverse64(last)-bits.Reverse64(cursor)) / (1 << 64)
	left := int(part * float64(size) / 2)
	if left < 16 {
		return 1
	}
	return min(left, most)
}

func sizeOf(p *node.Pipe) (uint64, error) {
	if err := p.Send(resp.AppendCommand(nil, "DBSIZE")); err != nil {
		return 0, err
	}
	n, err := p.Integer()
	return uint64(n), err
}

func parseCursor(text string) (shard string, cursor uint64, err error) {
	shard, number, ok := strings.Cut(text, " ")
	if cursor, err = strconv.ParseUint(number, 10, 64); !ok || err != nil {
		return "", 0, status.Errorf(codes.InvalidArgument, "%q is no cursor", text)
	}
	return shard, cursor, nil
}

// begin names the ends at which a list goes on, one a shard, and estimates how many keys it has.
func (v *values) begin(ctx context.Context, pool string, prefix []byte) (*Page, error) {
	v.tidy(false)
	page := &Page{}
	for _, p := range v.applier.view.Load().topology.Pools {
		for _, s := range p.Shards {
			if p.Name != pool {
				continue
			}
			at, err := v.at(s.Name)
			if err != nil {
				return nil, err
			}
			if err := v.with(ctx, at, func(pipe *node.Pipe) error {
				n, err := estimate(pipe, prefix)
				page.Keys += n
				return err
			}); err != nil {
				return nil, err
			}
			v.forget(at)
			page.Next = append(page.Next, s.Name+" 0")
		}
	}
	if len(page.Next) == 0 {
		return nil, status.Errorf(codes.NotFound, "pool %q has no shards in this region", pool)
	}
	return page, nil
}

// estimate says how many of a shard's keys begin with a prefix, from some of them.
func estimate(p *node.Pipe, prefix []byte) (uint64, error) {
	size, err := sizeOf(p)
	if err != nil {
		return 0, err
	}
	all, match := 0, 0
	_, _, err = scan(p, 0, nil, scanAtOnce, func(key []byte) bool {
		if all++; bytes.HasPrefix(key, prefix) && !bytes.HasPrefix(key, reserved) {
			match++
		}
		return false
	})
	if err != nil || all == 0 {
		return 0, err
	}
	return size * uint64(match) / uint64(all), nil
}

// scan returns those of about so many of a shard's keys that are wanted, and where to go on.
func scan(p *node.Pipe, cursor uint64, prefix []byte, count int, wanted func(key []byte) bool) (keys [][]byte, next uint64, err error) {
	command := resp.AppendArray(nil, 4)
	if len(prefix) > 0 {
		command = resp.AppendArray(nil, 6)
	}
	command = resp.AppendBulk(resp.AppendBulk(command, "SCAN"), strconv.FormatUint(cursor, 10))
	command = resp.AppendInt(resp.AppendBulk(command, "COUNT"), int64(count))
	if len(prefix) > 0 {
		command = resp.AppendBulk(resp.AppendBulk(command, "MATCH"), globEscaper.Replace(string(prefix))+"*")
	}
	if err := p.Send(command); err != nil {
		return nil, 0, err
	}
	if n, err := p.Array(); err != nil || n != 2 {
		return nil, 0, errors.Join(err, errors.New("Redis answers SCAN with something else"))
	}
	n, err := p.Bulk()
	if err != nil {
		return nil, 0, err
	}
	digits, err := p.Take(nil, n)
	if err != nil {
		return nil, 0, err
	}
	if next, err = strconv.ParseUint(string(digits), 10, 64); err != nil {
		return nil, 0, err
	}
	found, err := p.Array()
	if err != nil {
		return nil, 0, err
	}
	arena := make([]byte, 0, 32*max(found, 0))
	ends := make([]int, 0, max(found, 0))
	for range found {
		if n, err = p.Bulk(); err != nil {
			return nil, 0, err
		}
		at := len(arena)
		if arena, err = p.Take(arena, n); err != nil {
			return nil, 0, err
		}
		if !wanted(arena[at:]) {
			arena = arena[:at]
			continue
		}
		ends = append(ends, len(arena))
	}
	keys, at := make([][]byte, len(ends)), 0
	for i, end := range ends {
		keys[i], at = arena[at:end], end
	}
	return keys, next, nil
}

// fetch tells what is under keys, as far as it fits into a message.
func (v *values) fetch(ctx context.Context, in *FetchRequest) (*Page, error) {
	view, pool := v.applier.view.Load(), in.GetHello().GetPool()
	shards := map[string][][]byte{}
	page := &Page{}
	for _, k := range in.GetKeys() {
		if r := view.route(k); r != nil && r.ring != nil && r.pool.Name == pool {
			s := r.targets[r.ring.Find(k)].shard
			shards[s] = append(shards[s], k)
		} else {
			page.Items = appendItem(page.Items, ItemMissing, 0, k)
		}
	}
	for s, keys := range shards {
		at, err := v.at(s)
		if err != nil {
			return nil, err
		}
		err = v.with(ctx, at, func(p *node.Pipe) error {
			t := v.telling(at, p, 0)
			defer v.told(at, t)
			t.items = page.Items
			err := t.all(keys)
			page.Items = t.items
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return page, nil
}
