package controlplane

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	probeEvery   = 2 * time.Second
	probeTimeout = 500 * time.Millisecond
	// recent is the window of hit rates.
	recent = time.Minute
)

// NodeStatus is what a probe saw of a node.
type NodeStatus struct {
	Address          string   `json:"address"`
	Role             string   `json:"role"` // what the topology says
	Up               bool     `json:"up"`
	Error            string   `json:"error,omitempty"`
	ReportedRole     string   `json:"reported_role,omitempty"` // what the node says
	Keys             int64    `json:"keys"`
	MemoryBytes      int64    `json:"memory_bytes"`
	MemoryLimitBytes int64    `json:"memory_limit_bytes"` // 0 is none
	OpsPerSecond     int64    `json:"ops_per_second"`
	Clients          int64    `json:"clients"`
	Commands         int64    `json:"commands"`
	Hits             int64    `json:"hits"`
	Misses           int64    `json:"misses"`
	Evictions        int64    `json:"evictions"`
	Expirations      int64    `json:"expirations"`
	RecentHitRate    *float64 `json:"recent_hit_rate"` // over the last minute; null without look-ups
}

type sample struct {
	at           time.Time
	hits, misses int64
}

// prober asks every node of the topology for its INFO and keeps the last answers.
type prober struct {
	mu      sync.Mutex
	last    map[string]NodeStatus // by address
	history map[string][]sample
	clients map[string]*redis.Client
}

func newProber() *prober {
	return &prober{last: map[string]NodeStatus{}, history: map[string][]sample{}, clients: map[string]*redis.Client{}}
}

func (p *prober) run(ctx context.Context, topology func() mesh.Topology) error {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		p.round(ctx, topology())
		select {
		case <-ctx.Done():
			p.round(ctx, mesh.Topology{}) // closes all clients
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// round probes all nodes at once, and forgets those that are no longer in the topology.
func (p *prober) round(ctx context.Context, t mesh.Topology) {
	var wait sync.WaitGroup
	seen := map[string]bool{}
	for _, pool := range t.Pools {
		for _, shard := range pool.Shards {
			for _, node := range shard.Nodes {
				seen[node.Address] = true
				wait.Go(func() {
					status := p.probe(ctx, node)
					p.mu.Lock()
					defer p.mu.Unlock()
					p.keep(status, time.Now())
				})
			}
		}
	}
	wait.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for address, client := range p.clients {
		if !seen[address] {
			client.Close()
			delete(p.clients, address)
			delete(p.last, address)
			delete(p.history, address)
		}
	}
}

func (p *prober) probe(ctx context.Context, n mesh.Node) NodeStatus {
	p.mu.Lock()
	client := p.clients[n.Address]
	if client == nil {
		client = redis.NewClient(&redis.Options{
			Addr: n.Address, PoolSize: 1, MaxRetries: -1, DisableIdentity: true, ContextTimeoutEnabled: true,
			DialTimeout: probeTimeout, ReadTimeout: probeTimeout, WriteTimeout: probeTimeout,
		})
		p.clients[n.Address] = client
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	s := NodeStatus{Address: n.Address, Role: string(n.Role)}
	info, err := client.InfoMap(ctx, "clients", "memory", "stats", "replication", "keyspace").Result()
	if err != nil {
		s.Error = err.Error()
		return s
	}
	number := func(section, field string) int64 {
		v, _ := strconv.ParseInt(info[section][field], 10, 64)
		return v
	}
	s.Up = true
	s.ReportedRole = string(mesh.Replica)
	if info["Replication"]["role"] == "master" {
		s.ReportedRole = string(mesh.Primary)
	}
	s.MemoryBytes = number("Memory", "used_memory")
	s.MemoryLimitBytes = number("Memory", "maxmemory")
	s.OpsPerSecond = number("Stats", "instantaneous_ops_per_sec")
	s.Commands = number("Stats", "total_commands_processed")
	s.Hits = number("Stats", "keyspace_hits")
	s.Misses = number("Stats", "keyspace_misses")
	s.Evictions = number("Stats", "evicted_keys")
	s.Expirations = number("Stats", "expired_keys")
	s.Clients = number("Clients", "connected_clients")
	s.Keys = keysOf(info["Keyspace"]["db0"])
	return s
}

// keep stores a status with its recent hit rate.
func (p *prober) keep(s NodeStatus, now time.Time) {
	defer func() { p.last[s.Address] = s }()
	if !s.Up {
		return
	}
	history := p.history[s.Address]
	if n := len(history); n > 0 && (history[n-1].hits > s.Hits || history[n-1].misses > s.Misses) {
		history = nil // it restarted
	}
	history = append(history, sample{at: now, hits: s.Hits, misses: s.Misses})
	for now.Sub(history[0].at) > recent {
		history = history[1:]
	}
	p.history[s.Address] = history
	s.RecentHitRate = rate(s.Hits-history[0].hits, s.Misses-history[0].misses)
}

func rate(hits, misses int64) *float64 {
	if hits+misses == 0 {
		return nil
	}
	r := float64(hits) / float64(hits+misses)
	return &r
}

// keysOf reads "keys=12,expires=3,avg_ttl=0".
func keysOf(keyspace string) int64 {
	text, _, _ := strings.Cut(strings.TrimPrefix(keyspace, "keys="), ",")
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// status is what is known of a node; one that was not probed yet is not up.
func (p *prober) status(n mesh.Node) NodeStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.last[n.Address]
	if !ok {
		return NodeStatus{Address: n.Address, Role: string(n.Role), Error: "not probed yet"}
	}
	s.Role = string(n.Role)
	return s
}
