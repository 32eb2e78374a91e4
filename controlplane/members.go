package controlplane

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cachemesh/cachemesh/mesh"
)

// members are the nodes that a region's shards have by registration. They survive a restart, so that a control plane that starts
// beside a Consul that is gone, or empty, goes on with them.
type members struct {
	Nodes  []mesh.Registration `json:"nodes"`  // by pool, shard and address
	Frozen bool                `json:"frozen"` // the catalogue has lost too much to be followed
}

// settlement is what a mesh and a catalogue come to.
type settlement struct {
	topology *mesh.Topology // nil if the region cannot be served yet; who is primary is not said here
	err      error          // why not, or what of the mesh is not served
	members  members
	bad      []mesh.BadRegistration
	frozen   string // why the catalogue is not followed, "" if it is
	alerts   []Alert
}

// settle decides which nodes each shard has. last is what was decided before; catalogue is nil when none has been seen. The rules:
//   - A catalogue that lost more than half of the nodes at once is not followed, nor one after it in which a shard is still missing,
//     until an operator accepts it.
//   - A shard of the mesh keeps its last nodes when none is registered any more; an automatic one leaves, unless it is its pool's last.
//   - Before a region is served for the first time every shard of the mesh must have a node. Later a new shard that has none
//     does not join its ring until it has.
func settle(m *mesh.Mesh, region string, last members, catalogue []mesh.Registration, accepted bool) settlement {
	var s settlement
	before, _ := m.Members(region, last.Nodes)
	offered := before
	s.members = members{Frozen: last.Frozen}
	if catalogue != nil {
		offered, s.bad = m.Members(region, catalogue)
		if !accepted {
			s.frozen = lost(before, offered, last.Frozen)
		}
		s.members.Frozen = s.frozen != ""
	}
	for _, b := range s.bad {
		s.alert(b.ID, "is ignored: "+b.Message, b.Remedy)
	}
	if s.frozen != "" {
		offered = before
		s.alert("Consul", s.frozen, "nothing changes for sidecars; register the nodes again, or, if they are to go, `cachemesh shard accept POOL`")
	}
	topology, err := m.Topology(region)
	if err != nil {
		s.err = err
		return s
	}
	first := len(before) == 0
	var waits []string
	for i := range topology.Pools {
		pool := &topology.Pools[i]
		named := pool.Shards
		pool.Shards = nil
		for _, shard := range append(slices.Clone(named), automatic(pool.Name, named, offered, before)...) {
			nodes := ofShard(offered, shard.Name)
			if len(nodes) == 0 {
				if nodes = ofShard(before, shard.Name); len(nodes) > 0 && s.frozen == "" {
					s.alert(shard.Name, "none of its nodes is registered any more", "its last nodes stay; register one, or remove the shard from mesh.yaml")
				}
			}
			if len(nodes) == 0 {
				waits = append(waits, fmt.Sprintf("shard %q of pool %q has no registered node", shard.Name, pool.Name))
				continue
			}
			for _, r := range nodes {
				shard.Nodes = append(shard.Nodes, mesh.Node{Address: r.Address, Role: mesh.Replica, Zone: r.Zone})
			}
			pool.Shards = append(pool.Shards, shard)
			s.members.Nodes = append(s.members.Nodes, nodes...)
		}
		if len(pool.Shards) == 0 && len(named) == 0 {
			waits = append(waits, fmt.Sprintf("pool %q has no registered shard", pool.Name))
		}
	}
	if len(waits) > 0 {
		s.err = fmt.Errorf("not served yet: %s: register nodes with `cachemesh shard register`", strings.Join(waits, "; "))
	}
	empty := slices.ContainsFunc(topology.Pools, func(p mesh.Pool) bool { return len(p.Shards) == 0 })
	if first && len(waits) > 0 || empty {
		s.members = last
		return s
	}
	for i := range s.members.Nodes {
		s.members.Nodes[i].Check = "" // a hint of the moment
	}
	s.topology = &topology
	return s
}

func (s *settlement) alert(subject, message, remedy string) {
	s.alerts = append(s.alerts, Alert{Subject: subject, Message: message, Remedy: remedy})
}

// lost says why a catalogue is not to be followed, or nothing.
func lost(before, offered []mesh.Registration, frozen bool) string {
	if 2*len(offered) < len(before) {
		return fmt.Sprintf("lists %d usable nodes where %d were: the last nodes stay", len(offered), len(before))
	}
	if !frozen {
		return ""
	}
	for _, r := range before {
		if len(ofShard(offered, r.Shard)) == 0 {
			return fmt.Sprintf("lost most nodes, and those of shard %q are still missing: the last nodes stay", r.Shard)
		}
	}
	return ""
}

// automatic are the shards of a pool that are there by registration only. A pool never loses its last shard.
func automatic(pool string, named []mesh.Shard, offered, before []mesh.Registration) []mesh.Shard {
	list := func(nodes []mesh.Registration) (shards []mesh.Shard) {
		for _, r := range nodes {
			if r.Pool == pool && !inMesh(named, r.Shard) && !inMesh(shards, r.Shard) {
				shards = append(shards, mesh.Shard{Name: r.Shard, Weight: 1})
			}
		}
		return shards
	}
	shards := list(offered)
	if len(shards)+len(named) == 0 {
		shards = list(before)
	}
	return shards
}

func inMesh(shards []mesh.Shard, name string) bool {
	return slices.ContainsFunc(shards, func(s mesh.Shard) bool { return s.Name == name })
}

func ofShard(nodes []mesh.Registration, shard string) []mesh.Registration {
	var all []mesh.Registration
	for _, r := range nodes {
		if r.Shard == shard {
			all = append(all, r)
		}
	}
	return all
}
