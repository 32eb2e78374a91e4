package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// The invariants of handoffs.
const (
	RingMoves = "a ring changes without a finished handoff"
	OneAPool  = "two handoffs of a pool"
	Barrier   = "a step goes on without a sidecar"
	MoveOwed  = "a step ends before its move"
)

// handing is what truly happened to handoffs, for the judge.
type handing struct {
	done map[uint64]map[mesh.HandoffStep]string // who was primary when each move was done, by handoff
	last uint64                                 // handoff
}

// reshape has an operator change a ring, and sometimes think better of it.
func (w *world) reshape() {
	m := pick(w, w.members)
	w.leading().ask(shards.Command{Kind: shards.HandoffBegun, Reshape: shards.WeighShard, Pool: m.Pool, Shard: m.Shard, Weight: uint32(1 + w.random.IntN(4))})
	if w.chance(3) {
		w.after(w.upTo(4*s), func() { w.leading().ask(shards.Command{Kind: shards.HandoffUndone, Pool: m.Pool}) })
	}
}

// move has just these moves under way.
func (c *plane) move(moves []shards.Move) {
	now := map[string]shards.Move{}
	for _, m := range moves {
		now[m.Pool] = m
	}
	for _, m := range moves {
		if c.moving[m.Pool] != m {
			c.moving[m.Pool] = m
			c.step("before a move", func() { c.work(m) })
			if !c.up {
				return
			}
		}
	}
	maps.DeleteFunc(c.moving, func(pool string, m shards.Move) bool { return now[pool] != m })
}

// work is a mover's. It takes a while, and may have to try again.
func (c *plane) work(m shards.Move) {
	w, run := c.w, c.run
	takes := w.between(20*ms, 600*ms)
	if w.chance(10) {
		takes = w.between(s, 4*s)
	}
	w.after(takes, func() {
		c.receive(run, func() {
			if c.run != run || c.moving[m.Pool] != m {
				return
			}
			if w.chance(8) || !c.reachesOwners(m) {
				c.manager.Moved(m, errReply)
				w.after(200*ms, func() { c.receive(run, func() { c.work(m) }) })
				return
			}
			w.judge.did(c, m)
			c.manager.Moved(m, nil)
			c.decide()
		})
	})
}

// reachesOwners says whether a mover reaches all primaries of its pool, as it knows them.
func (c *plane) reachesOwners(m shards.Move) bool {
	state, _ := c.manager.State()
	for _, shard := range state.Shards {
		if n := c.w.byName[shard.Primary]; shard.Pool == m.Pool && (n == nil || !n.up || !c.w.linked(c.id, n.id)) {
			return false
		}
	}
	return true
}

// rings are which ring of each pool a topology has, and in which step it is.
func rings(t mesh.Topology) map[string]shards.Following {
	all := map[string]shards.Following{}
	for _, p := range t.Pools {
		f := shards.Following{Pool: p.Name, Generation: p.Generation}
		if p.Handoff != nil {
			f.Handoff, f.Step = p.Handoff.ID, p.Handoff.Step
		}
		all[p.Name] = f
	}
	return all
}

// follow reaches the sidecar if it follows this control plane: its lanes and its Envoy do as it says, and it says so to all.
func (r *report) follow(next map[string]shards.Following) {
	if r.agent.source != r {
		return
	}
	a := r.agent
	r.downwards(func() {
		if a.source != r {
			return
		}
		a.following = next
		for _, f := range next {
			if f.Handoff != 0 {
				a.taken[f.Handoff] = max(a.taken[f.Handoff], slices.Index(mesh.HandoffSteps, f.Step))
			}
		}
		for _, other := range a.planes {
			other.follows()
		}
	})
}

// follows tells a control plane which rings the sidecar follows.
func (r *report) follows() {
	if !r.up {
		return
	}
	all := slices.Collect(maps.Values(r.agent.following))
	r.upwards(func() { r.c.manager.Follows(r.agent.name, all) })
}

// owners are who is primary of a pool, as a move says it.
func owners(state shards.State, h shards.Handoff) string {
	var all []string
	for _, p := range h.From.Shards {
		all = append(all, fmt.Sprintf("%s@%d", p.Shard, state.Shards[p.Shard].Epoch))
	}
	return strings.Join(all, " ")
}

// did notes that a move is done. A fence keeps out who has not acknowledged it.
func (j *judge) did(c *plane, m shards.Move) {
	if j.handing.done[m.Handoff] == nil {
		j.handing.done[m.Handoff] = map[mesh.HandoffStep]string{}
	}
	j.handing.done[m.Handoff][m.Step] = m.Owners
	h := j.w.consul.kept.state.Handoffs[m.Pool]
	if m.Step == mesh.Fencing && h.ID == m.Handoff && h.Step == mesh.Fencing && c.acts {
		j.barrier(c, m.Pool, h, mesh.Fencing)
	}
}

// barrier judges whether all sidecars that are known, and not late, have taken a step.
func (j *judge) barrier(c *plane, pool string, h shards.Handoff, step mesh.HandoffStep) {
	if j.rolled || step != mesh.Flipping && !j.w.settings.lanes {
		return
	}
	for _, a := range j.w.agents {
		if slices.Contains(h.Agents, a.name) && !slices.Contains(h.Late, a.name) && a.taken[h.ID] < slices.Index(mesh.HandoffSteps, step) &&
			j.w.now-c.facts.led < 30*s {
			j.fail(Barrier, "%s of pool %s goes on, and %s has not taken it: %+v", step, pool, a.name, a.following)
		}
	}
}

// handed judges what a write does to handoffs and rings.
func (j *judge) handed(c *plane, old, next shards.State) {
	if j.rolled {
		return
	}
	for _, pool := range []string{"p", "q"} {
		before, was := old.Handoffs[pool]
		after, is := next.Handoffs[pool]
		done := j.handing.done[before.ID]
		j.handing.last = max(j.handing.last, before.ID)
		owed := func(step mesh.HandoffStep) {
			if done[step] != owners(old, before) {
				j.fail(MoveOwed, "%s ends %s of pool %s; its move was done for %q, and owners are %q", c.name, step, pool, done[step], owners(old, before))
			}
		}
		if a, b := old.Rings[pool], next.Rings[pool]; a.Generation != b.Generation || !reflect.DeepEqual(a.Shards, b.Shards) {
			switch {
			case a.Generation == 0 && b.Generation == 0 && was && !is: // pinned, with another login
			case !was || before.Step != mesh.Fencing || after.Step != mesh.Flipping || !reflect.DeepEqual(b.Shards, before.To.Shards) || b.Generation != a.Generation+1:
				j.fail(RingMoves, "%s writes generation %d %v of pool %s after %d %v; handoff %+v", c.name, b.Generation, b.Shards, pool, a.Generation, a.Shards, before)
			default:
				owed(mesh.Fencing)
				j.w.count("handoff flips")
			}
		}
		switch {
		case is && !was:
			j.w.count("handoff begun")
			if after.ID <= j.handing.last {
				j.fail(OneAPool, "handoff %d of pool %s after %d", after.ID, pool, j.handing.last)
			}
		case is && after.ID != before.ID:
			j.fail(OneAPool, "handoff %d of pool %s takes the place of %d, which was %s", after.ID, pool, before.ID, before.Step)
		case is && after.Step != before.Step:
			j.stepped(c, pool, before, after, owed)
		case was && !is && before.Step == mesh.Purging:
			owed(mesh.Purging)
			j.w.count("handoff done")
		case was && !is && before.Step == mesh.Undoing:
			owed(mesh.Undoing)
			j.w.count("handoff undone")
		case was && !is:
			j.fail(RingMoves, "handoff %d of pool %s ends when it is %s", before.ID, pool, before.Step)
		}
		if is && len(after.Late) > len(before.Late) {
			j.w.count("handoff with a late sidecar")
		}
	}
}

// stepped judges a new step.
func (j *judge) stepped(c *plane, pool string, before, after shards.Handoff, owed func(mesh.HandoffStep)) {
	order := func(step mesh.HandoffStep) int { return slices.Index(mesh.HandoffSteps, step) }
	if after.Step == mesh.Undoing {
		if order(before.Step) >= order(mesh.Flipping) {
			j.fail(RingMoves, "handoff %d of pool %s is undone after its flip", before.ID, pool)
		}
		return
	}
	if order(after.Step) != order(before.Step)+1 {
		j.fail(RingMoves, "handoff %d of pool %s goes from %s to %s", before.ID, pool, before.Step, after.Step)
	}
	owed(before.Step)
	if before.Step == mesh.Preparing || before.Step == mesh.Flipping {
		j.barrier(c, pool, after, before.Step)
	}
}

// cloneHandoffs is a deep copy.
func cloneHandoffs(all map[string]shards.Handoff) map[string]shards.Handoff {
	all = maps.Clone(all)
	for pool, h := range all {
		h.From.Shards, h.To.Shards = slices.Clone(h.From.Shards), slices.Clone(h.To.Shards)
		h.Steps, h.Agents, h.Late = slices.Clone(h.Steps), slices.Clone(h.Agents), slices.Clone(h.Late)
		all[pool] = h
	}
	return all
}

// cloneRings likewise.
func cloneRings(all map[string]shards.Ring) map[string]shards.Ring {
	all = maps.Clone(all)
	for pool, r := range all {
		r.Shards, r.Late = slices.Clone(r.Shards), slices.Clone(r.Late)
		all[pool] = r
	}
	return all
}

// opTimeout is that of the mesh.
const opTimeout = 500 * time.Millisecond
