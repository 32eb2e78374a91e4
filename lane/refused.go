package lane

import (
	"bytes"
	"fmt"

	"github.com/cachemesh/cachemesh/resp"
	"github.com/cachemesh/cachemesh/sidecar/null"
)

// refusal is why Redis did not do a transaction.
type refusal struct {
	items   map[int]string // errors of items, by index
	journal string         // of the journal's entry
	exec    string
}

// spread gives each item that is wrong its answer. It says whether there was one.
func (r *refusal) spread(b *batch, from, to int) bool {
	for i := from; i < to; i++ {
		text, wrong := r.items[i]
		if !wrong {
			continue
		}
		if b.items[i].transaction {
			text = execAbort
		}
		b.items[i].reply = failure(text)
	}
	return len(r.items) > 0
}

// again says whether the node takes no writes of anybody.
func (r *refusal) again() bool {
	if passes(r.exec) || passes(r.journal) {
		return true
	}
	for _, text := range r.items {
		if passes(text) {
			return true
		}
	}
	return false
}

// withoutJournal takes the items of a batch to Redis one by one, since it refuses the journal's entry.
func (e *executor) withoutJournal(up *upstream, b *batch, refused string) error {
	for i := range b.items {
		var err error
		if it := &b.items[i]; it.asks() && it.journaled {
			err = e.unjournaled(up, b, i, refused)
		} else {
			err = e.alone(up, b, i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// evenIfFull removes and journals as one unit, on a node whose memory is full too.
const evenIfFull = "#!lua flags=allow-oom\n" + `
local reply = redis.pcall(unpack(ARGV, 2))
local entry = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', '*', 'e', ARGV[1])
return {type(entry) == 'string' and 1 or 0, reply}`

// unjournaled does what may be done of an item though the journal refuses its entry: a removal frees memory, and is worse undone than
// unknown elsewhere.
func (e *executor) unjournaled(up *upstream, b *batch, i int, refused string) error {
	it := &b.items[i]
	if !it.removal {
		it.reply = failure(refused)
		it.deliver()
		return nil
	}
	if err := e.noteFirst(up, b, i); err != nil {
		return err
	}
	e.lost = b.removed(e.lost[:0], b.items[i:i+1])
	var scan resp.Scanner
	raw := b.raw[it.from:it.to]
	if _, err := scan.Next(raw, maxArgs); err != nil {
		return err
	}
	out := appendLength(e.out[:0], '*', 5+len(scan.Args))
	for _, word := range []string{"EVAL", evenIfFull, "1", up.journal} {
		out = appendBulk(out, word)
	}
	out = appendBulk(out, e.s.config.Encode(nil, e.lost))
	for _, a := range scan.Args {
		out = appendBulk(out, a.Of(raw))
	}
	e.out = out
	if err := up.net.SetDeadline(e.later()); err != nil {
		return err
	}
	if _, err := up.net.Write(out); err != nil {
		return err
	}
	l, err := up.line()
	if err != nil {
		return err
	}
	if l[0] == '-' {
		if passes(string(l[1:])) {
			return errAgain
		}
		// An old Redis lets no script write when it is full.
		e.s.gap(Gap{Epoch: up.id.epoch, Reason: GapRefused, Removed: e.lost})
		return e.pipeline(up, b, i, i+1, e.later())
	}
	written, err := up.value(0)
	if err != nil {
		return err
	}
	e.s.entries.Add(1)
	if written != "1" {
		e.s.gap(Gap{Epoch: up.id.epoch, Reason: GapLost, Removed: e.lost})
	}
	if !it.waits {
		return e.answer(up, it)
	}
	e.kept = e.kept[:0]
	if err := e.results(up, it, &sink{b: &e.kept, limit: maxKept}); err != nil {
		return err
	}
	replicas, err := e.ask(up, appendCommand(nil, "WAIT", "1", patience(e.later())), 1)
	it.reply = e.kept
	if err != nil || replicas == "0" || isError(replicas) {
		e.s.unreplicated.Add(1)
		it.reply = notReplicated
	}
	it.deliver()
	return err
}

// noNode answers what cannot be forgotten: other regions would keep what this write should have replaced.
var noNode = failure("ERR no node of this shard is left, and this write would be lost for other regions too")

// answerNull answers as an empty Redis that forgets. Removals are told to other regions.
func (s *Server) answerNull(b *batch) {
	for i := range b.items {
		it := &b.items[i]
		if !it.asks() {
			it.deliver()
			continue
		}
		if removed := b.removed(nil, b.items[i:i+1]); len(removed) > 0 {
			if !it.removal {
				it.reply = noNode
				it.deliver()
				continue
			}
			s.gap(Gap{Epoch: s.target.Load().Epoch, Reason: GapNull, Removed: removed})
		}
		it.reply = forgotten(b.raw[it.from:it.to], it)
		it.deliver()
	}
}

// forgotten is what an empty Redis answers.
func forgotten(raw []byte, it *item) []byte {
	var out bytes.Buffer
	w := resp.NewWriter(&out)
	w.RESP3 = it.conn.resp3
	if it.transaction {
		w.Array(it.commands)
	}
	var scan resp.Scanner
	for len(raw) > 0 {
		n, err := scan.Next(raw, maxArgs)
		if err != nil || n == 0 {
			return failure("ERR " + fmt.Sprint(err)) // it was whole when it came
		}
		null.Answer(w, arguments(command{raw[:n], scan.Args}))
		raw = raw[n:]
	}
	_ = w.Flush() // into memory
	return out.Bytes()
}
