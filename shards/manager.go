package shards

import (
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// Config is how a manager decides.
type Config struct {
	Region    string
	DownAfter time.Duration // a node that gave no good answer for so long is down
	MaxLoss   float64       // share of a pool's nodes, above which a loss at once freezes the pool
}

// Member is a shard with its nodes, as the membership has them.
type Member struct {
	Pool   string
	Shard  string
	Follow bool     // others manage its nodes: they are only looked at
	Nodes  []string // addresses, in the membership's order
}

// Node is what a probe saw of a node.
type Node struct {
	Address string
	RunID   string
	ReplID  string
	Role    mesh.Role
	Of      string // address of its primary, if it is a replica
	Linked  bool   // the link to that primary is up, and it has all of its data
	Loading bool
	Offset  int64  // of the replication history ReplID
	Epoch   uint64 // mirrored on it; 0 is none, or not readable
}

// Verdict is what an agent says of a shard's primary.
type Verdict struct {
	Shard   string
	Epoch   uint64
	Address string
	Down    bool
}

// Op is what an action does to a node.
type Op string

// The actions. Each is refused by a node that has seen a newer epoch.
const (
	Promote  Op = "promote"  // make Node the primary of Epoch; Fresh empties it before
	Handover Op = "handover" // pause writes at From, wait until Node has them all, then as Promote
	Demote   Op = "demote"   // make Node a replica of Of
	Mirror   Op = "mirror"   // write Epoch on Node
	Restart  Op = "restart"  // end Node's process; whoever runs it starts it again
)

// Action is something to be done to a node.
type Action struct {
	Op    Op
	Shard string
	Node  string // address
	From  string // of Handover
	Of    string // of Demote
	Epoch uint64
	Fresh bool
}

// Command is what an operator asks for.
type Command struct {
	Kind  Kind // Switch, Restarted or Accepted
	Pool  string
	Shard string
	Node  string // "" lets the manager choose
	Force bool
}
