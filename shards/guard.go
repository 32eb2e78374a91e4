package shards

import (
	"fmt"
	"slices"
	"time"
)

const (
	// atOnce is how close losses are to each other to count together.
	atOnce = 30 * time.Second
	// fewest is what a pool may lose at once whatever its size: a shard of two nodes.
	fewest = 2
)

// guard freezes pools that lost too much at once, and thaws those that have all of it back.
func (d *deciding) guard() {
	pools := map[string][]string{}
	var order []string
	for _, member := range d.members {
		if member.Follow {
			continue
		}
		if pools[member.Pool] == nil {
			order = append(order, member.Pool)
		}
		pools[member.Pool] = append(pools[member.Pool], member.Nodes...)
	}
	for _, pool := range order {
		f, frozen := d.next.Frozen[pool]
		if frozen && !slices.ContainsFunc(f.Lost, func(address string) bool { return slices.Contains(pools[pool], address) && !d.alive(d.now, address) }) {
			d.touch()
			delete(d.next.Frozen, pool)
			d.event(Event{Kind: Thawed, Pool: pool, Reason: "all nodes that were lost answer again, or are no longer registered"})
			continue
		}
		if frozen && !f.Accepted {
			continue
		}
		lost := d.lost(pools[pool], f.Lost, d.config.DownAfter)
		if d.tooMany(len(lost), len(pools[pool])) {
			d.touch()
			d.next.Frozen[pool] = Freeze{Since: d.config.Wall(d.now), Lost: append(slices.Clone(f.Lost), lost...)}
			d.event(Event{Kind: Frozen, Pool: pool, Reason: fmt.Sprintf("%d of %d nodes went at once: %v", len(lost), len(pools[pool]), lost)})
		}
	}
}

func (m *Manager) tooMany(lost, nodes int) bool {
	return lost > fewest && float64(lost) > m.config.MaxLoss*float64(nodes)
}

// lost are the nodes, but for those accepted, that answered a moment ago and have been silent since for so long.
func (d *deciding) lost(nodes, accepted []string, silent time.Duration) []string {
	return slices.DeleteFunc(slices.Clone(nodes), func(address string) bool {
		s := d.nodes[address]
		return s == nil || slices.Contains(accepted, address) || d.unheard(d.now, s) < silent || d.now.Sub(s.at) > atOnce
	})
}

// frozen says whether nothing may be begun in a pool: it is frozen, or so many nodes are late with an answer that it may be in
// a moment.
func (d *deciding) frozen(pool string) bool {
	f, ok := d.next.Frozen[pool]
	if ok && !f.Accepted {
		return true
	}
	var nodes []string
	for _, member := range d.members {
		if member.Pool == pool {
			nodes = append(nodes, member.Nodes...)
		}
	}
	return d.tooMany(len(d.lost(nodes, f.Lost, d.config.DownAfter*2/3)), len(nodes))
}
