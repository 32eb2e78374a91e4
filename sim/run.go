package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// settings are what a seed makes of a run.
type settings struct {
	kind                string
	interval, downAfter time.Duration
	writes              time.Duration // between two of an application
	lanes               bool          // agents carry writes
	mishap              int           // once in so many steps a control plane crashes or stands still there; 0 is never
	from, until         time.Duration // of faults
}

// outcome is what came of a run.
type outcome struct {
	seed    uint64
	failure *violation // nil: all invariants held
	counts  map[string]int
	lasted  time.Duration
}

// simulate runs one seed. trace, which may be nil, gets a line an event.
func simulate(seed uint64, trace func(string)) (o outcome) {
	w := &world{seed: seed, random: rand.New(rand.NewPCG(seed, 0x5eed)), trace: trace, counts: map[string]int{}, byName: map[string]*node{}}
	defer func() {
		o = outcome{seed: seed, counts: w.counts, lasted: w.now}
		switch v := recover().(type) {
		case nil:
		case violation:
			o.failure = &v
			w.logf("VIOLATION: %s: %s", v.invariant, v.text)
		default:
			if trace != nil {
				panic(v)
			}
			o.failure = &violation{w.now, "a panic", fmt.Sprint(v)}
		}
	}()
	w.build()
	switch w.settings.kind {
	case "calm":
		w.calmRun()
	case "one dead primary":
		w.onePrimaryDies()
	case "long":
		w.longRun()
	default:
		w.chaos()
	}
	return o
}

// build makes the region.
func (w *world) build() {
	w.newJudge()
	w.newConsul()
	w.settings = settings{kind: "chaos", interval: 100 * ms, downAfter: 300 * ms, writes: w.between(50*ms, 200*ms)}
	switch n := w.random.IntN(100); {
	case n < 8:
		w.settings.kind = "calm"
	case n < 18:
		w.settings.kind = "one dead primary"
	case n < 19:
		w.settings.kind = "long"
		w.settings.interval, w.settings.downAfter, w.settings.writes = s, 3*s, 5*s
	}
	if w.settings.kind == "chaos" {
		if w.chance(4) {
			w.settings.downAfter = 600 * ms
		}
		w.settings.mishap = pick(w, []int{0, 0, 500, 100, 25})
	}
	w.settings.lanes = w.chance(2)
	w.count("run " + w.settings.kind)
	planes, all, replicas, agents := 1+w.random.IntN(3), 1+w.random.IntN(3), w.random.IntN(3), 1+w.random.IntN(7)
	if w.settings.kind == "one dead primary" {
		replicas = max(replicas, 1)
		all = max(all, 2) // the guard minds what one of a single pair is
	}
	for i := range planes {
		w.newPlane(i)
	}
	for i := range all {
		m := member{Member: shards.Member{Pool: "p", Shard: fmt.Sprint("shard", i)}}
		if i == 2 {
			m.Pool = "q"
		}
		m.Lanes = w.settings.lanes
		for r := range replicas + 1 {
			m.Nodes = append(m.Nodes, fmt.Sprintf("node%d%c", i, 'a'+r))
		}
		for _, address := range m.Nodes {
			m.nodes = append(m.nodes, w.newNode(m.Shard, address))
		}
		w.members = append(w.members, m)
	}
	for i := range agents {
		w.newAgent(i)
	}
	w.connect()
	w.logf("seed %d, %s: %d control planes, %d shards of %d nodes, %d agents, down after %s", w.seed, w.settings.kind, planes, all, replicas+1, agents, w.settings.downAfter)
	for _, c := range w.planes {
		w.after(w.upTo(2*s), c.begin)
	}
}

func (w *world) member(shard string) member {
	for _, m := range w.members {
		if m.Shard == shard {
			return m
		}
	}
	panic("no shard " + shard)
}

// chaos breaks things at random, then mends all and waits for peace.
func (w *world) chaos() {
	w.settings.from = w.between(0, 8*s)
	w.settings.until = w.settings.from + w.between(8*s, 20*s)
	for n := 1 + w.random.IntN(14); n > 0; n-- {
		w.after(w.between(w.settings.from, w.settings.until), w.strike)
	}
	for n := w.random.IntN(6); n > 0; n-- {
		w.after(w.between(w.settings.from, w.settings.until), w.operate)
	}
	for n := w.random.IntN(5); n > 0; n-- {
		w.after(w.between(w.settings.from, w.settings.until), w.reshape)
	}
	w.run(w.settings.until, nil)
	w.mend()
	w.converge()
}

// calmRun asks for switches and restarts while nothing fails.
func (w *world) calmRun() {
	w.run(12*s, w.settled)
	w.run(w.now+6*s, nil)
	for i := range 4 {
		w.after(time.Duration(i)*3*s+w.upTo(s), w.operate)
	}
	w.run(w.now+14*s, nil)
	w.converge()
}

// onePrimaryDies is the promise: with all else well, a failover is done soon.
func (w *world) onePrimaryDies() {
	w.run(30*s, w.settled)
	if !w.settled() {
		w.judge.fail(Converges, "the region has not begun: %s", w.unsettled())
	}
	w.run(w.now+3*s+w.upTo(s), nil)
	n := w.byName[w.consul.kept.state.Shards[pick(w, w.members).Shard].Primary]
	patience := 2*w.settings.downAfter + 900*ms
	if others := w.member(n.shard).nodes; len(others) > 2 && w.chance(3) {
		w.count("fault replica refuses to be made primary")
		if stubborn := pick(w, others); stubborn != n {
			stubborn.stubborn = true
			patience += 500 * ms
		}
	}
	died := w.now
	if w.chance(2) {
		w.count("fault node killed")
		n.stop()
	} else {
		w.count("fault node hangs")
		n.hang()
	}
	w.run(died+patience, func() bool { return w.replaced(n) })
	if !w.replaced(n) {
		w.judge.fail(Slow, "%s died at %.3f, and is served still", n.address, died.Seconds())
	}
	w.run(w.now+w.between(0, 5*s), nil)
	w.mend()
	w.converge()
}

// replaced says whether no sidecar goes to a node any more.
func (w *world) replaced(n *node) bool {
	for _, a := range w.agents {
		if a.up && a.routes[n.shard].address == n.address {
			return false
		}
	}
	return true
}

// longRun lets agents be away for longer than they count.
func (w *world) longRun() {
	w.settings.from, w.settings.until = 30*s, 16*time.Minute
	w.run(40*s, nil)
	away := 1 + w.random.IntN(len(w.agents))
	for _, a := range w.agents[:away] {
		a.stop(w.chance(4))
	}
	w.after(w.upTo(time.Minute), w.reshape)
	w.run(w.now+w.between(9*time.Minute, 12*time.Minute), nil)
	for range 4 {
		w.after(w.upTo(time.Minute), w.strike)
	}
	w.run(w.now+90*s, nil)
	w.mend()
	w.converge()
}

// converge waits until all is as it should be, and has been so for a while.
func (w *world) converge() {
	const quiet = 3 * s
	end, check := w.now+70*s, w.now
	since, revision := time.Duration(-1), uint64(0)
	w.run(end, func() bool {
		if w.now < check {
			return false
		}
		check = w.now + 100*ms
		switch {
		case !w.settled() || w.consul.starting:
			since = -1
		case since < 0:
			since, revision = w.now, w.consul.kept.revision
		}
		return since >= 0 && w.now-since >= quiet
	})
	switch {
	case w.now < end:
	case since >= 0:
		w.judge.fail(Converges, "70 s after all was mended it is well for %s only", w.now-since)
	default:
		w.judge.fail(Converges, "70 s after all was mended: %s", w.unsettled())
	}
	if n := w.consul.kept.revision - revision; n > 20 {
		w.judge.fail(Converges, "%d states were written in three quiet seconds", n)
	}
}

func (w *world) settled() bool { return w.unsettled() == "" }

// unsettled says what is not as it should be.
func (w *world) unsettled() string {
	state := w.consul.kept.state
	for pool := range state.Frozen {
		return "pool " + pool + " is frozen"
	}
	for pool, h := range state.Handoffs {
		return fmt.Sprintf("pool %s is in a handoff: %+v", pool, h)
	}
	for _, m := range w.members {
		shard, ok := state.Shards[m.Shard]
		if !ok || shard.Primary == "" || shard.Change != nil {
			return fmt.Sprintf("%s is %+v, change %+v", m.Shard, shard, shard.Change)
		}
		for _, n := range m.nodes {
			switch {
			case n.address == shard.Primary && (n.role != mesh.Primary || n.epoch != shard.Epoch || n.runID != shard.RunID):
				return fmt.Sprintf("%s is to be primary of epoch %d and process %s: it is %s, %s", n.address, shard.Epoch, shard.RunID, n.runID, n.state())
			case n.address != shard.Primary && (n.of != shard.Primary || !n.linked):
				return fmt.Sprintf("%s is to be a replica of %s: it is %s", n.address, shard.Primary, n.state())
			}
		}
		for _, c := range w.planes {
			if to := c.pushed[m.Shard]; !c.up || to != (route{epoch: shard.Epoch, address: shard.Primary}) {
				return fmt.Sprintf("%s pushes %+v for %s", c.name, to, m.Shard)
			}
		}
		for _, a := range w.agents {
			if to := a.routes[m.Shard]; !a.up || to != (route{epoch: shard.Epoch, address: shard.Primary}) {
				return fmt.Sprintf("%s routes %s to %+v", a.name, m.Shard, to)
			}
		}
	}
	return ""
}
