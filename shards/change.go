package shards

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// advance brings a change one step further. Another leader may have begun it.
func (d *deciding) advance(member Member, s Shard) {
	c := *s.Change
	k := d.memory[member.Shard]
	switch c.Phase {
	case Holding:
		d.hand(member, s, c)
	case Promoting:
		d.promote(member, s, c)
	case Serving:
		if s.Primary != "" && d.silence(d.now, member.Shard, s) >= d.config.DownAfter || d.served(member.Shard, s) || d.now.Sub(k.begun) >= servingFor {
			if d.served(member.Shard, s) {
				d.step(&c, "acknowledged")
			}
			d.finish(member.Shard, s, c)
		}
	}
}

// promoted says whether a change's node is what the change wants, by its own word since the change began.
func (d *deciding) promoted(member Member, c Change) bool {
	n := d.nodes[c.To]
	return n != nil && n.at.After(d.memory[member.Shard].begun) && n.Role == mesh.Primary && n.Epoch == c.Epoch && !d.replaced(c)
}

// mustClear says whether a change's node may have keys that were removed at the primary that is lost, because another shard has them by now
// too: the pool has flipped and not yet purged.
func (d *deciding) mustClear(member Member, c Change) bool {
	h, busy := d.next.Handoffs[member.Pool]
	return busy && (h.Step == mesh.Flipping || h.Step == mesh.Purging) && c.Kind == Failover && !c.Fresh && d.memory[member.Shard].cleared != c.To
}

// replaced says whether the change's node has another process than the one that was chosen.
func (d *deciding) replaced(c Change) bool {
	return c.RunID != "" && d.alive(d.now, c.To) && d.nodes[c.To].RunID != c.RunID
}

// promote makes the change's node a primary, or gives up on it.
func (d *deciding) promote(member Member, s Shard, c Change) {
	promoted := d.promoted(member, c)
	if promoted && !d.mustClear(member, c) {
		d.commit(member.Shard, s, c)
		return
	}
	k := d.memory[member.Shard]
	since := d.now.Sub(k.begun)
	switch {
	case d.replaced(c):
		d.again(member, s, c, "has restarted")
	case !promoted && d.seen(member, c) > 0:
		c.Epoch = d.seen(member, c) + 1
		s.Change = &c
		d.set(member.Shard, s)
	case d.alive(d.now, c.To) && k.refusals >= maxRefusals && d.other(member, s, c):
		k.refused[c.To] = d.now
		d.again(member, s, c, "is not made primary: "+k.tried.Error())
	case d.alive(d.now, c.To) && promoted:
		d.act(Action{Op: Clear, Shard: member.Shard, Node: c.To, Epoch: c.Epoch})
	case d.alive(d.now, c.To):
		d.act(Action{Op: Promote, Shard: member.Shard, Node: c.To, Epoch: c.Epoch, Fresh: c.Fresh, RunID: c.RunID})
	case since >= d.config.DownAfter:
		d.again(member, s, c, "is gone")
	}
}

// seen is the highest epoch, not below a change's, that the change's node knows from elsewhere or that another primary has: the state is older
// than that. 0 is none.
func (d *deciding) seen(member Member, c Change) (epoch uint64) {
	for _, address := range member.Nodes {
		n := d.nodes[address]
		switch {
		case n == nil || n.Epoch < c.Epoch:
		case address == c.To && (n.Epoch > c.Epoch || n.Role == mesh.Replica), address != c.To && n.Role == mesh.Primary && d.alive(d.now, address):
			epoch = max(epoch, n.Epoch)
		}
	}
	return epoch
}

const (
	// maxRefusals is after how many failed attempts in a row another node is tried, if there is one that is as good.
	maxRefusals = 3
	// refusedFor is how long that one is left alone then.
	refusedFor = 10 * time.Second
)

// other says whether there is another node for a change: one with the data, or, for a change that begins empty, any.
func (d *deciding) other(member Member, s Shard, c Change) bool {
	but := append(d.unfit(member.Shard), c.To)
	if c.Fresh {
		return d.spare(d.now, member, but...) != ""
	}
	return c.Kind != Raised && d.candidate(d.now, member, s, but...) != ""
}

// unfit are the nodes that lately could not be made primary in a shard's change.
func (d *deciding) unfit(name string) (all []string) {
	for address, at := range d.memory[name].refused {
		if d.now.Sub(at) < refusedFor {
			all = append(all, address)
		}
	}
	return all
}

// again begins a change anew, since its node is not what it was.
func (d *deciding) again(member Member, s Shard, c Change, why string) {
	k, unfit, gone := d.memory[member.Shard], d.unfit(member.Shard), c.To
	k.refusals = 0
	if c.Kind == Raised {
		// It is the primary still. What becomes of it is for the rule of a failover to say.
		s.Epoch = c.Epoch
		c.Reason += fmt.Sprintf("; %s %s", gone, why)
		d.finish(member.Shard, s, c)
		return
	}
	c.Phase, c.Epoch = "", 0
	if why = fmt.Sprintf("; %s %s", gone, why); !strings.Contains(c.Reason, why) {
		c.Reason += why
	}
	if d.well(s) {
		// It is back, and nobody has taken its place.
		c.Kind, c.To, c.Fresh = Raised, s.Primary, false
		c.Reason += fmt.Sprintf("; %s answers again", s.Primary)
		d.begin(member, s, c)
		return
	}
	c.Fresh = c.Kind == Recovery || s.Primary == "" && c.Kind != Bootstrap
	c.To = ""
	if !c.Fresh {
		c.To = cmp.Or(d.candidate(d.now, member, s, unfit...), d.candidate(d.now, member, s))
	}
	if c.To == "" {
		c.To = cmp.Or(d.spare(d.now, member, unfit...), d.spare(d.now, member))
		c.Fresh = c.Kind != Bootstrap
	}
	if c.To == "" {
		if c.Kind != Bootstrap {
			c.Kind = StandIn
		}
	}
	d.begin(member, s, c)
}

// hand moves a shard to another node without losing a request: sidecars hold what is new, the old primary ends what it has.
//
// Whoever began that may be gone, and an action that failed may have been done. Then the old primary is not paused any more: if it goes
// on, so does the shard with it, since it may have acknowledged more than the other node has.
func (d *deciding) hand(member Member, s Shard, c Change) {
	k := d.memory[member.Shard]
	a := Action{Op: Handover, Shard: member.Shard, Node: c.To, From: c.From, Epoch: c.Epoch, RunID: c.RunID}
	held := d.acknowledged(member.Shard, mesh.Hold.Path(member.Shard))
	promoted, waited := d.promoted(member, c), d.now.Sub(k.begun)
	late := waited >= holdFor+2*d.config.DownAfter
	over := k.handed || d.alive(d.now, c.From) && !d.well(s) || d.down(d.now, member.Shard, s)
	switch {
	case promoted && over:
		d.commit(member.Shard, s, c)
	case d.running[a]:
	case !promoted && d.handedOver(c):
		// Its epoch was read before it had this one, or somebody has removed it.
		d.act(Action{Op: Promote, Shard: member.Shard, Node: c.To, Epoch: c.Epoch, RunID: c.RunID})
	case !promoted && d.replaced(c):
		d.abandon(member.Shard, s, c, c.To+" has restarted")
	case !promoted && d.alive(d.now, c.From) && d.nodes[c.From].RunID != s.RunID:
		d.abandon(member.Shard, s, c, c.From+" has restarted")
	case !promoted && !late && k.tried == nil:
		if !held {
			k.held = time.Time{}
		} else if k.held.IsZero() {
			k.held = d.now
		}
		if held && d.now.Sub(k.held) >= workersFor || waited >= holdFor {
			d.act(a)
		}
	case !promoted && d.alone(k) && errors.Is(k.tried, ErrUndone):
		d.abandon(member.Shard, s, c, k.tried.Error()) // at once: requests are held
	case !d.asked(k):
	case promoted && d.well(s):
		d.abandon(member.Shard, s, c, c.From+" goes on, since the control plane that began this did not end it")
	case promoted: // and nobody but this control plane misses the old primary
	case errors.Is(k.tried, ErrEpoch):
		d.abandon(member.Shard, s, c, "a node has seen a newer epoch")
	case k.tried != nil:
		d.abandon(member.Shard, s, c, k.tried.Error())
	default:
		d.abandon(member.Shard, s, c, "it took too long")
	}
}

// handedOver says whether both nodes of a switch are what it wants them to be.
func (d *deciding) handedOver(c Change) bool {
	if !d.alive(d.now, c.From) || !d.alive(d.now, c.To) || d.replaced(c) {
		return false
	}
	from, to := d.nodes[c.From], d.nodes[c.To]
	return from.Role == mesh.Replica && from.Of == c.To && to.Role == mesh.Primary && to.Epoch < c.Epoch
}

// asked says whether each node that is alive has answered a question that was put after the last action of a change.
func (d *deciding) asked(k *memory) bool {
	last := k.begun
	for _, t := range []time.Time{k.ended, d.since} {
		if t.After(last) {
			last = t
		}
	}
	return d.now.Sub(last) >= 2*d.config.DownAfter
}

// alone says whether nobody but this control plane can have acted on a change: it has led since before that began.
func (d *deciding) alone(k *memory) bool { return !d.since.After(k.begun) }

// abandon ends a switch without effect: the old primary goes on, once its pause has ended. Its epoch is a new one, since the other node
// may have been given the switch's.
func (d *deciding) abandon(name string, s Shard, c Change, reason string) {
	s.Change, s.Epoch = nil, c.Epoch+1
	d.set(name, s)
	d.event(Event{Kind: SwitchFailed, Shard: name, Pool: s.Pool, Epoch: s.Epoch, From: c.From, To: c.To, Reason: reason, Steps: c.Steps})
}

// commit makes a change take effect: from then on its node answers.
func (d *deciding) commit(name string, s Shard, c Change) {
	n := d.nodes[c.To]
	d.step(&c, "promoted")
	c.Phase = Serving
	s.Epoch, s.Primary, s.RunID, s.ReplID, s.Change = c.Epoch, c.To, n.RunID, n.ReplID, &c
	d.set(name, s)
}

// finish ends a change with its event.
func (d *deciding) finish(name string, s Shard, c Change) {
	s.Change = nil
	d.set(name, s)
	d.event(Event{Kind: c.Kind, Shard: name, Pool: s.Pool, Epoch: c.Epoch, From: c.From, To: c.To, Reason: c.Reason, Steps: c.Steps})
}

// served says whether all connected sidecars have acknowledged who answers now.
func (d *deciding) served(name string, s Shard) bool {
	if s.Primary == "" {
		return d.acknowledged(name, mesh.Null.Path(name))
	}
	return d.acknowledged(name, s.Primary)
}

func (d *deciding) acknowledged(name, address string) bool {
	for agent, a := range d.agents {
		if a.connected && d.acked[name][agent] != address {
			return false
		}
	}
	return true
}
