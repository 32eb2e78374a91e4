package mesh

import "slices"

// Handoff takes a pool from one ring to the next, with the data of the keys that change their shard.
type Handoff struct {
	ID         uint64      `json:"id"` // of no other handoff of the region
	Generation uint64      `json:"generation"`
	Step       HandoffStep `json:"step"`
	From       []Shard     `json:"from"` // the ring before
	To         []Shard     `json:"to"`   // the ring of Generation. Both have their nodes, as far as there is a primary
}

// HasHandoffs says whether any pool is in a handoff, or was.
func (t Topology) HasHandoffs() bool {
	return slices.ContainsFunc(t.Pools, func(p Pool) bool { return p.Generation > 0 || p.Handoff != nil })
}

// Members are the shards of the pool's ring, and those that a handoff adds or removes: their nodes are part of the pool.
func (p Pool) Members() []Shard {
	all := slices.Clone(p.Shards)
	if p.Handoff == nil {
		return all
	}
	for _, s := range slices.Concat(p.Handoff.From, p.Handoff.To) {
		if !slices.ContainsFunc(all, func(o Shard) bool { return o.Name == s.Name }) {
			all = append(all, s)
		}
	}
	return all
}

// HandoffStep is how far a handoff is.
type HandoffStep string

// The steps of a handoff, in order; Undoing takes the place of those that are left when it is given up before Flipping.
const (
	// Copying: what changes at the donors is watched, and the moving keys are copied to the recipients, again and again.
	Copying HandoffStep = "copying"
	// Preparing: agents coexist. Whoever writes a moving key on the donors unlinks it at the recipients, and the other way round, before
	// it replies. They do so in all steps that follow, but not in Undoing.
	Preparing HandoffStep = "preparing"
	// Fencing: lanes log in as the user of another Pool.Login. When all do, or are late, the user before goes: who is late gets errors.
	Fencing HandoffStep = "fencing"
	// Flipping: Pool.Shards is To, and sidecars are being told.
	Flipping HandoffStep = "flipping"
	// Purging: sidecars go to the recipients, and the donors' copies are removed.
	Purging HandoffStep = "purging"
	// Undoing: agents coexist no more, and what the recipients got is removed.
	Undoing HandoffStep = "undoing"
)

// HandoffSteps are all of them.
var HandoffSteps = []HandoffStep{Copying, Preparing, Fencing, Flipping, Purging, Undoing}

// Coexists says whether agents are to keep both owners of a moving key alike.
func (h *Handoff) Coexists() bool {
	return h != nil && slices.Contains([]HandoffStep{Preparing, Fencing, Flipping, Purging}, h.Step)
}

// Adds says whether a shard is to come to the ring, and no sidecar goes by that ring yet.
func (h *Handoff) Adds(shard string) bool {
	is := func(s Shard) bool { return s.Name == shard }
	return h != nil && slices.Contains([]HandoffStep{Copying, Preparing, Fencing}, h.Step) && !slices.ContainsFunc(h.From, is) && slices.ContainsFunc(h.To, is)
}
