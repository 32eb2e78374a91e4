package shards

import "time"

// Terms are how long leadership lasts without news from Consul, and how long it takes to pass on.
type Terms struct {
	// TTL is that of the session. Consul ends a session no earlier than TTL after its last renewal, and at times only after twice that.
	TTL time.Duration
	// LockDelay is how long Consul keeps a lock from everybody after it ended the session that held it.
	LockDelay time.Duration
	// Margin is how much earlier a leader stops than another can start. It covers what is under way, and clocks of unequal pace.
	Margin time.Duration
	// Renew is how often a leader renews.
	Renew time.Duration
	// Retry is how often a lock is tried that is free and kept back by its delay.
	Retry time.Duration
}

// DefaultTerms have the shortest TTL that Consul takes. A leader that falls silent stops after 2 s.
var DefaultTerms = Terms{TTL: 10 * time.Second, LockDelay: 3 * time.Second, Margin: time.Second, Renew: 500 * time.Millisecond, Retry: 100 * time.Millisecond}

// Ask is what a Lease wants to ask of Consul next.
type Ask string

// What a lease asks for.
const (
	Nothing Ask = ""
	Open    Ask = "open"    // a session with TTL and LockDelay
	Renew   Ask = "renew"   // the session
	Acquire Ask = "acquire" // the lock, with the session
)

// Lease is one control plane's way to lead its region: no session, then a session, then the lock.
//
// A leader may act until LockDelay less Margin after it sent the last request whose success proved that its session lived. Whatever
// ends the session (its TTL, an operator, a Consul agent that leaves) does so after that proof, and then nobody gets the lock for
// LockDelay. So another leader starts no earlier than Margin after this one has stopped, by this one's own clock. All times are
// readings of that clock, which must be monotonic.
type Lease struct {
	terms   Terms
	session string
	holder  string // session that holds the lock, as last seen; "" is nobody
	held    bool   // by session
	proof   time.Time
	// When each was last asked.
	opened, renewed, acquired time.Time
}

// NewLease has no session.
func NewLease(terms Terms) *Lease { return &Lease{terms: terms} }

// Session is "" if there is none.
func (l *Lease) Session() string { return l.session }

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
	every := l.terms.Renew
	if !l.held {
		every = l.terms.TTL / 4
	}
	wake := now.Add(every)
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
		if due(&l.opened, l.terms.Renew) {
			return Open, now
		}
	case due(&l.renewed, every):
		return Renew, now
	case !l.held && l.holder == "":
		if due(&l.acquired, l.terms.Retry) {
			return Acquire, now
		}
	}
	return Nothing, wake
}

// Opened takes in a new session that was asked for at sent.
func (l *Lease) Opened(session string, sent time.Time) {
	l.session, l.held, l.renewed, l.acquired = session, false, sent, time.Time{}
	l.proved(sent)
}

// Proved takes in that a request sent at sent showed that the session lives: a renewal, or a write that depends on the lock.
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
	terms, holder, opened := l.terms, l.holder, l.opened
	if holder == l.session {
		holder = ""
	}
	*l = Lease{terms: terms, holder: holder, opened: opened}
}

// Acquired takes in that the session was given the lock when it asked at sent.
func (l *Lease) Acquired(sent time.Time) {
	l.held, l.holder = true, l.session
	l.proved(sent)
}

// Seen takes in whose session holds the lock; "" is nobody's. It must have been read after the last call of Acquired.
func (l *Lease) Seen(holder string) {
	if holder == "" && l.holder != "" {
		l.acquired = time.Time{}
	}
	l.holder = holder
	l.held = l.held && holder == l.session
}
