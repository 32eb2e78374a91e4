package lane

import (
	"slices"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/holdoff"
)

// A batch ends growing at these sizes: Redis does it in one go, and serves nobody else meanwhile.
const (
	maxItems = 1024
	maxBytes = 2 << 20
)

// batch is what goes to the shard together, from any number of connections. Its buffers are used again.
type batch struct {
	since  time.Time // when its first command came
	raw    []byte    // the commands, after room for MULTI
	items  []item
	keys   []key
	bursts []burst

	held   bool // it has keys with a hold-off
	moves  bool // it has keys with two owners
	atomic bool // it must be a transaction: for the journal, a replica's sake, or because a client wants one
}

// item is one command of a connection in a batch, or one transaction.
type item struct {
	conn        *conn
	from, to    int    // its bytes
	key, keyEnd int    // its keys
	commands    int    // how many Redis sees of it: several in a transaction
	reply       []byte // the answer, if Redis is not to be asked
	transaction bool
	journaled   bool
	waits       bool // for a replica
	removal     bool // one command that only removes
	opens       bool // hold-offs
}

// asks says whether Redis is to be asked, still.
func (it *item) asks() bool { return it.conn != nil && it.reply == nil }

// deliver hands the item's own reply to its connection, once.
func (it *item) deliver() {
	if it.conn != nil {
		it.conn.out = append(it.conn.out, it.reply...)
		it.conn = nil
	}
}

// key is one that a command writes, of a route that other regions learn about, or that moves.
type key struct {
	from, to   int
	remembered bool // until a replica has the write
	removed    bool // elsewhere
	moves      bool // it has two owners
	opens      bool // a hold-off; else it may be a refill
	holdOff    time.Duration
}

// burst is how many items a connection added in a row.
type burst struct {
	conn  *conn
	items int
}

const multi = "*1\r\n$5\r\nMULTI\r\n"

func newBatch() *batch { return &batch{raw: []byte(multi)} }

func (b *batch) reset() {
	if cap(b.raw) > maxBytes+maxBuffered {
		b.raw = []byte(multi)
	}
	clear(b.items) // lets connections go that have ended
	clear(b.bursts)
	b.raw, b.items, b.keys, b.bursts = b.raw[:len(multi)], b.items[:0], b.keys[:0], b.bursts[:0]
	b.atomic, b.held, b.moves = false, false, false
}

func (b *batch) empty() bool { return len(b.items) == 0 }

func (b *batch) full() bool { return len(b.items) >= maxItems || len(b.raw) >= maxBytes }

// add takes what Redis is to do. keys are parts of raw.
func (b *batch) add(it item, raw []byte, keys []key) {
	base := len(b.raw)
	b.raw = append(b.raw, raw...)
	it.from, it.to = base, len(b.raw)
	it.key = len(b.keys)
	for _, k := range keys {
		k.from, k.to = base+k.from, base+k.to
		b.keys = append(b.keys, k)
		it.journaled = it.journaled || k.removed
		b.held = b.held || k.holdOff > 0
		b.moves = b.moves || k.moves
	}
	it.keyEnd = len(b.keys)
	b.items = append(b.items, it)
	b.atomic = b.atomic || it.journaled || it.transaction || it.waits
}

// answer takes what Redis need not be asked about, in its place among the others.
func (b *batch) answer(c *conn, reply []byte) {
	b.items = append(b.items, item{conn: c, from: len(b.raw), to: len(b.raw), key: len(b.keys), keyEnd: len(b.keys), reply: reply})
}

// removed appends the keys that other regions are to remove, of items that have no answer yet.
func (b *batch) removed(into [][]byte, items []item) [][]byte {
	for i := range items {
		it := &items[i]
		if !it.asks() || !it.journaled {
			continue
		}
		for _, k := range b.keys[it.key:it.keyEnd] {
			if k.removed {
				into = append(into, b.raw[k.from:k.to])
			}
		}
	}
	return into
}

// policy is what a lane knows of a pool's routes.
type policy struct {
	routes []mesh.Route // longest prefix first
	shard  func(key []byte) string
	here   string         // the lane's shard
	pair   *handoff.Pair  // nil while no key moves
	large  sync.WaitGroup // large commands that go by it
	known  bool           // without that, nothing may pass
	holds  []holdoff.Mark // routes with a hold-off
}

func newPolicy(shard string, v View) *policy {
	p := &policy{routes: slices.Clone(v.Routes), shard: v.ShardOf, here: shard, pair: v.Pair, known: v.Address != "" || v.StandIn != "", holds: holdoff.OfAll(v.Routes)}
	slices.SortFunc(p.routes, func(a, b mesh.Route) int { return len(b.Prefix) - len(a.Prefix) })
	return p
}

// journals says whether there is something for a journal.
func (p *policy) journals() bool {
	return slices.ContainsFunc(p.routes, func(r mesh.Route) bool { return r.Coherence == mesh.Invalidate })
}

// route is the one that takes a key; nil for none.
func (p *policy) route(k []byte) *mesh.Route {
	for i := range p.routes {
		if prefix := p.routes[i].Prefix; len(k) >= len(prefix) && string(k[:len(prefix)]) == prefix {
			return &p.routes[i]
		}
	}
	return nil
}

// coherent says whether a write of the key must be remembered, and whether other regions must remove it.
func coherent(r *mesh.Route, e effect) (remembered, removed bool) {
	if r == nil || r.Coherence != mesh.Invalidate || e == reads {
		return false, false
	}
	return true, e == removes || r.Writes == mesh.Update
}
