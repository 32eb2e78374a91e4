package lane

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// executor carries the commands of all connections that speak one version of the protocol. While one batch is at the shard the next one
// grows, so batches are as large as there is to do. Only one is on its way: what is tried again comes before what came later.
//
// A connection that brings something while nothing is at the shard takes it there itself: nobody need be woken for it. What is left to do
// otherwise, run does.
type executor struct {
	s     *Server
	resp3 bool

	mu      sync.Mutex
	work    *sync.Cond // there is some
	space   *sync.Cond // pending has room
	pending *batch
	spare   *batch
	busy    bool       // something is at the shard
	number  uint64     // of pending
	done    uint64     // of the last batch that was answered
	quiet   *sync.Cond // nothing is at the shard
	tick    bool       // it is time to keep the house
	due     bool       // hold-offs may be over
	closing bool

	// What follows belongs to whoever is at the shard.
	up    *upstream
	last  identity // the primary of up, or of the one before
	tail  tail
	out   []byte
	kept  []byte // replies that wait for a replica
	lost  [][]byte
	spans []span
	held  held
	whole bool // replies are kept until the batch is done
}

type span struct{ from, to int }

func newExecutor(s *Server, resp3 bool) *executor {
	e := &executor{s: s, resp3: resp3, pending: newBatch(), spare: newBatch(), number: 1}
	e.work, e.space, e.quiet = sync.NewCond(&e.mu), sync.NewCond(&e.mu), sync.NewCond(&e.mu)
	e.held.alarm = newAlarm(e)
	return e
}

func (e *executor) run() {
	e.mu.Lock()
	for {
		for e.busy || !e.needed() {
			e.work.Wait()
		}
		if e.pending.empty() && e.closing {
			break
		}
		tick, due := e.tick, e.due
		e.tick, e.due, e.busy = false, false, true
		if tick || due {
			e.mu.Unlock()
			if tick {
				e.keepHouse()
			}
			if due {
				e.endHoldOffs()
			}
			e.mu.Lock()
		}
		e.carryPending()
	}
	e.mu.Unlock()
	e.held.alarm.Stop()
	e.disconnect()
}

// needed says whether there is something that run must do. The caller holds the lock.
func (e *executor) needed() bool { return !e.pending.empty() || e.tick || e.due || e.closing }

// carryPending takes what is pending to the shard. The caller holds the lock, and nothing of others is at the shard.
func (e *executor) carryPending() {
	if b := e.pending; !b.empty() {
		e.busy = true
		e.pending = e.spare
		e.number++
		e.space.Broadcast()
		e.mu.Unlock()
		e.serve(b)
		b.reset()
		e.mu.Lock()
		e.spare = b
		e.done++
	}
	e.busy = false
	e.quiet.Broadcast()
	if e.needed() {
		e.work.Signal()
	}
}

func (e *executor) disconnect() {
	if e.up != nil {
		e.up.net.Close()
		e.up = nil
	}
}

// atLeast is how long a batch may take that has waited for the one before.
const atLeast = 100 * time.Millisecond

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// serve answers a batch.
func (e *executor) serve(b *batch) {
	began := false
	defer func() {
		if began && b.moves {
			e.elsewhere(b)
		}
		for _, u := range b.bursts {
			u.conn.finish(u.items)
		}
	}()
	if waited := time.Since(b.since); waited > e.s.config.Timeout+atLeast {
		// Who sent it has an error already, and may have gone on.
		e.refuse(b, fmt.Sprintf("ERR the shard's lane is behind: this waited for %s; nothing was written", waited.Round(time.Millisecond)))
		return
	}
	deadline := later(b.since.Add(e.s.config.Timeout), time.Now().Add(atLeast))
	e.whole = b.moves
	if b.moves {
		e.refuseMoving(b)
	}
	for {
		up, err := e.connect(deadline)
		if errors.Is(err, errNull) {
			began = true
			e.s.answerNull(b)
			return
		}
		if err != nil {
			e.refuse(b, e.s.unreached(err))
			return
		}
		for _, k := range b.keys {
			if k.remembered {
				e.tail.add(b.raw[k.from:k.to], k.removed)
			}
		}
		began = true
		err = e.carry(up, b, deadline)
		if err == nil {
			e.s.batches.Add(1)
			e.s.commands.Add(uint64(len(b.items)))
			up.used = time.Now()
			return
		}
		e.disconnect()
		if !errors.Is(err, errAgain) {
			e.s.unknown.Add(1)
			e.refuse(b, "ERR the shard did not answer its lane: "+err.Error()+"; it is not known whether the write took effect")
			return
		}
		// Nothing of what is not answered yet took effect.
		if !time.Now().Before(deadline) {
			e.refuse(b, e.s.unreached(err))
			return
		}
		e.s.pause(deadline)
	}
}

func (s *Server) unreached(why error) string {
	return fmt.Sprintf("ERR the shard's lane reaches no primary within %s: %v; nothing was written", s.config.Timeout, why)
}

// plain is a text as a line.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)
}

// refuse answers what has no answer yet.
func (e *executor) refuse(b *batch, text string) {
	e.s.failures.Add(1)
	reply := failure(text)
	for i := range b.items {
		it := &b.items[i]
		if it.asks() {
			it.reply = reply
		}
		it.deliver()
	}
}

var (
	errNull  = errors.New("no node of the shard is left")
	errAgain = errors.New("the shard's primary takes no writes")
)

// connect returns a connection to the primary. It waits for one while the shard is on hold, has moved, or does not answer.
func (e *executor) connect(deadline time.Time) (*upstream, error) {
	for {
		t := e.s.target.Load()
		if t.StandIn == mesh.Null {
			e.disconnect()
			return nil, errNull
		}
		if t.StandIn == mesh.Hold && e.s.held(t) {
			e.s.pause(deadline)
			if time.Now().After(deadline) {
				return nil, errors.New("its switch takes too long")
			}
			continue
		}
		if e.up != nil {
			if e.up.id.address == t.Address && e.up.id.epoch == t.Epoch && e.up.login == t.Login && e.up.alive() && e.join(e.up) == nil {
				return e.up, nil
			}
			e.disconnect()
		}
		up, err := e.s.dial(&t.View, e.resp3, deadline)
		if err == nil {
			if err = e.arrive(up); err == nil {
				err = e.join(up)
			}
			if err == nil {
				e.up = up
				return up, nil
			}
			up.net.Close()
		}
		if !time.Now().Before(deadline) {
			return nil, err
		}
		e.s.pause(deadline)
	}
}

// carry takes a batch to Redis, answers what Redis answers, and what it refuses as a whole one by one. errAgain says that nothing of what
// is unanswered took effect.
func (e *executor) carry(up *upstream, b *batch, deadline time.Time) error {
	if !b.atomic {
		return e.pipeline(up, b, 0, len(b.items), deadline)
	}
	refused, err := e.transact(up, b, 0, len(b.items), deadline)
	if refused == nil || err != nil {
		return err
	}
	if refused.journal != "" {
		return e.withoutJournal(up, b, refused.journal)
	}
	if refused.spread(b, 0, len(b.items)) {
		// What is wrong with some is no reason to keep the others waiting.
		if refused, err = e.transact(up, b, 0, len(b.items), e.later()); refused == nil || err != nil {
			return err
		}
	}
	for i := range b.items {
		if err := e.alone(up, b, i); err != nil {
			return err
		}
	}
	return nil
}

func (e *executor) later() time.Time { return time.Now().Add(e.s.config.Timeout) }

// alone takes one item of a batch to Redis.
func (e *executor) alone(up *upstream, b *batch, i int) error {
	it := &b.items[i]
	switch {
	case !it.asks():
		it.deliver()
		return nil
	case !it.journaled && !it.transaction && !it.waits:
		return e.pipeline(up, b, i, i+1, e.later())
	}
	refused, err := e.transact(up, b, i, i+1, e.later())
	if refused == nil || err != nil {
		return err
	}
	if refused.journal != "" {
		return e.unjournaled(up, b, i, refused.journal)
	}
	if !refused.spread(b, i, i+1) {
		it.reply = failure(refused.exec)
	}
	it.deliver()
	return nil
}

// write sends items from to to of the batch that have no answer yet, as a transaction with the journal's entry, or as they are.
func (e *executor) write(up *upstream, b *batch, from, to int, atomic, journaled, waits bool, deadline time.Time) error {
	end := len(b.raw)
	out := b.raw
	whole := from == 0 && to == len(b.items)
	for i := from; i < to && whole; i++ {
		whole = b.items[i].asks() || b.items[i].from == b.items[i].to
	}
	if !whole {
		out = append(e.out[:0], multi...)
		for i := from; i < to; i++ {
			if it := &b.items[i]; it.asks() {
				out = append(out, b.raw[it.from:it.to]...)
			}
		}
	}
	e.gather(b, from, to)
	out = e.held.append(out, e.s.shardClock())
	if journaled {
		e.lost = b.removed(e.lost[:0], b.items[from:to])
		out = appendEntry(out, up.journal, e.s.config.Encode(nil, e.lost))
	}
	if atomic {
		out = append(out, "*1\r\n$4\r\nEXEC\r\n"...)
	}
	done := len(out) // with this, a transaction is done
	if waits {
		out = appendCommand(out, "WAIT", "1", patience(deadline))
	}
	if whole {
		b.raw = out[:end] // it may have grown
	} else {
		e.out = out
	}
	if !atomic {
		out = out[len(multi):]
	}
	if err := up.net.SetDeadline(deadline); err != nil {
		return err
	}
	if n, err := up.net.Write(out); err != nil {
		if atomic && n < done {
			return errAgain // without its end a transaction is none
		}
		return err
	}
	return nil
}

// appendEntry appends the command that writes an entry.
func appendEntry(b []byte, journal string, entry []byte) []byte {
	b = append(b, "*6\r\n$4\r\nXADD\r\n"...)
	b = appendBulk(b, journal)
	b = append(b, "$10\r\nNOMKSTREAM\r\n$1\r\n*\r\n$1\r\ne\r\n"...)
	return appendBulk(b, entry)
}

// transact does items in one transaction with their entry. A refusal means that none took effect and none is answered.
func (e *executor) transact(up *upstream, b *batch, from, to int, deadline time.Time) (*refusal, error) {
	journaled, waits := false, false
	commands := 0
	for i := from; i < to; i++ {
		if it := &b.items[i]; it.asks() {
			commands += it.commands
			journaled, waits = journaled || it.journaled, waits || it.waits
		}
	}
	if err := e.write(up, b, from, to, true, journaled, waits, deadline); err != nil {
		return nil, err
	}
	refused, err := e.queued(up, b, from, to, journaled)
	if err != nil {
		return nil, err
	}
	l, err := up.line()
	if err != nil {
		return nil, err
	}
	if l[0] == '-' {
		refused.exec = string(l[1 : len(l)-2])
		if waits {
			if _, err := up.value(0); err != nil {
				return nil, errAgain // what it waited for came before
			}
		}
		if refused.again() {
			return nil, errAgain
		}
		return refused, nil
	}
	n, err := length(l)
	if err != nil {
		return nil, err
	}
	if want := commands + e.held.asked + ones(journaled); l[0] != '*' || n != want {
		return nil, fmt.Errorf("%w: %d results of a transaction of %d", errProtocol, n, want)
	}
	if waits {
		return nil, e.answerDurable(up, b, from, to, journaled)
	}
	for i := from; i < to; i++ {
		it := &b.items[i]
		if !it.asks() {
			it.deliver()
			continue
		}
		if err := e.answer(up, it); err != nil {
			return nil, err
		}
	}
	if err := e.noted(up); err != nil {
		return nil, err
	}
	if err := e.entered(up, journaled); err != nil {
		return nil, err
	}
	return nil, e.follow(up)
}

func ones(is bool) int {
	if is {
		return 1
	}
	return 0
}

// queued reads what Redis says before it does a transaction.
func (e *executor) queued(up *upstream, b *batch, from, to int, journaled bool) (*refusal, error) {
	refused := &refusal{}
	l, err := up.line()
	if err != nil {
		return nil, err
	}
	if l[0] != '+' {
		return nil, fmt.Errorf("it takes no transaction: %s", l[1:len(l)-2])
	}
	for i := from; i < to; i++ {
		if !b.items[i].asks() {
			continue
		}
		for range b.items[i].commands {
			if l, err = up.line(); err != nil {
				return nil, err
			}
			if l[0] == '-' {
				if refused.items == nil {
					refused.items = map[int]string{}
				}
				refused.items[i] = string(l[1 : len(l)-2])
			}
		}
	}
	for range e.held.asked {
		// What is wrong with it shows in EXEC.
		if _, err = up.line(); err != nil {
			return nil, err
		}
	}
	if journaled {
		if l, err = up.line(); err != nil {
			return nil, err
		}
		if l[0] == '-' {
			refused.journal = string(l[1 : len(l)-2])
		}
	}
	return refused, nil
}

// answer passes on the replies to an item.
func (e *executor) answer(up *upstream, it *item) error {
	c := it.conn
	start := len(c.out)
	to := sink{conn: c, b: &c.out}
	if e.whole {
		to = sink{b: &c.out, limit: maxKept}
	}
	if err := e.results(up, it, &to); err != nil {
		// Half a reply must not be followed by another.
		if to.sent {
			c.mu.Lock()
			c.fail()
			c.mu.Unlock()
		} else {
			c.out = c.out[:start]
		}
		return err
	}
	it.conn = nil
	return nil
}

func (e *executor) results(up *upstream, it *item, to *sink) error {
	if it.transaction {
		*to.b = appendLength(*to.b, '*', it.commands)
	}
	for range it.commands {
		if err := up.forward(to, 0); err != nil {
			return err
		}
	}
	return nil
}

// entered reads whether the entry is in the journal, and records a gap if it is not. The keys are those that were last written.
func (e *executor) entered(up *upstream, journaled bool) error {
	if !journaled {
		return nil
	}
	v, err := up.value(0)
	if err != nil {
		// The transaction was done as a whole: this is only the end of the connection.
		return err
	}
	e.s.entries.Add(1)
	if !isID(v) {
		reason := GapLost
		if isError(v) {
			reason = GapRefused
		}
		e.s.gap(Gap{Epoch: up.id.epoch, Reason: reason, Removed: e.lost})
	}
	return nil
}

// pipeline does items one after another, without a journal's entry.
func (e *executor) pipeline(up *upstream, b *batch, from, to int, deadline time.Time) error {
	asks := false
	for i := from; i < to; i++ {
		asks = asks || b.items[i].asks()
	}
	if asks {
		if err := e.write(up, b, from, to, false, false, false, deadline); err != nil {
			return err
		}
	}
	refused := -1 // from here on, all were refused
	var text []byte
	settle := func(end int) {
		for i := refused; i >= 0 && i < end; i++ {
			if it := &b.items[i]; it.asks() {
				it.reply = text
			}
			b.items[i].deliver()
		}
		refused = -1
	}
	for i := from; i < to; i++ {
		it := &b.items[i]
		if !it.asks() {
			if refused < 0 {
				it.deliver()
			}
			continue
		}
		if kind, err := up.r.Peek(1); err != nil {
			return err
		} else if kind[0] == '-' {
			l, err := up.line()
			if err != nil {
				return err
			}
			if passes(string(l[1:])) {
				if refused < 0 {
					refused, text = i, append([]byte(nil), l...)
				}
				continue
			}
			settle(i)
			it.reply = append([]byte(nil), l...)
			it.deliver()
			continue
		}
		settle(i)
		if err := e.answer(up, it); err != nil {
			return err
		}
	}
	if refused >= 0 && !b.atomic {
		return errAgain
	}
	settle(to) // one of several of a batch
	if !asks {
		return nil
	}
	if err := e.noted(up); err != nil {
		return err
	}
	return e.follow(up)
}
