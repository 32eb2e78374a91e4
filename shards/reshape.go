package shards

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cachemesh/cachemesh/mesh"
)

// MaxWeight is that of mesh.yaml.
const MaxWeight = 1024

// Validate says which limit cannot be.
func (l Limits) Validate() error {
	switch {
	case l.KeysPerSecond < 0:
		return fmt.Errorf("keys_per_second %d: choose 1 or more, or 0 for the default", l.KeysPerSecond)
	case l.BytesPerSecond < 0:
		return fmt.Errorf("bytes_per_second %d: choose 1 or more, or 0 for the default", l.BytesPerSecond)
	case l.DonorCPU < 0 || l.DonorCPU > 1:
		return fmt.Errorf("donor_cpu %g: choose a share of one core, up to 1, or 0 for the default", l.DonorCPU)
	}
	return nil
}

// reshape begins a handoff to the ring that an operator wants.
func (d *deciding) reshape(q *question) bool {
	c := q.command
	ring := Ring{Shards: placesOf(c.Pool, d.members)}
	if r, ok := d.next.Rings[c.Pool]; ok {
		ring = r
	}
	if err := d.reshapable(c, ring); err != nil {
		return d.refuse(q, "%w", err)
	}
	next := Ring{Generation: ring.Generation + 1, Shards: slices.Clone(ring.Shards), Login: ring.Login}
	i := slices.IndexFunc(next.Shards, func(p Place) bool { return p.Shard == c.Shard })
	switch c.Reshape {
	case AddShard:
		next.Shards = append(next.Shards, Place{c.Shard, max(c.Weight, 1)})
	case RemoveShard:
		next.Shards = slices.Delete(next.Shards, i, i+1)
	case WeighShard:
		next.Shards[i].Weight = c.Weight
	}
	h := Handoff{ID: d.next.Sequence + 1, Kind: c.Reshape, Shard: c.Shard, From: ring, To: next, Limits: c.Limits, Step: mesh.Copying, Begun: d.config.Wall(d.now), Agents: d.mayRoute(ring)}
	if d.onLanes(c.Pool) {
		h.To.Login = h.ID
	}
	d.setHandoff(c.Pool, h)
	if len(c.Nodes) > 0 {
		d.next.Nodes[c.Shard] = c.Nodes
	}
	d.event(Event{Kind: HandoffBegun, Pool: c.Pool, Shard: c.Shard, Reason: h.describe() + ": asked for by an operator"})
	return false
}

// mayRoute are the agents whose sidecars may send requests by a ring: they were there in the last ten minutes, or witness a shard.
func (d *deciding) mayRoute(r Ring) []string {
	all := slices.Clone(r.Late)
	for name, a := range d.agents {
		if a.connected || !a.at.IsZero() && d.known(name) {
			all = append(all, name)
		}
	}
	for _, p := range r.Shards {
		all = append(all, d.next.Shards[p.Shard].Witnesses...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// reshapable says why a ring cannot be changed as a command wants.
func (d *deciding) reshapable(c Command, ring Ring) error {
	if len(ring.Shards) == 0 {
		return fmt.Errorf("there is no pool %q", c.Pool)
	}
	if h, busy := d.next.Handoffs[c.Pool]; busy {
		return fmt.Errorf("pool %q is in a handoff already (%s): wait for its end, or `cachemesh shard abort %s`", c.Pool, h.describe(), c.Pool)
	}
	if f := d.next.Frozen[c.Pool]; !f.Since.IsZero() && !f.Accepted {
		return fmt.Errorf("pool %q is frozen, since it lost much at once: `cachemesh shard accept %s` first", c.Pool, c.Pool)
	}
	for _, p := range ring.Shards {
		if s := d.next.Shards[p.Shard]; !d.well(s) {
			return fmt.Errorf("shard %q of pool %q has no primary that answers well: see `cachemesh status`", p.Shard, c.Pool)
		}
	}
	if c.Reshape != RemoveShard && c.Weight > MaxWeight {
		return fmt.Errorf("weight %d: choose 1 to %d", c.Weight, MaxWeight)
	}
	i := slices.IndexFunc(ring.Shards, func(p Place) bool { return p.Shard == c.Shard })
	switch {
	case c.Reshape == AddShard:
		return d.addable(c, i >= 0)
	case i < 0:
		return fmt.Errorf("shard %q is not on the ring of pool %q", c.Shard, c.Pool)
	case c.Reshape == RemoveShard && len(ring.Shards) == 1:
		return fmt.Errorf("shard %q is the last of pool %q: a ring is never empty", c.Shard, c.Pool)
	case c.Reshape == WeighShard && c.Weight == 0:
		return fmt.Errorf("weight 0: choose 1 to %d, or remove the shard", MaxWeight)
	case c.Reshape == WeighShard && ring.Shards[i].Weight == c.Weight:
		return fmt.Errorf("shard %q has weight %d already", c.Shard, c.Weight)
	}
	return nil
}

// addable says why a shard cannot be added.
func (d *deciding) addable(c Command, on bool) error {
	of := slices.IndexFunc(d.members, func(m Member) bool { return m.Shard == c.Shard })
	offered := slices.IndexFunc(d.offered, func(m Member) bool { return m.Shard == c.Shard && m.Pool == c.Pool })
	switch {
	case on:
		return fmt.Errorf("shard %q is on the ring of pool %q already", c.Shard, c.Pool)
	case of >= 0:
		return fmt.Errorf("shard %q is one of pool %q: choose another name", c.Shard, d.members[of].Pool)
	case len(c.Nodes) == 0 && (offered < 0 || len(d.offered[offered].Nodes) == 0):
		return fmt.Errorf("shard %q has no node: name some with --node, or register them", c.Shard)
	}
	for _, m := range d.members {
		for _, address := range c.Nodes {
			if slices.Contains(m.Nodes, address) {
				return fmt.Errorf("%s is a node of shard %q already: a Redis process belongs to one shard", address, m.Shard)
			}
		}
	}
	return nil
}

// undo gives a handoff up.
func (d *deciding) undo(q *question) bool {
	pool := q.command.Pool
	h, busy := d.next.Handoffs[pool]
	switch {
	case !busy:
		return d.refuse(q, "pool %q is in no handoff", pool)
	case h.Step == mesh.Flipping || h.Step == mesh.Purging:
		return d.refuse(q, "the handoff of pool %q is past its flip (%s): let it end, and then change the ring back", pool, h.Step)
	case h.Undo == "":
		h.Undo = "asked for by an operator"
		d.setHandoff(pool, h)
	}
	return false
}

// about says whether an event may be the answer to a command.
func (c Command) about(e Event) bool {
	switch c.Kind {
	case HandoffBegun:
		return e.Kind == HandoffBegun && e.Pool == c.Pool && e.Shard == c.Shard
	case HandoffUndone:
		return (e.Kind == HandoffUndone || e.Kind == HandoffStepped && strings.HasPrefix(e.Reason, string(mesh.Undoing))) && e.Pool == c.Pool
	}
	return e.Shard == c.Shard
}
