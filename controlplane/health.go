package controlplane

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/shards"
)

// health asks every node several times a second what it is. Each node has a goroutine of its own, so that one that hangs delays no other.
type health struct {
	mu       sync.Mutex
	ctx      context.Context // nil before run, and after
	report   func(shards.Node, error)
	interval time.Duration
	timeout  time.Duration
	wanted   map[string]*mesh.RedisAccess
	probes   map[string]*probe
	work     sync.WaitGroup
}

// probe is one node's goroutine, and what it was started with.
type probe struct {
	access            *mesh.RedisAccess
	interval, timeout time.Duration
	client            *node.Client
	stop              context.CancelFunc
}

func newHealth() *health { return &health{probes: map[string]*probe{}} }

// want says which nodes to ask, how to log in to each, how often, and how long to wait for an answer.
func (h *health) want(interval, timeout time.Duration, nodes map[string]*mesh.RedisAccess) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.interval, h.timeout, h.wanted = interval, timeout, nodes
	h.settle()
}

// run asks until ctx ends. report is called at once from several goroutines, after every answer and every failure.
func (h *health) run(ctx context.Context, report func(shards.Node, error)) error {
	h.mu.Lock()
	h.ctx, h.report = ctx, report
	h.settle()
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	h.ctx = nil
	h.mu.Unlock()
	h.work.Wait()
	return ctx.Err()
}

// acted makes the next probe of a node read all of it: something was done to it.
func (h *health) acted(address string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.probes[address]; p != nil {
		p.client.Forget()
	}
}

// forget makes the next probe of every node read all of it.
func (h *health) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.probes {
		p.client.Forget()
	}
}

// settle starts and stops goroutines. The caller holds the lock.
func (h *health) settle() {
	if h.ctx == nil {
		return
	}
	for address, p := range h.probes {
		access, wanted := h.wanted[address]
		if !wanted || p.interval != h.interval || p.timeout != h.timeout || !reflect.DeepEqual(p.access, access) {
			p.stop()
			delete(h.probes, address)
		}
	}
	for address, access := range h.wanted {
		if h.probes[address] != nil {
			continue
		}
		ctx, stop := context.WithCancel(h.ctx)
		p := &probe{access: access, interval: h.interval, timeout: h.timeout, client: node.New(address, access, h.timeout), stop: stop}
		h.probes[address] = p
		h.work.Go(func() { p.run(ctx, h.report) })
	}
}

func (p *probe) run(ctx context.Context, report func(shards.Node, error)) {
	defer p.client.Close()
	ticker := time.NewTicker(p.interval)
	defer ticker.Stop()
	for {
		seen, err := p.client.Probe(ctx)
		if ctx.Err() != nil {
			return
		}
		report(seen, err)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
