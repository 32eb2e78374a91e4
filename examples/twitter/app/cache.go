package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

// Cache is Redis as the app sees it. Its methods never return an error: a lookup that fails is an outcome, and a
// key whose update fails is unlinked as soon as Redis answers again, and not read until then.
type Cache struct {
	client redis.Cmdable
	close  func() error
	log    *slog.Logger

	hits, misses, errors atomic.Int64
	logged               atomic.Int64 // when an error was, in Unix seconds

	mu sync.Mutex
	// doubtful are keys that may be out of date, each with the number of the failure that made it so. There are at most
	// two for a user.
	doubtful map[string]uint64
	failures uint64

	stop    chan struct{}
	stopped chan struct{}
}

// CacheOptions say how to reach Redis.
type CacheOptions struct {
	Address      string // host:port, or unix: and the path of a socket
	Password     string // "" is none
	AutoPipeline bool   // send together what different requests ask for at the same time
	Log          *slog.Logger
}

// OpenCache makes a cache. It does not connect: Redis may come later.
func OpenCache(o CacheOptions) (*Cache, error) {
	client := redis.NewClient(redisOptions(o))
	if !o.AutoPipeline {
		return newCache(client, client.Close, o.Log), nil
	}
	pipelined, err := client.AutoPipeline()
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("automatic pipelining: %w", err)
	}
	return newCache(pipelined, client.Close, o.Log), nil
}

func redisOptions(o CacheOptions) *redis.Options {
	options := &redis.Options{
		Network: "tcp", Addr: o.Address, Password: o.Password, Protocol: 2,
		DialTimeout: 500 * time.Millisecond, DialerRetries: 1,
		ReadTimeout: time.Second, WriteTimeout: time.Second, PoolTimeout: time.Second,
		// No retry: the database answers sooner than a cache that hangs, and repairs are retried here.
		MaxRetries:               -1,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if path, ok := strings.CutPrefix(o.Address, "unix:"); ok {
		options.Network, options.Addr = "unix", path
	}
	return options
}

func newCache(client redis.Cmdable, closeClient func() error, log *slog.Logger) *Cache {
	c := &Cache{
		client: client, close: closeClient, log: log,
		doubtful: make(map[string]uint64), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	go c.repair()
	return c
}

// Close ends the repairs and closes the connections.
func (c *Cache) Close() error {
	close(c.stop)
	<-c.stopped
	return c.close()
}

// outcome is what a lookup found. After unavailable nothing should be filled in.
type outcome int

const (
	unavailable outcome = iota
	miss
	hit
)

// count classifies the lookup of one key and counts it as Redis does.
func (c *Cache) count(found bool, err error) outcome {
	switch {
	case err != nil && !errors.Is(err, redis.Nil):
		c.failed(err)
		return unavailable
	case found:
		c.hits.Add(1)
		return hit
	default:
		c.misses.Add(1)
		return miss
	}
}

// get looks up a string.
func (c *Cache) get(ctx context.Context, key string) (string, outcome) {
	if c.isDoubtful(key) {
		return "", unavailable
	}
	value, err := c.client.Get(ctx, key).Result()
	return value, c.count(err == nil, err)
}

// multiGet looks up strings at once. Through a proxy some keys may fail alone.
func (c *Cache) multiGet(ctx context.Context, keys []string) ([]string, []outcome) {
	values, outcomes := make([]string, len(keys)), make([]outcome, len(keys))
	replies, err := c.client.MGet(ctx, keys...).Result()
	if err == nil && len(replies) != len(keys) {
		err = fmt.Errorf("%d replies for %d keys", len(replies), len(keys))
	}
	if err != nil {
		c.failed(err)
		return values, outcomes
	}
	for i, reply := range replies {
		err, _ := reply.(error)
		value, found := reply.(string)
		values[i], outcomes[i] = value, c.count(found, err)
	}
	return values, outcomes
}

// set stores strings with a lifetime each. They are for entries that never change: a failure leaves nothing to repair.
func (c *Cache) set(ctx context.Context, values map[string]string, ttl func() time.Duration) {
	_, err := c.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for key, value := range values {
			p.Set(ctx, key, value, ttl())
		}
		return nil
	})
	if err != nil {
		c.failed(err)
	}
}

// fill stores one string. If that fails it may yet have happened, so the key is doubtful.
func (c *Cache) fill(ctx context.Context, key, value string, ttl time.Duration) {
	if err := c.client.Set(ctx, key, value, ttl).Err(); err != nil {
		c.doubt(key, err)
	}
}

// A cached timeline is a sorted set of tweet ids, each its own score, and of a sentinel, 0. The sentinel makes the set of
// an empty timeline exist, and tells a script that a timeline is cached: ZADD XX INCR by 0 returns the sentinel's score
// or nothing, and counts neither as a hit nor as a miss as EXISTS would.
//
// The scripts are sent whole. They are short, and so a shard that has not seen them yet is no special case.
const (
	sentinel = "0"

	fillScript = `redis.call('DEL', KEYS[1])
redis.call('ZADD', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1`

	pushScript = `if not redis.call('ZADD', KEYS[1], 'XX', 'INCR', 0, '0') then return 0 end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 1, -tonumber(ARGV[2]) - 1)
return 1`
)

// timeline looks up a timeline's tweet ids, newest first.
func (c *Cache) timeline(ctx context.Context, key string) ([]int64, outcome) {
	if c.isDoubtful(key) {
		return nil, unavailable
	}
	members, err := c.client.ZRevRange(ctx, key, 0, store.TimelineLength-1).Result()
	found := c.count(len(members) > 0, err)
	if found != hit {
		return nil, found
	}
	ids := make([]int64, 0, len(members))
	for _, m := range members {
		if m == sentinel {
			continue
		}
		id, err := strconv.ParseInt(m, 10, 64)
		if err != nil {
			c.log.Error("a cached timeline holds what is no tweet id", "key", key, "member", m)
			return nil, miss
		}
		ids = append(ids, id)
	}
	return ids, hit
}

// fillTimeline stores a timeline, in place of what may be there.
func (c *Cache) fillTimeline(ctx context.Context, key string, ids []int64, ttl time.Duration) {
	args := make([]any, 0, 3+2*len(ids))
	args = append(args, ttl.Milliseconds(), 0, sentinel)
	for _, id := range ids {
		args = append(args, id, id)
	}
	if err := c.client.Eval(ctx, fillScript, []string{key}, args...).Err(); err != nil {
		c.doubt(key, err)
	}
}

// push puts a tweet into those of the timelines that are cached.
func (c *Cache) push(ctx context.Context, keys []string, tweet int64) {
	replies, err := c.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, key := range keys {
			p.Eval(ctx, pushScript, []string{key}, tweet, store.TimelineLength)
		}
		return nil
	})
	if err == nil {
		return
	}
	for i, reply := range replies {
		if err := reply.Err(); err != nil {
			c.doubt(keys[i], err)
		}
	}
}

// invalidate removes a key.
func (c *Cache) invalidate(ctx context.Context, key string) {
	if err := c.client.Del(ctx, key).Err(); err != nil {
		c.doubt(key, err)
	}
}

// failed counts a failure, and logs one in ten seconds.
func (c *Cache) failed(err error) {
	c.errors.Add(1)
	now, last := time.Now().Unix(), c.logged.Load()
	if now-last >= 10 && c.logged.CompareAndSwap(last, now) {
		c.log.Warn("the cache does not answer as it should", "error", err)
	}
}

// doubt counts a failure and leaves the key to repair.
func (c *Cache) doubt(key string, err error) {
	c.failed(err)
	c.mu.Lock()
	c.failures++
	c.doubtful[key] = c.failures
	c.mu.Unlock()
}

func (c *Cache) isDoubtful(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.doubtful[key]
	return ok
}

// repair removes doubtful keys from Redis until that succeeds.
func (c *Cache) repair() {
	defer close(c.stopped)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-c.stop:
			return
		case <-tick.C:
			c.repairSome()
		}
	}
}

func (c *Cache) repairSome() {
	const batch = 500
	var keys []string
	var failures []uint64
	c.mu.Lock()
	for key, failure := range c.doubtful {
		if len(keys) == batch {
			break
		}
		keys, failures = append(keys, key), append(failures, failure)
	}
	c.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	ctx := context.Background() // the client's own timeouts apply
	replies, _ := c.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, key := range keys {
			p.Del(ctx, key)
		}
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, reply := range replies {
		// A failure since then keeps the key doubtful.
		if reply.Err() == nil && c.doubtful[keys[i]] == failures[i] {
			delete(c.doubtful, keys[i])
		}
	}
}
