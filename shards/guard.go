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

// pool is a pool's nodes, without those that others manage.
type pool struct {
	name  string
	nodes []string
}

// poolsOf are the pools of which something is managed.
func poolsOf(members []Member) []pool {
	var all []pool
	for _, member := range members {
		if member.Follow {
			continue
		}
		i := slices.IndexFunc(all, func(p pool) bool { return p.name == member.Pool })
		if i < 0 {
			i, all = len(all), append(all, pool{name: member.Pool})
		}
		all[i].nodes = append(all[i].nodes, member.Nodes...)
	}
	return all
}

// guard freezes pools that lost too much at once, and thaws those that have all of it back.
func (d *deciding) guard() {
	d.held = map[string]bool{}
	for _, p := range d.pools {
		d.freeze(p)
		d.held[p.name] = d.frozen(p)
	}
}

func (d *deciding) freeze(p pool) {
	f, frozen := d.next.Frozen[p.name]
	switch {
	case frozen && !slices.ContainsFunc(f.Lost, func(address string) bool { return slices.Contains(p.nodes, address) && !d.alive(d.now, address) }):
		d.touch()
		delete(d.next.Frozen, p.name)
		d.event(Event{Kind: Thawed, Pool: p.name, Reason: "all nodes that were lost answer again, or are no longer registered"})
		return
	case frozen && !f.Accepted:
		return
	}
	lost := d.lost(p.nodes, f.Lost, d.config.DownAfter)
	if d.tooMany(len(lost), len(p.nodes)) {
		d.touch()
		d.next.Frozen[p.name] = Freeze{Since: d.config.Wall(d.now), Lost: append(slices.Clone(f.Lost), lost...)}
		d.event(Event{Kind: Frozen, Pool: p.name, Reason: fmt.Sprintf("%d of %d nodes went at once: %v", len(lost), len(p.nodes), lost)})
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
func (d *deciding) frozen(p pool) bool {
	f, ok := d.next.Frozen[p.name]
	return ok && !f.Accepted || d.tooMany(len(d.lost(p.nodes, f.Lost, d.config.DownAfter*2/3)), len(p.nodes))
}
