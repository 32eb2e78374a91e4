package shards

import (
	"cmp"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"
)

// upkeepEvery bounds how often the witnesses are looked over: each change of them is a write.
const upkeepEvery = time.Second

// keepWitnesses lets agents witness shards that have too few, and lets go of those who left or have been gone for long. Who is
// only out of reach stays: a control plane that is cut off must not find a majority among the few that it still hears.
func (d *deciding) keepWitnesses() {
	if d.now.Before(d.upkeep) {
		return
	}
	d.upkeep = d.now.Add(upkeepEvery)
	var connected []string
	for _, name := range slices.Sorted(maps.Keys(d.agents)) {
		if d.agents[name].connected {
			connected = append(connected, name)
		}
	}
	for _, member := range d.members {
		s, known := d.next.Shards[member.Shard]
		if !known || member.Follow {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(s.Witnesses), func(name string) bool { return !d.known(name) })
		if len(kept) < maxWitnesses {
			kept = append(kept, choose(member.Shard, connected, kept)...)
			slices.Sort(kept)
		}
		if !slices.Equal(kept, s.Witnesses) {
			s.Witnesses = kept
			d.set(member.Shard, s)
		}
	}
}

// known says whether an agent was there in the last ten minutes. One that this control plane has never met may have been.
func (d *deciding) known(name string) bool {
	a := d.agents[name]
	last := d.since
	if a != nil {
		last = a.at
	}
	return a != nil && a.connected || d.now.Sub(last) < agentLife
}

// choose picks further witnesses of a shard by rendezvous hashing, so that the work is spread and a choice is stable.
func choose(shard string, connected, have []string) []string {
	weight := func(name string) uint64 {
		h := fnv.New64a()
		h.Write([]byte(shard))
		h.Write([]byte{0})
		h.Write([]byte(name))
		return h.Sum64()
	}
	others := slices.DeleteFunc(slices.Clone(connected), func(name string) bool { return slices.Contains(have, name) })
	slices.SortFunc(others, func(a, b string) int { return cmp.Or(cmp.Compare(weight(a), weight(b)), strings.Compare(a, b)) })
	return others[:min(len(others), maxWitnesses-len(have))]
}

// Targets are the primaries that each agent is to witness.
func (m *Manager) Targets() map[string][]Target {
	all := map[string][]Target{}
	for _, member := range m.members {
		s := m.state.Shards[member.Shard]
		if s.Primary == "" {
			continue
		}
		for _, name := range s.Witnesses {
			all[name] = append(all[name], Target{Shard: member.Shard, Epoch: s.Epoch, Address: s.Primary, RunID: s.RunID})
		}
	}
	return all
}

// Counted says how many of a shard's witnesses say that its primary is up, that it is down, or have said nothing of it lately.
func (m *Manager) Counted(now time.Time, shard string) (up, down, silent int) {
	s := m.state.Shards[shard]
	down, up = m.count(now, shard, s)
	return up, down, len(s.Witnesses) - up - down
}
