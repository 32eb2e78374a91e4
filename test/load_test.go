package test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// load sets and gets keys through a sidecar until it is finished: a few workers, each on a connection of its own and
// never idle for longer than a millisecond.
type load struct {
	stop     context.CancelFunc
	workers  sync.WaitGroup
	answered atomic.Int64

	mu     sync.Mutex
	failed []string
}

const loadWorkers = 4

// startLoad never retries a request, unless the options say so.
func startLoad(t *testing.T, o *redis.Options, keys []string) *load {
	t.Helper()
	if len(keys) == 0 {
		t.Fatal("a load without keys")
	}
	if o.MaxRetries == 0 {
		o.MaxRetries = -1
	}
	o.PoolSize, o.DisableIdentity = loadWorkers, true
	client := redis.NewClient(o)
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop}
	for worker := range loadWorkers {
		l.workers.Go(func() {
			ticker := time.NewTicker(time.Millisecond)
			defer ticker.Stop()
			for i := worker; ctx.Err() == nil; i++ {
				l.request(client, keys[i%len(keys)], i/len(keys)%2 == 0)
				<-ticker.C
			}
		})
	}
	t.Cleanup(func() {
		stop()
		l.workers.Wait()
		client.Close()
	})
	return l
}

// request is not bound to the load's context: the last one must end well, too.
func (l *load) request(client *redis.Client, key string, set bool) {
	var err error
	if set {
		err = client.Set(context.Background(), key, "value", 0).Err()
	} else {
		err = client.Get(context.Background(), key).Err()
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		l.mu.Lock()
		l.failed = append(l.failed, fmt.Sprintf("%s: %q: %v", time.Now().Format("05.000"), key, err))
		l.mu.Unlock()
		return
	}
	l.answered.Add(1)
}

// waitMore waits until n more requests are answered.
func (l *load) waitMore(t *testing.T, n int64) {
	t.Helper()
	from := l.answered.Load()
	eventually(t, 15*time.Second, func() error {
		if got := l.answered.Load() - from; got < n {
			return fmt.Errorf("%d requests answered, want %d", got, n)
		}
		return nil
	})
}

// finish ends the load and fails the test if a request has failed.
func (l *load) finish(t *testing.T) {
	t.Helper()
	l.stop()
	l.workers.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d requests failed, %d were answered; the first failures: %q", len(l.failed), l.answered.Load(), l.failed[:min(3, len(l.failed))])
	}
}

// someKeys are n different keys with a prefix.
func someKeys(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint(prefix, i)
	}
	return keys
}
