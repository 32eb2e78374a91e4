// Package redistest starts real Redis nodes for tests, which end with the test. No program of ours has it.
package redistest

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// Node is a Redis, its process, and a client of it that tries nothing twice.
type Node struct {
	process.Redis
	*process.Process
	*redis.Client
}

// Start starts a node, at a free port and in a folder of its own unless it has them.
func Start(t testing.TB, r process.Redis) *Node {
	t.Helper()
	if r.Port == 0 {
		ports, err := process.FreePorts(1)
		if err != nil {
			t.Fatal(err)
		}
		r.Port = ports[0]
	}
	if r.Dir == "" {
		r.Dir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := r.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(time.Second) })
	options, err := r.Options()
	if err != nil {
		t.Fatal(err)
	}
	options.PoolSize = 0 // the usual number
	c := redis.NewClient(options)
	t.Cleanup(func() { c.Close() })
	return &Node{r, p, c}
}
