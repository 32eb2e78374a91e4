package sidecar

import (
	"strings"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/reports"
)

// rings tell control planes which ring of each pool this sidecar follows, and how far it is with a handoff.
type rings struct {
	topology func() *mesh.Topology
	orders   func() map[string]string // of Envoy's clusters
	// settled says whether lanes and links have had answers to all that they sent of a pool before they knew what the topology says, or
	// with another login.
	settled func(pool string) bool
	// kept are the keys of a pool that have yet to be removed at their other owner.
	kept func(pool string) uint64
}

// report tells of all pools that were or are in a handoff.
func (r *rings) report() (all []*reports.Ring) {
	t := r.topology()
	if t == nil {
		return nil
	}
	orders := r.orders()
	for _, p := range t.Pools {
		if p.Generation == 0 && p.Handoff == nil {
			continue
		}
		told := &reports.Ring{Pool: p.Name, Kept: r.kept(p.Name)}
		followed := true
		for _, cluster := range envoy.ClusterNames(p) {
			followed = followed && orders[cluster] == orderOf(p.Shards)
		}
		if followed {
			told.Generation = p.Generation
		}
		if h := p.Handoff; h != nil {
			told.Handoff, told.Step = h.ID, string(r.step(p, followed))
		}
		all = append(all, told)
	}
	return all
}

// step is the last step of a pool's handoff that this sidecar has taken.
func (r *rings) step(p mesh.Pool, followed bool) mesh.HandoffStep {
	switch step := p.Handoff.Step; step {
	case mesh.Preparing:
		if !r.settled(p.Name) {
			return mesh.Copying
		}
		return step
	case mesh.Fencing, mesh.Flipping, mesh.Purging:
		if !r.settled(p.Name) {
			return mesh.Preparing
		}
		if step != mesh.Fencing && !followed {
			return mesh.Fencing
		}
		return step
	default:
		return step
	}
}

// orderOf is the ring that Envoy makes of shards, as holdings.orders has it.
func orderOf(shards []mesh.Shard) string {
	var order []string
	for _, s := range shards {
		if envoy.Address(s) != "" {
			order = append(order, place(s.Name, s.Weight))
		}
	}
	return strings.Join(order, " ")
}
