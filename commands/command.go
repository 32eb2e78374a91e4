// Package commands is the catalogue of Redis commands as applications meet them through the mesh: what Envoy 1.40's Redis
// proxy does with each, which of them the listeners refuse and why, and what to run instead.
//
// It only knows: it runs nothing and imports nothing of ours. The listeners take the names that they refuse from
// Listener.Refused, `cachemesh explain` prints what Explain and ExplainError say, and docs/commands.md is generated from All.
// Its tests hold every entry against the real Envoy, two real shards and one lone Redis.
package commands

//go:generate go test . -run TestPage -update

import (
	"fmt"
	"slices"
	"strings"
)

// Verdict says whether an application may use a command through the mesh.
type Verdict string

const (
	VerdictWorks   Verdict = "works"   // answers as one Redis would
	VerdictCareful Verdict = "careful" // works within the limits that Why names
	VerdictRefused Verdict = "refused" // the listeners refuse it, because it would leak or lie
	VerdictUnknown Verdict = "unknown" // Envoy itself does not know it
)

// Kind says where Envoy sends a command (or would, were it not refused).
type Kind string

const (
	KindRead        Kind = "read"        // to the shard of its key, the read way
	KindWrite       Kind = "write"       // to the shard of its key, the write way
	KindSplit       Kind = "split"       // one part for each key, each to the shard of that key
	KindTransaction Kind = "transaction" // to the shard of the transaction's first key
	KindOneShard    Kind = "one shard"   // to a shard that Envoy picks, for want of a key
	KindLocal       Kind = "local"       // nowhere: Envoy answers
	KindNone        Kind = "none"        // nowhere: Envoy answers that it does not know it
)

// Command is one entry of the catalogue.
type Command struct {
	Name    string // lower case
	Verdict Verdict
	Kind    Kind
	// EnvoyReads is true of a command that changes something on the shard and that Envoy sends the read way all the same.
	// On a route with a read command policy it bypasses whatever the writes pass through, so listeners with such routes refuse it.
	EnvoyReads bool
	// OnRESP3 is true of a refused command that the RESP3 listener lets through all the same.
	OnRESP3 bool
	// WithTransactions is true of a refused command that is let through where mesh.yaml says transactions: lanes.
	WithTransactions bool
	Why              string // what is special about it; empty if nothing is
	Instead          string // what to run instead; empty if there is no need
	// Error is the error that a client sees, without the protocol's "-". Only refused and unknown commands have one.
	// For an unknown command Envoy appends the first argument, and spells the name as the client did.
	Error string
}

// FaultError is what a client sees when a listener refuses a command.
const FaultError = "Fault Injected: Error"

var all = catalogue()

// All returns the catalogue, sorted by name.
func All() []Command { return slices.Clone(all) }

// Explain looks a command up, in any case. A name that is not in the catalogue is a command that Envoy does not know.
func Explain(name string) Command {
	name = strings.ToLower(strings.TrimSpace(name))
	if i, ok := slices.BinarySearchFunc(all, name, byName); ok {
		return all[i]
	}
	return complete(name, Command{
		Verdict: VerdictUnknown, Kind: KindNone,
		Why:     "Envoy does not know this command and sends it to no shard.",
		Instead: "Run it on a node directly: `cachemesh where KEY` names the primary of a key's shard.",
	})
}

// Listener is what decides which commands a listener refuses.
type Listener struct {
	RESP3 bool
	// Lanes is true where the writes of any route go through lanes: what would pass them by is refused.
	Lanes bool
	// Transactions is true where the writes of all routes do, and lanes check transactions.
	Transactions bool
}

// Refused returns the commands that the listener must refuse with a fault (type ERROR, 100 %), in lower case and sorted.
func (l Listener) Refused() []string {
	var names []string
	for _, c := range all {
		if l.refuses(c) {
			names = append(names, c.Name)
		}
	}
	return names
}

func (l Listener) refuses(c Command) bool {
	if c.Verdict == VerdictRefused {
		return !(l.RESP3 && c.OnRESP3) && !(l.Transactions && c.WithTransactions)
	}
	return l.Lanes && c.EnvoyReads
}

func byName(c Command, name string) int { return strings.Compare(c.Name, name) }

// catalogue makes one entry for each name of each group.
func catalogue() []Command {
	var commands []Command
	for _, g := range groups {
		for name := range strings.FieldsSeq(g.names) {
			commands = append(commands, complete(name, g.Command))
		}
	}
	slices.SortFunc(commands, func(a, b Command) int { return byName(a, b.Name) })
	return commands
}

func complete(name string, c Command) Command {
	c.Name = name
	switch c.Verdict {
	case VerdictRefused:
		c.Error = FaultError
	case VerdictUnknown:
		c.Error = fmt.Sprintf("ERR unknown command '%s', with args beginning with: ", name)
	}
	return c
}
