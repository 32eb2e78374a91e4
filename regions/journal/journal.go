// Package journal is what a shard keeps for other regions: which keys they are to remove. It says how entries look, follows a shard's
// journals for one region (Tail), sees what they lack, and keeps how far each region is.
//
// It applies nothing and sends nothing: package regions does. Lanes write the entries, with the writes that they are about.
//
// On the shard's nodes, under keys that applications cannot reach:
//
//	cachemesh:journal:EPOCH       stream of an epoch of the shard; each entry has one field, e
//	cachemesh:journal:EPOCH:made  says that the stream was made: one that is gone is not made again unnoticed
//	cachemesh:cursors             hash: REGION → "EPOCH ID READ", see Cursor
//	cachemesh:fences              hash: "REGION ID" → a Fence that the region has not confirmed, see fence.go
//	cachemesh:paused              hash: REGION → since when nothing is sent to it
//
// An entry is
//
//	version  1 byte, 1
//	count    uvarint
//	count times:
//	  op      1 byte: 1 remove the key, 2 remove all keys that begin so, 3 remove all keys of the shard
//	  length  uvarint, at most 1 MiB
//	  key     length bytes
//
// without anything after that. An entry of no removals tells that the journal is alive. One that cannot be read counts as lost: the shard
// is fenced. So a format with another version costs misses while agents of two versions run, and never a stale value.
package journal
