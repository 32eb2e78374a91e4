package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// bystander reads and writes, in turn, keys of shards that nothing happens to.
type bystander struct {
	clients []*redis.Client // taken in turn
	keys    []string

	mu       sync.Mutex
	requests []request
}

// request is one of a bystander.
type request struct {
	due  time.Time // by the schedule
	took time.Duration
	err  error
}

// run sends requests until ctx ends, and returns when the last is answered.
func (b *bystander) run(ctx context.Context, every time.Duration) {
	var wait sync.WaitGroup
	defer wait.Wait()
	onSchedule(ctx, every, func(i int, due time.Time) {
		wait.Go(func() {
			err := b.request(b.clients[i%len(b.clients)], b.keys[i%len(b.keys)], i/len(b.keys)%2 == 0)
			took := time.Since(due)
			b.mu.Lock()
			defer b.mu.Unlock()
			b.requests = append(b.requests, request{due, took, err})
		})
	})
}

func (b *bystander) request(client *redis.Client, key string, get bool) error {
	if !get {
		return client.Set(context.Background(), key, valueOf(key), 0).Err()
	}
	got, err := client.Get(context.Background(), key).Result()
	if err == nil && got != valueOf(key) {
		err = fmt.Errorf("GET %s: got %.80q", key, got)
	}
	return err
}

// p99 is in milliseconds, of the requests due in that time.
func (b *bystander) p99(from, to time.Time) float64 {
	var took []float64
	for _, r := range b.requests {
		if !r.due.Before(from) && r.due.Before(to) {
			took = append(took, milliseconds(r.took))
		}
	}
	return quantile(took, 0.99)
}

// failures are those of requests due since.
func (b *bystander) failures(since time.Time) (errs []error) {
	for _, r := range b.requests {
		if r.err != nil && !r.due.Before(since) {
			errs = append(errs, r.err)
		}
	}
	return errs
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
