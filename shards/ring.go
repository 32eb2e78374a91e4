package shards

import (
	"slices"

	"github.com/cachemesh/cachemesh/mesh"
)

// ringOf is the ring of a pool that is served. offered are the shards that the membership has for it.
func (s State) ringOf(pool string, offered []Place) Ring {
	if r, ok := s.Rings[pool]; ok {
		return r
	}
	if h, ok := s.Handoffs[pool]; ok {
		return h.From
	}
	return Ring{Shards: offered}
}

// managed are the shards of a pool that have nodes to look after: those of the ring, and of the ring that a handoff is from or to.
func (s State) managed(pool string, offered []Place) []Place {
	all := slices.Clone(s.ringOf(pool, offered).Shards)
	if h, ok := s.Handoffs[pool]; ok {
		for _, p := range slices.Concat(h.From.Shards, h.To.Shards) {
			if !has(all, p.Shard) {
				all = append(all, p)
			}
		}
	}
	return all
}

func has(places []Place, shard string) bool {
	return slices.ContainsFunc(places, func(p Place) bool { return p.Shard == shard })
}

// Offer gives the pools of a membership's topology the shards that the state has for them, with their nodes: those of the ring and of
// handoffs. Where the state has no ring, that is what the membership offers.
func Offer(t mesh.Topology, s State) mesh.Topology {
	t.Pools = slices.Clone(t.Pools)
	for i := range t.Pools {
		pool := &t.Pools[i]
		offered := pool.Shards
		pool.Shards = nil
		for _, p := range s.managed(pool.Name, places(offered)) {
			pool.Shards = append(pool.Shards, s.offer(offered, p))
		}
	}
	return t
}

func places(offered []mesh.Shard) []Place {
	all := make([]Place, len(offered))
	for i, s := range offered {
		all[i] = Place{s.Name, s.Weight}
	}
	return all
}

// offer is a shard with its nodes: those of the membership, or else those that an operator gave.
func (s State) offer(offered []mesh.Shard, p Place) mesh.Shard {
	shard := mesh.Shard{Name: p.Shard}
	if i := slices.IndexFunc(offered, func(o mesh.Shard) bool { return o.Name == p.Shard }); i >= 0 {
		shard = offered[i]
	}
	shard.Weight = p.Weight
	if len(shard.Nodes) == 0 {
		for i, address := range s.Nodes[p.Shard] {
			n := mesh.Node{Address: address, Role: mesh.Replica}
			if i == 0 {
				n.Role = mesh.Primary
			}
			shard.Nodes = append(shard.Nodes, n)
		}
	}
	return shard
}

// arrange gives the membership's pools the shards that the state has for them.
func (s State) arrange(offered []Member) []Member {
	if len(s.Rings)+len(s.Handoffs)+len(s.Nodes) == 0 {
		return offered
	}
	var all []Member
	var done []string
	for _, first := range offered {
		if slices.Contains(done, first.Pool) {
			continue
		}
		done = append(done, first.Pool)
		for _, p := range s.managed(first.Pool, placesOf(first.Pool, offered)) {
			m := Member{Pool: first.Pool, Shard: p.Shard, Lanes: first.Lanes, Follow: first.Follow}
			if i := slices.IndexFunc(offered, func(o Member) bool { return o.Shard == p.Shard }); i >= 0 {
				m = offered[i]
			}
			m.Weight = p.Weight
			if given := s.Nodes[p.Shard]; len(m.Nodes) == 0 && len(given) > 0 {
				m.First, m.Nodes = given[0], given
			}
			all = append(all, m)
		}
	}
	return all
}

// placesOf are the places of a pool's members.
func placesOf(pool string, members []Member) (all []Place) {
	for _, m := range members {
		if m.Pool == pool {
			all = append(all, Place{m.Shard, max(m.Weight, 1)})
		}
	}
	return all
}
