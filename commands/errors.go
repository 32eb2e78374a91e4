package commands

import (
	"regexp"
	"strings"
)

// unknownCommand is how Envoy and Redis both begin the error for a command that they do not know.
var unknownCommand = regexp.MustCompile(`unknown command '([^']*)'`)

// meanings explains errors that a client sees through the mesh. The first whose text occurs in the error is the one.
var meanings = []struct{ text, meaning string }{
	{FaultError,
		"The listener refuses this command, because it would leak or lie with several shards, or other regions would not learn of it. " +
			"`cachemesh explain COMMAND` says why and what to run instead."},
	{"no upstream host",
		"No shard takes this key. Either no route has a prefix that the key begins with, or the key begins with " +
			"`cachemesh:`, which the mesh keeps for itself, or the route's pool has no shard. " +
			"`cachemesh where KEY` says which; a route with prefix \"\" takes every other key. " +
			"INFO and CLUSTER, which have no key, need such a route."},
	{"upstream failure",
		"The key's shard did not answer within op_timeout, or the connection to it broke. It is not known whether a write took " +
			"effect. `cachemesh where KEY` names the shard and `cachemesh status` shows its state; try again, as during a failover."},
	{"upstream protocol error",
		"A shard answered in a way that Envoy did not expect, such as another protocol version. " +
			"`cachemesh status` shows the shards' nodes; each must be a Redis that speaks the listener's version."},
	{"finished with ",
		"A command over several keys was split by key, and the shards of so many keys failed; the other keys are done. " +
			"Repeating it is safe for MSET, DEL, UNLINK, TOUCH and EXISTS. `cachemesh where KEY...` names the shards, `cachemesh status` their state."},
	{"NOPROTO",
		"The client and the listener do not speak the same protocol version: HELLO 3 on a RESP2 listener, or anything before " +
			"HELLO 3 on a RESP3 listener. Set the client's protocol version, or use the other listener; `cachemesh status` shows both."},
	{"ERR Client sent AUTH",
		"The client sent a user or password, and the listener has none: it is the sidecar that logs in to the shards. " +
			"Leave both out of the client's URL."},
	{"NOAUTH",
		"The listener has a password and the client has not sent it. Put it into the client's URL."},
	{"WRONGPASS",
		"The user and password that the client sent are not the listener's. Correct them in the client's URL."},
	{"ERR invalid password",
		"The password that the client sent is not the listener's. Correct it in the client's URL."},
	{"CLIENT subcommand",
		"Envoy answers CLIENT itself and takes SETNAME and SETINFO only. `cachemesh explain CLIENT` says more."},
	{"invalid request",
		"The command came without arguments, or not as an array of strings, so Envoy could not tell its key."},
	{"ERR wrong number of arguments",
		"The shard, or Envoy in its place, counts other arguments than the command takes. Compare the call with Redis's documentation."},
	{"wrong number of arguments",
		"Envoy found no key to route by: MSET takes pairs, and EVAL without keys needs an argument, whose hash then decides the shard."},
	{"ERR This instance has cluster support disabled",
		"The shards are no Redis Cluster. Use the client's standalone mode; the mesh finds the shard of each key."},
	{"no node of this shard is left",
		"None of the nodes of the key's shard answers, and what stands in for it runs no scripts. Other commands find nothing, and what they " +
			"write is forgotten. `cachemesh status` names the shard's nodes; start one of them."},
	{"CROSSSLOT",
		"The keys of a transaction, or of a script, are on several shards, and no shard can do all of it at once. Use keys that share one " +
			"{hash tag} and one route; `cachemesh where KEY...` names the shard of each."},
	{"lane reaches no primary",
		"The sidecar's lane for the key's shard waited for a primary that takes writes and found none: nothing was written. " +
			"`cachemesh status` shows the shard's state; try again, as during a failover."},
	{"did not answer its lane",
		"The key's shard did not answer the sidecar's lane within 400 ms, or the connection to it broke. The write took effect together with its entry in the " +
			"journal, or not at all; which is not known. Try again: the invalidation goes out with the write that succeeds."},
	{"no replica has the write",
		"The route has durability: replica, and no replica confirmed the write in time. It stands on the primary, and other regions learn of it, but a failover now may lose it. " +
			"`cachemesh status` shows the shard's replicas."},
	{"NOSCRIPT",
		"The key's shard does not know this script: each shard knows only those that were run on it, and a promoted one may know none. " +
			"Run EVAL, which loads it; most clients' script helpers do so by themselves."},
	{"MASTERDOWN",
		"The shard's node has no primary yet: it has just started, or a failover is under way. `cachemesh status` shows it; try again."},
	{"READONLY",
		"The write reached a replica: a failover is under way, or a node's role was changed by hand. `cachemesh status` shows the roles; try again."},
	{"OOM command not allowed",
		"The key's shard is full and evicts nothing. Give its nodes more memory, or a maxmemory-policy that evicts."},
}

// ExplainError says what the text of an error that a client saw means here and what to do about it. It looks for known
// texts anywhere in the error, since clients add words of their own; ok is false if there is none.
func ExplainError(text string) (meaning string, ok bool) {
	if name := unknownCommand.FindStringSubmatch(text); name != nil {
		c := Explain(name[1])
		if c.Verdict == VerdictUnknown {
			return c.Why + " Instead: " + c.Instead, true
		}
		return "Envoy knows this command, but the shard's Redis does not: it is too old, or lacks a module. " +
			"`cachemesh explain " + c.Name + "` says which is needed.", true
	}
	for _, m := range meanings {
		if strings.Contains(text, m.text) {
			return m.meaning, true
		}
	}
	return "", false
}
