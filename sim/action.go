package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// The errors of an action. After errSilent it may have been done all the same.
var (
	errSilent  = errors.New("no answer in time")
	errRefused = errors.New("the connection was refused, or it broke")
	errReply   = errors.New("the node refuses")
)

const (
	// roundTrip bounds one question to a node, actionTime a whole action.
	roundTrip  = s
	actionTime = 2 * s
	// Those of a handover.
	writePause = 400 * ms
	catchUp    = 300 * ms
	promotion  = 250 * ms
)

// action is one under way: the steps of package node, each a message of its own, with a step's end as the only thing that the next
// one knows.
type action struct {
	shards.Action
	c        *plane
	run      int           // of the control plane
	deadline time.Duration // by its clock; none is sent after it
}

// do begins an action of the control plane.
func (c *plane) do(a shards.Action) {
	x := &action{Action: a, c: c, run: c.run, deadline: min(c.clock()+actionTime, c.store.until())}
	c.w.count("action " + string(a.Op))
	c.w.logf("%s: %s", c.name, describe(a))
	end := func(view shards.Node, err error) {
		c.step("after an action", func() { c.done(a, view, err) })
	}
	n := c.w.byName[a.Node]
	view := shards.Node{Address: a.Node}
	if n == nil {
		end(view, errRefused)
		return
	}
	then := func(seen shards.Node, err error) {
		if err != nil || a.Op == shards.Restart {
			end(seen, err)
			return
		}
		x.ask(n, 0, func() (shards.Node, error) { return n.info(), nil }, func(seen shards.Node, _ int, err error) { end(seen, err) })
	}
	switch a.Op {
	case shards.Promote:
		x.promote(n, then)
	case shards.Demote:
		x.demote(n, a.Of, then)
	case shards.Mirror:
		x.fenced(n, func(seen shards.Node, look int, process int) {
			x.setEpoch(n, process, look, func(err error) { then(seen, err) })
		}, then)
	case shards.Restart:
		x.fenced(n, func(seen shards.Node, _ int, process int) {
			if seen.Role != mesh.Replica {
				then(seen, errReply)
				return
			}
			x.ask(n, process, func() (shards.Node, error) {
				n.stop()
				c.w.after(c.w.between(100*ms, s), func() {
					if !n.up {
						n.start(false)
					}
				})
				return seen, nil
			}, func(_ shards.Node, _ int, err error) {
				if errors.Is(err, errSilent) {
					then(seen, err)
					return
				}
				then(seen, nil)
			})
		}, then)
	case shards.Handover:
		x.handover(n, then)
	}
}

func describe(a shards.Action) string {
	text := fmt.Sprintf("%s %s of %s, epoch %d", a.Op, a.Node, a.Shard, a.Epoch)
	if a.From != "" {
		text += ", from " + a.From
	}
	if a.Of != "" {
		text += ", replica of " + a.Of
	}
	if a.Fresh {
		text += ", fresh"
	}
	return text
}

// ask does one round trip. process is the one that the connection is with, 0 for a new connection.
func (x *action) ask(n *node, process int, do func() (shards.Node, error), then func(seen shards.Node, process int, err error)) {
	w, c := x.c.w, x.c
	if c.run != x.run {
		return
	}
	c.step("before a step of an action", func() {
		if c.clock() >= x.deadline && !c.woken {
			then(shards.Node{Address: n.address}, process, errSilent)
			return
		}
		ended := false
		end := func(seen shards.Node, process int, err error) {
			c.receive(x.run, func() {
				if !ended {
					ended = true
					then(seen, process, err)
				}
			})
		}
		w.after(min(roundTrip, max(0, x.deadline-c.clock())), func() { end(shards.Node{Address: n.address}, process, errSilent) })
		answer := func(seen shards.Node, err error) {
			at := n.process
			w.after(n.slow, func() { w.send(n.id, c.id, func() { end(seen, at, err) }) })
		}
		w.send(c.id, n.id, func() {
			if !n.up || process != 0 && n.process != process {
				answer(shards.Node{Address: n.address}, errRefused)
				return
			}
			at := n.process
			n.take(func() {
				if n.process == at {
					answer(do())
				}
			})
		})
	})
}

// fenced looks whether a node has seen a newer epoch; next learns how often its epoch had been touched.
func (x *action) fenced(n *node, next func(seen shards.Node, look, process int), fail func(shards.Node, error)) {
	look := 0
	x.ask(n, 0, func() (shards.Node, error) {
		seen := n.info()
		if seen.Epoch == 0 && n.lie == nil && !n.loading {
			seen.Epoch = n.epoch // also while it is hidden
		}
		look = n.touched
		if n.loading {
			return seen, errReply
		}
		return seen, nil
	}, func(seen shards.Node, process int, err error) {
		switch {
		case err != nil:
			fail(seen, err)
		case seen.Epoch > x.Epoch:
			fail(seen, shards.ErrEpoch)
		default:
			next(seen, look, process)
		}
	})
}

// role sends REPLICAOF, unless the node's epoch was touched since.
func (x *action) role(n *node, process, look int, of string, then func(error)) {
	x.ask(n, process, func() (shards.Node, error) {
		if n.touched != look || n.loading || n.stubborn && of == "" {
			return n.info(), errReply
		}
		x.c.w.judge.acted(x.c, x.Action, n)
		x.c.w.logf("%s: REPLICAOF %q, epoch %d", n.address, of, x.Epoch)
		n.replicaOf(of)
		return n.info(), nil
	}, func(_ shards.Node, _ int, err error) { then(err) })
}

func (x *action) setEpoch(n *node, process, look int, then func(error)) {
	x.ask(n, process, func() (shards.Node, error) {
		if n.role != mesh.Primary || n.loading || look >= 0 && n.touched != look {
			return n.info(), errReply
		}
		x.c.w.judge.acted(x.c, x.Action, n)
		if x.Op != shards.Mirror {
			x.c.w.judge.promoted(x.c, n, x.Action)
		}
		n.perform(entry{epoch: x.Epoch})
		x.c.w.logf("%s has epoch %d", n.address, x.Epoch)
		return n.info(), nil
	}, func(_ shards.Node, _ int, err error) { then(err) })
}

func (x *action) promote(n *node, then func(shards.Node, error)) {
	x.fenced(n, func(seen shards.Node, look, process int) {
		if seen.Role == mesh.Primary && seen.Epoch == x.Epoch {
			then(seen, nil)
			return
		}
		if x.RunID != "" && seen.RunID != x.RunID {
			then(seen, errReply)
			return
		}
		if seen.Role == mesh.Replica && seen.Epoch == x.Epoch {
			then(seen, shards.ErrEpoch) // it has that from another
			return
		}
		finish := func() { x.setEpoch(n, process, -1, func(err error) { then(seen, err) }) }
		x.role(n, process, look, "", func(err error) {
			switch {
			case err != nil:
				then(seen, err)
			case x.Fresh:
				x.ask(n, process, func() (shards.Node, error) {
					if n.role != mesh.Primary {
						return n.info(), errReply
					}
					n.perform(entry{lineage: x.c.w.judge.newLineage()})
					return n.info(), nil
				}, func(_ shards.Node, _ int, err error) {
					if err != nil {
						then(seen, err)
						return
					}
					finish()
				})
			default:
				finish()
			}
		})
	}, then)
}

func (x *action) demote(n *node, of string, then func(shards.Node, error)) {
	x.fenced(n, func(seen shards.Node, look, process int) {
		if seen.Role == mesh.Replica && seen.Of == of {
			then(seen, nil)
			return
		}
		x.role(n, process, look, of, func(err error) { then(seen, err) })
	}, then)
}

// handover pauses writes at From, waits until n has all, promotes n, and makes From its replica.
func (x *action) handover(n *node, then func(shards.Node, error)) {
	from := x.c.w.byName[x.From]
	info := func(n *node) func() (shards.Node, error) {
		return func() (shards.Node, error) { return n.info(), nil }
	}
	unpause := func() {
		x.ask(from, 0, func() (shards.Node, error) { from.unpause(); return from.info(), nil }, func(shards.Node, int, error) {})
	}
	demote := func(seen shards.Node) {
		x.demote(from, x.Node, func(_ shards.Node, err error) {
			if err == nil {
				unpause()
			}
			then(seen, nil)
		})
	}
	var follow func(begun time.Duration, missing bool)
	follow = func(begun time.Duration, missing bool) {
		asked := x.c.clock()
		fail := func(seen shards.Node, err error) {
			if err != nil && !missing || x.c.clock()-begun >= catchUp {
				unpause()
				then(seen, shards.ErrUndone)
				return
			}
			x.c.w.after(ms, func() { x.c.receive(x.run, func() { follow(begun, missing) }) })
		}
		x.ask(from, 0, func() (shards.Node, error) { from.pause(x.c.w.now + writePause); return from.info(), nil }, func(old shards.Node, _ int, err error) {
			if err != nil {
				fail(old, err)
				return
			}
			x.ask(n, 0, info(n), func(to shards.Node, _ int, err error) {
				switch {
				case err != nil:
					fail(to, err)
				case to.Linked && to.ReplID == old.ReplID && to.Offset >= old.Offset:
					whole := x.deadline
					x.deadline = min(x.deadline, asked+promotion)
					x.promote(n, func(seen shards.Node, err error) {
						x.deadline = whole
						switch {
						case errors.Is(err, errReply) || errors.Is(err, shards.ErrEpoch):
							unpause()
							then(seen, err)
						case err != nil:
							then(seen, err)
						default:
							demote(seen)
						}
					})
				default:
					missing = true
					fail(to, nil)
				}
			})
		})
	}
	x.ask(n, 0, info(n), func(to shards.Node, _ int, err error) {
		if err != nil || to.Role == mesh.Primary && to.Epoch == x.Epoch {
			if err == nil {
				demote(to)
			} else {
				then(to, shards.ErrUndone)
			}
			return
		}
		x.ask(from, 0, info(from), func(old shards.Node, _ int, err error) {
			switch {
			case err != nil:
				then(to, shards.ErrUndone)
			case old.Epoch > x.Epoch:
				then(to, shards.ErrEpoch)
			case old.Role != mesh.Primary || !to.Linked || to.ReplID != old.ReplID:
				then(to, shards.ErrUndone)
			default:
				follow(x.c.clock(), false)
			}
		})
	})
}
