package mesh

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Topology is what one region's sidecars need to know: its pools with their routes, shards and primaries.
type Topology struct {
	Region    string        `json:"region"`
	OpTimeout time.Duration `json:"op_timeout_ns"`
	Health    Health        `json:"health"`
	// Transactions are as in mesh.yaml; "" is refused.
	Transactions Transactions `json:"transactions,omitempty"`
	// Links are where agents of the other regions listen, by region; nil if no route concerns other regions.
	Links map[string][]string `json:"links,omitempty"`
	// WorkingSets says that agents record what is read in each hour, because a plan follows the sun.
	WorkingSets bool   `json:"working_sets,omitempty"`
	Pools       []Pool `json:"pools"`
}

// Pool is a pool in one region.
type Pool struct {
	Name     string       `json:"name"`
	Hashing  Hashing      `json:"hashing"`
	Failover Failover     `json:"failover"`
	Redis    *RedisAccess `json:"redis,omitempty"`
	Routes   []Route      `json:"routes"`
	Shards   []Shard      `json:"shards"` // the ring
	// Generation is the ring's version. 0 is as mesh.yaml or registrations have it: no handoff has changed it.
	Generation uint64 `json:"generation,omitempty"`
	// Login is the version of the Redis user that lanes log in as; 0 is the one that Redis names.
	Login uint64 `json:"login,omitempty"`
	// Handoff is under way; nil is none.
	Handoff *Handoff `json:"handoff,omitempty"`
}

// Shard is a logical part of a pool in one region.
type Shard struct {
	Name   string `json:"name"`
	Weight uint32 `json:"weight"`
	Epoch  uint64 `json:"epoch"` // version of the primary; 0 is none yet
	// StandIn answers instead of the primary; "" is the primary.
	StandIn StandIn `json:"stand_in,omitempty"`
	Nodes   []Node  `json:"nodes"`
}

// Node is one Redis process of a shard.
type Node struct {
	Address string `json:"address"`
	Role    Role   `json:"role"`
	Zone    string `json:"zone,omitempty"`
}

// Role is what a node does for its shard.
type Role string

// A shard has one primary, which answers, and any number of replicas.
const (
	Primary Role = "primary"
	Replica Role = "replica"
)

// Primary returns the node that answers for the shard.
func (s Shard) Primary() (Node, bool) {
	for _, n := range s.Nodes {
		if n.Role == Primary {
			return n, true
		}
	}
	return Node{}, false
}

// Topology derives one region's topology from a validated mesh. The shards of a pool keep the file's order. Shards whose nodes
// register elsewhere have none here.
func (m *Mesh) Topology(region string) (Topology, error) {
	spec, ok := m.Region(region)
	if !ok {
		return Topology{}, fmt.Errorf("region %q is not in the mesh: it has %s", region, strings.Join(m.RegionNames(), ", "))
	}
	t := Topology{Region: region, OpTimeout: m.OpTimeout, Health: m.Health, Transactions: m.Transactions, Links: m.otherLinks(region), WorkingSets: m.followsSun()}
	for _, p := range m.Pools {
		pool := Pool{Name: p.Name, Hashing: p.Hashing, Failover: p.Failover, Redis: p.Redis, Routes: p.Routes}
		for _, s := range spec.Shards {
			if s.Pool != p.Name {
				continue
			}
			shard := Shard{Name: s.Name, Weight: s.Weight}
			for i, address := range s.Nodes {
				role := Replica
				if i == 0 {
					role = Primary
				}
				shard.Nodes = append(shard.Nodes, Node{Address: address, Role: role})
			}
			pool.Shards = append(pool.Shards, shard)
		}
		t.Pools = append(t.Pools, pool)
	}
	return t, nil
}

// The reasons for which no pool takes a key.
var (
	ErrNoRoute  = errors.New(`no route takes this key: add a route with a prefix of it, or with prefix "", to mesh.yaml`)
	ErrReserved = errors.New(`keys under "` + ReservedPrefix + `" belong to cachemesh: use another prefix`)
)

// Route returns the pool and the route that take the key: those of the longest prefix.
// It fails with ErrReserved or ErrNoRoute.
func (t Topology) Route(key []byte) (Pool, Route, error) {
	if bytes.HasPrefix(key, []byte(ReservedPrefix)) {
		return Pool{}, Route{}, ErrReserved
	}
	var pool Pool
	var route Route
	found := false
	for _, p := range t.Pools {
		for _, r := range p.Routes {
			if bytes.HasPrefix(key, []byte(r.Prefix)) && (!found || len(r.Prefix) > len(route.Prefix)) {
				pool, route, found = p, r, true
			}
		}
	}
	if !found {
		return Pool{}, Route{}, ErrNoRoute
	}
	return pool, route, nil
}
