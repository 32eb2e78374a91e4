package shards

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// maxEvents is how many events the state carries, so that control planes that were away for a while miss none.
	maxEvents = 64
	// bootstrapAfter is how long a new shard waits for nodes that do not answer.
	bootstrapAfter = 3 * time.Second
	// servingFor bounds the wait for sidecars to acknowledge a new epoch. It only delays the event.
	servingFor = 2 * time.Second
	// holdFor bounds how long a switch waits for sidecars to hold a shard's requests. They hold for 400 ms at most, and the handover takes 200.
	holdFor = 150 * time.Millisecond
	// workersFor is how long after that Envoy's workers may still send to the node before: they follow what Envoy has acknowledged a moment
	// later, and a write that comes after the pause is answered READONLY.
	workersFor = 25 * time.Millisecond
)

// deciding is a decision in the making. The state is copied when it is first changed.
type deciding struct {
	*Manager
	now     time.Time
	next    State
	changed bool
	actions []Action
	moves   []Move
	answers []Answer
	held    map[string]bool // pools in which nothing may be begun
}

// Decide says what is to be done now. It is to be called again when its State has been written, when something was taken in,
// and every few milliseconds.
func (m *Manager) Decide(now time.Time) Decision {
	m.wake(now)
	if !m.Leading(now) {
		return Decision{Answers: m.refuseAll("this control plane does not lead any more")}
	}
	d := deciding{Manager: m, now: now, next: m.state, answers: m.ready}
	m.ready = nil
	d.guard()
	for _, member := range m.members {
		d.shard(member)
	}
	d.handoffs()
	d.keepWitnesses()
	d.commands()
	d.watchNodes()
	for _, e := range m.queued {
		d.event(e)
	}
	m.flushing = len(m.queued)
	if d.changed {
		return Decision{State: &d.next, Revision: m.revision, Answers: d.answers}
	}
	for _, a := range d.actions {
		m.running[a] = true
	}
	return Decision{Actions: d.actions, Moves: d.moves, Answers: d.answers}
}

func (d *deciding) set(name string, s Shard) {
	d.touch()
	d.next.Shards[name] = s
}

// touch makes the next state a copy that may be changed.
func (d *deciding) touch() {
	if d.changed {
		return
	}
	d.changed = true
	d.next.Shards, d.next.Frozen, d.next.Events = cloned(d.next.Shards), cloned(d.next.Frozen), slices.Clone(d.next.Events)
	d.next.Rings, d.next.Handoffs, d.next.Nodes = cloned(d.next.Rings), cloned(d.next.Handoffs), cloned(d.next.Nodes)
}

// cloned is a copy to which can be added.
func cloned[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

func (d *deciding) event(e Event) {
	d.touch()
	d.next.Sequence++
	e.ID, e.Region = d.next.Sequence, d.config.Region
	if e.Time.IsZero() {
		e.Time = d.config.Wall(d.now)
	}
	if e.Pool == "" {
		e.Pool = d.next.Shards[e.Shard].Pool
	}
	d.next.Events = append(d.next.Events, e)
	if n := len(d.next.Events); n > maxEvents {
		d.next.Events = slices.Delete(d.next.Events, 0, n-maxEvents)
	}
}

// Note has an event that others have seen written with the next state, if this manager leads.
func (m *Manager) Note(now time.Time, e Event) {
	if !m.Leading(now) {
		return
	}
	if e.Time.IsZero() {
		e.Time = m.config.Wall(now)
	}
	m.queued = append(m.queued, e)
}

// queue keeps an event until the next decision.
func (m *Manager) queue(now time.Time, e Event) {
	e.Time = m.config.Wall(now)
	m.queued = append(m.queued, e)
}

// act asks for an action, unless it is under way or was tried a moment ago.
func (d *deciding) act(a Action) {
	if d.running[a] || d.now.Before(d.retry[a]) {
		return
	}
	d.actions = append(d.actions, a)
}

// shard decides on one shard.
func (d *deciding) shard(member Member) {
	name := member.Shard
	s, known := d.next.Shards[name]
	if d.memory[name] == nil {
		d.memory[name] = &memory{first: d.now}
	}
	switch {
	case len(member.Nodes) == 0:
	case member.Follow:
		d.follow(member, s, known)
	case s.Change != nil:
		d.advance(member, s)
	case !known:
		d.bootstrap(member)
	case d.held[member.Pool]:
	case s.Primary == "":
		d.recover(member, s)
	case d.down(d.now, name, s):
		d.failover(member, s)
	default:
		d.tend(member, s)
	}
}

// bootstrap finds the first primary of a shard that has no state: the node that was it before, as far as nodes tell.
func (d *deciding) bootstrap(member Member) {
	best, highest, all := "", uint64(0), true
	for _, address := range member.Nodes {
		if !d.alive(d.now, address) {
			all = false
			continue
		}
		n := d.nodes[address].Node
		highest = max(highest, n.Epoch)
		if n.Loading {
			all = false
			continue
		}
		if !d.foreign(member, n) && (best == "" || outranks(n, d.nodes[best].Node)) {
			best = address
		}
	}
	if !all && d.now.Sub(d.memory[member.Shard].first) < bootstrapAfter {
		return
	}
	reason := "the shard is new here"
	if best == "" {
		reason = "the shard is new here, and none of its nodes answers"
	}
	d.begin(member, Shard{}, Change{Kind: Bootstrap, Epoch: max(highest+1, d.firstEpoch(member)), To: best, Reason: reason, Begun: d.config.Wall(d.now)})
}

// firstEpoch is the least that a shard may begin with. One that is added may have been here before: lanes and other regions, which know primaries
// and journals by their epochs, must not take the one for the other. IDs grow with every epoch.
func (d *deciding) firstEpoch(member Member) uint64 {
	if h, busy := d.next.Handoffs[member.Pool]; busy && h.Kind == AddShard && h.Shard == member.Shard {
		return h.ID
	}
	return 1
}

// outranks says whether a is rather the primary of a shard without state than b, which comes before it.
func outranks(a, b Node) bool {
	if a.Epoch != b.Epoch {
		return a.Epoch > b.Epoch
	}
	if a.Role != b.Role {
		return a.Role == mesh.Primary
	}
	return a.Offset > b.Offset // one that hides its epoch has had data, an empty one has not
}

// failover begins one, with what is best of what is left.
func (d *deciding) failover(member Member, s Shard) {
	silence := d.silence(d.now, member.Shard, s)
	down, _ := d.count(d.now, member.Shard, s)
	c := Change{Kind: Failover, From: s.Primary, To: d.candidate(d.now, member, s), Begun: d.config.Wall(d.now).Add(-silence)}
	c.Reason = fmt.Sprintf("no good answer for %d ms here, and %d of %d witnesses say the same", silence.Milliseconds(), down, len(s.Witnesses))
	c.Steps = []Step{{"detected", ms(silence)}}
	if c.To == "" {
		// A replica may be slow to answer. Only what is left after that begins empty.
		if silence < 2*d.config.DownAfter {
			return
		}
		c.Fresh, c.To = true, d.spare(d.now, member)
		c.Reason += "; no replica is left"
		if c.To == "" {
			c.Kind = StandIn
		}
	}
	d.begin(member, s, c)
}

// recover gives a shard without primary one that begins empty: what it missed meanwhile would be stale.
func (d *deciding) recover(member Member, s Shard) {
	to := d.spare(d.now, member)
	if to == "" {
		return
	}
	d.begin(member, s, Change{Kind: Recovery, To: to, Fresh: true, Reason: "a node answers again; what it had is old", Begun: d.config.Wall(d.now)})
}

// begin writes a change down. One to the stand-in needs nothing done, so it is in effect with that.
func (d *deciding) begin(member Member, s Shard, c Change) {
	name := member.Shard
	c.Epoch = max(c.Epoch, s.Epoch+1)
	if s.Change != nil {
		c.Epoch = max(c.Epoch, s.Change.Epoch+1)
	}
	if c.Phase == "" {
		c.Phase = Promoting
	}
	if s.Change != nil && s.Change.Phase == Serving {
		d.finish(name, s, *s.Change)
	}
	for _, address := range member.Nodes {
		// The state may be older than what nodes have seen.
		if n := d.nodes[address]; n != nil && d.alive(d.now, address) {
			c.Epoch = max(c.Epoch, n.Epoch+1)
		}
	}
	c.RunID = ""
	if n := d.nodes[c.To]; n != nil {
		c.RunID = n.RunID
	}
	s.Pool, s.Change = member.Pool, &c
	if c.To == "" {
		s.Epoch, s.Primary, s.RunID, s.ReplID = c.Epoch, "", "", ""
		c.Phase = Serving
		d.step(&c, "committed")
	}
	d.set(name, s)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// step notes when a part of a change was done.
func (d *deciding) step(c *Change, name string) {
	c.Steps = append(slices.Clone(c.Steps), Step{name, ms(d.config.Wall(d.now).Sub(c.Begun))})
}

// tend keeps a shard whose primary is well in order.
func (d *deciding) tend(member Member, s Shard) {
	primary := d.nodes[s.Primary]
	if primary == nil || !d.alive(d.now, s.Primary) || !good(s, primary.Node) {
		return
	}
	for _, address := range member.Nodes {
		// The state has been lost and made anew: numbers that were used are not used again, and a node refuses what is older.
		if n := d.nodes[address]; d.alive(d.now, address) && n.Epoch > s.Epoch {
			d.begin(member, s, Change{Kind: Raised, Epoch: n.Epoch + 1, From: s.Primary, To: s.Primary,
				Reason: fmt.Sprintf("%s has seen epoch %d", address, n.Epoch), Begun: d.config.Wall(d.now)})
			return
		}
	}
	if primary.ReplID != s.ReplID {
		s.ReplID = primary.ReplID
		d.set(member.Shard, s)
	}
	if primary.Epoch < s.Epoch {
		d.act(Action{Op: Mirror, Shard: member.Shard, Node: s.Primary, Epoch: s.Epoch})
	}
	for _, address := range member.Nodes {
		if address == s.Primary || !d.alive(d.now, address) {
			continue
		}
		if n := d.nodes[address]; !n.Loading && (n.Role == mesh.Primary || n.Of != s.Primary) {
			n.claims = n.Role == mesh.Primary
			d.act(Action{Op: Demote, Shard: member.Shard, Node: address, Of: s.Primary, Epoch: s.Epoch})
		}
	}
}
