package shards

import (
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// verdictLife is how long what an agent said counts. Agents repeat it several times as often.
	verdictLife = time.Second
	// agentLife is how long an agent that is gone counts among those who must agree.
	agentLife = 10 * time.Minute
	// maxWitnesses is how many agents are asked about a primary.
	maxWitnesses = 7
	retryAfter   = 100 * time.Millisecond
)

// wake notices that this control plane stood still: what it has not heard meanwhile is nobody's silence.
func (m *Manager) wake(now time.Time) {
	if now.Sub(m.decided) > m.config.DownAfter/3 {
		m.awake = now
	}
	m.decided = now
}

// unheard is for how long a node has not answered, as far as this control plane was there to hear it.
func (m *Manager) unheard(now time.Time, s *sighting) time.Duration {
	if m.awake.After(s.at) {
		return now.Sub(m.awake)
	}
	return now.Sub(s.at)
}

// alive says whether a node has answered lately. It may be empty, or still loading.
func (m *Manager) alive(now time.Time, address string) bool {
	s := m.nodes[address]
	return s != nil && now.Sub(s.at) < m.config.DownAfter
}

// good says whether a node's last answer is that of the shard's primary as the state has it: the same process, and it says so.
func good(s Shard, n Node) bool {
	return n.Address == s.Primary && n.RunID == s.RunID && n.Role == mesh.Primary && !n.Loading
}

// silence is for how long this control plane has had no good answer of the primary, since it leads and is awake.
func (m *Manager) silence(now time.Time, name string, s Shard) time.Duration {
	k := m.memory[name]
	// An answer counts also if a bad one has followed it since the last decision.
	if n := m.nodes[s.Primary]; n != nil && n.leader == s.RunID && n.led.After(k.good) {
		k.good = n.led
	}
	last := k.first
	for _, t := range []time.Time{k.good, m.since, m.awake} {
		if t.After(last) {
			last = t
		}
	}
	return now.Sub(last)
}

// count says how many of a shard's witnesses have said lately that its primary is down, and how many that it is not.
func (m *Manager) count(now time.Time, name string, s Shard) (down, up int) {
	for _, w := range s.Witnesses {
		v, ok := m.verdicts[name][w]
		switch {
		case !ok || now.Sub(v.at) > verdictLife || v.Epoch != s.Epoch || v.Address != s.Primary:
		case v.Down:
			down++
		default:
			up++
		}
	}
	return down, up
}

// agreed is the quorum: most of those who witness, not only of those who are heard.
func agreed(down, witnesses int) bool { return 2*down > witnesses }

// down is the rule of a failover: this control plane cannot reach the primary, and most of its witnesses say the same.
func (m *Manager) down(now time.Time, name string, s Shard) bool {
	down, _ := m.count(now, name, s)
	return m.silence(now, name, s) >= m.config.DownAfter && agreed(down, len(s.Witnesses))
}

// candidate is the node that is to take over from a shard's primary: the reachable replica of its history with the highest offset, but
// for some.
func (m *Manager) candidate(now time.Time, member Member, s Shard, but ...string) string {
	best, offset := "", int64(-1)
	for _, address := range member.Nodes {
		if address == s.Primary || !m.alive(now, address) || slices.Contains(but, address) {
			continue
		}
		if n := m.nodes[address].Node; inHistory(s, n) && n.Offset > offset {
			best, offset = address, n.Offset
		}
	}
	return best
}

// inHistory says whether a node has the data of the shard's primary, up to its offset.
func inHistory(s Shard, n Node) bool {
	return n.Role == mesh.Replica && !n.Loading && n.ReplID != "" && n.ReplID == s.ReplID
}

// spare is a reachable node, but for some, whose data does not count: it would begin empty. A node that replicates another's is left alone.
func (m *Manager) spare(now time.Time, member Member, but ...string) string {
	for _, address := range member.Nodes {
		if !slices.Contains(but, address) && m.alive(now, address) && !m.nodes[address].Loading && !m.foreign(member, m.nodes[address].Node) {
			return address
		}
	}
	return ""
}

// foreign says whether a node replicates a node that is none of the shard's.
func (m *Manager) foreign(member Member, n Node) bool {
	return n.Role == mesh.Replica && n.Linked && !slices.Contains(member.Nodes, n.Of)
}
