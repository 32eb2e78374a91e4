// Package checker tells whether a cache over several regions tells the truth, from outside: it is an application that keeps
// versions in a database, changes and invalidates them through the caches of all regions, reads them there, and remembers what
// it was promised. It shares no code with what it checks, and knows nothing of it but the addresses of its Redis.
//
// An application changes a key in the database first, then has the cache remove it (Refill: DEL; reads that miss fill the cache from a
// replica of the database, which lags) or take the new version (Update: SET; reads fill nothing), again and again until that is
// acknowledged. From the acknowledgement on, no region may serve an older version for longer than a bound.
//
// Every acknowledged change is looked at in every region when the bound is over, beside what ordinary reads see meanwhile. A value that
// is too old is watched until it goes. If it was in the cache before the change began and stays, the region never learned of
// the invalidation: that is a loss. Values say when they were written, so that a refill that came too late is told from that.
//
// What it decides at random comes from a seed. Run it with PubSub to see that it can see: applications then publish their
// invalidations on Redis Pub/Sub, as one does who has no cachemesh.
package checker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/bench/pubsub"
)

// Writes is what applications do to the cache when they have changed the database.
type Writes string

// Refill deletes the key, and reads that miss set it; Update sets it.
const (
	Refill Writes = "refill"
	Update Writes = "update"
)

// Region is one place where the application runs.
type Region struct {
	Name   string
	Caches []string // HOST:PORT of the caches there, each as good as the others
	// With PubSub: the Redis where this region's applications publish, and those of the other regions as they are reached from here.
	Publish   string
	Subscribe []string
}

// Config says what to do for how long.
type Config struct {
	Seed     uint64
	Regions  []Region
	Database string // file of SQLite, made anew
	Prefix   string // of keys
	Writes   Writes
	PubSub   bool

	Keys int
	Rate float64       // changes a second; there are three reads for each, and one look in every region
	For  time.Duration // of changes; looking takes longer
	Most int           // changes, after which it stops, too; 0 is no limit

	Lag time.Duration // replicas of the database lag by 0 to this
	// HoldOff is for how long after an invalidation the cache suspects refills. A refill that took longer than HoldOff less Lag is taken back
	// by the application; 0 is never.
	HoldOff time.Duration
	// Bound is how old a value may be: 0 and Lost are errors of the caller.
	Bound time.Duration
	// Lost is the age at which a value that has not gone never will.
	Lost time.Duration
	// Progress gets a line every ten seconds; nil is nobody.
	Progress io.Writer
}

const (
	workers  = 64
	patience = 200 * time.Millisecond // of an application between the database and its refill
	// expiry is what applications give their keys.
	expiry = time.Hour
	// give is how long an application tries to have its invalidation acknowledged.
	give = time.Minute
)

// checker is one run.
type checker struct {
	Config
	database *database
	clients  [][]*redis.Client // region → cache
	publish  []*redis.Client   // by region, with PubSub
	keys     []key
	audits   chan audit
	count    counts
	began    time.Time

	mu       sync.Mutex
	findings map[finding]*Finding
	fresh    []look // at findings that are new
	recent   []int  // keys that were changed lately
}

// Run checks until it is done or ctx ends, which is an error like that of a database; what caches do wrong is in the report.
func Run(ctx context.Context, config Config) (*Report, error) {
	if len(config.Regions) < 2 || config.Keys < 1 || config.Rate <= 0 || config.Bound <= 0 || config.Lost < config.Bound {
		return nil, fmt.Errorf("checker: %d regions, %d keys, %v changes a second, bound %s, lost %s: want two, one, some, some, and no less than the bound",
			len(config.Regions), config.Keys, config.Rate, config.Bound, config.Lost)
	}
	base, err := openDatabase(config.Database)
	if err != nil {
		return nil, err
	}
	defer base.close()
	c := &checker{Config: config, database: base, keys: make([]key, config.Keys), audits: make(chan audit, 1024+int(2*config.Rate*config.Bound.Seconds())), findings: map[finding]*Finding{}, began: time.Now()}
	for i := range c.keys {
		c.keys[i].filled = make([][]fill, len(c.Regions))
	}
	for _, region := range c.Regions {
		var caches []*redis.Client
		for _, address := range region.Caches {
			caches = append(caches, newClient(address))
		}
		c.clients = append(c.clients, caches)
		if c.PubSub {
			c.publish = append(c.publish, newClient(region.Publish))
		}
	}
	defer c.close()
	if c.PubSub {
		heard, stop := context.WithCancel(ctx)
		var subscribers sync.WaitGroup
		defer subscribers.Wait()
		defer stop()
		for i, region := range c.Regions {
			for _, address := range region.Subscribe {
				s, err := pubsub.Subscribe(ctx, address)
				if err != nil {
					return nil, err
				}
				subscribers.Go(func() { c.hear(heard, i, s) })
			}
		}
	}
	return c.run(ctx)
}

func newClient(address string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: address, Protocol: 2, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, PoolSize: 2 * workers,
		DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second, PoolTimeout: time.Second, ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10})
}

func (c *checker) close() {
	for _, client := range slices.Concat(append(c.clients, c.publish)...) {
		client.Close()
	}
}

// run loads, looks, and looks again at all.
func (c *checker) run(ctx context.Context) (*Report, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var all sync.WaitGroup
	looking, looked := context.WithCancel(ctx)
	defer looked()
	all.Go(func() { c.tell(looking) })
	auditor := make(chan error, 1)
	all.Go(func() {
		err := c.audit(ctx)
		if err != nil {
			stop(err)
		}
		auditor <- err
	})
	if err := c.load(ctx); err != nil {
		stop(err)
	}
	c.auditAll(ctx)
	close(c.audits)
	err := <-auditor
	looked()
	all.Wait()
	if ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	return c.report(), nil
}

// load changes and reads on schedule. When the machine or the cache is slower than that, it does so as fast as they go.
func (c *checker) load(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	turns := make(chan uint64)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for turn := range turns {
				if err := c.turn(ctx, rand.New(rand.NewPCG(c.Seed, turn))); err != nil {
					stop(err)
				}
			}
		})
	}
	every := time.Duration(float64(time.Second) / c.Rate)
	end := time.Now().Add(c.For)
	due := time.Now()
	for turn := uint64(0); time.Now().Before(end) && (c.Most == 0 || turn < uint64(c.Most)); turn++ {
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		if due = due.Add(every); time.Since(due) > time.Second {
			due = time.Now() // what was missed is not made up for
		}
		select {
		case turns <- turn:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(turns)
	all.Wait()
	return context.Cause(ctx)
}

// turn is one change of a key that other regions have in their caches, as far as reads can do that, and a read of one that was
// changed lately.
func (c *checker) turn(ctx context.Context, random *rand.Rand) error {
	home := random.IntN(len(c.Regions))
	if i := c.lately(random); i >= 0 {
		if err := c.read(ctx, random, random.IntN(len(c.Regions)), i); err != nil {
			return err
		}
	}
	i := random.IntN(len(c.keys))
	if !c.keys[i].take(c.Writes == Update) {
		c.count.skipped.Add(1)
		return nil
	}
	for region := range c.Regions {
		if err := c.read(ctx, random, region, i); err != nil {
			return err
		}
	}
	return c.change(ctx, random, home, i)
}

// lately is a key that was changed in the last seconds, -1 if there is none.
func (c *checker) lately(random *rand.Rand) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.recent) == 0 {
		return -1
	}
	return c.recent[random.IntN(len(c.recent))]
}

// tell writes progress until ctx ends.
func (c *checker) tell(ctx context.Context) {
	if c.Progress == nil {
		return
	}
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r := c.report()
			fmt.Fprintf(c.Progress, "%s: %d changes acknowledged, %d failed tries, %d looks, %d still to come, %d stale reads, %d lost\n",
				time.Since(c.began).Round(time.Second), r.Acked, r.Retries, r.Looks, len(c.audits), r.StaleReads, r.Lost)
		}
	}
}
