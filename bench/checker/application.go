package checker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/bench/pubsub"
)

// counts are of what applications and auditor did.
type counts struct {
	acked, retries, abandoned, skipped  atomic.Int64
	reads, hits, failedReads            atomic.Int64
	refills, failedRefills, lateRefills atomic.Int64
	looks, failedLooks, staleReads      atomic.Int64
}

func (c *checker) name(i int) string { return fmt.Sprintf("%s%07d", c.Prefix, i) }

// value is what a cache holds: the version, when it was written, and the key, so that another's is noticed.
func (c *checker) value(i int, version int64, at time.Time) string {
	return fmt.Sprintf("%d %d %s", version, at.UnixMicro(), c.name(i))
}

// held is what a cache has of a key.
type held struct {
	version int64
	at      time.Time // when it was written
}

func (c *checker) parse(i int, text string) (h held, err error) {
	var at int64
	var name string
	if _, err := fmt.Sscan(text, &h.version, &at, &name); err != nil || name != c.name(i) {
		return h, fmt.Errorf("the cache answered %s with %q, which nobody wrote there", c.name(i), text)
	}
	h.at = time.UnixMicro(at)
	return h, nil
}

// client is one of the region's caches.
func (c *checker) client(random *rand.Rand, region int) *redis.Client {
	return c.clients[region][random.IntN(len(c.clients[region]))]
}

// read is cache-aside. Its error is no cache's.
func (c *checker) read(ctx context.Context, random *rand.Rand, region, i int) error {
	client := c.client(random, region)
	c.count.reads.Add(1)
	began := time.Now()
	text, err := client.Get(ctx, c.name(i)).Result()
	switch {
	case err == nil:
		c.count.hits.Add(1)
		h, err := c.parse(i, text)
		if err != nil {
			return err
		}
		c.judge(region, i, client.Options().Addr, h, began)
		return nil
	case !errors.Is(err, redis.Nil):
		c.count.failedReads.Add(1)
	}
	// An application asks its database, whether or not the cache has failed.
	lag := time.Duration(random.Int64N(int64(c.Lag) + 1))
	asked := time.Now()
	version, dbErr := c.database.read(ctx, i, lag)
	if dbErr != nil {
		return dbErr
	}
	if version == 0 || c.Writes == Update || !errors.Is(err, redis.Nil) || time.Since(asked) > patience {
		return nil
	}
	c.count.refills.Add(1)
	at := time.Now()
	err = client.Set(ctx, c.name(i), c.value(i, version, at), expiry).Err()
	if err == nil {
		c.keys[i].fill(region, fill{at.UnixMicro(), time.Now()})
	} else {
		c.count.failedRefills.Add(1)
	}
	if c.HoldOff > 0 && time.Since(asked) > c.HoldOff-c.Lag {
		// Nobody suspects it any more. A value that may be old is worse than none.
		c.count.lateRefills.Add(1)
		c.until(ctx, func() error { return c.client(random, region).Del(ctx, c.name(i)).Err() })
	}
	return nil
}

// change is of a key that was taken, and lets go of it.
func (c *checker) change(ctx context.Context, random *rand.Rand, home, i int) error {
	began := time.Now()
	version, err := c.database.change(i)
	if err != nil {
		c.keys[i].release()
		return err
	}
	acked := c.until(ctx, func() error {
		client := c.client(random, home)
		if c.Writes == Refill {
			return client.Del(ctx, c.name(i)).Err()
		}
		at := time.Now()
		err := client.Set(ctx, c.name(i), c.value(i, version, at), expiry).Err()
		if err == nil {
			c.keys[i].fill(home, fill{at.UnixMicro(), time.Now()})
		}
		return err
	})
	if acked && c.PubSub {
		acked = c.until(ctx, func() error { return pubsub.Publish(ctx, c.publish[home], c.name(i)) })
	}
	if !acked {
		c.count.abandoned.Add(1)
		c.keys[i].release()
		return nil
	}
	a := ack{version, began, time.Now(), home}
	c.keys[i].ack(a)
	c.count.acked.Add(1)
	c.remember(i)
	select {
	case c.audits <- audit{i, a, a.at.Add(c.Bound + c.Bound/100)}:
	case <-ctx.Done():
	}
	return nil
}

// until tries again until there is no error, and says whether there was none in the end.
func (c *checker) until(ctx context.Context, try func() error) bool {
	for began := time.Now(); ; c.count.retries.Add(1) {
		if try() == nil {
			return true
		}
		if time.Since(began) > give || ctx.Err() != nil {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const remembered = 4096

func (c *checker) remember(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Some seconds of changes, whatever their rate.
	if most := max(1, min(remembered, int(3*c.Rate))); len(c.recent) >= most {
		c.recent = c.recent[1:]
	}
	c.recent = append(c.recent, i)
}

// hear removes from a region's cache what others have changed.
func (c *checker) hear(ctx context.Context, region int, s *pubsub.Subscriber) {
	defer s.Close()
	turn := 0
	s.Hear(ctx, func(key string) {
		if strings.HasPrefix(key, c.Prefix) {
			turn++
			client := c.clients[region][turn%len(c.clients[region])]
			c.until(ctx, func() error { return client.Del(ctx, key).Err() })
		}
	})
}
