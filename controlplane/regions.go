package controlplane

import "time"

// RegionsStatus is what a region's control plane knows of how other regions learn of its writes: the answer of GET /v1/regions, and of
// POST /v1/regions/pause and /v1/regions/resume, whose body is a PauseRequest.
type RegionsStatus struct {
	Region string       `json:"region"`
	Links  []LinkStatus `json:"links"` // one for each other region and pool with coherent routes
}

// PauseRequest names the region to which nothing is to be sent, or to which sending goes on.
type PauseRequest struct {
	Region string `json:"region"`
}

// LinkState says how what a region's journals say gets to another region.
type LinkState string

const (
	LinkUp     LinkState = "up"
	LinkDown   LinkState = "down" // some journal of the pool is not read, or what it says does not arrive
	LinkPaused LinkState = "paused"
)

// LinkStatus is one pool's journals of From, as far as To has them. Its numbers are those of its journals: the largest lag, and sums.
type LinkStatus struct {
	From     string          `json:"from"`
	To       string          `json:"to"`
	Pool     string          `json:"pool"`
	State    LinkState       `json:"state"`
	Since    time.Time       `json:"since,omitzero"` // of State
	LagMS    *float64        `json:"lag_ms"`         // null while no journal says
	Backlog  uint64          `json:"backlog"`
	Gaps     uint64          `json:"gaps"`
	Fences   int             `json:"fences"`
	Problem  string          `json:"problem,omitempty"`
	Journals []JournalStatus `json:"journals"`
}

// JournalStatus is a shard's journal, as far as another region has it.
type JournalStatus struct {
	Shard   string            `json:"shard"`
	Epoch   uint64            `json:"epoch"`
	Agent   string            `json:"agent"`  // that reads it for the other region; "" is nobody
	Cursor  string            `json:"cursor"` // "EPOCH ID READ" up to where the other region has it; "" is not known
	LagMS   *float64          `json:"lag_ms"` // age of the oldest entry that the other region lacks, 0 if it lacks none
	Backlog uint64            `json:"backlog"`
	Gaps    map[string]uint64 `json:"gaps,omitempty"` // since this control plane runs, by reason
	Fences  []FenceStatus     `json:"fences"`         // that the other region has not confirmed
	Sent    uint64            `json:"sent"`           // removals, since this control plane runs
	Problem string            `json:"problem,omitempty"`
}

// FenceStatus is a fence that a region is to carry out.
type FenceStatus struct {
	ID     string    `json:"id"`
	Reason string    `json:"reason"`
	Prefix []byte    `json:"prefix,omitempty"` // base64 in JSON; null is all keys of the shard's arcs
	Since  time.Time `json:"since"`
}

// Invalidation is the body of POST /v1/regions/invalidate: keys that the region's own shards are to remove. Its answer is a line of
// JSON, a ShardRemoval, whenever a shard has come further, the last of each with Done or Error.
type Invalidation struct {
	Pool       string   `json:"pool,omitempty"`   // with a prefix: of this pool only; with Everything: this pool
	Keys       [][]byte `json:"keys,omitempty"`   // base64 in JSON
	Prefix     []byte   `json:"prefix,omitempty"` // base64 in JSON
	Everything bool     `json:"everything,omitempty"`
	Journal    bool     `json:"journal,omitempty"` // write it into the shards' journals, so that all other regions do the same
}

// ShardRemoval is what a shard has answered to an Invalidation so far.
type ShardRemoval struct {
	Region  string `json:"region"`
	Pool    string `json:"pool"`
	Shard   string `json:"shard"`
	Node    string `json:"node"` // address of the primary that was asked
	Epoch   uint64 `json:"epoch"`
	Seen    uint64 `json:"seen"`              // keys that were asked for, or looked at
	Of      uint64 `json:"of"`                // about how many those will be
	Removed uint64 `json:"removed"`           // keys that were there
	Journal string `json:"journal,omitempty"` // "EPOCH ID" of the entry
	Done    bool   `json:"done"`
	Error   string `json:"error,omitempty"`
}
