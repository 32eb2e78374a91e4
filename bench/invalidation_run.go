package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// lookEvery is the distance of two reads that look whether a value has gone, and the resolution of lags.
	lookEvery = 500 * time.Microsecond
	// lookFor is how long they do.
	lookFor = 5 * time.Second
	// fetched is how many keys are set or read at once.
	fetched = 500
	// patient is how long a client waits for an answer, which Envoy gives within half a second.
	patient = 2 * time.Second
)

// patientClient tries nothing again.
func patientClient(address string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: address, Protocol: 2, MaxRetries: -1, DisableIdentity: true, PoolSize: 1000,
		DialTimeout: patient, ReadTimeout: patient, WriteTimeout: patient, PoolTimeout: patient})
}

// cached puts keys into every region's cache. Nobody invalidates that: it is what a refill does.
func (v *invalidator) cached(ctx context.Context, name string, n int) ([]string, error) {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s%s:%06d", v.prefix, name, i)
	}
	var all sync.WaitGroup
	errs := make([]error, len(v.clients))
	for region, client := range v.clients {
		all.Go(func() {
			for part := range slices.Chunk(keys, fetched) {
				if errs[region] = eventually(ctx, "fill the cache", func(ctx context.Context) error {
					_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
						for _, key := range part {
							p.Set(ctx, key, "old", 0)
						}
						return nil
					})
					return err
				}); errs[region] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return keys, errors.Join(errs...)
}

// invalidate removes a key through its home, and returns when that was acknowledged.
func (v *invalidator) invalidate(ctx context.Context, home int, key string) (time.Time, error) {
	err := v.clients[home].Del(ctx, key).Err()
	if err == nil && v.tell != nil {
		err = v.tell(ctx, home, key)
	}
	return time.Now(), err
}

// linked waits until what any region invalidates reaches all others: a control plane waits two seconds for agents before it decides who
// follows which journal.
func (v *invalidator) linked(ctx context.Context) error {
	keys, err := v.cached(ctx, "linked", 20*len(v.clients)) // enough to meet every shard
	if err != nil {
		return err
	}
	for i, key := range keys {
		if _, err := v.invalidate(ctx, i%len(v.clients), key); err != nil {
			return err
		}
	}
	return eventually(ctx, "look whether regions are linked", func(ctx context.Context) error {
		n, err := v.lost(ctx, keys)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d of %d keys are not invalidated everywhere", n, len(keys))
		}
		return err
	})
}

// served returns those of the keys whose old value a region serves.
func (v *invalidator) served(ctx context.Context, region int, keys []string) (old []string, err error) {
	for part := range slices.Chunk(keys, fetched) {
		replies := make([]*redis.StringCmd, len(part))
		if _, err := v.clients[region].Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, key := range part {
				replies[i] = p.Get(ctx, key)
			}
			return nil
		}); err != nil && !errors.Is(err, redis.Nil) {
			return nil, err
		}
		for i, reply := range replies {
			switch err := reply.Err(); {
			case err == nil:
				old = append(old, part[i])
			case !errors.Is(err, redis.Nil):
				return nil, err
			}
		}
	}
	return old, nil
}

// lost counts the keys that any region serves still.
func (v *invalidator) lost(ctx context.Context, keys []string) (n int, err error) {
	stale := map[string]bool{}
	for region := range v.clients {
		var old []string
		err := eventually(ctx, "look what is left", func(ctx context.Context) (err error) { old, err = v.served(ctx, region, keys); return err })
		if err != nil {
			return 0, err
		}
		for _, key := range old {
			stale[key] = true
		}
	}
	return len(stale), nil
}

// lag invalidates keys that every region has in its cache, each key once, from each region in turn.
func (v *invalidator) lag(ctx context.Context, plan invalidationPlan, oneWay time.Duration) (*lagFigures, error) {
	whole := plan.warmUp + plan.window
	keys, err := v.cached(ctx, fmt.Sprintf("lag-%d", oneWay.Milliseconds()), int(whole.Seconds()*plan.rate)+100)
	if err != nil {
		return nil, err
	}
	f := &lagFigures{Regions: len(v.clients), Delay: milliseconds(oneWay)}
	loaded, stop := context.WithTimeout(ctx, whole)
	defer stop()
	counted := time.Now().Add(plan.warmUp)
	var mu sync.Mutex
	var lags []float64
	var acked []string
	var writes sync.WaitGroup
	onSchedule(loaded, time.Duration(float64(time.Second)/plan.rate), func(i int, due time.Time) {
		if i >= len(keys) {
			return
		}
		writes.Go(func() {
			home := i % len(v.clients)
			at, err := v.invalidate(ctx, home, keys[i])
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				f.Failed++
				return
			}
			gone := v.gone(ctx, home, keys[i], at.Add(oneWay))
			mu.Lock()
			defer mu.Unlock()
			acked = append(acked, keys[i])
			if due.After(counted) {
				lags = append(lags, milliseconds(gone.Sub(at)))
			}
		})
	})
	writes.Wait()
	if err := sleep(ctx, plan.settle); err != nil {
		return nil, err
	}
	f.Writes = len(acked)
	f.P50, f.P99, f.P999 = quantileOrZero(lags, 0.5), quantileOrZero(lags, 0.99), quantileOrZero(lags, 0.999)
	f.Lost, err = v.lost(ctx, acked)
	return f, err
}

// gone is when the first read began that found nothing, in the last of the regions but home. Nobody looks before from.
func (v *invalidator) gone(ctx context.Context, home int, key string, from time.Time) time.Time {
	last := from
	var mu sync.Mutex
	var all sync.WaitGroup
	for region, client := range v.clients {
		if region == home {
			continue
		}
		all.Go(func() {
			time.Sleep(time.Until(from))
			began := time.Now()
			for !errors.Is(client.Get(ctx, key).Err(), redis.Nil) && time.Since(from) < lookFor {
				time.Sleep(lookEvery)
				began = time.Now()
			}
			mu.Lock()
			defer mu.Unlock()
			if began.After(last) {
				last = began
			}
		})
	}
	all.Wait()
	return last
}

// partition parts the regions under load, and looks how long what has waited takes when they are whole again.
func (v *invalidator) partition(ctx context.Context, plan invalidationPlan) (*partitionFigures, error) {
	const before, limit = time.Second, time.Minute
	keys, err := v.cached(ctx, "parted", int((before+plan.partition+limit).Seconds()*plan.partitionRate))
	if err != nil {
		return nil, err
	}
	f := &partitionFigures{Seconds: plan.partition.Seconds()}
	loaded, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex
	acked := make([][]string, len(v.clients)) // by home
	var load sync.WaitGroup
	load.Go(func() {
		var writes sync.WaitGroup
		defer writes.Wait()
		onSchedule(loaded, time.Duration(float64(time.Second)/plan.partitionRate), func(i int, _ time.Time) {
			if i >= len(keys) {
				return
			}
			writes.Go(func() {
				home := i % len(v.clients)
				_, err := v.invalidate(ctx, home, keys[i])
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					f.Failed++
				} else {
					acked[home] = append(acked[home], keys[i])
				}
			})
		})
	})
	defer load.Wait()
	defer stop()
	if err := sleep(ctx, before); err != nil {
		return nil, err
	}
	v.part(true)
	err = sleep(ctx, plan.partition)
	mu.Lock()
	waiting := make([][]string, len(acked))
	for home := range acked {
		waiting[home] = slices.Clone(acked[home])
		f.Backlog += len(acked[home])
	}
	mu.Unlock()
	v.part(false)
	healed := time.Now()
	if err != nil {
		return nil, err
	}
	if v.tell == nil { // with Pub/Sub, some of it never goes
		if err := v.drained(ctx, waiting, healed.Add(limit/2)); err != nil {
			return nil, err
		}
		f.Drain = rounded(time.Since(healed).Seconds())
	}
	stop()
	load.Wait()
	if err := sleep(ctx, plan.settle); err != nil {
		return nil, err
	}
	all := slices.Concat(acked...)
	f.Writes = len(all)
	f.Lost, err = v.lost(ctx, all)
	return f, err
}

// drained waits until no other region serves what waited, by home and in order, but not beyond the limit. What waited longest goes first,
// so that reading it all again is not needed.
func (v *invalidator) drained(ctx context.Context, waiting [][]string, limit time.Time) error {
	for home, keys := range waiting {
		for region := range v.clients {
			if region == home {
				continue
			}
			for part := range slices.Chunk(keys, 4*fetched) {
				for len(part) > 0 {
					if time.Now().After(limit) {
						return nil
					}
					var err error
					if part, err = v.served(ctx, region, part); err != nil {
						return err
					}
					if len(part) > 0 {
						if err := sleep(ctx, 10*time.Millisecond); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	return nil
}

// namedLag is one contender's.
type namedLag struct {
	*lagFigures
	contender string
}

func sortedLags(lags map[string]map[string]*lagFigures) (sorted []namedLag) {
	for contender, byCase := range lags {
		for _, f := range byCase {
			sorted = append(sorted, namedLag{f, contender})
		}
	}
	slices.SortFunc(sorted, func(a, b namedLag) int {
		return cmp.Or(cmp.Compare(a.Regions, b.Regions), cmp.Compare(a.Delay, b.Delay), cmp.Compare(a.contender, b.contender))
	})
	return sorted
}
