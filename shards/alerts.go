package shards

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// settled is how long a leader waits before it says what it misses: agents come back one by one.
	settled = 10 * time.Second
	// tellAfter is how long a replica is silent before that is an event.
	tellAfter = time.Second
)

// watchNodes makes events of replicas that go and come back.
func (d *deciding) watchNodes() {
	for _, member := range d.members {
		s := d.next.Shards[member.Shard]
		for _, address := range member.Nodes {
			n := d.nodes[address]
			switch {
			case n == nil || s.Epoch == 0:
			case !n.told && address != s.Primary && d.unheard(d.now, n) >= max(tellAfter, d.config.DownAfter):
				n.told = true
				d.queue(d.now, Event{Kind: NodeLost, Pool: member.Pool, Shard: member.Shard, From: address, Reason: "a replica does not answer"})
			case n.told && d.alive(d.now, address):
				n.told = false
				d.queue(d.now, Event{Kind: NodeReturned, Pool: member.Pool, Shard: member.Shard, To: address, Reason: "it answers again"})
			}
		}
	}
}

// Alerts are what needs a person in the shards' affairs.
func (m *Manager) Alerts(now time.Time) []Alert {
	var all []Alert
	add := func(subject, remedy, format string, args ...any) {
		all = append(all, Alert{Subject: subject, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	for _, pool := range slices.Sorted(maps.Keys(m.state.Frozen)) {
		if f := m.state.Frozen[pool]; !f.Accepted {
			add("pool "+pool, "bring them back, or go on without them: `cachemesh shard accept "+pool+"`",
				"is frozen since %s: %s went at once, and nothing changes until that is accepted", f.Since.Format(time.DateTime), strings.Join(f.Lost, ", "))
		}
	}
	for _, member := range m.members {
		s, known := m.state.Shards[member.Shard]
		if !known || m.memory[member.Shard] == nil {
			continue
		}
		if member.Follow {
			m.disputed(now, member, s, add)
			continue
		}
		if s.Primary == "" && s.Epoch > 0 {
			add(member.Shard, "start one of its nodes; it begins empty", "no node is left: reads miss and writes are dropped")
		} else if m.Leading(now) {
			m.quorum(now, member, s, add)
		}
		for _, address := range member.Nodes {
			if n := m.nodes[address]; n != nil && n.plain {
				add(member.Shard+" "+address, "start it with `replicaof 127.0.0.1 1` and `replica-serve-stale-data no`, as docs/nodes.md says",
					"came up as a primary by itself: after a restart it answers empty before anyone notices")
			}
		}
	}
	return all
}

// quorum tells where this control plane and the witnesses do not agree, and where nobody witnesses.
func (m *Manager) quorum(now time.Time, member Member, s Shard, add func(subject, remedy, format string, args ...any)) {
	down, up := m.count(now, member.Shard, s)
	silent := m.silence(now, member.Shard, s) >= m.config.DownAfter
	trouble := "does not answer"
	if m.alive(now, s.Primary) {
		trouble = "is not what it was (its process has restarted, or somebody made it a replica) for"
		if m.nodes[s.Primary].Loading {
			trouble = "is loading its data and does not answer"
		}
	}
	force := "mend the network between them, or `cachemesh shard switch " + member.Shard + " --force`"
	switch n := len(s.Witnesses); {
	case silent && n == 0:
		add(member.Shard, force, "the primary %s %s this control plane, and no sidecar's agent witnesses that: no automatic failover", s.Primary, trouble)
	case silent && !agreed(down, n):
		add(member.Shard, force, "the primary %s %s this control plane, and %d of %d witnesses say that it is down, %d that it is not: no automatic failover", s.Primary, trouble, down, n, up)
	case !silent && agreed(down, n):
		add(member.Shard, force, "%d of %d witnesses cannot reach the primary %s, this control plane can: no automatic failover", down, n, s.Primary)
	case n == 0 && now.Sub(m.since) > settled:
		add(member.Shard, "connect a sidecar of the region", "no sidecar's agent witnesses its primary: no automatic failover")
	}
}

// disputed tells of nodes, managed by others, of which several say that they are primary.
func (m *Manager) disputed(now time.Time, member Member, s Shard, add func(subject, remedy, format string, args ...any)) {
	var claims []string
	for _, address := range member.Nodes {
		if m.alive(now, address) && m.nodes[address].Role == mesh.Primary {
			claims = append(claims, address)
		}
	}
	switch {
	case len(claims) > 1:
		add(member.Shard, "make the others its replicas", "several nodes say that they are primary: %s; %s stays", strings.Join(claims, ", "), s.Primary)
	case len(claims) == 0 && m.nodes[s.Primary] != nil:
		add(member.Shard, "make one node the primary (REPLICAOF NO ONE), the others its replicas", "no node says that it is primary; %s stays", s.Primary)
	}
}
