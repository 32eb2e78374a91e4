package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/cachemesh/cachemesh/shards"
)

// consul is a cluster of servers as its clients see it: sessions, one lock with its delay, and one key with the state.
type consul struct {
	w        *world
	id       int
	leader   bool                     // it has one, and answers
	starting bool                     // empty
	sessions map[string]time.Duration // when each ends, unless it is renewed
	opened   int
	holder   string
	mark     uint64
	free     time.Duration // the lock may be taken from then on
	kept     record
	index    uint64
	last     uint64 // index of anything
	backups  []record
}

// record is a state as the store keeps it.
type record struct {
	state    shards.State
	revision uint64
	by       string // session of who wrote it
}

var (
	errGone     = errors.New("Consul does not answer")
	errSession  = errors.New("the session has ended")
	errConflict = errors.New("the state is another by now")
)

func (w *world) newConsul() {
	w.consul = &consul{w: w, id: w.endpoint("consul"), leader: true, sessions: map[string]time.Duration{}}
}

func (k *consul) next() uint64 { k.last++; return k.last }

func (k *consul) lives(session string) bool { _, ok := k.sessions[session]; return ok }

func (k *consul) open() string {
	k.opened++
	session := fmt.Sprint("session-", k.opened)
	k.renew(session)
	return session
}

// renew lets a session live for its TTL, or up to twice as long.
func (k *consul) renew(session string) {
	ttl := shards.DefaultTerms.TTL
	until := k.w.now + ttl + k.w.upTo(ttl)
	k.sessions[session] = until
	k.w.after(until-k.w.now, func() {
		switch {
		case k.sessions[session] != until:
		case k.leader:
			k.w.logf("Consul ends %s", session)
			k.end(session)
		default:
			k.renew(session) // a new leader begins to count anew
		}
	})
}

func (k *consul) end(session string) {
	if !k.lives(session) {
		return
	}
	delete(k.sessions, session)
	if k.holder == session {
		k.holder, k.free = "", k.w.now+shards.DefaultTerms.LockDelay
		k.mark = k.next()
		k.tell()
	}
}

// acquire gives the lock to a session.
func (k *consul) acquire(session string) (bool, error) {
	if !k.lives(session) {
		return false, errSession
	}
	if k.holder != session && (k.holder != "" || k.w.now < k.free) {
		return false, nil
	}
	if k.holder != session {
		k.w.logf("%s has the lock", session)
		k.w.count("leader")
	}
	k.holder, k.mark = session, k.next()
	k.tell()
	return true, nil
}

// release gives the lock back, and ends the session.
func (k *consul) release(session string) {
	if k.holder == session {
		k.holder, k.mark = "", k.next()
	}
	k.end(session)
	k.tell()
}

// write replaces the state of that index, if the session has the lock.
func (k *consul) write(c *plane, r record, index uint64) (uint64, error) {
	switch {
	case k.holder != r.by:
		return 0, errSession
	case k.index != index:
		return 0, errConflict
	}
	k.w.judge.committed(c, k.kept, r)
	k.kept, k.index = r, k.next()
	k.backups = append(k.backups, r)
	k.tell()
	return k.index, nil
}

// tell answers the blocking queries of all control planes.
func (k *consul) tell() {
	for _, c := range k.w.planes {
		if c.up {
			c.store.watch(ms)
		}
	}
}

// wipe forgets everything, as servers whose disks were replaced do.
func (k *consul) wipe() {
	k.sessions, k.holder, k.free = map[string]time.Duration{}, "", 0
	k.kept, k.index = record{}, 0
	k.mark, k.last = 0, k.last/2
}
