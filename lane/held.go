package lane

import (
	"strconv"
	"time"

	"github.com/cachemesh/cachemesh/regions/holdoff"
)

// held is what an executor has to do with hold-offs: what it tells the shard of a batch, and when some may be over.
type held struct {
	marks             []holdoff.Mark
	written           [][]byte
	note              holdoff.Note  // of what only a script does
	longest, shortest time.Duration // of the marks and the written
	asked             int           // commands
	suspect           bool          // something written is held

	alarm *time.Timer
	next  time.Time // when it goes off
	until time.Time // when the last hold-off that is known of ends
}

// endsEvery is how often an executor looks for hold-offs that are over while it knows of some. Of those that others know of, and
// cannot end any more, it finds out in its housekeeping.
const endsEvery = 100 * time.Millisecond

// newAlarm wakes the executor when it is set.
func newAlarm(e *executor) *time.Timer {
	t := time.AfterFunc(time.Hour, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.due = true
		e.work.Signal()
	})
	t.Stop()
	return t
}

// gather takes in the items that Redis is asked about.
func (e *executor) gather(b *batch, from, to int) {
	h := &e.held
	h.begin()
	if !b.held {
		return
	}
	for i := from; i < to; i++ {
		it := &b.items[i]
		if !it.asks() {
			continue
		}
		for _, k := range b.keys[it.key:it.keyEnd] {
			if k.holdOff > 0 {
				h.add(b.raw[k.from:k.to], k.holdOff, k.opens)
			}
		}
	}
}

func (h *held) begin() {
	h.note.Reset()
	clear(h.marks)
	clear(h.written)
	h.marks, h.written = h.marks[:0], h.written[:0]
	h.longest, h.shortest, h.asked, h.suspect = 0, holdoff.Longest, 0, false
}

func (h *held) add(k []byte, holdOff time.Duration, opens bool) {
	h.longest, h.shortest = max(h.longest, holdOff), min(h.shortest, holdOff)
	switch mark := (holdoff.Mark{Key: k, For: holdOff}); {
	case !opens:
		h.written = append(h.written, k)
	case holdoff.Plain(k):
		h.marks = append(h.marks, mark)
	default:
		h.note.Removed = append(h.note.Removed, mark)
	}
}

// append appends what can be said with plain commands.
func (h *held) append(out []byte, clock time.Time) []byte {
	if len(h.marks) > 0 {
		h.asked++
		out = holdoff.AppendMarks(out, h.marks, clock)
	}
	if len(h.written) > 0 {
		h.asked += 1 + len(h.written)
		out = holdoff.AppendLook(out, h.written)
	}
	return out
}

// noted reads the replies to that.
func (e *executor) noted(up *upstream) error {
	h := &e.held
	if len(h.marks) > 0 && h.asked > 0 {
		v, err := up.value(0)
		if err != nil {
			return err
		}
		e.s.unnoted(v)
		e.expect()
	}
	if len(h.written) > 0 && h.asked > 0 {
		return e.looked(up)
	}
	return nil
}

// looked reads whether any of the written keys is held.
func (e *executor) looked(up *upstream) error {
	for range 1 + len(e.held.written) {
		l, err := up.line()
		if err != nil {
			return err
		}
		switch {
		case l[0] == '_' || l[0] == '$' && l[1] == '-':
		case l[0] == '-' || l[0] == ',': // a full node does not say: the script finds out
			e.held.suspect = true
		case l[0] == '$':
			e.held.suspect = true
			if _, err = up.line(); err != nil {
				return err
			}
		default:
			return errProtocol
		}
	}
	return nil
}

// follow says what takes a script, before the batch is answered.
func (e *executor) follow(up *upstream) error {
	h := &e.held
	if h.suspect {
		h.note.Written = append(h.note.Written, h.written...)
		h.suspect = false
	}
	if h.note.Empty() {
		return nil
	}
	v, err := e.ask(up, h.note.Append(e.out[:0]), 1)
	if err != nil {
		return err
	}
	if e.s.noted(v) > 0 || len(h.note.Removed) > 0 {
		e.expect()
	}
	h.note.Reset()
	return nil
}

// expect sees to it that the ends of what was gathered are not missed.
func (e *executor) expect() {
	h, now := &e.held, time.Now()
	if end := now.Add(h.longest); end.After(h.until) {
		h.until = end
	}
	if first := now.Add(h.shortest); h.next.Before(now) || first.Before(h.next) {
		e.wake(h.shortest)
	}
}

func (e *executor) wake(after time.Duration) {
	e.held.next = time.Now().Add(after)
	e.held.alarm.Reset(after)
}

// noted counts the keys that were in a hold-off.
func (s *Server) noted(reply any) (suspect int) {
	text, _ := reply.(string)
	suspect, err := strconv.Atoi(text)
	if err != nil {
		s.unnoted(reply)
		return 0
	}
	s.suspect.Add(uint64(suspect))
	return suspect
}

// unnoted counts what the shard refused to note.
func (s *Server) unnoted(reply any) {
	if isError(reply) && s.unheld.Add(1) == 1 {
		s.config.Log.Warn("a shard does not note what is in a hold-off", "shard", s.config.Shard, "reply", reply)
	}
}

// shardClock is Redis's, a round trip ahead at most.
func (s *Server) shardClock() time.Time {
	return time.Unix(0, s.clock.Load()).Add(time.Since(s.began))
}

// follows says what Redis's clock was after a moment here.
func (s *Server) follows(clock, asked time.Time) {
	s.clock.Store(clock.Add(-asked.Sub(s.began)).UnixNano())
}

// noteFirst notes what an item removes before that is done, since it cannot be in one transaction.
func (e *executor) noteFirst(up *upstream, b *batch, i int) error {
	e.gather(b, i, i+1)
	if e.script(up) != nil {
		return errAgain
	}
	return nil
}

// script says all that was gathered with one.
func (e *executor) script(up *upstream) error {
	h := &e.held
	h.note.Removed = append(h.note.Removed, h.marks...)
	h.note.Written = append(h.note.Written, h.written...)
	h.marks, h.written = h.marks[:0], h.written[:0]
	return e.follow(up)
}

// hold begins the hold-offs of keys that were removed.
func (e *executor) hold(up *upstream, keys [][]byte) error {
	p := e.s.policy.Load()
	e.held.begin()
	for _, k := range keys {
		if d := holdoff.Of(p.route(k)); d > 0 {
			e.held.add(k, d, true)
		}
	}
	return e.script(up)
}

// endHoldOffs removes keys whose hold-off is over once more, and journals those that were filled meanwhile.
func (e *executor) endHoldOffs() {
	t := e.s.target.Load()
	if e.up == nil || t.StandIn != "" || e.up.id.address != t.Address || e.up.id.epoch != t.Epoch {
		return // housekeeping will see to it
	}
	more, ok := false, e.up.alive()
	if ok {
		more, ok = e.endSome()
	}
	if !ok {
		e.disconnect()
	}
	switch now := time.Now(); {
	case more: // after what waits by now
		e.mu.Lock()
		e.due = true
		e.mu.Unlock()
	case now.Before(e.held.until.Add(endsEvery)):
		e.wake(endsEvery)
	}
}

// endSome ends some of what is over. It says whether there is more, and whether the connection is of use.
func (e *executor) endSome() (more, ok bool) {
	asked := time.Now()
	v, err := e.ask(e.up, holdoff.AppendDue(e.out[:0]), 1)
	if err != nil {
		return false, false
	}
	e.up.used = time.Now()
	reply, is := v.([]any)
	if !is {
		return false, true // it takes no writes now
	}
	again, count, clock, err := holdoff.ReadDue(reply)
	if err != nil {
		return false, false
	}
	e.s.follows(clock, asked)
	if len(again) > 0 {
		keys := make([][]byte, len(again))
		for i, d := range again {
			keys[i] = d.Key
			e.tail.add(d.Key, true)
		}
		if err := e.unlink(e.up, keys, true); err != nil {
			return false, false
		}
		if _, err := e.ask(e.up, holdoff.AppendDone(nil, again), 1); err != nil {
			return false, false
		}
		e.s.again.Add(uint64(len(again)))
	}
	return count >= holdoff.DueAtOnce, true
}
