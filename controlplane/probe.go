package controlplane

import (
	"context"
	"net"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	probeEvery   = 2 * time.Second
	probeTimeout = 500 * time.Millisecond
	// probeAgain bounds how often nodes are asked out of turn.
	probeAgain = 250 * time.Millisecond
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
	Hits             int64    `json:"hits"` // of look-ups by applications, see package lookups
	Misses           int64    `json:"misses"`
	Evictions        int64    `json:"evictions"`
	Expirations      int64    `json:"expirations"`
	RecentHitRate    *float64 `json:"recent_hit_rate"`       // over the last minute; null without look-ups
	RecentOps        float64  `json:"recent_ops_per_second"` // over the last minute
	RunID            string   `json:"run_id,omitempty"`      // of the node's process
	// How a replica follows its primary; null for one that says that it is a primary.
	Replication *ReplicationStatus `json:"replication,omitempty"`

	offset int64     // of replication
	at     time.Time // of the probe
}

// ReplicationStatus is how a replica follows its primary.
type ReplicationStatus struct {
	Of       string `json:"of"`     // address of the primary
	Linked   bool   `json:"linked"` // the link is up, and it has all of that primary's data
	Offset   int64  `json:"offset"`
	LagBytes *int64 `json:"lag_bytes"` // behind the shard's primary when both were asked last; null if that is not its primary
}

type sample struct {
	at           time.Time
	life         string // of the node, its run_id
	hits, misses int64
	commands     int64
}

// prober asks every node of the topology for its INFO and keeps the last answers.
type prober struct {
	mu      sync.Mutex
	last    map[string]NodeStatus // by address
	history map[string][]sample
	clients map[string]probeClient
	wanted  mesh.Topology
	wake    chan struct{} // holds a token when wanted has changed
}

// probeClient is a client and how it logs in.
type probeClient struct {
	*redis.Client
	access *mesh.RedisAccess
}

func newProber() *prober {
	return &prober{last: map[string]NodeStatus{}, history: map[string][]sample{}, clients: map[string]probeClient{},
		wake: make(chan struct{}, 1)}
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

// heard takes in how far replication is from a health probe, which comes more often, and has the nodes asked again if that saw one
// that is not what status shows.
func (p *prober) heard(n shards.Node, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.last[n.Address]
	if !ok {
		return
	}
	if s.Up && err == nil && s.RunID == n.RunID {
		s.replicates(n.Role, ReplicationStatus{Of: n.Of, Linked: n.Linked, Offset: n.Offset})
		p.last[n.Address] = s
		return
	}
	if known := !s.Up && err != nil; !known && time.Since(s.at) >= probeAgain {
		signal(p.wake)
	}
}

// replicates takes in what a node says of its replication.
func (s *NodeStatus) replicates(role mesh.Role, r ReplicationStatus) {
	s.ReportedRole, s.offset, s.Replication = string(role), r.Offset, nil
	if role == mesh.Replica {
		s.Replication = &r
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
	info, err := client.InfoMap(ctx, append([]string{"server", "clients", "memory", "replication", "keyspace"}, lookups.Sections...)...).Result()
	if err != nil {
		s.Error = err.Error()
		return s
	}
	number := func(section, field string) int64 {
		v, _ := strconv.ParseInt(info[section][field], 10, 64)
		return v
	}
	s.Up = true
	s.RunID = info["Server"]["run_id"]
	if r := info["Replication"]; r["role"] == "master" {
		s.replicates(mesh.Primary, ReplicationStatus{Offset: number("Replication", "master_repl_offset")})
	} else {
		s.replicates(mesh.Replica, ReplicationStatus{Of: net.JoinHostPort(r["master_host"], r["master_port"]),
			Linked: r["master_link_status"] == "up", Offset: number("Replication", "slave_repl_offset")})
	}
	s.MemoryBytes = number("Memory", "used_memory")
	s.MemoryLimitBytes = number("Memory", "maxmemory")
	s.OpsPerSecond = number("Stats", "instantaneous_ops_per_sec")
	s.Commands = number("Stats", "total_commands_processed")
	s.Hits, s.Misses = lookups.Of(info)
	s.Evictions = number("Stats", "evicted_keys")
	s.Expirations = number("Stats", "expired_keys")
	s.Clients = number("Clients", "connected_clients")
	s.Keys = keysOf(info["Keyspace"]["db0"])
	return s
}

// keep stores a status with its recent hit rate.
func (p *prober) keep(s NodeStatus, now time.Time) {
	s.at = now
	defer func() { p.last[s.Address] = s }()
	if !s.Up {
		return
	}
	history := p.history[s.Address]
	if n := len(history); n > 0 {
		if before := history[n-1]; before.life != s.RunID || before.commands > s.Commands || before.misses > s.Misses {
			history = nil // it restarted, or was told to count anew
		} else {
			s.Hits = max(s.Hits, before.hits)
		}
	}
	history = append(history, sample{at: now, life: s.RunID, hits: s.Hits, misses: s.Misses, commands: s.Commands})
	for now.Sub(history[0].at) > recent {
		history = history[1:]
	}
	p.history[s.Address] = history
	s.RecentHitRate = rate(s.Hits-history[0].hits, s.Misses-history[0].misses)
	if took := now.Sub(history[0].at); took >= time.Second {
		s.RecentOps = float64(s.Commands-history[0].commands) / took.Seconds()
	}
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
		return NodeStatus{Address: n.Address, Role: string(n.Role), Zone: n.Zone, Error: "not probed yet"}
	}
	s.Role, s.Zone = string(n.Role), n.Zone
	return s
}
