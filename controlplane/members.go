package controlplane

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cachemesh/cachemesh/mesh"
)

// patience is how many probes in a row a primary may miss before another node that says that it is primary is followed.
const patience = 3

// members are the nodes that a region's shards have by registration. They survive a restart, so that a control plane that starts
// beside a Consul that is gone, or empty, goes on with them.
type members struct {
	Nodes     []mesh.Registration `json:"nodes"`     // by pool, shard and address
	Primaries map[string]string   `json:"primaries"` // address, by shard
	Frozen    bool                `json:"frozen"`    // the catalogue has lost too much to be followed
}

// answer is what a node said of itself when it was probed last.
type answer struct {
	probed bool
	up     bool
	role   mesh.Role
	missed int // probes in a row without an answer
}

// settlement is what a mesh, a catalogue and the nodes' answers come to.
type settlement struct {
	topology   *mesh.Topology // nil if the region cannot be served yet
	err        error          // why not, or what of the mesh is not served
	candidates mesh.Topology  // every node that is worth probing
	members    members
	bad        []mesh.BadRegistration
	frozen     string // why the catalogue is not followed, "" if it is
	alerts     []Alert
}

// settle decides which nodes serve each shard, and which of them is the primary. last is what was decided before; catalogue is nil when
// none has been seen. The rules:
//   - A catalogue that lost more than half of the nodes at once is not followed, nor one after it in which a shard is still missing.
//   - A shard of the mesh keeps its last nodes when none is registered any more; an automatic one leaves, unless it is its pool's last.
//   - The primary is the one node that says so. When none or several do, the last one stays, registered or not.
//   - Before a region is served for the first time every shard of the mesh must have a node. Later a new shard that has none
//     does not join its ring until it has.
func settle(m *mesh.Mesh, region string, last members, catalogue []mesh.Registration, says func(address string) answer) settlement {
	var s settlement
	before, _ := m.Members(region, last.Nodes)
	offered := before
	s.members = members{Primaries: map[string]string{}, Frozen: last.Frozen}
	if catalogue != nil {
		offered, s.bad = m.Members(region, catalogue)
		s.frozen = lost(before, offered, last.Frozen)
		s.members.Frozen = s.frozen != ""
	}
	for _, b := range s.bad {
		s.alert(b.ID, "is ignored: "+b.Message, b.Remedy)
	}
	if s.frozen != "" {
		offered = before
		s.alert("Consul", s.frozen, "nothing changes for sidecars; register the nodes again, or, if they are to go, stop the region's control planes, remove members.json from their --state folders and start them")
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
		probed := *pool
		probed.Shards = nil
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
			primary, note := primaryOf(shard.Name, nodes, before, last.Primaries[shard.Name], says)
			asked := !slices.ContainsFunc(nodes, func(r mesh.Registration) bool { return !says(r.Address).probed })
			switch known := inMesh(named, shard.Name); {
			case primary != "":
			case !asked && (known || first):
				waits = append(waits, fmt.Sprintf("the nodes of shard %q are being asked which is the primary", shard.Name))
			case asked && known:
				primary = nodes[0].Address
				note = fmt.Sprintf("no node says that it is primary; %s is taken", primary)
			case asked:
				note = "no node says that it is primary: it does not join the ring"
			}
			if note != "" {
				s.alert(shard.Name, note, "make one node the primary (REPLICAOF NO ONE), the others its replicas, and register them")
			}
			if primary != "" && !slices.ContainsFunc(nodes, func(r mesh.Registration) bool { return r.Address == primary }) {
				nodes = append(nodes, before[slices.IndexFunc(before, func(r mesh.Registration) bool { return r.Address == primary })])
			}
			shard.Nodes = roles(nodes, primary)
			probed.Shards = append(probed.Shards, shard)
			if primary == "" {
				continue
			}
			pool.Shards = append(pool.Shards, shard)
			s.members.Nodes = append(s.members.Nodes, nodes...)
			s.members.Primaries[shard.Name] = primary
		}
		if len(pool.Shards) == 0 && len(named) == 0 {
			waits = append(waits, fmt.Sprintf("pool %q has no registered shard", pool.Name))
		}
		s.candidates.Pools = append(s.candidates.Pools, probed)
	}
	s.candidates.Region = region
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

// primaryOf is a shard's primary, "" if there never was one and no node says that it is, and what is odd about it.
func primaryOf(shard string, nodes, before []mesh.Registration, last string, says func(string) answer) (primary, note string) {
	var claims []string
	registered := false
	for _, r := range nodes {
		if a := says(r.Address); a.up && a.role == mesh.Primary {
			claims = append(claims, r.Address)
		}
		registered = registered || r.Address == last
	}
	if !registered && !slices.ContainsFunc(before, func(r mesh.Registration) bool { return r.Address == last && r.Shard == shard }) {
		last = ""
	}
	switch a := says(last); {
	case len(claims) > 1 && last == "":
		return claims[0], fmt.Sprintf("several nodes say that they are primary: %s; %s is taken", strings.Join(claims, ", "), claims[0])
	case len(claims) > 1:
		return last, fmt.Sprintf("several nodes say that they are primary: %s; %s stays", strings.Join(claims, ", "), last)
	case len(claims) == 1 && registered && claims[0] != last && !a.up && a.missed < patience:
		return last, "" // it may answer again in a moment
	case len(claims) == 1:
		return claims[0], ""
	case last != "" && !registered:
		return last, fmt.Sprintf("its primary %s is not registered any more, and no other node says that it is primary: it stays", last)
	case last != "" && a.up:
		return last, fmt.Sprintf("no node says that it is primary; %s stays", last)
	}
	return last, ""
}

// roles are a shard's nodes with the primary first.
func roles(registered []mesh.Registration, primary string) []mesh.Node {
	var nodes []mesh.Node
	for _, r := range registered {
		n := mesh.Node{Address: r.Address, Role: mesh.Replica, Zone: r.Zone}
		if r.Address == primary {
			n.Role = mesh.Primary
			nodes = slices.Insert(nodes, 0, n)
			continue
		}
		nodes = append(nodes, n)
	}
	return nodes
}
