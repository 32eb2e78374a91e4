package lane

import (
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/regions/holdoff"
)

// held is what an executor has to do with hold-offs: what it notes of a batch, and when some may be over.
type held struct {
	note              holdoff.Note
	longest, shortest time.Duration // of the note's
	unnoted           bool          // Redis did not know the script

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

// gather makes the note that of the items that Redis is asked about.
func (e *executor) gather(b *batch, from, to int) {
	h := &e.held
	h.note.Reset()
	if !b.held {
		return
	}
	h.longest, h.shortest = 0, holdoff.Longest
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

func (h *held) add(k []byte, holdOff time.Duration, opens bool) {
	h.longest, h.shortest = max(h.longest, holdOff), min(h.shortest, holdOff)
	if opens {
		h.note.Removed = append(h.note.Removed, holdoff.Mark{Key: k, For: holdOff})
	} else {
		h.note.Written = append(h.note.Written, k)
	}
}

// noted reads the reply to the note of a batch.
func (e *executor) noted(up *upstream) error {
	if e.held.note.Empty() {
		return nil
	}
	v, err := up.value(0)
	if err != nil {
		return err
	}
	e.heard(v)
	return nil
}

// heard is what becomes of a reply to the note.
func (e *executor) heard(v any) {
	h := &e.held
	if f, is := v.(failed); is && strings.HasPrefix(string(f), "NOSCRIPT") {
		h.unnoted = true
		return
	}
	if suspect := e.s.noted(v); suspect == 0 && len(h.note.Removed) == 0 {
		return
	}
	now := time.Now()
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

// noted counts the keys that were in a hold-off. Without an answer they expire no sooner, and are removed at its end nevertheless.
func (s *Server) noted(reply any) (suspect int) {
	text, _ := reply.(string)
	suspect, err := strconv.Atoi(text)
	if err != nil {
		if s.unheld.Add(1) == 1 {
			s.config.Log.Warn("a shard does not note what is in a hold-off", "shard", s.config.Shard, "reply", reply)
		}
		return 0
	}
	s.suspect.Add(uint64(suspect))
	return suspect
}

// noteAgain sends the note with the script, if Redis did not know it.
func (e *executor) noteAgain(up *upstream) error {
	if !e.held.unnoted {
		return nil
	}
	e.held.unnoted = false
	v, err := e.ask(up, e.held.note.Append(e.out[:0], true), 1)
	if err != nil {
		return err
	}
	e.heard(v)
	return nil
}

// noteFirst notes what an item removes before that is done, since it cannot be in one transaction.
func (e *executor) noteFirst(up *upstream, b *batch, i int) error {
	e.gather(b, i, i+1)
	if e.held.note.Empty() {
		return nil
	}
	v, err := e.ask(up, e.held.note.Append(e.out[:0], true), 1)
	if err != nil {
		return errAgain
	}
	e.heard(v)
	return nil
}

// hold begins the hold-offs of keys that were removed.
func (e *executor) hold(up *upstream, keys [][]byte) error {
	p := e.s.policy.Load()
	h := &e.held
	h.note.Reset()
	h.longest, h.shortest = 0, holdoff.Longest
	for _, k := range keys {
		if d := holdoff.Of(p.route(k)); d > 0 {
			h.add(k, d, true)
		}
	}
	if h.note.Empty() {
		return nil
	}
	v, err := e.ask(up, h.note.Append(nil, true), 1)
	if err == nil {
		e.heard(v)
	}
	return err
}

// endHoldOffs removes keys whose hold-off is over once more, and journals those that were filled meanwhile.
func (e *executor) endHoldOffs() {
	t := e.s.target.Load()
	if e.up == nil || t.StandIn != "" || e.up.id.address != t.Address || e.up.id.epoch != t.Epoch {
		return // housekeeping will see to it
	}
	if !e.up.alive() || !e.endSome() {
		e.disconnect()
	}
	if now := time.Now(); now.Before(e.held.until.Add(endsEvery)) {
		e.wake(endsEvery)
	}
}

// endSome ends what is over; it says whether the connection is of use.
func (e *executor) endSome() bool {
	for {
		v, err := e.ask(e.up, holdoff.AppendDue(e.out[:0]), 1)
		if err != nil {
			return false
		}
		e.up.used = time.Now()
		reply, ok := v.([]any)
		if !ok {
			return true // it takes no writes now
		}
		again, count, err := holdoff.ReadDue(reply)
		if err != nil {
			return false
		}
		if len(again) > 0 {
			keys := make([][]byte, len(again))
			for i, d := range again {
				keys[i] = d.Key
				e.tail.add(d.Key, true)
			}
			if err := e.unlink(e.up, keys, true); err != nil {
				return false
			}
			if _, err := e.ask(e.up, holdoff.AppendDone(nil, again), 1); err != nil {
				return false
			}
			e.s.again.Add(uint64(len(again)))
		}
		if count < holdoff.DueAtOnce {
			return true
		}
	}
}
