package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// writeScript sets a key and tells which process of Redis did so.
const writeScript = `redis.call('SET',KEYS[1],ARGV[1]) return string.match(redis.call('INFO','server'),'run_id:(%x+)')`

// attempt is one write of a key, with a number that grows.
type attempt struct {
	done   time.Time
	key    int // index
	number int64
	node   string // run id of the process that acknowledged it
	err    error
}

// writer writes its keys in turn, one a millisecond whatever the answers do, each on a connection of its own.
type writer struct {
	clients []*redis.Client // taken in turn
	keys    []string
	first   int64 // number of the first write

	mu       sync.Mutex
	attempts []attempt // in the order of their ends
	failed   time.Time // when the last failure ended
}

// run writes until ctx ends, and returns when the last write is answered.
func (w *writer) run(ctx context.Context, every time.Duration) {
	var wait sync.WaitGroup
	defer wait.Wait()
	onSchedule(ctx, every, func(i int, _ time.Time) {
		wait.Go(func() {
			a := attempt{key: i % len(w.keys), number: w.first + int64(i)}
			// Not with ctx: what is under way is to end by itself.
			a.node, a.err = w.clients[i%len(w.clients)].Eval(context.Background(), writeScript, []string{w.keys[a.key]}, a.number).Text()
			a.done = time.Now()
			w.mu.Lock()
			defer w.mu.Unlock()
			w.attempts = append(w.attempts, a)
			if a.err != nil {
				w.failed = a.done
			}
		})
	})
}

// onSchedule calls do at even distances until ctx ends, with the moment that the schedule says. What do starts is not waited for.
func onSchedule(ctx context.Context, every time.Duration, do func(i int, due time.Time)) {
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		due := start.Add(time.Duration(i) * every)
		for ; !due.After(time.Now()); due = due.Add(every) {
			do(i, due)
			i++
		}
		timer.Reset(time.Until(due))
	}
}

// replaced says whether the newest acknowledgement is by another process than old.
func (w *writer) replaced(old string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range slices.Backward(w.attempts) {
		if a.err == nil {
			return a.node != old
		}
	}
	return false
}

// calm waits until no write has failed for d, at most for limit.
func (w *writer) calm(ctx context.Context, d, limit time.Duration) error {
	began := time.Now()
	for since := began; time.Since(since) < d; {
		if time.Since(began) > limit {
			return fmt.Errorf("writes fail for %s", limit)
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
		w.mu.Lock()
		if w.failed.After(since) {
			since = w.failed
		}
		w.mu.Unlock()
	}
	return nil
}

// outage is what clients saw of a fault of one primary.
type outage struct {
	from, to time.Time // the last acknowledgement before it; the first after it that no failure followed, zero if there is none
	other    time.Time // the first acknowledgement by another process
	failures int
	wrong    int // acknowledgements by a process after its epoch, or after another had given one
}

// outageOf reads the outage from attempts in the order of their ends. The fault hit process old, whose epoch ended at epoch; zero is not
// known.
func outageOf(attempts []attempt, old string, epoch time.Time) (o outage) {
	last := -1 // failure
	for i, a := range attempts {
		if a.err != nil {
			o.failures++
			last = i
		}
	}
	begun := false
	current, former := old, map[string]bool{}
	for i, a := range attempts {
		if a.err != nil || a.node != old {
			begun = true
		}
		if a.err != nil {
			continue
		}
		switch {
		case former[a.node], a.node == old && !epoch.IsZero() && a.done.After(epoch):
			o.wrong++
		case a.node != current:
			former[current] = true
			current = a.node
		}
		if a.node != old && o.other.IsZero() {
			o.other = a.done
		}
		if !begun {
			o.from = a.done
		}
		if begun && i > last && o.to.IsZero() {
			o.to = a.done
		}
	}
	return o
}

// lost counts acknowledged writes of which the stored numbers know nothing. A later write of the same key hides it, as it would
// from an application.
func lost(attempts []attempt, stored []int64) (n int) {
	for _, a := range attempts {
		if a.err == nil && a.number > stored[a.key] {
			n++
		}
	}
	return n
}

// storedNumbers reads what the keys hold now; 0 is nothing.
func storedNumbers(ctx context.Context, client *redis.Client, keys []string) ([]int64, error) {
	stored := make([]int64, 0, len(keys))
	for part := range slices.Chunk(keys, 500) {
		replies := make([]*redis.StringCmd, len(part))
		if _, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, key := range part {
				replies[i] = p.Get(ctx, key)
			}
			return nil
		}); err != nil && err != redis.Nil {
			return nil, err
		}
		for _, reply := range replies {
			text, err := reply.Result()
			if err == redis.Nil {
				text, err = "0", nil
			}
			if err != nil {
				return nil, err
			}
			number, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, err
			}
			stored = append(stored, number)
		}
	}
	return stored, nil
}
