package shards

import (
	"slices"

	"github.com/cachemesh/cachemesh/mesh"
)

// Topology gives the shards of a topology the primaries that a state names. waits are the shards that have none yet, not even a
// stand-in: they are left out.
func Topology(t mesh.Topology, s State) (served mesh.Topology, waits []string) {
	served = t
	served.Pools = slices.Clone(t.Pools)
	for i := range served.Pools {
		pool := &served.Pools[i]
		all := pool.Shards
		pool.Shards = nil
		for _, shard := range all {
			state, known := s.Shards[shard.Name]
			if !known || state.Epoch == 0 {
				waits = append(waits, shard.Name)
				continue
			}
			pool.Shards = append(pool.Shards, withState(shard, state))
		}
	}
	return served, waits
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
