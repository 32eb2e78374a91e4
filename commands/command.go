// Package commands is the catalogue of Redis commands as applications meet them through the mesh: what Envoy 1.40's Redis
// proxy does with each, which of them the listeners refuse and why, and what to run instead.
//
// It only knows: it runs nothing and imports nothing of ours. The listeners take the names that they refuse from
// Refused, `cachemesh explain` prints what Explain and ExplainError say, and docs/commands.md is generated from All.
// Its tests hold every entry against the real Envoy and real Redis servers.
package commands

import (
	"slices"
	"strings"
)

// Verdict says whether an application may use a command through the mesh.
type Verdict string

const (
	VerdictWorks   Verdict = "works"   // as with one Redis
	VerdictCareful Verdict = "careful" // works, within the limits that Why names
	VerdictRefused Verdict = "refused" // the listeners refuse it, because it would leak or lie
	VerdictUnknown Verdict = "unknown" // Envoy itself does not know it
)

// Kind says who answers a command.
type Kind string

const (
	KindRead  Kind = "read"  // the shard of its key, on the read way
	KindWrite Kind = "write" // the shard of its key, on the write way
	KindSplit Kind = "split" // split by key: every shard that holds one of its keys answers its part
	KindLocal Kind = "local" // Envoy itself
	KindOther Kind = "other" // none of these; Why says what
)

// Command is one entry of the catalogue.
type Command struct {
	Name    string  // lower case
	Verdict Verdict // whether to use it
	Kind    Kind    // who would answer it, were it not refused
	// EnvoyReads is true of a command that changes data and that Envoy sends the read way all the same.
	EnvoyReads bool
	Why        string // what is special about it; empty if nothing is
	Instead    string // what to run instead; empty if there is no need
	Error      string // the exact error that a client sees; only Refused and Unknown commands have one
}

// FaultError is what a client sees when a listener refuses a command.
const FaultError = "Fault Injected: Error"

// Explain looks a command up. It knows every name: one that is not in the catalogue is Unknown.
func Explain(name string) Command {
	name = strings.ToLower(strings.TrimSpace(name))
	for _, c := range All() {
		if c.Name == name {
			return c
		}
	}
	return Command{
		Name: name, Verdict: VerdictUnknown, Kind: KindOther, Error: unknownError(name),
		Why: "Envoy does not know this command and forwards it to no shard.",
	}
}

// All returns the catalogue, sorted by name.
func All() []Command {
	all := slices.Clone(table)
	slices.SortFunc(all, func(a, b Command) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Refused returns the commands that the listeners must refuse with a fault, in lower case and sorted.
func Refused() []string {
	var names []string
	for _, c := range All() {
		if c.Verdict == VerdictRefused {
			names = append(names, c.Name)
		}
	}
	return names
}

// ExplainError says what an error that a client saw means and what to do; ok is false for an error that is not one of the mesh.
func ExplainError(text string) (meaning string, ok bool) {
	if strings.Contains(text, FaultError) {
		return "A listener refuses this command because it would leak or lie through a sharded proxy.", true
	}
	return "", false
}

func unknownError(name string) string { return "ERR unknown command '" + name + "'" }

var table = []Command{
	{Name: "select", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "flushall", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "flushdb", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "keys", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "scan", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "randomkey", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "config", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "script", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "info", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "watch", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "unwatch", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "multi", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "exec", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "discard", Verdict: VerdictRefused, Kind: KindOther, Error: FaultError},
	{Name: "get", Verdict: VerdictWorks, Kind: KindRead},
	{Name: "set", Verdict: VerdictWorks, Kind: KindWrite},
}
