package aside

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// run loads one Redis for two seconds while meddle does something to it.
func run(t *testing.T, meddle func(*redis.Client)) Figures {
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	r := process.Redis{Port: ports[0], Dir: t.TempDir()}
	started, err := r.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer started.Stop(5 * time.Second)
	client := redis.NewClient(&redis.Options{Addr: r.Address(), MaxRetries: -1})
	defer client.Close()
	a := New(Plan{Keys: 200, Bytes: 50, Alpha: 1, Rate: 1000, Writes: 0.3, Timeout: 2 * time.Second}, []*redis.Client{client}, []*redis.Client{client})
	if err := a.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if meddle != nil {
		go func() {
			for ctx.Err() == nil {
				meddle(client)
			}
		}()
	}
	a.Run(ctx)
	return a.Between(began, time.Now().Add(time.Second))
}

func TestHonestCache(t *testing.T) {
	f := run(t, nil)
	if f.Reads < 500 || f.Hits == 0 || f.Hits == f.Reads {
		t.Errorf("%d reads, %d hits: want many, and misses after removals", f.Reads, f.Hits)
	}
	if f.Stale != 0 || f.Lost != 0 || f.Errors != (Counts{}) {
		t.Errorf("a single Redis is said to be stale %d times, to lose %d keys, to fail %+v", f.Stale, f.Lost, f.Errors)
	}
	if f.OriginReads != f.Reads-f.Hits {
		t.Errorf("%d database reads for %d misses", f.OriginReads, f.Reads-f.Hits)
	}
}

func TestLostKeysAreSeen(t *testing.T) {
	f := run(t, func(c *redis.Client) {
		c.Del(context.Background(), name(rand.IntN(200)))
		time.Sleep(time.Millisecond)
	})
	if f.Lost == 0 {
		t.Error("keys go, and nobody sees it")
	}
}

func TestStaleValuesAreSeen(t *testing.T) {
	f := run(t, func(c *redis.Client) {
		c.Set(context.Background(), name(rand.IntN(200)), "0 old", 0)
		time.Sleep(time.Millisecond)
	})
	if f.Stale == 0 {
		t.Error("old values come back, and nobody sees it")
	}
}

func TestFailuresAreCounted(t *testing.T) {
	f := run(t, func(c *redis.Client) {
		c.ClientKillByFilter(context.Background(), "TYPE", "normal", "SKIPME", "yes")
		time.Sleep(5 * time.Millisecond)
	})
	if f.Errors.Plain == 0 {
		t.Error("connections are cut, and no request fails")
	}
}
