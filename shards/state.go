// Package shards decides who is each shard's primary, and which shards are on each pool's ring: health, quorum, leadership, promotion,
// the guard and the steps of handoffs, as one deterministic state machine (Manager). What it decides is State, which a region's control
// planes share by compare-and-set; what it wants done to Redis nodes are Actions, and Moves of keys, each safe if done twice.
//
// It does no I/O, reads no clock and starts no goroutine: controlplane feeds it and acts, and so does the simulator. It never
// touches a key, and nothing of it is on a request's way.
package shards

import (
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// State is what a region's control planes agree on. It is replaced as a whole, by compare-and-set.
type State struct {
	Shards map[string]Shard  `json:"shards"`           // by name
	Frozen map[string]Freeze `json:"frozen,omitempty"` // by pool: pools that lost too much at once
	// Rings are by pool. One that no handoff has changed has none: its shards are those of the membership.
	Rings    map[string]Ring     `json:"rings,omitempty"`
	Handoffs map[string]Handoff  `json:"handoffs,omitempty"` // by pool: those under way
	Nodes    map[string][]string `json:"nodes,omitempty"`    // by shard: addresses that an operator gave; they count while the membership has none
	// Events are the newest maxEvents, the oldest first. They are written with what they tell of, so that none is lost.
	Events   []Event `json:"events,omitempty"`
	Sequence uint64  `json:"sequence"` // of the last event
}

// Shard is who answers for a shard.
type Shard struct {
	Pool string `json:"pool"`
	// Epoch is the version of Primary. It only grows, and each is given to one primary, or to none.
	Epoch   uint64 `json:"epoch"`
	Primary string `json:"primary,omitempty"` // address; "" while no node can answer: the null stand-in does
	RunID   string `json:"run_id,omitempty"`  // of the primary's process; another has lost its data
	// ReplID names the primary's replication history. A replica without it has other data.
	ReplID    string   `json:"replid,omitempty"`
	Witnesses []string `json:"witnesses,omitempty"` // the agents that are asked about the primary, sorted
	Change    *Change  `json:"change,omitempty"`    // under way
}

// Change is a new epoch on its way. It is written before anything is done.
type Change struct {
	Kind   Kind      `json:"kind"`
	Phase  Phase     `json:"phase"`
	Epoch  uint64    `json:"epoch"`
	From   string    `json:"from,omitempty"`
	To     string    `json:"to,omitempty"`     // "" is the stand-in
	RunID  string    `json:"run_id,omitempty"` // of To's process when it was chosen; another has lost its data
	Fresh  bool      `json:"fresh,omitempty"`  // To's data is not the shard's: it is emptied
	Reason string    `json:"reason"`
	Begun  time.Time `json:"begun"` // steps count from here
	Steps  []Step    `json:"steps,omitempty"`
}

// Kind is what an event, or a change, is.
type Kind string

// The kinds of changes. Each ends in an event of the same kind.
const (
	Bootstrap Kind = "bootstrap"    // the first primary
	Failover  Kind = "failover"     // the primary is down, a replica takes over
	Switch    Kind = "switch"       // planned
	Follow    Kind = "follow"       // others have made another node the primary
	StandIn   Kind = "stand-in"     // no node is left
	Raised    Kind = "epoch-raised" // the primary has seen a higher epoch than the state
	Recovery  Kind = "recovery"     // a node is there again, and begins empty
)

// The kinds of other events.
const (
	SwitchFailed Kind = "switch-failed"
	NodeLost     Kind = "node-lost"
	NodeReturned Kind = "node-returned"
	Demoted      Kind = "demoted"   // a node said that it was primary and is not
	Restarted    Kind = "restarted" // a node, as planned
	Frozen       Kind = "frozen"
	Thawed       Kind = "thawed"
	Accepted     Kind = "accepted"
	Leader       Kind = "leader"
	// A handoff, and what came of it.
	HandoffBegun   Kind = "handoff"
	HandoffStepped Kind = "handoff-step"
	HandoffLate    Kind = "handoff-late" // sidecars were not waited for any longer, or are back
	HandoffDone    Kind = "handoff-done"
	HandoffUndone  Kind = "handoff-undone"
	Gap            Kind = "gap"   // a shard's journal lacks something that another region should know
	Fence          Kind = "fence" // a region has removed all that a gap, or an operator, was about
)

// Kinds are all of them.
var Kinds = []Kind{Bootstrap, Failover, Switch, Follow, StandIn, Raised, Recovery,
	SwitchFailed, NodeLost, NodeReturned, Demoted, Restarted, Frozen, Thawed, Accepted, Leader, HandoffBegun, HandoffStepped, HandoffLate,
	HandoffDone, HandoffUndone, Gap, Fence}

// Ring is how a pool's keys are spread.
type Ring struct {
	Generation uint64    `json:"generation"`
	Shards     []Place   `json:"shards"`          // in the ring's order
	Login      uint64    `json:"login,omitempty"` // version of the Redis user that lanes log in as
	Since      time.Time `json:"since,omitzero"`
	// Late are agents of which it is not known that they follow it. What they leave where keys were before is removed once they do.
	Late []string `json:"late,omitempty"`
}

// Place is a shard's on a ring.
type Place struct {
	Shard  string `json:"shard"`
	Weight uint32 `json:"weight"`
}

// Handoff is a pool's way from one ring to the next. It is written before anything is done, and each step before it begins.
type Handoff struct {
	ID     uint64           `json:"id"`
	Kind   Reshape          `json:"kind"`
	Shard  string           `json:"shard"` // that is added, removed or weighed
	From   Ring             `json:"from"`
	To     Ring             `json:"to"`
	Limits Limits           `json:"limits,omitzero"`
	Step   mesh.HandoffStep `json:"step"`
	Begun  time.Time        `json:"begun"`            // steps count from here
	Steps  []Step           `json:"steps,omitempty"`  // that have ended
	Agents []string         `json:"agents,omitempty"` // that are to acknowledge steps, sorted
	Late   []string         `json:"late,omitempty"`   // those of them that were not waited for any longer, sorted
	Undo   string           `json:"undo,omitempty"`   // why it is given up
}

// Limits bound what copying takes from those that are served meanwhile. What is 0 has a default.
type Limits struct {
	KeysPerSecond  int     `json:"keys_per_second,omitempty"`
	BytesPerSecond int     `json:"bytes_per_second,omitempty"`
	DonorCPU       float64 `json:"donor_cpu,omitempty"` // of one core, for all that a donor does
}

// Reshape is a way to change a ring.
type Reshape string

// The ways to change a ring.
const (
	AddShard    Reshape = "add"
	RemoveShard Reshape = "remove"
	WeighShard  Reshape = "weigh"
)

// Phase is how far a change is.
type Phase string

// The phases of a change, in order. Holding is that of a switch only.
const (
	Holding   Phase = "holding"   // sidecars hold the shard's new requests, what is under way ends
	Promoting Phase = "promoting" // To becomes primary
	Serving   Phase = "serving"   // Epoch and Primary are the new ones, sidecars are being told
)

// Step is a part of a change.
type Step struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"` // since Change.Begun
}

// Freeze stops all changes of a pool that lost more than the guard allows at once.
type Freeze struct {
	Since    time.Time `json:"since"`
	Lost     []string  `json:"lost"`               // addresses
	Accepted bool      `json:"accepted,omitempty"` // by an operator: changes go on without Lost
}

// Event tells what happened to a shard, a pool or the region.
type Event struct {
	ID     uint64    `json:"id"` // grows by one
	Time   time.Time `json:"time"`
	Region string    `json:"region"`
	Pool   string    `json:"pool,omitempty"`
	Shard  string    `json:"shard,omitempty"`
	Kind   Kind      `json:"kind"`
	Epoch  uint64    `json:"epoch,omitempty"`
	From   string    `json:"from,omitempty"` // address
	To     string    `json:"to,omitempty"`   // address
	Reason string    `json:"reason"`
	Steps  []Step    `json:"steps,omitempty"`
}
