package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// The invariants, as a violation names them.
const (
	OneNodeAnEpoch = "two nodes at one epoch"
	EpochGrows     = "an epoch shrinks"
	Rule           = "promotion without the rule"
	Ring           = "the ring is smaller"
	Empty          = "an empty node in the place of data"
	Restarted      = "a restarted node with the epoch that it had"
	Intent         = "an action before its intent"
	InLease        = "acting outside of the lease"
	TwoAct         = "two control planes act at once"
	FrozenChanges  = "a frozen pool changes"
	Guarded        = "a pool that lost too much changes"
	Candidate      = "not the best replica"
	Converges      = "no convergence"
	SwitchLoses    = "a switch loses a write"
	Slow           = "a failover is late"
	Foreign        = "nodes that others manage are touched"
)

// violation ends a run.
type violation struct {
	at        time.Duration
	invariant string
	text      string
}

// judge knows what truly happened, and holds against it what control planes decide, write, push and do.
type judge struct {
	w        *world
	writes   int32
	lineages int
	shards   map[string]*truth
	handing  handing
	rolled   bool // the store has lost something that nobody could give back
}

// truth is what is known of a shard.
type truth struct {
	owners    map[uint64]string        // to whom each epoch was given; "null" is the stand-in
	processes map[uint64]string        // run id of who was promoted with it
	intents   map[intent]bool          // changes that were written
	primaries map[uint64]string        // as written
	listed    map[string]time.Duration // witnesses: when each was one last
	lineage   int                      // of the primary's data
	since     time.Duration            // of the last change of the primary
	blind     bool                     // an epoch was given twice, and nobody could know
	acked     []acknowledgement
}

type intent struct {
	epoch uint64
	to    string
}

type acknowledgement struct {
	id   int32
	node *node
	at   time.Duration
}

func (w *world) newJudge() {
	w.judge = &judge{w: w, shards: map[string]*truth{}, handing: handing{done: map[uint64]map[mesh.HandoffStep]string{}}}
}

func (j *judge) of(shard string) *truth {
	t := j.shards[shard]
	if t == nil {
		t = &truth{owners: map[uint64]string{}, processes: map[uint64]string{}, intents: map[intent]bool{}, primaries: map[uint64]string{}, listed: map[string]time.Duration{}}
		j.shards[shard] = t
	}
	return t
}

func (j *judge) fail(invariant, format string, args ...any) {
	panic(violation{j.w.now, invariant, fmt.Sprintf(format, args...)})
}

func (j *judge) newWrite() int32 { j.writes++; return j.writes }
func (j *judge) newLineage() int { j.lineages++; return j.lineages }

// decided judges what a control plane is about to write or to do.
func (j *judge) decided(c *plane, old shards.State, d shards.Decision) {
	c.facts.decided = j.w.now
	const lease = 2*s + 30*ms // a lock delay of 3 s, less a margin of 1 s; clocks have an unequal pace
	if c.clock() > c.facts.proof+lease {
		j.fail(InLease, "%s acts %s after Consul last knew that it leads", c.name, c.clock()-c.facts.proof)
	}
	for _, other := range j.w.planes {
		if other != c && other.up && !other.paused && other.clock() < other.store.until() && other.manager.Ready() {
			j.fail(TwoAct, "%s acts while %s may act, too", c.name, other.name)
		}
	}
	if d.State == nil {
		for _, a := range d.Actions {
			if j.w.member(a.Shard).Follow {
				j.fail(Foreign, "%s", describe(a))
			}
		}
		return
	}
	if d.Revision != j.w.consul.kept.revision {
		return // it will be refused
	}
	j.handed(c, old, *d.State)
	for _, m := range j.w.members {
		before, known := old.Shards[m.Shard]
		after, kept := d.State.Shards[m.Shard]
		if known && !kept {
			j.fail(Ring, "%s writes a state without %s", c.name, m.Shard)
		}
		if after.Change != nil && (before.Change == nil || before.Change.Epoch != after.Change.Epoch) {
			j.begun(c, m, old, *d.State, before, after)
		}
		if after.Epoch < before.Epoch {
			j.fail(EpochGrows, "%s of %s: %d after %d", m.Shard, c.name, after.Epoch, before.Epoch)
		}
		j.moved(m, before, after)
	}
}

// moved judges who is primary after a write: it was intended, or it is as before.
func (j *judge) moved(m member, before, after shards.Shard) {
	if m.Follow || after.Epoch == before.Epoch && after.Primary == before.Primary {
		return
	}
	switch b := before.Change; {
	case after.Primary == "" && after.Change != nil && after.Change.Epoch == after.Epoch:
	case b != nil && b.Phase != shards.Serving && b.To == after.Primary && b.Epoch == after.Epoch:
	case after.Primary == before.Primary && b != nil && b.Phase == shards.Holding && after.Epoch > b.Epoch:
		j.w.count("switch abandoned")
	default:
		j.fail(Intent, "%s goes from %s (%d) to %s (%d) without having written so before", m.Shard, before.Primary, before.Epoch, after.Primary, after.Epoch)
	}
}

// begun judges a new change.
func (j *judge) begun(c *plane, m member, old, next shards.State, before, after shards.Shard) {
	change := *after.Change
	j.w.count("change " + string(change.Kind))
	j.w.logf("%s begins %s of %s: %q to %q, epoch %d, fresh %t: %s", c.name, change.Kind, m.Shard, change.From, change.To, change.Epoch, change.Fresh, change.Reason)
	if change.Epoch <= before.Epoch || before.Change != nil && change.Epoch <= before.Change.Epoch {
		j.fail(EpochGrows, "%s of %s has epoch %d, the shard had %d", change.Kind, m.Shard, change.Epoch, before.Epoch)
	}
	if m.Follow {
		if change.Kind != shards.Follow {
			j.fail(Foreign, "a %s of %s", change.Kind, m.Shard)
		}
		return
	}
	continues := before.Change != nil && before.Change.Phase != shards.Serving &&
		!(after.Epoch == before.Change.Epoch && after.Primary == before.Change.To) && // it takes effect with this
		!(after.Epoch > before.Change.Epoch && after.Primary == before.Primary && before.Primary != "" && before.Change.Phase == shards.Holding) // it is abandoned
	isFrozen := func(s shards.State) bool { f, ok := s.Frozen[m.Pool]; return ok && !f.Accepted }
	if isFrozen(old) && isFrozen(next) && !continues && change.Kind != shards.Bootstrap { // a new shard has nothing to lose
		j.fail(FrozenChanges, "%s begins a %s of %s", c.name, change.Kind, m.Shard)
	}
	commanded := func(force bool) bool {
		for _, command := range c.waits {
			if command.Kind == shards.Switch && command.Shard == m.Shard && command.Force == force {
				return true
			}
		}
		return false
	}
	if continues {
		j.w.count("change begun anew")
		to := before.Change.To
		switch n := c.facts.views[to]; {
		case before.Change.Kind == shards.Raised && (change.To != to || n.RunID != before.RunID) && !commanded(true):
			j.rule(c, m, before) // its primary is in office
		case !c.facts.alive(c, to, true), n.RunID != before.Change.RunID, n.Epoch >= before.Change.Epoch && change.To == to:
		case change.To == to && slices.ContainsFunc(m.Nodes, func(address string) bool {
			v := c.facts.views[address]
			return v.Role == mesh.Primary && v.Epoch >= before.Change.Epoch
		}): // another has had its epoch
		case c.facts.refusals[to] >= 3 && (change.To == before.Primary || !change.Fresh || before.Change.Fresh):
			j.w.count("change begun anew, since its node refused")
			c.facts.refusals[to] = 0
		default:
			j.fail(Rule, "%s of %s to %s ends for another to %q, though %s answers", before.Change.Kind, m.Shard, to, change.To, to)
		}
		if before.Primary != "" && change.Fresh && !before.Change.Fresh {
			j.best(c, m, before, change)
		}
		return
	}
	switch change.Kind {
	case shards.Failover, shards.StandIn:
		if commanded(true) {
			return
		}
		j.rule(c, m, before)
		j.guard(c, m, old)
		j.best(c, m, before, change)
	case shards.Switch:
		if !commanded(false) {
			j.fail(Rule, "nobody has asked for a switch of %s", m.Shard)
		}
	case shards.Bootstrap:
		if before.Epoch > 0 {
			j.fail(Rule, "%s has had a primary already", m.Shard)
		}
		if to := j.w.byName[change.To]; to != nil && to.lineage == 0 && to.honest() {
			for _, n := range m.nodes {
				if t := j.of(m.Shard); n.lineage > 0 && n.lineage == t.lineage && n.honest() && c.facts.alive(c, n.address, true) && !c.facts.views[n.address].Loading && c.facts.views[n.address].Offset > 0 {
					j.fail(Empty, "%s begins with %s, which is empty; %s has data", m.Shard, to.address, n.address)
				}
			}
		}
	case shards.Recovery:
		if before.Primary != "" || !change.Fresh {
			j.fail(Rule, "recovery of %s, whose primary is %q; fresh %t", m.Shard, before.Primary, change.Fresh)
		}
	case shards.Raised:
		if change.To != before.Primary || !slices.ContainsFunc(m.Nodes, func(address string) bool { return c.facts.views[address].Epoch > before.Epoch }) {
			j.fail(Rule, "the epoch of %s is raised for %s", m.Shard, change.To)
		}
	default:
		j.fail(Rule, "a %s of %s", change.Kind, m.Shard)
	}
}

// rule is that of a failover: silence here for downAfter, and most witnesses that were known in the last ten minutes.
func (j *judge) rule(c *plane, m member, before shards.Shard) {
	now, w := j.w.now, j.w
	if silent := c.facts.silent(now, m.Shard, before); silent < w.settings.downAfter*97/100 {
		j.fail(Rule, "%s gives up %s of %s after a silence of %s", c.name, before.Primary, m.Shard, silent)
	}
	const life = 10 * time.Minute * 98 / 100 // clocks have an unequal pace
	witnesses, down := 0, 0
	for _, a := range w.agents {
		listed, ok := j.of(m.Shard).listed[a.name]
		if !slices.Contains(before.Witnesses, a.name) && (!ok || now-listed > life) {
			continue
		}
		met, ok := c.facts.agents[a.name]
		if ok && now-met > life && !slices.ContainsFunc(c.streams, func(r *report) bool { return r.agent == a && r.up && r.run == c.run }) {
			continue
		}
		v, ok := c.facts.votes[m.Shard][a.name]
		says := ok && v.Down && v.Epoch == before.Epoch && v.Address == before.Primary && now-v.at <= s+20*ms
		if _, gone := c.facts.gone[a.name]; gone && !says {
			continue
		}
		witnesses++
		if says {
			down++
		}
	}
	if 2*down <= witnesses {
		j.fail(Rule, "%s gives up %s of %s: %d of %d witnesses say that it is down", c.name, before.Primary, m.Shard, down, witnesses)
	}
}

// guard is that nothing changes in a pool that has just lost too much.
func (j *judge) guard(c *plane, m member, old shards.State) {
	lost, all := 0, 0
	for _, other := range j.w.members {
		if other.Pool != m.Pool || other.Follow {
			continue
		}
		for _, n := range other.nodes {
			all++
			at, ok := c.facts.answered[n.address]
			silent := j.w.now - at
			if ok && silent > j.w.settings.downAfter*103/100 && silent < 29*s && !slices.Contains(old.Frozen[m.Pool].Lost, n.address) {
				lost++
			}
		}
	}
	if lost > 2 && 2*lost > all {
		j.fail(Guarded, "%s changes %s, and %d of %d nodes of its pool went at once", c.name, m.Shard, lost, all)
	}
}

// best is that the reachable replica with the most data takes over, and that none begins empty while there is one.
func (j *judge) best(c *plane, m member, before shards.Shard, change shards.Change) {
	best := int64(-1)
	for _, n := range m.nodes {
		if c.facts.heir(c, before, n.address, true) {
			best = max(best, c.facts.views[n.address].Offset)
		}
	}
	switch {
	case best < 0 && (change.Fresh || change.To == ""):
	case change.Fresh || change.To == "":
		j.fail(Empty, "%s begins empty, though a replica has its data", m.Shard)
	case !c.facts.heir(c, before, change.To, false):
		j.fail(Empty, "%s has not the data of %s", change.To, m.Shard)
	case c.facts.views[change.To].Offset < best:
		j.fail(Candidate, "%s has %d of %s, another has %d", change.To, c.facts.views[change.To].Offset, m.Shard, best)
	}
}

// give notes that an epoch is somebody's, for ever.
func (j *judge) give(c *plane, shard string, epoch uint64, owner string) {
	t := j.of(shard)
	had, ok := t.owners[epoch]
	if ok && had != owner {
		if !t.blind && !j.blind(c, shard, epoch, owner) {
			j.fail(OneNodeAnEpoch, "epoch %d of %s is given to %s, and was %s's", epoch, shard, owner, had)
		}
		t.blind = true
		j.w.count("epoch given twice, unknowingly")
	}
	t.owners[epoch] = owner
}

// blind says whether nothing that reached a control plane before its decision remembered an epoch: the store has lost it, and no node shows it.
func (j *judge) blind(c *plane, shard string, epoch uint64, owner string) bool {
	return j.rolled && !slices.ContainsFunc(j.w.member(shard).nodes, func(n *node) bool {
		if n.address == owner {
			return n.epoch >= epoch // it was asked before it was promoted
		}
		return n.honest() && c.facts.alive(c, n.address, true) && c.facts.answered[n.address] < c.facts.decided && c.facts.views[n.address].Epoch >= epoch
	})
}

// restored takes in that the store has an old state from now on.
func (j *judge) restored(r record) {
	j.rolled = true
	for _, m := range j.w.members {
		t := j.of(m.Shard)
		t.listed, t.acked, t.since = map[string]time.Duration{}, nil, j.w.now
		for _, name := range r.state.Shards[m.Shard].Witnesses {
			t.listed[name] = j.w.now
		}
	}
}

// committed judges a state that replaces another in the store.
func (j *judge) committed(c *plane, before, after record) {
	for pool := range after.state.Frozen {
		if _, before := before.state.Frozen[pool]; !before {
			j.w.count("pool frozen")
		}
	}
	lost := false
	for _, m := range j.w.members {
		_, known := before.state.Shards[m.Shard]
		next, kept := after.state.Shards[m.Shard]
		t := j.of(m.Shard)
		if known && !kept {
			j.fail(Ring, "%s has written a state without %s", c.name, m.Shard)
		}
		if !kept {
			lost = lost || len(t.owners) > 0
			continue
		}
		if !known {
			for e := range t.owners {
				lost = lost || e > next.Epoch
			}
			if lost {
				t.listed = map[string]time.Duration{}
			}
		}
	}
	if lost && !j.rolled {
		j.rolled = true
		j.w.count("store lost something for ever")
		j.w.logf("(what the store has is older than what was)")
	}
	for _, m := range j.w.members {
		old := before.state.Shards[m.Shard]
		next, kept := after.state.Shards[m.Shard]
		if !kept || m.Follow {
			continue
		}
		t := j.of(m.Shard)
		owner := next.Primary
		if owner == "" && next.Epoch > 0 {
			owner = "null"
		}
		if next.Epoch > 0 {
			j.give(c, m.Shard, next.Epoch, owner)
			t.primaries[next.Epoch] = next.Primary
			if run, ok := t.processes[next.Epoch]; ok && next.Primary != "" && run != next.RunID && j.w.byName[next.Primary].honest() && !t.blind {
				j.fail(Restarted, "%s of %s is served with epoch %d as process %s, which was given to %s", next.Primary, m.Shard, next.Epoch, next.RunID, run)
			}
		}
		if ch := next.Change; ch != nil && ch.Phase != shards.Serving {
			t.intents[intent{ch.Epoch, ch.To}] = true
		}
		if next.Epoch != old.Epoch || next.Primary != old.Primary {
			j.w.logf("%s has written: %s is %q, epoch %d", c.name, m.Shard, next.Primary, next.Epoch)
			t.lineage = 0
			if n := j.w.byName[next.Primary]; n != nil {
				t.lineage = n.lineage
			}
			if ch := next.Change; ch != nil && ch.Kind == shards.Switch && next.Primary == ch.To {
				j.switched(m.Shard, old, next)
			} else {
				t.acked, t.since = nil, j.w.now
			}
		}
		for _, name := range next.Witnesses {
			t.listed[name] = j.w.now
		}
		for _, name := range old.Witnesses {
			if slices.Contains(next.Witnesses, name) {
				continue
			}
			met, ok := c.facts.agents[name]
			_, gone := c.facts.gone[name]
			if gone || ok && j.w.now-met > 10*time.Minute*98/100 {
				delete(t.listed, name)
				j.w.count("witness let go")
			} else {
				t.listed[name] = j.w.now
			}
		}
	}
}

// pushed judges what a control plane tells its sidecars.
func (j *judge) pushed(c *plane, state shards.State, next map[string]route) {
	for _, m := range j.w.members {
		to, ok := next[m.Shard]
		if known, have := state.Shards[m.Shard]; have && known.Epoch > 0 && !ok {
			j.fail(Ring, "%s pushes a ring without %s", c.name, m.Shard)
		}
		if !ok {
			continue
		}
		owner := to.address
		if to.standIn == mesh.Null || to.standIn == "" && owner == "" {
			if to.standIn == "" {
				j.fail(Ring, "%s pushes %s without an endpoint", c.name, m.Shard)
			}
			owner = "null"
		}
		if m.Follow {
			continue
		}
		if t := j.of(m.Shard); t.owners[to.epoch] != owner && !t.blind {
			j.fail(OneNodeAnEpoch, "%s pushes %s at epoch %d of %s, which is %s's", c.name, owner, to.epoch, m.Shard, t.owners[to.epoch])
		}
	}
}

// acted judges an action that a node executes.
func (j *judge) acted(c *plane, a shards.Action, n *node) {
	t := j.of(a.Shard)
	if j.w.member(a.Shard).Follow {
		j.fail(Foreign, "%s", describe(a))
	}
	switch a.Op {
	case shards.Promote, shards.Handover:
		if !t.intents[intent{a.Epoch, a.Node}] && !t.blind {
			j.fail(Intent, "%s, which no state says", describe(a))
		}
	case shards.Demote:
		if t.primaries[a.Epoch] != a.Of && !t.blind {
			j.fail(Intent, "%s, which no state says", describe(a))
		}
	case shards.Mirror:
		if t.primaries[a.Epoch] != a.Node && !t.blind {
			j.fail(Intent, "%s, which no state says", describe(a))
		}
	}
}

// promoted judges a process that is given an epoch.
func (j *judge) promoted(c *plane, n *node, a shards.Action) {
	t := j.of(a.Shard)
	if run, ok := t.processes[a.Epoch]; ok && run != n.runID && !t.blind && !j.blind(c, a.Shard, a.Epoch, a.Node) {
		j.fail(Restarted, "%s: it was another process, %s, that was promoted with that", describe(a), run)
	}
	j.give(c, a.Shard, a.Epoch, a.Node)
	t.processes[a.Epoch] = n.runID
	n.promoted = a.Epoch
	if n.lineage <= 0 {
		if late := a.Epoch < j.w.consul.kept.state.Shards[a.Shard].Epoch; t.lineage > 0 && n.lineage == 0 && !a.Fresh && !j.rolled && !late {
			j.fail(Empty, "%s: it has no data", describe(a))
		}
		n.lineage = j.newLineage()
	}
}

// copied judges a replica that is about to replace its data.
func (j *judge) copied(n, of *node, lineage int) {
	t := j.of(n.shard)
	if change := j.w.consul.kept.state.Shards[n.shard].Change; change != nil && change.Fresh && change.To == of.address {
		return // its data is given up
	}
	if lineage == 0 && !of.plain && n.lineage != 0 && n.lineage == t.lineage && !j.rolled && j.w.byName[n.shard] == nil {
		j.fail(Empty, "%s, which has data, copies %s, which has none", n.address, of.address)
	}
}

func (j *judge) acknowledged(shard string, n *node, id int32) {
	t := j.of(shard)
	t.acked = append(t.acked, acknowledgement{id, n, j.w.now})
	j.w.count("write acknowledged")
}

// quiet says whether nothing has failed for a while.
func (w *world) quiet() bool {
	return w.faults == 0 && w.now-w.calm > 6*s && (w.settings.mishap == 0 || w.now > w.settings.until+10*s || w.now < w.settings.from)
}

// switched looks, a while after a switch in quiet times, whether all that was acknowledged is there.
func (j *judge) switched(shard string, before, after shards.Shard) {
	t, n, old := j.of(shard), j.w.byName[after.Primary], j.w.byName[before.Primary]
	if !j.w.quiet() {
		t.acked, t.since = nil, j.w.now
		return
	}
	since := map[*node]time.Duration{old: max(t.since, j.w.now-5*s), n: j.w.now - s}
	t.since = j.w.now
	j.w.after(s, func() {
		if !j.w.quiet() || j.w.consul.kept.state.Shards[shard].Epoch != after.Epoch {
			return
		}
		j.w.count("switch in quiet times")
		have := map[int32]bool{}
		for _, id := range n.writes {
			have[id] = true
		}
		for _, a := range t.acked {
			if from, ok := since[a.node]; ok && a.at > from && !have[a.id] {
				j.fail(SwitchLoses, "write %d of %s, which %s acknowledged at %.3f, is not on %s", a.id, shard, a.node.address, a.at.Seconds(), n.address)
			}
		}
	})
}
