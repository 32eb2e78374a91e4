package shards

import "time"

// Terms are how long leadership lasts without news from Consul, and how it passes on.
type Terms struct {
	// TTL is that of the session. Consul ends a session that is not renewed after once to twice as long.
	TTL time.Duration
	// LockDelay is how long Consul keeps a lock from everybody after it ended the session that held it.
	LockDelay time.Duration
	// Margin is how much earlier a leader stops than another can start. It covers what is under way, and clocks of unequal pace.
	Margin time.Duration
	// Beat is how often a leader writes the lock anew: that proves to it that it leads, and to others that it lives.
	Beat time.Duration
	// Silence is how long others wait for that, while Consul answers them, before they end the leader's session. Consul by itself
	// would take TTL to notice.
	Silence time.Duration
	// Retry is how often a lock is tried that is free and kept back by its delay.
	Retry time.Duration
}

// DefaultTerms have the shortest TTL that Consul takes. A leader that falls silent stops after 2 s, and another starts after 5 s.
var DefaultTerms = Terms{
	TTL: 10 * time.Second, LockDelay: 3 * time.Second, Margin: time.Second,
	Beat: 500 * time.Millisecond, Silence: 2 * time.Second, Retry: 100 * time.Millisecond,
}

// Ask is what a Lease wants to ask of Consul next.
type Ask string

// What a lease asks for.
const (
	Nothing Ask = ""
	Open    Ask = "open"    // a session with TTL and LockDelay
	Renew   Ask = "renew"   // the session; only that it has Ended matters of the answer
	Acquire Ask = "acquire" // the lock, with the session, also if it is held already; each time with another content
	Depose  Ask = "depose"  // read the lock, tell Seen, and if its holder is still Silent, end its session
)

// Lease is one control plane's way to lead its region: no session, then a session, then the lock.
//
// A leader may act until LockDelay less Margin after it sent the last write that took effect because it held the lock. Whatever
// ends the session (its TTL, another control plane, an operator, a Consul agent that leaves) does so after that proof, and then nobody
// gets the lock for LockDelay. So another leader starts no earlier than Margin after this one has stopped, by this one's own clock.
// That a session was renewed proves nothing: a server of Consul that is not its leader any more, and does not know, renews too.
// All times are readings of that clock, which must be monotonic.
type Lease struct {
	terms   Terms
	session string
	held    bool      // the lock, by session
	holder  string    // session that holds the lock, as last seen; "" is nobody
	mark    uint64    // of the lock's content, as last seen
	fresh   time.Time // when mark was another, or the lock could not be seen
	proof   time.Time
	// When each was last asked.
	opened, renewed, acquired, deposed time.Time
}

// NewLease has no session.
func NewLease(terms Terms) *Lease { return &Lease{terms: terms} }

// Session is "" if there is none.
func (l *Lease) Session() string { return l.session }

// Holder is the session that holds the lock, as last seen; "" is nobody.
func (l *Lease) Holder() string { return l.holder }

// Silent says whether the holder, which is another, has not written the lock for so long that it may be deposed.
func (l *Lease) Silent(now time.Time) bool {
	return l.holder != "" && l.holder != l.session && !now.Before(l.fresh.Add(l.terms.Silence))
}

// Held says whether this control plane has the lock, as far as it knows. It may lead only until Until.
func (l *Lease) Held() bool { return l.held }

// Until is when a leader must have stopped; zero if it is none.
func (l *Lease) Until() time.Time {
	if !l.held {
		return time.Time{}
	}
	return l.proof.Add(l.terms.LockDelay - l.terms.Margin)
}

// Next is what to ask for now, and when to call Next again if nothing happens meanwhile. The caller sends it at once, and says with
// one of the other methods what came of it; an answer that never came is as good as none.
func (l *Lease) Next(now time.Time) (Ask, time.Time) {
	renew := l.terms.TTL / 4
	wake := now.Add(renew)
	due := func(asked *time.Time, every time.Duration) bool {
		if at := asked.Add(every); asked.IsZero() || !now.Before(at) {
			*asked = now
			return true
		} else if at.Before(wake) {
			wake = at
		}
		return false
	}
	switch {
	case l.session == "":
		if due(&l.opened, l.terms.Beat) {
			return Open, now
		}
	case due(&l.renewed, renew):
		return Renew, now
	case l.held:
		if due(&l.acquired, l.terms.Beat) {
			return Acquire, now
		}
	case l.holder == "" || l.holder == l.session:
		if due(&l.acquired, l.terms.Retry) {
			return Acquire, now
		}
	case !l.Silent(now):
		if at := l.fresh.Add(l.terms.Silence); at.Before(wake) {
			wake = at
		}
	case due(&l.deposed, l.terms.Beat):
		return Depose, now
	}
	return Nothing, wake
}

// Opened takes in a new session that was asked for at sent.
func (l *Lease) Opened(session string, sent time.Time) {
	l.session, l.held, l.renewed, l.acquired, l.proof = session, false, sent, time.Time{}, sent
}

// Proved takes in that a write, sent at sent, took effect because the session held the lock.
func (l *Lease) Proved(session string, sent time.Time) {
	if session == l.session {
		l.proved(sent)
	}
}

func (l *Lease) proved(sent time.Time) {
	if sent.After(l.proof) {
		l.proof = sent
	}
}

// Ended takes in that Consul does not know the session any more.
func (l *Lease) Ended() {
	if l.holder == l.session {
		l.holder = ""
	}
	l.session, l.held, l.acquired = "", false, time.Time{}
}

// Acquired takes in that the session has the lock, for which it asked at sent.
func (l *Lease) Acquired(sent time.Time) {
	l.held, l.holder = true, l.session
	l.proved(sent)
}

// Seen takes in whose session holds the lock ("" is nobody's), and a mark that changes whenever the lock is written. It must have been
// read after the last call of Acquired.
func (l *Lease) Seen(holder string, mark uint64, now time.Time) {
	if holder == "" && l.holder != "" {
		l.acquired = time.Time{}
	}
	if holder != l.holder || mark != l.mark {
		l.fresh = now
	}
	l.holder, l.mark = holder, mark
	l.held = l.held && holder == l.session
}

// Unseen takes in that the lock could not be read: nobody's silence can be told then.
func (l *Lease) Unseen(now time.Time) { l.fresh = now }
