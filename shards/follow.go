package shards

import (
	"slices"

	"github.com/cachemesh/cachemesh/mesh"
)

// follow takes for the primary of a shard the node that others have made it.
func (d *deciding) follow(member Member, s Shard, known bool) {
	if s.Change != nil {
		d.advance(member, s)
		return
	}
	claims, asked := d.claims(member)
	current := d.nodes[s.Primary]
	switch {
	case !known && !asked && d.now.Sub(d.memory[member.Shard].first) < 2*d.config.DownAfter:
	case !known && len(claims) == 0:
		d.take(member, s, member.Nodes[0], "no node says that it is primary, it is the first")
	case !known:
		d.take(member, s, d.newest(claims), "it says that it is primary")
	case len(claims) == 0:
	default:
		to := d.newest(claims)
		if slices.Contains(claims, member.First) && d.nodes[member.First].Epoch == d.nodes[to].Epoch {
			to = member.First
		}
		claiming := current != nil && d.alive(d.now, s.Primary) && current.Role == mesh.Primary
		gone := !d.alive(d.now, s.Primary) && d.now.Sub(d.memory[member.Shard].first) >= d.config.DownAfter
		switch {
		case to == s.Primary:
		case claiming && (d.nodes[to].Epoch > current.Epoch || to == member.First), !claiming && !gone && current != nil && current.Role == mesh.Replica, gone && len(claims) == 1:
			d.take(member, s, to, "it says that it is primary")
			return
		}
		if current != nil && claiming && (current.RunID != s.RunID || current.ReplID != s.ReplID) {
			s.RunID, s.ReplID = current.RunID, current.ReplID
			d.set(member.Shard, s)
		}
	}
}

// claims are the nodes that say that they are primary now; asked says whether all have answered.
func (d *deciding) claims(member Member) (claims []string, asked bool) {
	asked = true
	for _, address := range member.Nodes {
		if !d.alive(d.now, address) {
			asked = false
		} else if d.nodes[address].Role == mesh.Primary {
			claims = append(claims, address)
		}
	}
	return claims, asked
}

// newest is the claim with the highest epoch, the first of them.
func (m *Manager) newest(claims []string) string {
	best := claims[0]
	for _, address := range claims[1:] {
		if m.nodes[address].Epoch > m.nodes[best].Epoch {
			best = address
		}
	}
	return best
}

// take makes a node the primary that others have made so already.
func (d *deciding) take(member Member, s Shard, to, reason string) {
	c := Change{Kind: Follow, Phase: Serving, Epoch: max(s.Epoch+1, d.firstEpoch(member)), From: s.Primary, To: to, Reason: reason, Begun: d.config.Wall(d.now)}
	s.Pool, s.Epoch, s.Primary, s.RunID, s.ReplID, s.Change = member.Pool, c.Epoch, to, "", "", &c
	if n := d.nodes[to]; n != nil {
		s.RunID, s.ReplID = n.RunID, n.ReplID
	}
	d.step(&c, "committed")
	d.set(member.Shard, s)
}
