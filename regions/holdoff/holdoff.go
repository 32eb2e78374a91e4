// Package holdoff keeps, on a shard, which of its keys were invalidated a moment ago. Whoever fills such a key again may have read the value
// before the change, or from a replica of the database that lags: so what it writes lives no longer than the rest of the hold-off, and is
// removed once more at its end.
//
// Lanes and appliers use it, each over its own connection: the package builds commands and reads replies, and connects to nothing. It decides
// by the shard's clock alone.
//
// On the shard's nodes, under keys that applications cannot reach:
//
//	cachemesh:held           sorted set: KEY → when its hold-off ends, in milliseconds since 1970 by the shard's clock, and as a fraction
//	                         what becomes of the key then
//	                           .0   removed at home, not written since
//	                           .25  removed for another region, or by prefix: it is removed once more
//	                           .5   removed at home and written since: it is removed once more, here and in other regions
//	                           .75  the hold-off is over, and since then somebody is about to tell other regions
//	cachemesh:held:prefixes  sorted set: PREFIX → when the hold-off of all keys that begin so ends. It is itself a member of cachemesh:held,
//	                         which ends with the last of them
//	cachemesh:held:by        run_id of the primary that last began to hold, see AppendBegin
//
// They are part of the shard's data: replicas have them, and restarts of agents change nothing. There are at most MaxMarks keys; beyond, all
// keys of the shard are held. A key is suspect for as long as its mark says, however it is written: after each write of a coherent route with
// a hold-off, in the same round trip, whoever wrote it looks whether it is held, and if so notes it, which shortens its time to live, before the
// write is answered. Should that not happen because the writer was killed in between, the end of the hold-off removes the key all the same.
//
// What happens all the time takes plain commands: AppendMarks and AppendLook. A script, the Note, does the rest.
package holdoff

import (
	"fmt"
	"strconv"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	heldKey     = mesh.ReservedPrefix + "held"
	prefixesKey = mesh.ReservedPrefix + "held:prefixes"
	holderKey   = mesh.ReservedPrefix + "held:by"

	// MaxMarks bounds the keys that a shard remembers, which take about 150 bytes each.
	MaxMarks = 100_000
	// maxKey bounds a key's length, in bytes. Of a longer one, all that begin as it does are held.
	maxKey = 4096
	// maxPrefixes bounds the prefixes. Beyond, all keys are held.
	maxPrefixes = 64
	// Longest bounds a hold-off: a clock that was set back must not hold keys for days.
	Longest = 10 * time.Minute
	// DueAtOnce bounds what Due handles.
	DueAtOnce = 500
	// lease is how long whoever was told of a key's end has to journal it, before another is told.
	lease = 2 * time.Second
)

// Of is how long a key of the route is suspect after it was removed; 0 is not at all. Where writes are updates, a SET is no refill.
func Of(r *mesh.Route) time.Duration {
	if r == nil || r.Coherence != mesh.Invalidate || r.Writes != mesh.Refill {
		return 0
	}
	return r.HoldOff
}

// OfAll are the hold-offs of routes, as marks of their prefixes.
func OfAll(routes []mesh.Route) (all []Mark) {
	for i := range routes {
		if d := Of(&routes[i]); d > 0 {
			all = append(all, Mark{[]byte(routes[i].Prefix), d})
		}
	}
	return all
}

// Mark is a key, or a prefix, and how long it is suspect from now on.
type Mark struct {
	Key []byte
	For time.Duration
}

// AppendBegin appends the command with which a primary begins: what it lacks of the marks that its predecessor had, nobody knows, so all keys of
// the routes are held, once in its process's life. Who writes to it must have had the reply before.
func AppendBegin(b []byte, routes []Mark) []byte {
	b = beginScript.append(b, 3, 3+2*len(routes))
	b = appendBulk(appendBulk(appendBulk(b, heldKey), prefixesKey), holderKey)
	for _, m := range routes {
		b = m.appendPrefix(b)
	}
	return b
}

// AppendMarks appends the command that begins the hold-offs of keys that were removed at home, in the same transaction: an integer is its reply.
// now is the shard's clock; later does no harm. It must not be called with keys that are not Plain.
//
// Ends are rounded up, since a mark that ends as the one before did changes nothing: a key that is removed again and again costs a lookup each
// time, and its place in the order of ends, here and on replicas, only now and then.
func AppendMarks(b []byte, marks []Mark, now time.Time) []byte {
	b = append(strconv.AppendInt(append(b, '*'), int64(3+2*len(marks)), 10), "\r\n$4\r\nZADD\r\n"...)
	b = append(appendBulk(b, heldKey), "$2\r\nGT\r\n"...)
	milliseconds := int(now.UnixMilli()) + 1
	for _, m := range marks {
		step := max(1, min(m.milliseconds()/12, maxStep))
		b = appendBulk(appendInt(b, (milliseconds+m.milliseconds()+step-1)/step*step), m.Key)
	}
	return b
}

// maxStep bounds how much longer than its hold-off a mark lasts, in milliseconds: so much longer may a stale refill be served.
const maxStep = 250

// Plain says whether a key may be marked by AppendMarks. Others need a Note.
func Plain(key []byte) bool { return len(key) <= maxKey }

// AppendLook appends the commands that look whether keys are held, one more than there are keys. If the reply to any of them is not nil, a Note
// of the keys is needed.
//
// ZADD with XX and INCR by 0 changes nothing. ZMSCORE would count as a hit or a miss of the cache, and every refill would look like two misses.
func AppendLook(b []byte, written [][]byte) []byte {
	b = appendBulk(append(b, look...), prefixesKey)
	for _, k := range written {
		b = appendBulk(append(b, look...), k)
	}
	return b
}

var look = appendBulk(appendBulk(appendBulk(appendBulk(appendBulk([]byte("*6\r\n"), "ZADD"), heldKey), "XX"), "INCR"), "0")

// Note is what happened to keys of routes with a hold-off. Sent after it, in one transaction where the removals are in one.
type Note struct {
	Link     bool     // the removals are of other regions, which know of them
	Removed  []Mark   // keys
	Prefixes []Mark   // an empty one is everything
	Written  [][]byte // keys that may have been filled again
}

// Empty says whether there is nothing to note.
func (n *Note) Empty() bool { return len(n.Removed)+len(n.Prefixes)+len(n.Written) == 0 }

// Reset makes it empty and keeps its memory.
func (n *Note) Reset() {
	clear(n.Removed)
	clear(n.Prefixes)
	clear(n.Written)
	n.Removed, n.Prefixes, n.Written = n.Removed[:0], n.Prefixes[:0], n.Written[:0]
}

// Append appends the command as Redis reads it. Its reply is an integer: how many of the written keys are held.
func (n *Note) Append(b []byte) []byte {
	marks, prefixes := len(n.Removed), len(n.Prefixes)
	for _, m := range n.Removed {
		if len(m.Key) > maxKey {
			marks, prefixes = marks-1, prefixes+1
		}
	}
	b = noteScript.append(b, 2, 5+2*(marks+prefixes)+len(n.Written))
	b = appendBulk(appendBulk(b, heldKey), prefixesKey)
	state := 0
	if n.Link {
		state = 1
	}
	b = appendInt(appendInt(appendInt(b, state), marks), prefixes)
	for _, m := range n.Removed {
		if len(m.Key) <= maxKey {
			b = appendBulk(b, m.Key)
		}
	}
	for _, m := range n.Removed {
		if len(m.Key) <= maxKey {
			b = appendInt(b, m.milliseconds())
		}
	}
	for _, m := range n.Removed {
		if len(m.Key) > maxKey {
			b = m.appendPrefix(b)
		}
	}
	for _, m := range n.Prefixes {
		b = m.appendPrefix(b)
	}
	for _, k := range n.Written {
		b = appendBulk(b, k)
	}
	return b
}

func (m Mark) milliseconds() int { return int(min(m.For, Longest).Milliseconds()) }

func (m Mark) appendPrefix(b []byte) []byte {
	return appendInt(appendBulk(b, m.Key[:min(len(m.Key), maxKey)]), m.milliseconds())
}

// Args is the command for a Redis client, with the script.
func (n *Note) Args() []any {
	state := 0
	if n.Link {
		state = 1
	}
	var marks, milliseconds, wide []any
	prefix := func(m Mark) { wide = append(wide, m.Key[:min(len(m.Key), maxKey)], m.milliseconds()) }
	for _, m := range n.Removed {
		if len(m.Key) > maxKey {
			prefix(m)
			continue
		}
		marks, milliseconds = append(marks, m.Key), append(milliseconds, m.milliseconds())
	}
	for _, m := range n.Prefixes {
		prefix(m)
	}
	args := []any{"EVAL", string(noteScript), 2, heldKey, prefixesKey, state, len(marks), len(wide) / 2}
	args = append(append(append(args, marks...), milliseconds...), wide...)
	for _, k := range n.Written {
		args = append(args, k)
	}
	return args
}

// Due is a key that is to be removed in other regions once more, since its hold-off is over.
type Due struct {
	Key   []byte
	Claim string // by whom it is known, until Done
}

// AppendDue appends the command that removes keys whose hold-off is over, at most DueAtOnce. ReadDue reads its reply.
func AppendDue(b []byte) []byte {
	return appendBulk(appendBulk(dueScript.append(b, 2, 2), heldKey), prefixesKey)
}

// ReadDue reads the reply to AppendDue's: an array of strings. count is how many hold-offs were over, and now the shard's clock.
func ReadDue(reply []any) (again []Due, count int, now time.Time, err error) {
	text := make([]string, len(reply))
	for i, v := range reply {
		s, ok := v.(string)
		if !ok {
			return nil, 0, now, fmt.Errorf("what is held is answered with %T", v)
		}
		text[i] = s
	}
	if len(text) == 0 || len(text)%2 == 1 {
		return nil, 0, now, fmt.Errorf("what is held is answered with %d values", len(text))
	}
	if count, err = strconv.Atoi(text[0]); err != nil {
		return nil, 0, now, err
	}
	clock, err := strconv.ParseInt(text[1], 10, 64)
	if err != nil {
		return nil, 0, now, err
	}
	for i := 2; i < len(text); i += 2 {
		again = append(again, Due{[]byte(text[i]), text[i+1]})
	}
	return again, count, time.UnixMilli(clock), nil
}

// AppendDone appends the command that forgets keys, once other regions will learn of them.
func AppendDone(b []byte, all []Due) []byte {
	b = appendBulk(doneScript.append(b, 1, 1+2*len(all)), heldKey)
	for _, d := range all {
		b = appendBulk(appendBulk(b, d.Key), d.Claim)
	}
	return b
}

// script is one of Redis's.
type script string

// append appends the beginning of the command: keys and arguments, so many together, are to follow.
func (s script) append(b []byte, keys, arguments int) []byte {
	b = append(strconv.AppendInt(append(b, '*'), int64(3+arguments), 10), '\r', '\n')
	return appendInt(appendBulk(appendBulk(b, "EVAL"), string(s)), keys)
}

func appendInt(b []byte, n int) []byte {
	var digits [20]byte
	return appendBulk(b, strconv.AppendInt(digits[:0], int64(n), 10))
}

func appendBulk[T string | []byte](b []byte, value T) []byte {
	b = append(strconv.AppendInt(append(b, '$'), int64(len(value)), 10), '\r', '\n')
	return append(append(b, value...), '\r', '\n')
}
