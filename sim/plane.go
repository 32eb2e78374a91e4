package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// member is a shard, with who has its data by now.
type member struct {
	shards.Member
	nodes []*node
}

// plane is a control plane: the real shards.Manager and the real lease, fed and obeyed as package controlplane does.
type plane struct {
	w    *world
	id   int
	name string
	up   bool
	lost bool          // it is not started for now
	run  int           // grows with each start
	base time.Time     // its clock's zero
	rate float64       // its clock's pace
	wall time.Duration // its time of day is off by so much

	paused   bool
	deferred []func() // what waits for the end of the pause
	woken    bool     // this was to be done before the pause

	manager  *shards.Manager
	store    *store
	disk     record
	writing  bool
	asked    map[string]time.Duration // probes under way, until when each is waited for
	streams  []*report                // of the agents, by their number
	targets  map[string][]shards.Target
	pushed   map[string]route            // by shard
	told     map[string]shards.Following // by pool: what agents are told of rings
	moving   map[string]shards.Move      // by pool
	loadedBy string                      // who wrote the state that the manager has
	waits    map[uint64]shards.Command
	acts     bool // led at the last step

	// What truly happened, for the judge.
	facts facts
}

// route is where a shard's requests go.
type route struct {
	epoch   uint64
	address string // "" is a stand-in
	standIn mesh.StandIn
}

func (w *world) newPlane(i int) {
	c := &plane{w: w, name: fmt.Sprint("plane", i), base: time.Unix(int64(1_000_000*(i+1)), 0), rate: 1 + float64(w.random.IntN(2001)-1000)/100_000}
	c.id = w.endpoint(c.name)
	w.planes = append(w.planes, c)
}

func (c *plane) clock() time.Duration { return time.Duration(float64(c.w.now) * c.rate) }
func (c *plane) reading() time.Time   { return c.base.Add(c.clock()) }

// begin starts it again, unless it runs.
func (c *plane) begin() {
	if !c.up && !c.lost {
		c.start()
	}
}

// start begins a process that knows what is on its disk.
func (c *plane) start() {
	c.up, c.paused, c.deferred, c.writing, c.acts = true, false, nil, false, false
	c.run++
	c.store = &store{c: c, lease: shards.NewLease(shards.DefaultTerms), known: c.disk, watched: c.clock()}
	c.asked, c.targets, c.waits, c.pushed = map[string]time.Duration{}, map[string][]shards.Target{}, map[uint64]shards.Command{}, map[string]route{}
	c.told, c.moving, c.loadedBy = nil, map[string]shards.Move{}, ""
	c.facts = newFacts()
	c.manager = shards.New(shards.Config{Region: "here", Name: c.name, DownAfter: c.w.settings.downAfter, MaxLoss: 0.5, OpTimeout: opTimeout,
		Wall: func(t time.Time) time.Time { return t.Add(c.wall).UTC() }})
	var members []shards.Member
	for _, m := range c.w.members {
		members = append(members, m.Member)
	}
	c.manager.Members(members)
	run := c.run
	c.w.logf("%s starts", c.name)
	c.loop(run, 25*ms, c.tick)
	c.loop(run, c.w.settings.interval, c.probe)
	c.loop(run, 500*ms, c.store.refresh)
}

// loop does something again and again while the process lives and is not paused.
func (c *plane) loop(run int, interval time.Duration, do func()) {
	var again func()
	again = func() {
		if c.run == run {
			if !c.paused {
				do()
			}
			c.w.after(interval, again)
		}
	}
	c.w.after(c.w.upTo(interval), again)
}

func (c *plane) crash(lose bool) {
	if !c.up {
		return
	}
	c.w.logf("%s crashes", c.name)
	c.up, c.paused, c.deferred = false, false, nil
	c.run++
	if lose {
		c.disk = record{}
	}
	for _, r := range c.streams {
		r.broken()
	}
}

// leave stops as planned: it lets another lead at once.
func (c *plane) leave() {
	if !c.up {
		return
	}
	session, k := c.store.lease.Session(), c.w.consul
	c.w.logf("%s stops", c.name)
	c.crash(false)
	c.w.send(c.id, k.id, func() {
		if k.leader {
			k.release(session)
		}
	})
}

func (c *plane) pause() {
	if c.up && !c.paused {
		c.w.logf("%s stands still", c.name)
		c.paused = true
	}
}

func (c *plane) resume() {
	if !c.paused {
		return
	}
	c.w.logf("%s goes on, with %d things waiting", c.name, len(c.deferred))
	c.paused = false
	waiting := c.deferred
	c.deferred = nil
	for i, do := range waiting {
		if c.paused { // again
			c.deferred = append(c.deferred, waiting[i:]...)
			return
		}
		do()
	}
}

// receive takes something in that came from elsewhere, for one run of the process.
func (c *plane) receive(run int, do func()) {
	switch {
	case c.run != run || !c.up:
	case c.paused:
		c.deferred = append(c.deferred, func() { c.receive(run, do) })
	default:
		do()
	}
}

// step is a place where the process may end, or stand still: then it goes on exactly there.
func (c *plane) step(name string, do func()) {
	run := c.run
	switch n := c.w.settings.mishap; {
	case n == 0 || c.w.now < c.w.settings.from || c.w.now > c.w.settings.until || !c.w.chance(n):
		do()
	case c.w.chance(2):
		c.w.count("crash " + name)
		c.w.logf("(%s)", name)
		c.crash(false)
		c.w.after(c.w.upTo(5*s), func() {
			c.begin()
		})
	default:
		c.w.count("pause " + name)
		c.w.logf("(%s)", name)
		c.pause()
		c.deferred = append(c.deferred, func() {
			if c.run == run {
				c.woken = true
				do()
				c.woken = false
			}
		})
		c.w.after(c.w.between(10*ms, 8*s), func() {
			if c.run == run {
				c.resume()
			}
		})
	}
}

func (c *plane) tick() {
	c.store.elect()
	c.decide()
}

// load takes in what the store has.
func (c *plane) load() {
	state, known := c.manager.State()
	r := c.store.known
	if r.revision == known && r.by == c.loadedBy && (r.revision > 0 || c.manager.Ready()) || r.revision == 0 && len(state.Shards) > 0 {
		return
	}
	c.facts.loaded(c, r.state)
	c.manager.Loaded(c.reading(), clone(r.state), r.revision)
	c.loadedBy = r.by
	c.push()
}

// decide carries decisions out until there is nothing to be written.
func (c *plane) decide() {
	if c.writing {
		return
	}
	c.load()
	until := c.store.until()
	c.manager.Lease(c.reading(), c.base.Add(until))
	if leads := c.manager.Leading(c.reading()); leads != c.acts {
		c.acts = leads
		c.facts.led = c.w.now
		c.w.logf("%s leads: %t", c.name, leads)
	}
	state, _ := c.manager.State()
	d := c.manager.Decide(c.reading())
	for _, a := range d.Answers {
		delete(c.waits, a.ID)
		if a.Err != nil {
			c.w.count("command refused")
		} else {
			c.w.count("command done")
		}
		c.w.logf("%s answers: %v %v", c.name, a.Event.Kind, a.Err)
	}
	if d.State == nil {
		c.move(d.Moves)
	}
	if d.State == nil && len(d.Actions) == 0 || !c.up {
		return
	}
	c.w.judge.decided(c, state, d)
	if d.State == nil {
		for _, a := range d.Actions {
			c.step("before an action", func() { c.do(a) })
			if !c.up {
				return
			}
		}
		return
	}
	c.writing = true
	c.step("before a write", func() {
		run := c.run
		c.store.write(*d.State, d.Revision, func(revision uint64, err error) {
			if err != nil {
				c.writing = false
				c.w.logf("%s could not write: %v", c.name, err)
				return
			}
			c.step("after a write", func() {
				if c.run != run {
					return
				}
				c.writing = false
				c.facts.loaded(c, *d.State)
				c.manager.Written(c.reading(), *d.State, revision)
				c.loadedBy = c.store.known.by
				c.push()
				c.decide()
			})
		})
	})
}

// done takes in what came of an action.
func (c *plane) done(a shards.Action, view shards.Node, err error) {
	if err != nil {
		c.w.logf("%s: %s %s failed: %v", c.name, a.Op, a.Node, err)
	}
	if view.RunID != "" {
		c.probed(view)
	}
	if a.Op == shards.Promote {
		c.facts.promotion(a.Node, err)
	}
	c.manager.Done(c.reading(), a, err)
	c.decide()
}

func (c *plane) probed(view shards.Node) {
	c.facts.probed(c, view)
	c.manager.Probed(c.reading(), view)
}

// probe asks every node what it is.
func (c *plane) probe() {
	for _, n := range c.w.nodes {
		if c.clock() < c.asked[n.address] {
			continue
		}
		timeout := c.clock() + c.w.settings.downAfter
		c.asked[n.address] = timeout
		c.w.question(c.id, n, func(view shards.Node) {
			c.receive(c.run, func() {
				if c.asked[n.address] == timeout && c.clock() <= timeout {
					c.asked[n.address] = 0
					c.probed(view)
				}
			})
		})
	}
}

// question asks a node for INFO. A node that is gone refuses, which tells nothing.
func (w *world) question(from int, n *node, answer func(shards.Node)) {
	if !n.up || !w.reaches(from, n.id) {
		return
	}
	process := n.process
	n.take(func() {
		if n.process != process {
			return
		}
		view := n.info()
		w.after(w.delay()+w.upTo(n.slow), func() { w.arrive(n.id, from, 0, func() { answer(view) }) })
	})
}

// push passes the topology on to the sidecars that follow this control plane.
func (c *plane) push() {
	state, _ := c.manager.State()
	var t mesh.Topology
	for _, m := range c.w.members {
		shard := mesh.Shard{Name: m.Shard}
		for _, address := range m.Nodes {
			shard.Nodes = append(shard.Nodes, mesh.Node{Address: address})
		}
		if len(t.Pools) == 0 || t.Pools[len(t.Pools)-1].Name != m.Pool {
			t.Pools = append(t.Pools, mesh.Pool{Name: m.Pool})
		}
		p := &t.Pools[len(t.Pools)-1]
		p.Shards = append(p.Shards, shard)
	}
	t, _ = shards.Topology(t, state)
	if told := rings(t); !maps.Equal(told, c.told) {
		c.told = told
		for _, r := range c.streams {
			r.follow(told)
		}
	}
	next := map[string]route{}
	for _, p := range t.Pools {
		for _, shard := range p.Shards {
			r := route{epoch: shard.Epoch, standIn: shard.StandIn}
			if n, ok := shard.Primary(); ok {
				r.address = n.Address
			}
			next[shard.Name] = r
		}
	}
	c.w.judge.pushed(c, state, next)
	for _, m := range c.w.members {
		if _, ok := next[m.Shard]; !ok {
			if old, ok := c.pushed[m.Shard]; ok {
				next[m.Shard] = old
			}
		}
	}
	if len(next) == len(c.w.members) && !maps.Equal(next, c.pushed) {
		c.pushed = next
		for _, r := range c.streams {
			r.topology(next)
		}
	}
	c.instruct()
}

// instruct tells agents whom to witness.
func (c *plane) instruct() {
	next := c.manager.Targets()
	for _, r := range c.streams {
		if name := r.agent.name; !slices.Equal(next[name], c.targets[name]) {
			r.instruct(next[name])
		}
	}
	c.targets = next
}

// ask has an operator's command carried out.
func (c *plane) ask(command shards.Command) {
	if !c.up || c.paused || !c.manager.Leading(c.reading()) {
		return
	}
	c.w.count("command " + string(command.Kind) + map[bool]string{true: " --force"}[command.Force])
	c.w.logf("an operator asks %s: %+v", c.name, command)
	c.waits[c.manager.Ask(command)] = command
	c.decide()
}

// clone is a deep copy, as reading what was written gives.
func clone(state shards.State) shards.State {
	state.Shards, state.Frozen = maps.Clone(state.Shards), maps.Clone(state.Frozen)
	for name, s := range state.Shards {
		s.Witnesses = slices.Clone(s.Witnesses)
		if s.Change != nil {
			c := *s.Change
			c.Steps = slices.Clone(c.Steps)
			s.Change = &c
		}
		state.Shards[name] = s
	}
	for name, f := range state.Frozen {
		f.Lost = slices.Clone(f.Lost)
		state.Frozen[name] = f
	}
	state.Rings, state.Handoffs = cloneRings(state.Rings), cloneHandoffs(state.Handoffs)
	state.Events = slices.Clone(state.Events)
	return state
}
