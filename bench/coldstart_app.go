package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	facts "github.com/cachemesh/cachemesh/examples/twitter/workload"
)

// limitedDatabase answers so many reads a second and no more. Who would wait for longer than its patience is refused at once.
type limitedDatabase struct {
	every, latency, patience time.Duration

	mu   sync.Mutex
	next time.Time // when the next read may be
}

func (d *limitedDatabase) read() error {
	now := time.Now()
	d.mu.Lock()
	if d.next.Before(now) {
		d.next = now
	}
	wait := d.next.Sub(now)
	if wait > d.patience {
		d.mu.Unlock()
		return errors.New("the database has too much to do")
	}
	d.next = d.next.Add(d.every)
	d.mu.Unlock()
	time.Sleep(wait + d.latency)
	return nil
}

// coldApp is an application that keeps the values of a limited database in a cache: it looks there first, reads the database after a miss, once
// for all who miss the same key, and fills. Its requests leave on a schedule that answers do not slow down. Values never change, as tweets do not.
type coldApp struct {
	plan       coldPlan
	database   *limitedDatabase
	popularity *facts.Zipf
	order      []int // keys by rank
	value      func(key int) []byte
	client     *redis.Client
	began      time.Time

	mu      sync.Mutex
	flights map[int]bool
	seen    []coldSlice
}

// coldSlice is what requests came to that were sent in a slice of time.
type coldSlice struct {
	Hits   int
	Misses int
	Failed int // the cache gave an error
	Shed   int // the database had too much to do
	Wrong  int // another value than the database has
	Reads  int // of the database
}

// sliceOf is how long a slice is.
const sliceOf = 100 * time.Millisecond

func newColdApp(p coldPlan, client *redis.Client) *coldApp {
	a := &coldApp{plan: p, client: client, popularity: facts.NewZipf(p.keys, p.alpha), value: copiedValue(p.bytes), flights: map[int]bool{},
		database: &limitedDatabase{every: time.Duration(float64(time.Second) / p.databaseReads), latency: p.databaseLatency, patience: time.Second}}
	a.order = rand.New(rand.NewPCG(5, 8)).Perm(p.keys)
	return a
}

// run sends requests until ctx ends, and returns when all are answered.
func (a *coldApp) run(ctx context.Context) {
	var wait sync.WaitGroup
	defer wait.Wait()
	rng := rand.New(rand.NewPCG(13, 21))
	every := time.Duration(float64(time.Second) / a.plan.rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for due := a.began; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		for ; !due.After(time.Now()); due = due.Add(every) {
			key, at := a.order[a.popularity.Draw(rng)], int(due.Sub(a.began)/sliceOf)
			wait.Go(func() { a.get(key, at) })
		}
		timer.Reset(time.Until(due))
	}
}

func (a *coldApp) get(key, at int) {
	ctx := context.Background() // what is under way ends by itself
	name := copiedKey(key)
	value, err := a.client.Get(ctx, name).Bytes()
	if err == nil {
		wrong := !bytes.Equal(value, a.value(key))
		a.count(at, func(s *coldSlice) {
			s.Hits++
			if wrong {
				s.Wrong++
			}
		})
		return
	}
	if !errors.Is(err, redis.Nil) {
		a.count(at, func(s *coldSlice) { s.Failed++ })
		return
	}
	a.mu.Lock()
	joined := a.flights[key]
	a.flights[key] = true
	a.mu.Unlock()
	a.count(at, func(s *coldSlice) { s.Misses++ })
	if joined {
		return
	}
	if err := a.database.read(); err == nil {
		a.count(int(time.Since(a.began)/sliceOf), func(s *coldSlice) { s.Reads++ })
		a.client.Set(ctx, name, a.value(key), a.plan.ttl) // if it fails, the next one misses
	} else {
		a.count(at, func(s *coldSlice) { s.Shed++ })
	}
	a.mu.Lock()
	delete(a.flights, key)
	a.mu.Unlock()
}

// last is a copy of what was seen so far.
func (a *coldApp) last() []coldSlice {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen)
}

func (a *coldApp) count(at int, add func(*coldSlice)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.seen) <= at {
		a.seen = append(a.seen, coldSlice{})
	}
	add(&a.seen[at])
}

// hitRate is that of the slices; 0 of none.
func hitRate(seen []coldSlice) float64 {
	hits, all := 0, 0
	for _, s := range seen {
		hits += s.Hits
		all += s.Hits + s.Misses + s.Failed
	}
	if all == 0 {
		return 0
	}
	return float64(hits) / float64(all)
}

// recovered is the slice at whose end the last second's hit rate is so high again, from a slice on.
func recovered(seen []coldSlice, from int, rate float64) (end int, ok bool) {
	const second = int(time.Second / sliceOf)
	for end := from + second; end <= len(seen); end++ {
		if hitRate(seen[end-second:end]) >= rate {
			return end, true
		}
	}
	return 0, false
}
