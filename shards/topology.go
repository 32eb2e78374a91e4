package shards

import (
	"slices"

	"github.com/cachemesh/cachemesh/mesh"
)

// Topology gives the pools of a membership's topology the rings and the primaries that a state has. waits are the shards of rings
// that have no primary yet, not even a stand-in: they are left out.
func Topology(t mesh.Topology, s State) (served mesh.Topology, waits []string) {
	served = t
	served.Pools = slices.Clone(t.Pools)
	for i := range served.Pools {
		pool := &served.Pools[i]
		offered := pool.Shards
		ring := s.ringOf(pool.Name, places(offered))
		var missing []string
		pool.Shards, missing = s.serve(offered, ring)
		waits = append(waits, missing...)
		pool.Generation, pool.Login = ring.Generation, ring.Login
		if h, ok := s.Handoffs[pool.Name]; ok {
			pool.Handoff = &mesh.Handoff{ID: h.ID, Generation: h.To.Generation, Step: h.Step}
			pool.Handoff.From, _ = s.serve(offered, h.From)
			pool.Handoff.To, _ = s.serve(offered, h.To)
			pool.Login = h.login()
		}
	}
	return served, waits
}

// serve are the shards of a ring with their primaries, and those that have none.
func (s State) serve(offered []mesh.Shard, r Ring) (all []mesh.Shard, waits []string) {
	for _, p := range r.Shards {
		state := s.Shards[p.Shard]
		if state.Epoch == 0 {
			waits = append(waits, p.Shard)
			continue
		}
		all = append(all, withState(s.offer(offered, p), state))
	}
	return all, waits
}

func withState(shard mesh.Shard, s Shard) mesh.Shard {
	shard.Epoch = s.Epoch
	switch {
	case s.Change != nil && s.Change.Phase == Holding:
		shard.StandIn = mesh.Hold
	case s.Primary == "":
		shard.StandIn = mesh.Null
	}
	nodes := shard.Nodes
	shard.Nodes = nil
	found := false
	for _, n := range nodes {
		n.Role = mesh.Replica
		if n.Address == s.Primary {
			n.Role, found = mesh.Primary, true
			shard.Nodes = slices.Insert(shard.Nodes, 0, n)
			continue
		}
		shard.Nodes = append(shard.Nodes, n)
	}
	if !found && s.Primary != "" {
		// It is not registered any more, and still answers for the shard.
		shard.Nodes = slices.Insert(shard.Nodes, 0, mesh.Node{Address: s.Primary, Role: mesh.Primary})
	}
	return shard
}
