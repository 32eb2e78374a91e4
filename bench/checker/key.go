package checker

import (
	"slices"
	"sync"
	"time"
)

// key is what is known of one.
type key struct {
	mu     sync.Mutex
	acks   []ack
	taken  bool
	watch  int      // watched values, while which nobody changes the key
	filled [][]fill // by region: the newest acknowledged SETs
}

// ack is an acknowledged change: from at on, the bound runs.
type ack struct {
	version   int64
	began, at time.Time
	home      int
}

// fill is a SET whose value says at, which was acknowledged then.
type fill struct {
	at   int64
	done time.Time
}

const (
	// remembers is for how long acknowledgements matter, and the newest before that.
	remembers = 2 * time.Minute
	fills     = 8
)

// take is false if the key must be left alone: a value of it is watched, or, if it is for one at a time, another changes it or has
// lately. Who sets a value in two places at a time has no order.
func (k *key) take(alone bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.watch > 0 || alone && k.taken {
		return false
	}
	k.taken = true
	return true
}

// release lets others change the key.
func (k *key) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.taken = false
}

func (k *key) ack(a ack) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.acks = append(k.acks, a)
	old := 0
	for old < len(k.acks) && a.at.Sub(k.acks[old].at) > remembers {
		old++
	}
	k.acks = slices.Delete(k.acks, 0, max(0, old-1))
}

func (k *key) fill(region int, f fill) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.filled[region]) == fills {
		k.filled[region] = slices.Delete(k.filled[region], 0, 1)
	}
	k.filled[region] = append(k.filled[region], f)
}

// since returns the first acknowledged change that a cache does not know which has this version; none is that it is the newest.
func (k *key) since(version int64) (first ack, stale bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range k.acks {
		if a.version > version && (!stale || a.at.Before(first.at)) {
			first, stale = a, true
		}
	}
	return first, stale
}

// there says whether a region's value was surely in its cache before a change began.
func (k *key) there(region int, h held, change ack) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.filled[region] {
		if f.at == h.at.UnixMicro() {
			return f.done.Before(change.began)
		}
	}
	// It is older than those, or its SET was never acknowledged.
	return change.began.Sub(h.at) > 2*time.Second
}

func (k *key) watching(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watch += n
}
