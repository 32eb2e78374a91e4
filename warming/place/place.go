// Package place says where in a region a key is: its route, its shard, and where that shard's primary is. It asks nobody, and a Map never
// changes. What warms shards calls it; requests are routed by Envoy.
package place

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/ring"
)

// Map is a topology, made ready to find keys.
type Map struct {
	Shards []*Shard
	pools  map[string]*pool
	routes []routed // longest prefix first
}

// Shard is one of the region's, and how to reach its primary.
type Shard struct {
	Name    string
	Pool    string
	Index   int    // in Map.Shards
	Address string // IP:port; "" while it has no primary that takes writes
	Epoch   uint64
	Access  *mesh.RedisAccess
	Routes  []mesh.Route // of the pool
}

type pool struct {
	ring   *ring.Ring
	shards []*Shard // by host of the ring
	moving bool
}

type routed struct {
	mesh.Route
	pool *pool
}

// New makes a topology ready.
func New(t *mesh.Topology) (*Map, error) {
	m := &Map{pools: map[string]*pool{}}
	for _, p := range t.Pools {
		if len(p.Shards) == 0 {
			continue
		}
		in := &pool{moving: p.Handoff != nil}
		hosts := make([]ring.Host, len(p.Shards))
		for i, s := range p.Shards {
			hosts[i] = ring.Host{HashKey: s.Name, Weight: s.Weight}
			shard := &Shard{Name: s.Name, Pool: p.Name, Index: len(m.Shards), Epoch: s.Epoch, Access: p.Redis, Routes: p.Routes}
			if primary, ok := s.Primary(); ok && s.StandIn == "" {
				shard.Address = primary.Address
			}
			in.shards, m.Shards = append(in.shards, shard), append(m.Shards, shard)
		}
		var err error
		if in.ring, err = ring.New(ring.Config{Algorithm: ring.Algorithm(p.Hashing.Algorithm), Size: p.Hashing.Size}, hosts); err != nil {
			return nil, fmt.Errorf("pool %q: %w", p.Name, err)
		}
		m.pools[p.Name] = in
		for _, r := range p.Routes {
			m.routes = append(m.routes, routed{r, in})
		}
	}
	slices.SortStableFunc(m.routes, func(a, b routed) int { return len(b.Prefix) - len(a.Prefix) })
	return m, nil
}

// Find returns the shard and the route that take a key; nil if none do, or the key is cachemesh's own.
func (m *Map) Find(key []byte) (*Shard, *mesh.Route) {
	if len(key) >= len(mesh.ReservedPrefix) && string(key[:len(mesh.ReservedPrefix)]) == mesh.ReservedPrefix {
		return nil, nil
	}
	for i := range m.routes {
		if r := &m.routes[i]; len(key) >= len(r.Prefix) && string(key[:len(r.Prefix)]) == r.Prefix {
			return r.pool.shards[r.pool.ring.Find(key)], &r.Route
		}
	}
	return nil, nil
}

// Own is the shard that has a key of cachemesh's own, by a pool's ring; nil if the pool has no shards.
func (m *Map) Own(pool, key string) *Shard {
	p := m.pools[pool]
	if p == nil || !strings.HasPrefix(key, mesh.ReservedPrefix) {
		return nil
	}
	return p.shards[p.ring.Find([]byte(key))]
}

// Moving says whether keys of a pool are on their way between its shards.
func (m *Map) Moving(pool string) bool { return m.pools[pool] != nil && m.pools[pool].moving }
