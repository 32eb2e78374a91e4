package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
)

// quietKeys are those that nobody changes once they are written: of every type, half of them with an expiry. The first is large.
const (
	quietKeys   = 1400
	quietExpiry = time.Hour
	// largeElements of largeElement bytes are more than is moved as a whole.
	largeElements, largeElement = 700, 8 << 10
	// briefKeys expire while they move.
	briefKeys, briefExpiry = 60, 4 * time.Second
)

func quietKey(i int) string { return fmt.Sprintf("quiet:%05d", i) }

// expires says whether the key has an expiry.
func expires(i int) bool { return i/6%2 == 1 }

// writeQuiet writes a key, which is not there.
func writeQuiet(ctx context.Context, p redis.Pipeliner, i int) {
	key := quietKey(i)
	switch i % 6 {
	case 0:
		if i > 0 {
			p.RPush(ctx, key, i, "a", "b", "c")
			break
		}
		for range largeElements {
			p.RPush(ctx, key, strings.Repeat("l", largeElement))
		}
	case 1:
		p.Set(ctx, key, i, 0)
	case 2:
		p.SAdd(ctx, key, i, "a", "b")
	case 3:
		p.ZAdd(ctx, key, redis.Z{Score: float64(i), Member: "a"}, redis.Z{Score: 1.5, Member: "b"})
	case 4:
		p.HSet(ctx, key, "number", i, "a", "b")
	case 5:
		p.XAdd(ctx, &redis.XAddArgs{Stream: key, ID: fmt.Sprintf("%d-1", i), Values: []any{"a", i}})
	}
	if expires(i) {
		p.Expire(ctx, key, quietExpiry)
	}
}

// readQuiet reads a key; the result tells what is wrong with what is there.
func readQuiet(ctx context.Context, p redis.Pipeliner, i int) func() error {
	key := quietKey(i)
	ttl := p.PTTL(ctx, key)
	value := func() (any, any, error) { return nil, nil, nil }
	switch i % 6 {
	case 0:
		if i == 0 {
			length, last := p.LLen(ctx, key), p.LIndex(ctx, key, -1)
			value = func() (any, any, error) {
				return fmt.Sprint(length.Val(), len(last.Val())), fmt.Sprint(largeElements, largeElement), last.Err()
			}
			break
		}
		list := p.LRange(ctx, key, 0, -1)
		value = func() (any, any, error) { return list.Val(), []string{fmt.Sprint(i), "a", "b", "c"}, list.Err() }
	case 1:
		text := p.Get(ctx, key)
		value = func() (any, any, error) { return text.Val(), i, text.Err() }
	case 2:
		set := p.SMembers(ctx, key)
		value = func() (any, any, error) {
			return slices.Sorted(slices.Values(set.Val())), []string{fmt.Sprint(i), "a", "b"}, set.Err()
		}
	case 3:
		sorted := p.ZRangeWithScores(ctx, key, 0, -1)
		value = func() (any, any, error) {
			return sorted.Val(), slices.SortedFunc(slices.Values([]redis.Z{{Score: float64(i), Member: "a"}, {Score: 1.5, Member: "b"}}), func(a, b redis.Z) int { return int(a.Score - b.Score) }), sorted.Err()
		}
	case 4:
		hash := p.HGetAll(ctx, key)
		value = func() (any, any, error) {
			return hash.Val(), map[string]string{"number": fmt.Sprint(i), "a": "b"}, hash.Err()
		}
	case 5:
		stream := p.XRange(ctx, key, "-", "+")
		value = func() (any, any, error) {
			return stream.Val(), fmt.Sprintf("[{%d-1 map[a:%d] 0 0}]", i, i), stream.Err()
		}
	}
	return func() error {
		switch got, want, err := value(); {
		case err != nil:
			return fmt.Errorf("key %q: %w", key, err)
		case fmt.Sprint(got) != fmt.Sprint(want):
			return fmt.Errorf("key %q is %.80v, want %.80v", key, got, want)
		case expires(i) && (ttl.Val() <= 0 || ttl.Val() > quietExpiry), !expires(i) && ttl.Val() > 0:
			return fmt.Errorf("key %q lives for %v", key, ttl.Val())
		}
		return nil
	}
}

// fillQuiet writes at their owners those of the keys that are not there: a lane takes not every type.
func (m *handoffMesh) fillQuiet(ctx context.Context, there map[string]bool) error {
	_, find, err := m.served(ctx)
	if err != nil {
		return err
	}
	return m.eachPrimary(ctx, func(ctx context.Context, s mesh.Shard, client *redis.Client) error {
		pipe := client.Pipeline()
		for i := range quietKeys {
			if k := quietKey(i); !there[k] && find(k).Name == s.Name {
				pipe.Del(ctx, k)
				writeQuiet(ctx, pipe, i)
			}
		}
		_, err := pipe.Exec(ctx)
		return err
	})
}

// fillBrief writes keys that will be gone when a round has ended.
func fillBrief(ctx context.Context, client *redis.Client, random *rand.Rand, round uint64) error {
	_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := range briefKeys {
			p.Set(ctx, fmt.Sprintf("brief:%d:%d", round, i), i, time.Duration(random.Int64N(int64(briefExpiry)))+time.Millisecond)
		}
		return nil
	})
	return err
}
