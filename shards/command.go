package shards

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// question is a command that has no answer yet.
type question struct {
	id      uint64
	command Command
	since   time.Time // it was first looked at
	begun   bool
	epoch   uint64 // of the change that it has led to
	after   uint64 // its event is a later one
}

// commands begins what operators have asked for, and answers what has come to an end.
func (d *deciding) commands() {
	waiting := d.waiting
	d.waiting = nil
	for _, q := range waiting {
		if !d.consider(&q) {
			d.waiting = append(d.waiting, q)
		}
	}
}

func (d *deciding) refuse(q *question, format string, args ...any) bool {
	d.answers = append(d.answers, Answer{ID: q.id, Err: fmt.Errorf(format, args...)})
	return true
}

// consider says whether a question has its answer. An event answers it once it is in the store.
func (d *deciding) consider(q *question) bool {
	for _, e := range d.state.Events {
		if !q.begun || e.ID <= q.after || !q.command.about(e) {
			continue
		}
		switch {
		case q.command.Kind == HandoffBegun, q.command.Kind == HandoffUndone:
			d.answers = append(d.answers, Answer{ID: q.id, Event: e})
			return true
		case e.Kind == SwitchFailed && q.epoch != 0:
			return d.refuse(q, "%s is as it was: %s", e.Shard, e.Reason)
		case q.epoch != 0 && e.Epoch >= q.epoch, q.command.Kind == Accepted && e.Kind == Accepted && e.Pool == q.command.Pool:
			d.answers = append(d.answers, Answer{ID: q.id, Event: e})
			return true
		}
	}
	if q.since.IsZero() {
		q.since = d.now
	}
	s := d.next.Shards[q.command.Shard]
	if q.epoch != 0 && (s.Change != nil && s.Change.Epoch >= q.epoch || s.Epoch >= q.epoch) {
		return false // under way
	}
	q.begun, q.epoch, q.after = true, 0, d.state.Sequence
	switch q.command.Kind {
	case Accepted:
		return d.accept(q)
	case Restarted:
		return d.restart(q)
	case HandoffBegun:
		return d.reshape(q)
	case HandoffUndone:
		return d.undo(q)
	default:
		return d.change(q)
	}
}

func (d *deciding) accept(q *question) bool {
	f, ok := d.next.Frozen[q.command.Pool]
	if !ok || f.Accepted {
		return d.refuse(q, "pool %q is not frozen: there is nothing to accept", q.command.Pool)
	}
	d.touch()
	f.Accepted = true
	d.next.Frozen[q.command.Pool] = f
	d.event(Event{Kind: Accepted, Pool: q.command.Pool, Reason: "an operator accepts the loss of " + strings.Join(f.Lost, ", ")})
	return false
}

// member is the shard of a command, or why it cannot be carried out.
func (d *deciding) member(c Command) (Member, Shard, error) {
	i := slices.IndexFunc(d.members, func(m Member) bool { return m.Shard == c.Shard })
	if i < 0 {
		return Member{}, Shard{}, fmt.Errorf("there is no shard %q", c.Shard)
	}
	member, s := d.members[i], d.next.Shards[c.Shard]
	switch {
	case member.Follow:
		return member, s, fmt.Errorf("the nodes of pool %q are managed by others (failover: follow): ask them", member.Pool)
	case c.Node != "" && !slices.Contains(member.Nodes, c.Node):
		return member, s, fmt.Errorf("%s is no node of shard %q: it has %s", c.Node, c.Shard, strings.Join(member.Nodes, ", "))
	case s.Change != nil && s.Change.Phase != Serving:
		return member, s, fmt.Errorf("shard %q is in a %s already: wait for its end", c.Shard, s.Change.Kind)
	case s.Epoch == 0:
		return member, s, fmt.Errorf("shard %q has no primary yet", c.Shard)
	}
	return member, s, nil
}

// change begins a switch, or with force a failover that asks no witness.
func (d *deciding) change(q *question) bool {
	c := q.command
	member, s, err := d.member(c)
	if err != nil {
		return d.refuse(q, "%w", err)
	}
	if f := d.next.Frozen[member.Pool]; !f.Since.IsZero() && !f.Accepted {
		return d.refuse(q, "pool %q is frozen, since it lost much at once: `cachemesh shard accept %s` first", member.Pool, member.Pool)
	}
	to := c.Node
	if to == "" {
		to = d.candidate(d.now, member, s)
	}
	next := Change{Kind: Switch, Phase: Holding, From: s.Primary, To: to, Reason: "asked for by an operator", Begun: d.config.Wall(d.now)}
	if c.Force {
		next.Kind, next.Phase, next.Reason = Failover, Promoting, "forced by an operator"
	}
	if err := d.obstacle(c, s, to); err != nil {
		if !c.Force && to != s.Primary && len(member.Nodes) > 1 && d.now.Sub(q.since) < readyWithin {
			return false
		}
		return d.refuse(q, "%w", err)
	}
	d.begin(member, s, next)
	q.epoch = d.next.Shards[c.Shard].Change.Epoch
	return false
}

// obstacle is why a shard cannot go to a node now.
func (d *deciding) obstacle(c Command, s Shard, to string) error {
	switch {
	case to == "":
		return fmt.Errorf("no other node of shard %q can be reached and has its data: start a replica, and wait until it is in sync", c.Shard)
	case to == s.Primary:
		return fmt.Errorf("%s is the primary of shard %q already", to, c.Shard)
	case !d.alive(d.now, to):
		return fmt.Errorf("%s does not answer: start it, or choose another node", to)
	case !inHistory(s, d.nodes[to].Node):
		return fmt.Errorf("%s does not have the data of shard %q: wait until it is in sync, or choose another node", to, c.Shard)
	case c.Force:
	case !d.well(s):
		return fmt.Errorf("the primary %s does not answer well: --force promotes %s without it, and loses what it has not passed on", s.Primary, to)
	case !d.nodes[to].Linked || d.nodes[to].Of != s.Primary:
		return fmt.Errorf("%s is not in sync with the primary %s: wait until it is, or add --force", to, s.Primary)
	case !d.keepsUp(to, s.Primary):
		return fmt.Errorf("%s does not keep up with the primary %s, %d bytes are missing: ask again when less is written, or add --force", to, s.Primary,
			d.nodes[s.Primary].Offset-d.nodes[to].Offset)
	}
	return nil
}

const (
	// readyWithin bounds how long a switch waits, before it holds anything, for nodes that answer and a replica that keeps up.
	readyWithin = 4 * time.Second
	// silentAfterCopy is for how long a primary may send a replica nothing that has all of its data: until it hears of that, which
	// Redis repeats each second.
	silentAfterCopy = 1200 * time.Millisecond
)

// keepsUp says whether a replica gets what its primary is written: it has what that had one answer before.
func (d *deciding) keepsUp(replica, primary string) bool {
	r := d.nodes[replica]
	return d.now.Sub(r.joined) >= silentAfterCopy && r.Offset >= d.nodes[primary].before
}

// well says whether a shard's primary answers as it should.
func (d *deciding) well(s Shard) bool {
	n := d.nodes[s.Primary]
	return n != nil && d.alive(d.now, s.Primary) && good(s, n.Node)
}

// restart ends a replica's process.
func (d *deciding) restart(q *question) bool {
	_, s, err := d.member(q.command)
	a := Action{Op: Restart, Shard: q.command.Shard, Node: q.command.Node, Epoch: s.Epoch}
	switch {
	case err != nil:
		return d.refuse(q, "%w", err)
	case d.running[a]:
		return false
	case a.Node == "":
		return d.refuse(q, "name the node of shard %q to restart", a.Shard)
	case a.Node == s.Primary:
		return d.refuse(q, "%s is the primary of shard %q: `cachemesh shard switch %s` first", a.Node, a.Shard, a.Shard)
	case !d.well(s):
		return d.refuse(q, "the primary %s of shard %q does not answer well: nothing is restarted beside it", s.Primary, a.Shard)
	case !d.alive(d.now, a.Node) || d.nodes[a.Node].Role != mesh.Replica:
		return d.refuse(q, "%s does not answer as a replica", a.Node)
	}
	d.restarts[a] = q.id
	d.act(a)
	return false
}

// answerRestart answers the question that led to a restart.
func (m *Manager) answerRestart(a Action, err error) {
	id, ok := m.restarts[a]
	if !ok || a.Op != Restart {
		return
	}
	delete(m.restarts, a)
	m.waiting = slices.DeleteFunc(m.waiting, func(q question) bool { return q.id == id })
	m.ready = append(m.ready, Answer{ID: id, Err: err, Event: Event{Kind: Restarted, Region: m.config.Region, Shard: a.Shard, To: a.Node}})
}

// refuseAll answers all that waits.
func (m *Manager) refuseAll(reason string) []Answer {
	all := m.ready
	m.ready = nil
	for _, q := range m.waiting {
		all = append(all, Answer{ID: q.id, Err: errors.New(reason)})
	}
	m.waiting = nil
	return all
}
