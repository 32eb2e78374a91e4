package controlplane

import (
	"context"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
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
	Zone             string   `json:"zone,omitempty"`
	Check            string   `json:"check,omitempty"` // what Consul's check says: a hint, the probe counts
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
	clients map[string]probeClient
	missed  map[string]int // probes in a row without an answer
	wanted  mesh.Topology
	wake    chan struct{} // holds a token when wanted has changed
	rounds  chan struct{} // holds a token when a round has ended
}

// probeClient is a client and how it logs in.
type probeClient struct {
	*redis.Client
	access *mesh.RedisAccess
}

func newProber() *prober {
	return &prober{last: map[string]NodeStatus{}, history: map[string][]sample{}, clients: map[string]probeClient{}, missed: map[string]int{},
		wake: make(chan struct{}, 1), rounds: make(chan struct{}, 1)}
}

// want says which nodes to probe, at once if they have changed.
func (p *prober) want(t mesh.Topology) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !reflect.DeepEqual(t, p.wanted) {
		p.wanted = t
		signal(p.wake)
	}
}

// signal leaves a token for whoever waits, unless one is there.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (p *prober) run(ctx context.Context) error {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		p.mu.Lock()
		wanted := p.wanted
		p.mu.Unlock()
		p.round(ctx, wanted)
		signal(p.rounds)
		select {
		case <-ctx.Done():
			p.round(ctx, mesh.Topology{}) // closes all clients
			return ctx.Err()
		case <-ticker.C:
		case <-p.wake:
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
					status := p.probe(ctx, node, pool.Redis)
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
			delete(p.missed, address)
		}
	}
}

// client is the one for a node, made anew when the pool's login has changed.
func (p *prober) client(address string, access *mesh.RedisAccess) *redis.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, ok := p.clients[address]
	if ok && reflect.DeepEqual(old.access, access) {
		return old.Client
	}
	if ok {
		old.Close()
	}
	client := redis.NewClient(node.Options(address, access, probeTimeout))
	p.clients[address] = probeClient{client, access}
	return client
}

func (p *prober) probe(ctx context.Context, n mesh.Node, access *mesh.RedisAccess) NodeStatus {
	client := p.client(n.Address, access)
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
	p.missed[s.Address]++
	if !s.Up {
		return
	}
	p.missed[s.Address] = 0
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

// answer is what a node said of itself last.
func (p *prober) answer(address string) answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.last[address]
	return answer{probed: ok, up: s.Up, role: mesh.Role(s.ReportedRole), missed: p.missed[address]}
}

// status is what is known of a node; one that was not probed yet is not up.
func (p *prober) status(n mesh.Node) NodeStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.last[n.Address]
	if !ok {
		return NodeStatus{Address: n.Address, Role: string(n.Role), Zone: n.Zone, Error: "not probed yet"}
	}
	s.Role, s.Zone = string(n.Role), n.Zone
	return s
}
