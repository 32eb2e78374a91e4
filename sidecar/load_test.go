package sidecar

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
)

// clientLoad is a client that sends one request after the other on one connection.
type clientLoad struct {
	cancel      context.CancelFunc
	done        chan struct{}
	sent        atomic.Int64
	connections atomic.Int64
	err         error // the first, valid once done is closed
}

func (s *sidecar) startLoad(t *testing.T) *clientLoad {
	ctx, cancel := context.WithCancel(context.Background())
	l := &clientLoad{cancel: cancel, done: make(chan struct{})}
	client := newClient(t, &redis.Options{
		Addr: s.config.Addresses.Redis, Protocol: 2, PoolSize: 1,
		OnConnect: func(context.Context, *redis.Conn) error {
			l.connections.Add(1)
			return nil
		},
	})
	key := t.Name()
	go func() {
		defer close(l.done)
		for ctx.Err() == nil && l.err == nil {
			// The request that is under way when the load stops must end well, too.
			l.err = client.Set(context.Background(), key, "value", 0).Err()
			l.sent.Add(1)
		}
	}()
	t.Cleanup(l.cancel)
	return l
}

// waitMore waits until n more requests are answered.
func (l *clientLoad) waitMore(t *testing.T, n int64) {
	t.Helper()
	from := l.sent.Load()
	eventually(t, func() error {
		select {
		case <-l.done:
			t.Fatalf("request %d failed: %v", l.sent.Load(), l.err)
		default:
		}
		if got := l.sent.Load() - from; got < n {
			return fmt.Errorf("%d requests answered, want %d", got, n)
		}
		return nil
	})
}

// finish ends the load and fails the test if a request failed or the connection was lost.
func (l *clientLoad) finish(t *testing.T) {
	t.Helper()
	l.cancel()
	<-l.done
	if l.err != nil {
		t.Errorf("request %d failed: %v", l.sent.Load(), l.err)
	}
	if n := l.connections.Load(); n != 1 {
		t.Errorf("the client connected %d times, want once", n)
	}
}
