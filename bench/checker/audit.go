package checker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// audit is an acknowledged change that is looked at in every region when it is due.
type audit struct {
	key    int
	change ack
	due    time.Time
}

// look is one GET in one region.
type look struct {
	region, key int
	due         time.Time
	failing     time.Time // since when it has had no answer
	watched     *Finding  // nil is an audit's
}

const (
	batch      = 128
	lookAgain  = 300 * time.Millisecond // after an error
	watchEvery = time.Second
	unanswered = 2 * time.Minute
)

// audit looks at every change when it is due, and watches what is found, until the last has come and nothing is watched.
func (c *checker) audit(ctx context.Context) error {
	random := rand.New(rand.NewPCG(c.Seed, 1<<63))
	var next *audit
	var later []look
	for open := true; ; {
		now := time.Now()
		c.mu.Lock()
		later = append(later, c.fresh...)
		c.fresh = nil
		c.mu.Unlock()
		var due []look
		later = slices.DeleteFunc(later, func(l look) bool {
			if len(due) < len(c.Regions)*batch && !l.due.After(now) {
				due = append(due, l)
				return true
			}
			return false
		})
		for open && len(due) < len(c.Regions)*batch {
			if next == nil {
				select {
				case a, more := <-c.audits:
					if !more {
						open = false
						continue
					}
					next = &a
				default:
				}
			}
			if next == nil || next.due.After(now) {
				break
			}
			for region := range c.Regions {
				due = append(due, look{region: region, key: next.key})
			}
			next = nil
		}
		if len(due) == 0 {
			if !open && len(later) == 0 {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(5 * time.Millisecond):
			}
			continue
		}
		again, err := c.lookAt(ctx, random, due)
		if err != nil {
			return err
		}
		later = append(later, again...)
	}
}

// lookAt reads in all regions at once and returns what must be looked at again.
func (c *checker) lookAt(ctx context.Context, random *rand.Rand, due []look) ([]look, error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	var again []look
	var errs []error
	for region := range c.Regions {
		looks := slices.DeleteFunc(slices.Clone(due), func(l look) bool { return l.region != region })
		client := c.client(random, region)
		all.Go(func() {
			began := time.Now()
			replies := make([]*redis.StringCmd, len(looks))
			client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i, l := range looks {
					replies[i] = p.Get(ctx, c.name(l.key))
				}
				return nil
			}) // each reply has its error
			for i, l := range looks {
				next, err := c.looked(ctx, l, client.Options().Addr, began, replies[i])
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				if next != nil {
					again = append(again, *next)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return again, errors.Join(errs...)
}

// looked takes in an answer and returns the next look at the same thing, if there is to be one.
func (c *checker) looked(ctx context.Context, l look, cache string, began time.Time, reply *redis.StringCmd) (*look, error) {
	text, err := reply.Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		if l.failing.IsZero() {
			l.failing = began
		}
		if time.Since(l.failing) > unanswered {
			return nil, fmt.Errorf("region %s has not answered for %s: %w", c.Regions[l.region].Name, unanswered, err)
		}
		c.count.failedLooks.Add(1)
		l.due = time.Now().Add(lookAgain)
		return &l, nil
	}
	l.failing = time.Time{}
	missing := err != nil
	var h held
	if !missing {
		if h, err = c.parse(l.key, text); err != nil {
			return nil, err
		}
	}
	if l.watched == nil {
		c.count.looks.Add(1)
		if c.Writes == Update {
			c.keys[l.key].release()
		}
		if !missing {
			c.judge(l.region, l.key, cache, h, began)
		}
		return nil, nil
	}
	return c.watch(ctx, l, h, missing, began), nil
}

// finding is what makes one the same.
type finding struct {
	key, region int
	version     int64
}

// Finding is a value that was served longer than the bound after it was invalidated.
type Finding struct {
	Key     string    `json:"key"`
	Region  string    `json:"region"` // where it was served
	Cache   string    `json:"cache"`  // that served it first
	Home    string    `json:"home"`   // where the invalidation was acknowledged
	Held    int64     `json:"held"`   // version
	Changed int64     `json:"changed"`
	Began   time.Time `json:"began"`
	Acked   time.Time `json:"acknowledged"`
	Written time.Time `json:"written"` // the value, into the cache
	// Age is that of the last read that saw it, since the acknowledgement.
	Age float64 `json:"age_seconds"`
	// There says that it was surely in the cache before the change began; else a refill may have brought it.
	There bool `json:"there_before"`
	// Reads is how many applications and audits saw it.
	Reads int `json:"reads"`
	// Ended says how it ended: gone, lost (never, and it was there before) or outlived (never, and it was not).
	Ended string `json:"ended,omitempty"`

	change ack
}

// judge takes in what a cache served to a read that began then.
func (c *checker) judge(region, i int, cache string, h held, began time.Time) {
	first, stale := c.keys[i].since(h.version)
	age := began.Sub(first.at)
	if !stale || age <= c.Bound {
		return
	}
	c.count.staleReads.Add(1)
	there := c.keys[i].there(region, h, first)
	c.mu.Lock()
	defer c.mu.Unlock()
	id := finding{i, region, first.version}
	f := c.findings[id]
	if f == nil {
		f = &Finding{Key: c.name(i), Region: c.Regions[region].Name, Cache: cache, Home: c.Regions[first.home].Name, Held: h.version, Changed: first.version,
			Began: first.began.UTC(), Acked: first.at.UTC(), Written: h.at.UTC(), There: there, change: first}
		c.findings[id] = f
		c.keys[i].watching(1)
		c.fresh = append(c.fresh, look{region: region, key: i, due: began.Add(watchEvery), watched: f})
	}
	f.Reads++
	f.Age = max(f.Age, age.Seconds())
	f.There = f.There && there
}

// watch takes in what became of a finding.
func (c *checker) watch(ctx context.Context, l look, h held, missing bool, began time.Time) *look {
	f := l.watched
	age := began.Sub(f.change.at)
	there := !missing && c.keys[l.key].there(l.region, h, f.change)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case missing || h.version >= f.Changed:
		f.Ended = "gone"
	case age > c.Lost && f.There && there:
		f.Ended = "lost"
	case age > c.Lost:
		f.Ended = "outlived"
	}
	if !missing && h.version < f.Changed {
		f.Age = max(f.Age, age.Seconds())
		f.There = f.There && there
	}
	if f.Ended == "" {
		l.due = began.Add(watchEvery)
		return &l
	}
	if f.Ended != "gone" {
		// So that the next change of the key finds nothing of this one.
		go c.until(ctx, func() error { return c.clients[l.region][0].Del(ctx, f.Key).Err() })
	}
	c.keys[l.key].watching(-1)
	return nil
}

// auditAll looks at every key once more: what was well when it was looked at may have come back.
func (c *checker) auditAll(ctx context.Context) {
	for i := range c.keys {
		k := &c.keys[i]
		k.mu.Lock()
		var a audit
		if n := len(k.acks); n > 0 {
			a = audit{i, k.acks[n-1], time.Now().Add(c.Bound)}
		}
		k.mu.Unlock()
		if a.due.IsZero() {
			continue
		}
		select {
		case c.audits <- a:
		case <-ctx.Done():
			return
		}
	}
}
