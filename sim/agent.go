package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// agent is a sidecar: its agent witnesses, its Envoy routes as a control plane says, its application writes.
type agent struct {
	w         *world
	id        int
	name      string
	up        bool
	run       int
	probes    []*watch
	planes    []*report
	source    *report // whose topology it has
	routes    map[string]route
	following map[string]shards.Following // which rings, by pool
	taken     map[uint64]int              // the furthest step of each handoff
	real      map[string]string           // the last address of each shard
	held      map[string][]func()
}

// watch is a primary that an agent witnesses.
type watch struct {
	address, runID string
	good           time.Duration
	asked          time.Duration // until when an answer is waited for
	known, down    bool
}

// report is the stream between an agent and a control plane.
type report struct {
	agent       *agent
	c           *plane
	up          bool
	number      int // of the connection
	run         int // of the control plane
	blocked     time.Duration
	wait        time.Duration // not again before
	there, back stream
	targets     []shards.Target
	reported    time.Duration
}

func (w *world) newAgent(i int) {
	a := &agent{w: w, name: fmt.Sprint("agent", i)}
	a.id = w.endpoint(a.name)
	w.agents = append(w.agents, a)
	for _, c := range w.planes {
		r := &report{agent: a, c: c}
		a.planes = append(a.planes, r)
		c.streams = append(c.streams, r)
	}
	a.start()
}

func (a *agent) start() {
	a.up = true
	a.run++
	a.probes, a.source, a.held = nil, nil, map[string][]func(){}
	if a.routes == nil { // else they are on its disk
		a.routes, a.real = map[string]route{}, map[string]string{}
		a.taken = map[uint64]int{}
	}
	run, w := a.run, a.w
	loop := func(interval time.Duration, do func()) {
		var again func()
		again = func() {
			if a.run == run {
				do()
				w.after(interval, again)
			}
		}
		w.after(w.upTo(interval), again)
	}
	loop(w.settings.interval, a.probe)
	loop(50*ms, a.tell)
	loop(200*ms, a.connect)
	loop(w.settings.writes, a.write)
}

// stop ends it; graceful says goodbye.
func (a *agent) stop(graceful bool) {
	if !a.up {
		return
	}
	a.w.logf("%s stops, graceful %t", a.name, graceful)
	for _, r := range a.planes {
		if r.up && graceful {
			c, run := r.c, r.run
			a.w.sendOn(&r.there, a.id, c.id, func() {
				c.receive(run, func() {
					c.facts.left(a.name, c.w.now)
					c.manager.AgentLeft(a.name)
				})
			})
			r.up = false
			r.number++
		} else {
			r.broken()
		}
	}
	a.up = false
	a.run++
}

// connect keeps the streams to the control planes.
func (a *agent) connect() {
	w := a.w
	for _, r := range a.planes {
		open := w.linked(a.id, r.c.id)
		switch {
		case r.up && r.c.run != r.run:
			r.broken()
		case r.up && !open:
			if r.blocked == 0 {
				r.blocked = w.now
			} else if w.now-r.blocked > s {
				r.broken()
			}
		case r.up:
			r.blocked = 0
		case open && r.c.up && !r.c.paused && w.now >= r.wait:
			r.open()
		}
	}
	if a.source == nil || !a.source.up {
		var open []*report
		for _, r := range a.planes {
			if r.up {
				open = append(open, r)
			}
		}
		if a.source = nil; len(open) > 0 {
			a.source = pick(w, open)
			r := a.source
			number := r.number
			w.sendOn(&r.there, a.id, r.c.id, func() {
				r.c.receive(r.run, func() {
					if r.number == number && len(r.c.pushed) > 0 {
						r.topology(r.c.pushed)
						r.follow(r.c.told)
					}
				})
			})
		}
	}
}

func (r *report) open() {
	r.up, r.blocked, r.run, r.targets = true, 0, r.c.run, nil
	r.number++
	a, c := r.agent, r.c
	r.upwards(func() {
		c.facts.seen(a.name, c.w.now)
		c.manager.AgentSeen(c.reading(), a.name)
		r.instruct(c.targets[a.name])
	})
	for _, m := range a.w.members {
		r.acknowledge(m.Shard)
	}
	r.follows()
}

// upwards sends the control plane something.
func (r *report) upwards(do func()) {
	number, run := r.number, r.run
	r.agent.w.sendOn(&r.there, r.agent.id, r.c.id, func() {
		r.c.receive(run, func() {
			if r.number == number {
				do()
			}
		})
	})
}

// downwards sends the agent something.
func (r *report) downwards(do func()) {
	if !r.up {
		return
	}
	number := r.number
	r.agent.w.sendOn(&r.back, r.c.id, r.agent.id, func() {
		if r.number == number && r.agent.up {
			do()
		}
	})
}

// broken ends the stream; the control plane notices a little later.
func (r *report) broken() {
	if !r.up {
		return
	}
	r.up = false
	r.number++
	r.wait = r.agent.w.now + r.agent.w.between(200*ms, 2*s)
	c, run, number := r.c, r.run, r.number
	r.agent.w.after(r.agent.w.upTo(100*ms), func() {
		c.receive(run, func() {
			if r.number == number {
				c.facts.seen(r.agent.name, c.w.now)
				c.manager.AgentLost(c.reading(), r.agent.name)
			}
		})
	})
}

func (r *report) instruct(targets []shards.Target) {
	r.downwards(func() {
		r.targets = targets
		r.agent.want()
		r.reported = 0
	})
}

// want keeps the probes that a control plane asks for.
func (a *agent) want() {
	var next []*watch
	for _, r := range a.planes {
		for _, t := range r.targets {
			same := func(p *watch) bool { return p.address == t.Address && p.runID == t.RunID }
			if slices.ContainsFunc(next, same) {
				continue
			}
			if i := slices.IndexFunc(a.probes, same); i >= 0 {
				next = append(next, a.probes[i])
			} else {
				next = append(next, &watch{address: t.Address, runID: t.RunID, good: a.w.now})
			}
		}
	}
	a.probes = next
}

// probe asks the primaries.
func (a *agent) probe() {
	run := a.run
	for _, p := range a.probes {
		n := a.w.byName[p.address]
		if n == nil || a.w.now < p.asked {
			continue
		}
		timeout := a.w.now + a.w.settings.downAfter
		p.asked = timeout
		a.w.question(a.id, n, func(view shards.Node) {
			if a.run != run || p.asked != timeout || a.w.now > timeout {
				return
			}
			p.asked = 0
			if view.RunID == p.runID && view.Role == mesh.Primary {
				p.good = a.w.now
				p.is(a, false)
			}
		})
	}
}

func (p *watch) is(a *agent, down bool) {
	if p.known && p.down == down {
		return
	}
	p.known, p.down = true, down
	for _, r := range a.planes {
		r.reported = 0
	}
}

// tell sends verdicts: at once if one changed, often while a primary is down.
func (a *agent) tell() {
	for _, p := range a.probes {
		if a.w.now-p.good >= a.w.settings.downAfter {
			p.is(a, true)
		}
	}
	for _, r := range a.planes {
		if !r.up {
			continue
		}
		every := s
		var all []shards.Verdict
		for _, t := range r.targets {
			i := slices.IndexFunc(a.probes, func(p *watch) bool { return p.address == t.Address && p.runID == t.RunID })
			if i < 0 || !a.probes[i].known {
				continue
			}
			if a.probes[i].down {
				every = 250 * ms
			}
			all = append(all, shards.Verdict{Shard: t.Shard, Epoch: t.Epoch, Address: t.Address, Down: a.probes[i].down})
		}
		if len(all) == 0 || r.reported > 0 && a.w.now-r.reported < every {
			continue
		}
		r.reported = a.w.now
		c := r.c
		r.upwards(func() {
			c.facts.verdicts(a.name, all, c.w.now)
			c.manager.Verdicts(c.reading(), a.name, all)
			if slices.ContainsFunc(all, func(v shards.Verdict) bool { return v.Down }) {
				c.decide()
			}
		})
	}
}

// topology reaches the sidecar if it follows this control plane.
func (r *report) topology(next map[string]route) {
	if r.agent.source != r {
		return
	}
	a := r.agent
	r.downwards(func() {
		if a.source != r {
			return
		}
		for _, m := range a.w.members {
			if to := next[m.Shard]; to != a.routes[m.Shard] {
				a.routes[m.Shard] = to
				if to.standIn == "" {
					a.real[m.Shard] = to.address
					held := a.held[m.Shard]
					a.held[m.Shard] = nil
					for _, do := range held {
						do()
					}
				}
				for _, other := range a.planes {
					other.acknowledge(m.Shard)
				}
			}
		}
	})
}

func (r *report) acknowledge(shard string) {
	to, ok := r.agent.routes[shard]
	if !r.up || !ok {
		return
	}
	address := to.address
	switch to.standIn {
	case mesh.Hold:
		address = mesh.Hold.Path(shard)
	case mesh.Null:
		address = mesh.Null.Path(shard)
	}
	r.upwards(func() { r.c.manager.Acknowledged(r.agent.name, shard, address) })
}

// write is the application's: to a random shard, by the sidecar's route.
func (a *agent) write() {
	m := pick(a.w, a.w.members)
	to, ok := a.routes[m.Shard]
	if !ok {
		return
	}
	id := a.w.judge.newWrite()
	go_ := func() { a.deliver(m.Shard, a.real[m.Shard], id) }
	switch to.standIn {
	case mesh.Null:
		a.w.count("write to null")
	case mesh.Hold:
		a.w.count("write held")
		done := false
		once := func() {
			if !done {
				done = true
				go_()
			}
		}
		a.held[m.Shard] = append(a.held[m.Shard], once)
		a.w.after(400*ms, once)
	default:
		a.deliver(m.Shard, to.address, id)
	}
}

func (a *agent) deliver(shard, address string, id int32) {
	n := a.w.byName[address]
	if n == nil {
		return
	}
	a.w.send(a.id, n.id, func() {
		if !n.up {
			return
		}
		process := n.process
		n.take(func() {
			if n.process != process {
				return
			}
			n.write(id, func(done bool) {
				if done {
					a.w.judge.acknowledged(shard, n, id)
				} else {
					a.w.count("write refused")
				}
			})
		})
	})
}
