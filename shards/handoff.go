package shards

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// lateAfter is how long a step waits for agents that do not acknowledge it.
	lateAfter = 30 * time.Second
	// maxLate bounds the agents that are named in the state.
	maxLate = 1000
)

// Move is what is to be done with keys: a mover that has done a handoff's steps up to Step. It is comparable, and another one is
// another mover's.
type Move struct {
	Pool    string
	Handoff uint64 // 0: what late agents left on shards that are not the key's is to be removed
	Step    mesh.HandoffStep
	Owners  string // who was primary in which epoch, and which late agents are back: a mover of others begins anew
}

// Mover says whether both are for one mover.
func (m Move) Mover(o Move) bool {
	return m.Pool == o.Pool && m.Handoff == o.Handoff && m.Owners == o.Owners
}

// Following is which ring an agent, its lanes and its Envoy follow, and how far they are with a handoff.
type Following struct {
	Pool       string
	Generation uint64 // 0 is none, or not the same everywhere
	Handoff    uint64 // id
	Step       mesh.HandoffStep
	Kept       uint64 // keys that have yet to be removed at the other owner
}

// moving is what a manager knows of a pool's handoff beyond the state.
type moving struct {
	handoff uint64
	step    mesh.HandoffStep
	begun   time.Time // when this manager first saw the step
	passed  time.Time // when all agents had acknowledged it, or were late
	ran     Move      // the move that was done last
	problem error     // why the last was not
	waits   []string  // agents that have not acknowledged the step
	back    []string  // late agents that are back, for which a sweep is under way
}

// handoffs brings those under way further.
func (d *deciding) handoffs() {
	for _, pool := range slices.Sorted(maps.Keys(d.next.Handoffs)) {
		d.handoff(pool, d.next.Handoffs[pool])
	}
	// What has ended is known until that is written: a mover says only once what it has done.
	for _, pool := range slices.Sorted(maps.Keys(d.next.Rings)) {
		_, was := d.state.Handoffs[pool]
		if _, is := d.next.Handoffs[pool]; !was && !is {
			d.sweepAfterLate(pool, d.next.Rings[pool])
		}
	}
	for pool, k := range d.moving {
		_, was := d.state.Handoffs[pool]
		if _, is := d.next.Handoffs[pool]; !was && !is && k.handoff != 0 {
			delete(d.moving, pool)
		}
	}
}

// handoff decides whether the step that a handoff is in has come to its end. Each ends when its move is done and all agents that must
// have acknowledged it, or are late. Fencing's move locks late agents out, so it waits for the others first.
func (d *deciding) handoff(pool string, h Handoff) {
	k := d.memorize(pool, h.ID, h.Step)
	d.enlist(pool, &h)
	k.waits = d.waits(pool, h, k)
	move, whole := d.move(pool, h)
	if len(k.waits) > 0 {
		k.passed = time.Time{}
	} else if k.passed.IsZero() {
		k.passed = d.now
	}
	if h.Step == mesh.Fencing && len(k.waits) > 0 {
		move.Step = mesh.Preparing
	}
	if whole {
		d.moves = append(d.moves, move)
	}
	switch {
	case h.Undo != "" && h.Step != mesh.Undoing:
		if h.Step == mesh.Fencing {
			h.From.Login = h.To.Login // lanes have it by now, and the one before may be gone
		}
		d.advanceTo(pool, h, mesh.Undoing)
	case !whole || len(k.waits) > 0 || k.ran != move || d.held[pool]:
	case h.Step == mesh.Copying:
		d.advanceTo(pool, h, mesh.Preparing)
	case h.Step == mesh.Preparing:
		d.advanceTo(pool, h, mesh.Fencing)
	case h.Step == mesh.Fencing:
		if d.allWell(h) {
			d.flip(pool, h)
		}
	case h.Step == mesh.Flipping:
		// What was sent to a donor before takes as long to be carried out.
		if d.now.Sub(k.passed) >= d.config.OpTimeout {
			d.advanceTo(pool, h, mesh.Purging)
		}
	case h.Step == mesh.Purging:
		if why := d.unread[pool]; why != "" {
			k.problem = errors.New(why)
		} else {
			d.endHandoff(pool, h, HandoffDone)
		}
	case h.Step == mesh.Undoing:
		d.endHandoff(pool, h, HandoffUndone)
	}
}

// memorize keeps the memory of a pool's handoff in step with the state.
func (d *deciding) memorize(pool string, id uint64, step mesh.HandoffStep) *moving {
	k := d.moving[pool]
	if k == nil || k.handoff != id || k.step != step {
		k = &moving{handoff: id, step: step, begun: d.now}
		d.moving[pool] = k
	}
	if k.begun.Before(d.since) {
		k.begun = d.since // another led meanwhile
	}
	return k
}

// enlist adds agents that have come, and lets go of those that have stopped as planned.
func (d *deciding) enlist(pool string, h *Handoff) {
	gone := func(name string) bool {
		a := d.agents[name]
		return a != nil && !a.connected && a.at.IsZero()
	}
	var come []string
	for name, a := range d.agents {
		if a.connected && !slices.Contains(h.Agents, name) {
			come = append(come, name)
		}
	}
	if len(come) == 0 && !slices.ContainsFunc(h.Agents, gone) {
		return
	}
	h.Agents = append(slices.DeleteFunc(slices.Clone(h.Agents), gone), come...)
	slices.Sort(h.Agents)
	h.Late = slices.DeleteFunc(slices.Clone(h.Late), gone)
	d.setHandoff(pool, *h)
}

// waits are the agents that a step still waits for. Late ones of an earlier step are not waited for again.
func (d *deciding) waits(pool string, h Handoff, k *moving) (waits []string) {
	for _, name := range h.Agents {
		if !d.hasTaken(pool, name, h) && !slices.Contains(h.Late, name) && d.now.Sub(k.begun) < lateAfter {
			waits = append(waits, name)
		}
	}
	if len(waits) == 0 && d.now.Sub(d.since) < settled && (h.Step == mesh.Flipping || h.Step != mesh.Copying && d.onLanes(pool)) {
		return []string{"sidecars that this control plane has not heard of yet"}
	}
	return waits
}

// hasTaken says whether an agent has acknowledged the step of a handoff. Without lanes an agent has only a part in what Envoy does.
func (d *deciding) hasTaken(pool, agent string, h Handoff) bool {
	f := d.following[pool][agent]
	with := f.Handoff == h.ID && f.Kept == 0 && slices.Index(mesh.HandoffSteps, f.Step) >= slices.Index(mesh.HandoffSteps, h.Step)
	switch h.Step {
	case mesh.Copying, mesh.Purging:
		return true
	case mesh.Flipping:
		return with && f.Generation == h.To.Generation
	case mesh.Undoing:
		return with || !d.onLanes(pool)
	default:
		return with && f.Step != mesh.Undoing || !d.onLanes(pool)
	}
}

func (d *deciding) onLanes(pool string) bool {
	return slices.ContainsFunc(d.members, func(m Member) bool { return m.Pool == pool && m.Lanes })
}

// move is what a handoff's step wants done. It is not whole while a shard has no primary.
func (d *deciding) move(pool string, h Handoff) (m Move, whole bool) {
	var owners []string
	for _, p := range d.next.managed(pool, h.From.Shards) {
		s := d.next.Shards[p.Shard]
		if s.Primary == "" {
			return Move{}, false
		}
		owners = append(owners, fmt.Sprintf("%s@%d", p.Shard, s.Epoch))
	}
	return Move{Pool: pool, Handoff: h.ID, Step: h.Step, Owners: strings.Join(owners, " ")}, true
}

// allWell says whether every shard of the next ring can serve now. The replicas of one that is added have its data first.
func (d *deciding) allWell(h Handoff) bool {
	return !slices.ContainsFunc(h.To.Shards, func(p Place) bool {
		s := d.next.Shards[p.Shard]
		return !d.well(s) || s.Change != nil && s.Change.Phase != Serving || !has(h.From.Shards, p.Shard) && !d.inSync(p.Shard, s)
	})
}

// inSync says whether all replicas of a shard that answer have its data.
func (d *deciding) inSync(shard string, s Shard) bool {
	i := slices.IndexFunc(d.members, func(m Member) bool { return m.Shard == shard })
	return i >= 0 && (d.members[i].Follow || !slices.ContainsFunc(d.members[i].Nodes, func(address string) bool {
		return address != s.Primary && d.alive(d.now, address) && !d.nodes[address].Linked
	}))
}

// flip has the next ring served.
func (d *deciding) flip(pool string, h Handoff) {
	d.touch()
	h.To.Since = d.config.Wall(d.now)
	d.next.Rings[pool] = h.To
	d.advanceTo(pool, h, mesh.Flipping)
}

// advanceTo ends a step and begins another.
func (d *deciding) advanceTo(pool string, h Handoff, step mesh.HandoffStep) {
	h = d.ended(pool, h)
	h.Step = step
	d.setHandoff(pool, h)
	reason := string(step)
	if step == mesh.Undoing {
		reason = "undoing: " + h.Undo
	}
	d.event(Event{Kind: HandoffStepped, Pool: pool, Shard: h.Shard, Reason: reason, Steps: h.Steps})
}

// ended notes that a step is over, and who was late for it.
func (d *deciding) ended(pool string, h Handoff) Handoff {
	h.Steps = append(slices.Clone(h.Steps), Step{string(h.Step), ms(d.config.Wall(d.now).Sub(h.Begun))})
	if h.Step == mesh.Copying || h.Step == mesh.Purging || h.Undo != "" && h.Step != mesh.Undoing {
		return h
	}
	var late, fresh []string
	for _, name := range h.Agents {
		if !d.hasTaken(pool, name, h) && len(late) < maxLate {
			late = append(late, name)
			if !slices.Contains(h.Late, name) {
				fresh = append(fresh, name)
			}
		}
	}
	h.Late = late
	if len(fresh) > 0 {
		d.event(Event{Kind: HandoffLate, Pool: pool, Shard: h.Shard,
			Reason: fmt.Sprintf("%s: not waited for any longer: %s", h.Step, strings.Join(fresh, ", "))})
	}
	return h
}

// endHandoff ends a handoff, done or undone.
func (d *deciding) endHandoff(pool string, h Handoff, kind Kind) {
	h = d.ended(pool, h)
	d.touch()
	stays := h.To
	if kind == HandoffUndone {
		stays = h.From
		if r, ok := d.next.Rings[pool]; ok || h.From.Login != r.Login {
			d.next.Rings[pool] = h.From
		}
	} else {
		r := d.next.Rings[pool]
		r.Late = h.Late
		d.next.Rings[pool] = r
	}
	delete(d.next.Handoffs, pool)
	for _, p := range slices.Concat(h.From.Shards, h.To.Shards) {
		if !has(stays.Shards, p.Shard) {
			delete(d.next.Shards, p.Shard)
			delete(d.next.Nodes, p.Shard)
		}
	}
	reason := h.describe()
	if kind == HandoffUndone {
		reason += " was given up: " + h.Undo
	}
	d.event(Event{Kind: kind, Pool: pool, Shard: h.Shard, Reason: reason, Steps: h.Steps})
}

// login is what lanes log in as.
func (h Handoff) login() uint64 {
	switch h.Step {
	case mesh.Fencing, mesh.Flipping, mesh.Purging:
		return h.To.Login
	}
	return h.From.Login
}

func (h Handoff) describe() string {
	switch h.Kind {
	case RemoveShard:
		return fmt.Sprintf("%s is removed, generation %d", h.Shard, h.To.Generation)
	case WeighShard:
		i := slices.IndexFunc(h.To.Shards, func(p Place) bool { return p.Shard == h.Shard })
		return fmt.Sprintf("%s has weight %d, generation %d", h.Shard, h.To.Shards[i].Weight, h.To.Generation)
	}
	return fmt.Sprintf("%s is added, generation %d", h.Shard, h.To.Generation)
}

func (d *deciding) setHandoff(pool string, h Handoff) {
	d.touch()
	d.next.Handoffs[pool] = h
}

// lateFor is how long it is of interest that an agent may not follow a ring.
const lateFor = 24 * time.Hour

// sweepAfterLate has what late agents left removed once they follow their pool's ring.
func (d *deciding) sweepAfterLate(pool string, r Ring) {
	back := slices.DeleteFunc(slices.Clone(r.Late), func(name string) bool {
		f := d.following[pool][name]
		return f.Generation != r.Generation || f.Kept > 0
	})
	if d.config.Wall(d.now).Sub(r.Since) >= lateFor {
		back = r.Late
	}
	if len(back) == 0 {
		delete(d.moving, pool)
		return
	}
	k := d.memorize(pool, 0, mesh.Purging)
	if !slices.ContainsFunc(k.back, func(name string) bool { return slices.Contains(r.Late, name) }) {
		k.back = back
	}
	move, whole := d.move(pool, Handoff{From: r, Step: mesh.Purging})
	move.Owners += " after " + strings.Join(k.back, " ")
	switch {
	case !whole:
	case k.ran != move:
		d.moves = append(d.moves, move)
	default:
		d.touch()
		r.Late = slices.DeleteFunc(slices.Clone(r.Late), func(name string) bool { return slices.Contains(k.back, name) })
		d.next.Rings[pool] = r
		d.event(Event{Kind: HandoffLate, Pool: pool, Reason: "back, and what they left is removed: " + strings.Join(k.back, ", ")})
	}
}

// Follows takes in which rings an agent, its lanes and its Envoy follow: all of them.
func (m *Manager) Follows(agent string, all []Following) {
	m.unfollow(agent)
	for _, f := range all {
		if m.following[f.Pool] == nil {
			m.following[f.Pool] = map[string]Following{}
		}
		m.following[f.Pool][agent] = f
	}
}

// unfollow forgets what an agent said.
func (m *Manager) unfollow(agent string) {
	for _, of := range m.following {
		delete(of, agent)
	}
}

// Moved takes in that a move was done, or why it was not.
func (m *Manager) Moved(move Move, err error) {
	k := m.moving[move.Pool]
	if k == nil || k.handoff != move.Handoff || slices.Index(mesh.HandoffSteps, move.Step) > slices.Index(mesh.HandoffSteps, k.step) {
		return
	}
	if k.problem = err; err == nil {
		k.ran = move
	}
}

// Unread takes in of which pools a shard that leaves has a journal that another region has not read to its end, and why.
func (m *Manager) Unread(pools map[string]string) { m.unread = pools }

// Progress says what a pool's handoff waits for: agents that have not acknowledged its step, and why its move is not done.
func (m *Manager) Progress(pool string) (waits []string, problem error) {
	if k := m.moving[pool]; k != nil {
		return k.waits, k.problem
	}
	return nil, nil
}
