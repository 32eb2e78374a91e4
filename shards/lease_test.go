package shards

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// at is so long after the beginning of time.
func at(d time.Duration) time.Time { return time.Unix(1000, 0).Add(d) }

func TestALeaseFromNoSessionToTheLock(t *testing.T) {
	l := NewLease(DefaultTerms)
	next := func(now time.Duration, want Ask, wake time.Duration) {
		t.Helper()
		ask, when := l.Next(at(now))
		if ask != want || ask == Nothing && !when.Equal(at(wake)) {
			t.Fatalf("at %s: %q until %s, want %q until %s", now, ask, when.Sub(at(0)), want, wake)
		}
	}
	until := func(want time.Duration) {
		t.Helper()
		if got := l.Until(); want == 0 && !got.IsZero() || want != 0 && !got.Equal(at(want)) {
			t.Fatalf("leads until %s, want %s", got.Sub(at(0)), want)
		}
	}
	const ms, s = time.Millisecond, time.Second

	next(0, Open, 0)
	next(0, Nothing, 500*ms) // the answer is under way
	next(500*ms, Open, 0)    // it never came
	l.Opened("mine", at(500*ms))
	next(600*ms, Acquire, 0)
	until(0)
	next(650*ms, Nothing, 700*ms)
	next(700*ms, Acquire, 0) // the lock's delay
	l.Acquired(at(700 * ms))
	until(2700 * ms)
	next(800*ms, Nothing, 1200*ms)
	next(1200*ms, Acquire, 0) // shows the others that it lives
	l.Acquired(at(1200 * ms))
	until(3200 * ms)
	l.Proved("mine", at(1500*ms)) // a write
	until(3500 * ms)
	l.Proved("mine", at(1400*ms)) // an answer that was overtaken
	l.Proved("another's", at(1800*ms))
	until(3500 * ms)
	next(1700*ms, Acquire, 0)
	next(1700*ms, Nothing, 2200*ms)
	until(3500 * ms) // no answer
	next(3*s, Renew, 0)
	until(3500 * ms)

	// Its session ends, another takes over and falls silent.
	l.Ended()
	until(0)
	next(3*s, Open, 0)
	l.Opened("mine too", at(3*s))
	next(3*s, Acquire, 0)
	l.Seen("other", 7, at(3*s))
	next(4*s, Nothing, 5*s)
	l.Seen("other", 8, at(4500*ms))
	next(5*s, Nothing, 5500*ms)
	next(5500*ms, Renew, 0)
	l.Unseen(at(5700 * ms))
	next(6500*ms, Nothing, 7700*ms)
	l.Seen("other", 8, at(7*s))
	next(7600*ms, Nothing, 7700*ms)
	next(7700*ms, Depose, 0)
	next(7700*ms, Nothing, 8*s)
	l.Seen("", 9, at(7800*ms))
	next(7800*ms, Acquire, 0)
	l.Acquired(at(7800 * ms))
	l.Seen("mine too", 10, at(7900*ms))
	until(9800 * ms)
	l.Seen("other", 11, at(7950*ms))
	until(0)

	// The answer to its own request for the lock was lost.
	l.Seen("mine too", 12, at(8300*ms))
	next(8300*ms, Renew, 0)
	next(8300*ms, Acquire, 0)
}

// locker is Consul as far as a lease knows it: it ends sessions whenever it likes, and keeps lock delays.
type locker struct {
	terms    Terms
	sessions map[string]bool
	holder   string
	mark     uint64
	free     time.Duration // since when the lock may be taken
}

func (c *locker) end(session string, now time.Duration) {
	if delete(c.sessions, session); c.holder == session {
		c.holder, c.free = "", now+c.terms.LockDelay
		c.mark++
	}
}

func (c *locker) acquire(session string, now time.Duration) bool {
	if !c.sessions[session] || c.holder != session && (c.holder != "" || now < c.free) {
		return false
	}
	c.holder = session
	c.mark++
	return true
}

// Requests and answers take long or are lost, processes stand still and end, sessions end at any time: two never lead at once.
func TestTwoNeverLeadAtOnce(t *testing.T) {
	led := 0
	for seed := range uint64(300) {
		led += leaseRun(t, seed)
	}
	if led < 300 {
		t.Errorf("only %d terms in 300 runs", led)
	}
}

type leaseMessage struct {
	at time.Duration
	do func()
}

func leaseRun(t *testing.T, seed uint64) (terms int) {
	random := rand.New(rand.NewPCG(seed, 1))
	consul := &locker{terms: DefaultTerms, sessions: map[string]bool{}}
	leases := make([]*Lease, 3)
	stopped := make([]time.Duration, len(leases)) // until when it stands still
	for i := range leases {
		leases[i] = NewLease(DefaultTerms)
	}
	var mail []leaseMessage
	var now time.Duration
	// later sends, unless the message is lost.
	later := func(do func()) {
		if random.IntN(10) > 0 {
			delay := time.Duration(random.IntN(20)) * time.Millisecond
			if random.IntN(20) == 0 {
				delay = time.Duration(random.IntN(4000)) * time.Millisecond
			}
			mail = append(mail, leaseMessage{now + delay, do})
		}
	}
	sessions, last := 0, ""
	for ; now < time.Minute; now += 10 * time.Millisecond {
		for i := 0; i < len(mail); {
			if mail[i].at > now {
				i++
				continue
			}
			do := mail[i].do
			mail = append(mail[:i], mail[i+1:]...)
			do()
		}
		if random.IntN(400) == 0 && consul.holder != "" {
			consul.end(consul.holder, now)
		}
		var leading []string
		for i, l := range leases {
			if now < stopped[i] {
				continue
			}
			if random.IntN(2000) == 0 {
				stopped[i] = now + time.Duration(random.IntN(10000))*time.Millisecond
			}
			if random.IntN(4000) == 0 {
				leases[i] = NewLease(DefaultTerms)
				continue
			}
			if at(now).Before(l.Until()) {
				leading = append(leading, l.Session())
			}
			leaseStep(l, consul, &now, later, func() string { sessions++; return fmt.Sprint("session ", sessions) })
		}
		if len(leading) > 1 {
			t.Fatalf("seed %d, %s: %v lead at once", seed, now, leading)
		}
		if len(leading) == 1 && leading[0] != last {
			last = leading[0]
			terms++
		}
	}
	return terms
}

// leaseStep asks the locker for what the lease wants.
func leaseStep(l *Lease, c *locker, now *time.Duration, later func(func()), name func() string) {
	ask, _ := l.Next(at(*now))
	sent, session, holder := at(*now), l.Session(), l.Holder()
	switch ask {
	case Open:
		later(func() {
			opened := name()
			c.sessions[opened] = true
			later(func() {
				if l.Session() == "" {
					l.Opened(opened, sent)
				}
			})
		})
	case Renew:
		later(func() {
			alive := c.sessions[session]
			later(func() {
				if !alive && l.Session() == session {
					l.Ended()
				}
			})
		})
	case Acquire:
		later(func() {
			ok := c.acquire(session, *now)
			holder, mark := c.holder, c.mark
			// An answer that is so late that the lock was asked for again is not waited for.
			later(func() {
				if l.Session() != session || l.acquired != sent {
					return
				}
				if ok {
					l.Acquired(sent)
				} else {
					l.Seen(holder, mark, at(*now))
				}
			})
		})
	case Depose:
		later(func() { c.end(holder, *now) })
	}
}
