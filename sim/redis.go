package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// nowhere is the dead address of which managed nodes are started as replicas.
const nowhere = "nowhere"

// node is one Redis process at a time, with the replication of Redis: histories, offsets, partial and full copies.
type node struct {
	w        *world
	id       int
	address  string
	shard    string
	up, hung bool
	slow     time.Duration
	stubborn bool // it refuses to be made primary
	lie      func(*shards.Node)
	lied     time.Duration // until when
	waiting  []func()      // bytes that arrived while it hung

	process      int // grows with each start
	runID        string
	plain        bool // started as a primary
	role         mesh.Role
	of           string
	link         int // grows with each REPLICAOF, and when the link is lost
	linked, busy bool
	blockedSince time.Duration
	stream       stream
	replID, old  string // history, and the one before
	oldEnd       int64  // how far the one before is this one's
	offset, base int64
	backlog      []entry // from base on
	epoch        uint64
	touched      int // grows with each change of the epoch's key
	writes       []int32
	lineage      int // of its data: nodes of the same one have copied it from each other; 0 is none, -1 nobody's
	loading      bool
	paused       time.Duration // until when writes wait
	held         []func()
	promoted     uint64 // the epoch that this process was promoted with last
}

// entry is one command in the stream of replication.
type entry struct {
	write   int32
	epoch   uint64
	lineage int // all is removed, and what follows is another's
}

func (w *world) newNode(shard, address string) *node {
	n := &node{w: w, address: address, shard: shard, id: w.endpoint(address)}
	w.nodes = append(w.nodes, n)
	w.byName[address] = n
	n.start(false)
	w.every(s, n.cron)
	return n
}

func (n *node) name(kind string) string {
	return fmt.Sprintf("%s-%s-%d", kind, n.address, n.w.random.IntN(1_000_000))
}

// start begins an empty process.
func (n *node) start(plain bool) {
	n.up, n.hung, n.loading, n.busy, n.linked, n.plain = true, false, false, false, false, plain
	n.process++
	n.link++
	n.runID, n.replID, n.old, n.oldEnd = n.name("run"), n.name("history"), "", 0
	n.offset, n.base, n.backlog = 0, 0, nil
	n.epoch, n.touched, n.writes, n.lineage, n.paused, n.held, n.waiting, n.promoted = 0, 0, nil, 0, 0, nil, nil, 0
	n.role, n.of = mesh.Replica, nowhere
	if plain {
		n.role, n.of, n.lineage = mesh.Primary, "", -1
	}
	n.w.logf("%s starts as %s", n.address, n.state())
}

// stop ends the process, with all that it had.
func (n *node) stop() {
	n.up, n.hung, n.waiting, n.held = false, false, nil, nil
	n.process++
	n.link++
	n.dropReplicas(3 * ms)
	n.w.logf("%s ends", n.address)
}

func (n *node) hang() { n.hung = true; n.w.logf("%s hangs", n.address) }

// resume goes on after a hang: what arrived meanwhile is executed first.
func (n *node) resume() {
	if !n.up || !n.hung {
		return
	}
	n.hung = false
	n.w.logf("%s goes on, with %d waiting requests", n.address, len(n.waiting))
	waiting := n.waiting
	n.waiting = nil
	for _, do := range waiting {
		do()
	}
}

// take executes a request now, or when the process goes on; a process that ends meanwhile never does.
func (n *node) take(do func()) {
	if n.hung {
		n.waiting = append(n.waiting, do)
		return
	}
	do()
}

func (n *node) state() string {
	if n.role == mesh.Primary {
		return fmt.Sprintf("primary, epoch %d, %s at %d", n.epoch, n.replID, n.offset)
	}
	return fmt.Sprintf("replica of %s (linked %t), epoch %d, %s at %d", n.of, n.linked, n.epoch, n.replID, n.offset)
}

// info is what the node says of itself. A replica without a link hides its data, the epoch with it.
func (n *node) info() shards.Node {
	v := shards.Node{Address: n.address, RunID: n.runID, ReplID: n.replID, Role: n.role, Of: n.of, Linked: n.linked, Loading: n.loading, Offset: n.offset, Epoch: n.epoch}
	if n.role == mesh.Replica && !n.linked || n.loading {
		v.Epoch = 0
	}
	if n.lie != nil {
		n.lie(&v)
	}
	return v
}

func (n *node) honest() bool { return n.w.now > n.lied+2*s || n.lied == 0 }

// perform executes a command on a primary and passes it on.
func (n *node) perform(e entry) {
	n.apply(e)
	for _, r := range n.w.nodes {
		if r.linked && r.of == n.address {
			n.pass(r)
		}
	}
}

func (n *node) apply(e entry) {
	n.offset++
	n.backlog = append(n.backlog, e)
	switch {
	case e.lineage > 0:
		n.writes, n.lineage = nil, e.lineage
		n.epoch = 0
		n.touched++
	case e.epoch > 0:
		n.epoch = e.epoch
		n.touched++
	default:
		n.writes = append(n.writes, e.write)
	}
}

// pass sends a replica what it does not have yet.
func (n *node) pass(r *node) {
	link, backlog, base := r.link, n.backlog, n.base
	n.w.sendOn(&r.stream, n.id, r.id, func() {
		if r.link != link || !r.up {
			return
		}
		r.take(func() {
			if r.link != link || !r.linked || r.offset < base {
				return
			}
			for _, e := range backlog[min(r.offset-base, int64(len(backlog))):] {
				r.perform(e)
			}
		})
	})
}

// dropReplicas has all replicas of this node notice that it is another now.
func (n *node) dropReplicas(later time.Duration) {
	for _, r := range n.w.nodes {
		if r.of == n.address && (r.linked || r.busy) {
			r.drop(later)
		}
	}
}

func (n *node) drop(later time.Duration) {
	link := n.link
	n.w.after(later, func() {
		if n.link == link && n.up {
			n.link++
			n.linked, n.busy = false, false
		}
	})
}

// cron looks after the link, as Redis does each second.
func (n *node) cron() {
	if !n.up || n.hung || n.role != mesh.Replica {
		return
	}
	of := n.w.byName[n.of]
	if of == nil {
		return
	}
	if n.linked {
		if n.w.linked(n.id, of.id) && !of.hung {
			n.blockedSince = 0
		} else if n.blockedSince == 0 {
			n.blockedSince = n.w.now
		} else if n.w.now-n.blockedSince > 5*s {
			n.drop(0)
		}
		return
	}
	n.attach()
}

// attach begins to copy from the node's primary.
func (n *node) attach() {
	of := n.w.byName[n.of]
	if n.busy || n.linked || of == nil || of == n || !of.up || of.hung || of.loading || !n.w.linked(n.id, of.id) || of.role == mesh.Replica && !of.linked {
		return
	}
	n.busy = true
	link, process, from := n.link, of.process, of.link
	still := func() bool {
		if n.link != link {
			return false
		}
		if of.process != process || of.link != from || !n.w.linked(n.id, of.id) {
			n.busy = false
			return false
		}
		return true
	}
	join := func() {
		n.busy, n.linked, n.blockedSince = false, true, 0
		n.stream.last = 0
		if n.offset < of.offset {
			of.pass(n)
		}
	}
	n.w.after(n.w.between(ms, 10*ms), func() {
		if !still() {
			return
		}
		partial := n.offset >= of.base && n.offset <= of.offset && (n.replID == of.replID || n.replID == of.old && n.offset <= of.oldEnd)
		if partial {
			n.replID = of.replID
			n.w.logf("%s continues with %s", n.address, of.address)
			join()
			return
		}
		writes, epoch, replID, offset, lineage := slices.Clone(of.writes), of.epoch, of.replID, of.offset, of.lineage
		n.w.after(n.w.between(10*ms, 200*ms), func() {
			if !still() {
				return
			}
			n.w.judge.copied(n, of, lineage)
			n.loading = true
			n.writes, n.epoch, n.lineage = nil, 0, 0
			n.touched++
			n.dropReplicas(0)
			own := n.process
			n.w.after(n.w.between(5*ms, 100*ms), func() {
				if n.process != own {
					return
				}
				n.loading = false
				n.writes, n.epoch, n.replID, n.offset, n.base, n.backlog, n.lineage, n.old = writes, epoch, replID, offset, offset, nil, lineage, ""
				n.touched++
				n.w.logf("%s has copied %s", n.address, of.address)
				if still() {
					join()
				}
			})
		})
	})
}

// replicaOf is REPLICAOF.
func (n *node) replicaOf(of string) {
	if of == n.of && n.role == mesh.Replica {
		return
	}
	if of == "" {
		if n.role == mesh.Primary {
			return
		}
		n.old, n.oldEnd, n.replID = n.replID, n.offset, n.name("history")
		n.role = mesh.Primary
	} else {
		n.role = mesh.Replica
	}
	n.of = of
	n.link++
	n.linked, n.busy = false, false
	n.dropReplicas(0)
	held := n.held
	n.held = nil
	for _, do := range held {
		do()
	}
	n.attach()
}

// write is a client's; answer says whether it was done. It waits while writes are paused.
func (n *node) write(id int32, answer func(bool)) {
	switch {
	case n.role != mesh.Primary || n.loading:
		answer(false)
	case n.w.now < n.paused:
		n.held = append(n.held, func() { n.write(id, answer) })
	default:
		n.perform(entry{write: id})
		answer(true)
	}
}

// pause holds writes for a while.
func (n *node) pause(until time.Duration) {
	n.paused = until
	n.w.after(until-n.w.now, func() {
		if n.paused == until {
			n.unpause()
		}
	})
}

func (n *node) unpause() {
	n.paused = 0
	held := n.held
	n.held = nil
	for _, do := range held {
		do()
	}
}
