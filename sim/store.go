package main

import (
	"errors"
	"time"

	"github.com/cachemesh/cachemesh/shards"
)

// store is a control plane's side of Consul, with the real lease: what controlplane's consulStore does, one request at a time.
type store struct {
	c     *plane
	lease *shards.Lease

	busy    bool          // a request of the election is under way
	retry   time.Duration // none before
	settled bool
	doubt   bool
	compare bool
	writing bool
	known   record
	index   uint64
	watched time.Duration // when a watch was answered last, or began
	asked   bool          // a watch's answer is under way
	again   bool
	stream  stream
}

// request asks Consul for something. No answer in a second is an error.
func (t *store) request(do func() error, then func(error)) {
	c, w := t.c, t.c.w
	run, ended := c.run, false
	end := func(err error) {
		c.receive(run, func() {
			if !ended {
				ended = true
				then(err)
			}
		})
	}
	w.after(s, func() { end(errGone) })
	w.send(c.id, w.consul.id, func() {
		err := errGone
		if w.consul.leader {
			err = do()
		}
		w.send(w.consul.id, c.id, func() { end(err) })
	})
}

// until is when the control plane must have stopped, by its clock.
func (t *store) until() time.Duration {
	if !t.lease.Held() {
		t.settled = false
	}
	if !t.settled {
		return 0
	}
	return t.lease.Until().Sub(t.c.base)
}

// elect keeps the session and the lock.
func (t *store) elect() {
	if t.busy || t.c.clock() < t.retry {
		return
	}
	c, k := t.c, t.c.w.consul
	ask, _ := t.lease.Next(c.reading())
	sent, session := c.reading(), t.lease.Session()
	end := func(err error) {
		t.busy = false
		if err != nil {
			t.retry = c.clock() + 200*ms
		}
	}
	t.busy = true
	switch {
	case t.doubt:
		t.look(end)
	case ask == shards.Open:
		opened := ""
		t.request(func() error { opened = k.open(); return nil }, func(err error) {
			if err == nil {
				t.lease.Opened(opened, sent)
				c.w.logf("%s has %s", c.name, opened)
			}
			end(err)
		})
	case ask == shards.Renew:
		t.request(func() error {
			if !k.lives(session) {
				return errSession
			}
			k.renew(session)
			c.prove(session, sent)
			return nil
		}, func(err error) { t.proved(session, sent, err); end(ignore(err)) })
	case ask == shards.Acquire:
		got := false
		t.request(func() (err error) {
			if got, err = k.acquire(session); got {
				c.prove(session, sent)
			}
			return err
		}, func(err error) {
			if err == nil && got {
				t.lease.Acquired(sent)
			} else {
				t.doubt = t.lease.Held()
				t.proved(session, sent, err)
			}
			end(ignore(err))
		})
	case ask == shards.Depose:
		t.look(func(err error) {
			if holder := t.lease.Holder(); err != nil || !t.lease.Silent(c.reading()) {
				end(err)
			} else {
				c.w.logf("%s deposes %s", c.name, holder)
				c.w.count("leader deposed")
				t.request(func() error { k.end(holder); return nil }, end)
			}
		})
	case t.lease.Held() && (!t.settled || t.compare) && !t.writing:
		t.settle(end)
	default:
		t.busy = false
	}
}

func ignore(err error) error {
	if errors.Is(err, errSession) {
		return nil
	}
	return err
}

func (t *store) proved(session string, sent time.Time, err error) {
	if errors.Is(err, errSession) {
		t.lease.Ended()
	} else if err == nil {
		t.lease.Proved(session, sent)
	}
}

// look reads who has the lock.
func (t *store) look(then func(error)) {
	k, holder, mark := t.c.w.consul, "", uint64(0)
	t.request(func() error { holder, mark = k.holder, k.mark; return nil }, func(err error) {
		if err != nil {
			t.lease.Unseen(t.c.reading())
		} else {
			t.doubt = false
			t.lease.Seen(holder, mark, t.c.reading())
		}
		then(err)
	})
}

// settle makes Consul have the newest of what it has and what this control plane knows.
func (t *store) settle(then func(error)) {
	k := t.c.w.consul
	t.writing = true
	session := t.lease.Session()
	end := func(err error) { t.writing = false; then(err) }
	var there record
	var index uint64
	adopt := func(r record, index uint64) {
		if t.lease.Held() && t.lease.Session() == session {
			t.settled, t.compare = true, false
		}
		t.adopt(r, index)
		end(nil)
	}
	t.request(func() error { there, index = k.kept, k.index; return nil }, func(err error) {
		switch {
		case err != nil:
			end(err)
		case there.revision >= t.known.revision:
			adopt(there, index)
		default:
			t.c.w.count("state written again")
			r := record{state: clone(t.known.state), revision: t.known.revision + 1, by: session}
			t.put(r, index, func(index uint64, err error) {
				if err != nil {
					end(err)
				} else {
					adopt(r, index)
				}
			})
		}
	})
}

func (t *store) adopt(r record, index uint64) {
	t.known, t.index = r, index
	t.c.disk = r
}

// put writes a record.
func (t *store) put(r record, index uint64, then func(uint64, error)) {
	sent, c, k := t.c.reading(), t.c, t.c.w.consul
	got := uint64(0)
	t.request(func() (err error) {
		if got, err = k.write(c, r, index); err == nil {
			c.prove(r.by, sent)
		}
		return err
	}, func(err error) {
		switch {
		case err == nil:
			t.lease.Proved(r.by, sent)
		case errors.Is(err, errSession):
			t.doubt = true
		default:
			t.compare = true
		}
		then(got, err)
	})
}

// write replaces the state of that revision.
func (t *store) write(state shards.State, revision uint64, then func(uint64, error)) {
	if t.writing || t.c.clock() >= t.until() && !t.c.woken || revision != t.known.revision {
		then(0, errConflict)
		return
	}
	t.writing = true
	r := record{state: clone(state), revision: revision + 1, by: t.lease.Session()}
	t.put(r, t.index, func(index uint64, err error) {
		t.writing = false
		if err == nil {
			t.adopt(r, index)
		}
		then(r.revision, err)
	})
}

// watch has the answer of a blocking query come.
func (t *store) watch(later time.Duration) {
	if t.asked {
		t.again = true
		return
	}
	t.asked = true
	c, w, k, run := t.c, t.c.w, t.c.w.consul, t.c.run
	w.after(later, func() {
		if c.run != run {
			return
		}
		t.asked = false
		if t.again {
			t.again = false
			defer t.watch(ms)
		}
		if !k.leader || !w.linked(k.id, c.id) {
			return
		}
		holder, mark, r, index := k.holder, k.mark, k.kept, k.index
		w.sendOn(&t.stream, k.id, c.id, func() { c.receive(run, func() { t.seen(holder, mark, r, index) }) })
	})
}

func (t *store) seen(holder string, mark uint64, r record, index uint64) {
	t.watched = t.c.clock()
	if t.lease.Held() && holder != t.lease.Session() {
		t.doubt = true
	} else {
		t.lease.Seen(holder, mark, t.c.reading())
	}
	switch {
	case t.lease.Held():
		t.compare = t.compare || index != t.index
	case index == 0 && t.known.revision > 0:
	case r.revision >= t.known.revision || r.by == t.lease.Holder():
		t.adopt(r, index)
	}
}

// refresh begins the watch again, and says so if Consul cannot be seen.
func (t *store) refresh() {
	if t.c.clock()-t.watched > s && (!t.c.w.consul.leader || !t.c.w.linked(t.c.id, t.c.w.consul.id)) {
		t.lease.Unseen(t.c.reading())
	}
	t.watch(0)
}
