package main

import (
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// fault breaks something, and returns what mends it; nil if there was nothing to break.
type fault struct {
	name   string
	weight int
	do     func(w *world, lasts time.Duration) (mend func())
}

var faults = []fault{
	{"node killed", 8, killed},
	{"node killed and started as a primary", 2, startedAsPrimary},
	{"node restarted at once", 4, restarted},
	{"node hangs", 6, hangs},
	{"node is slow", 3, slow},
	{"node lies", 3, lies},
	{"replica refuses to be made primary", 3, stubborn},
	{"many nodes killed", 3, manyKilled},
	{"partition of two", 8, parted},
	{"one-way partition", 6, oneWay},
	{"one cut off", 6, cutOff},
	{"network in two halves", 3, halves},
	{"storm of delays", 2, storm},
	{"Consul without leader", 3, leaderless},
	{"Consul cut off from one", 3, consulCutOff},
	{"Consul wiped", 2, wiped},
	{"all lost but an old backup", 2, restored},
	{"session ended", 2, sessionEnded},
	{"control plane crashes", 4, planeCrashes},
	{"control plane loses its disk", 2, planeLosesDisk},
	{"control plane stops", 2, planeStops},
	{"control plane stands still", 5, planeStandsStill},
	{"clock steps", 3, clockSteps},
	{"agent crashes", 3, agentCrashes},
	{"agent stops", 2, agentStops},
	{"agents are gone", 1, agentsGone},
}

var weights = func() (sum int) {
	for _, f := range faults {
		sum += f.weight
	}
	return sum
}()

// strike has one fault happen.
func (w *world) strike() {
	n := w.random.IntN(weights)
	for _, f := range faults {
		if n -= f.weight; n >= 0 {
			continue
		}
		lasts := w.between(50*ms, 2*s)
		if w.chance(3) {
			lasts = w.between(s, 10*s)
		}
		w.logf("-- %s, for %s", f.name, lasts)
		mend := f.do(w, lasts)
		if mend == nil {
			return
		}
		w.count("fault " + f.name)
		w.faults++
		mended := w.mended
		w.after(lasts, func() {
			if w.mended != mended {
				return
			}
			w.logf("-- end of: %s", f.name)
			mend()
			w.faults--
			w.calm = w.now
		})
		return
	}
}

// victim is a node, rather often a primary, or one about to be.
func (w *world) victim() *node {
	m := pick(w, w.members)
	shard := w.consul.kept.state.Shards[m.Shard]
	address := ""
	switch w.random.IntN(4) {
	case 0, 1:
		address = shard.Primary
	case 2:
		if shard.Change != nil {
			address = shard.Change.To
		}
	}
	if n := w.byName[address]; n != nil {
		return n
	}
	return pick(w, m.nodes)
}

// leading is the control plane that acts, or any.
func (w *world) leading() *plane {
	if i := slices.IndexFunc(w.planes, func(c *plane) bool { return c.acts && c.up }); i >= 0 && !w.chance(3) {
		return w.planes[i]
	}
	return pick(w, w.planes)
}

func (n *node) kill() bool {
	if !n.up {
		return false
	}
	n.stop()
	return true
}

func killed(w *world, _ time.Duration) func() {
	n := w.victim()
	if !n.kill() {
		return nil
	}
	return func() {
		if !n.up {
			n.start(false)
		}
	}
}

func startedAsPrimary(w *world, _ time.Duration) func() {
	n := w.victim()
	if !n.kill() {
		return nil
	}
	return func() {
		if !n.up {
			n.start(true)
		}
	}
}

func restarted(w *world, _ time.Duration) func() {
	n := w.victim()
	if !n.kill() {
		return nil
	}
	n.start(false)
	return func() {}
}

func hangs(w *world, _ time.Duration) func() {
	n := w.victim()
	if !n.up || n.hung {
		return nil
	}
	n.hang()
	return n.resume
}

func slow(w *world, _ time.Duration) func() {
	n := w.victim()
	n.slow = w.between(20*ms, s)
	return func() { n.slow = 0 }
}

func lies(w *world, lasts time.Duration) func() {
	n := w.victim()
	n.lied = max(n.lied, w.now+lasts)
	offset, epoch, role := w.random.Int64N(1000)-500, w.random.Uint64N(10), pick(w, []mesh.Role{mesh.Primary, mesh.Replica})
	if w.chance(10) {
		epoch = 1<<64 - 1 - w.random.Uint64N(2)
	}
	n.lie = []func(*shards.Node){
		func(v *shards.Node) { v.Offset = max(0, v.Offset+offset) },
		func(v *shards.Node) { v.Epoch = epoch },
		func(v *shards.Node) { v.Role = role },
		func(v *shards.Node) { v.Role, v.Epoch, v.Offset = role, epoch, 1<<40 },
	}[w.random.IntN(4)]
	return func() { n.lie = nil }
}

func stubborn(w *world, _ time.Duration) func() {
	n := pick(w, pick(w, w.members).nodes)
	if n.stubborn {
		return nil
	}
	n.stubborn = true
	return func() { n.stubborn = false }
}

// manyKilled takes more than half of a pool at once.
func manyKilled(w *world, _ time.Duration) func() {
	pool := pick(w, w.members).Pool
	var all []*node
	for _, m := range w.members {
		if m.Pool == pool {
			all = append(all, m.nodes...)
		}
	}
	w.random.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
	all = all[:len(all)/2+w.random.IntN(len(all)-len(all)/2)+1-len(all)%2]
	hang := w.chance(3)
	for _, n := range all {
		switch {
		case !n.up:
		case hang:
			n.hang()
		default:
			n.stop()
		}
	}
	return func() {
		for _, n := range all {
			n.resume()
			if !n.up {
				n.start(false)
			}
		}
	}
}

// ends are endpoints: those that matter most for now first.
func (w *world) end() int {
	switch w.random.IntN(4) {
	case 0:
		return w.leading().id
	case 1:
		return w.victim().id
	}
	return w.random.IntN(w.endpoints)
}

func parted(w *world, _ time.Duration) func() {
	a, b := w.end(), w.end()
	if a == b {
		return nil
	}
	there, back := w.partition(a, b), w.partition(b, a)
	w.logf("   %s and %s", w.names[a], w.names[b])
	return func() { there(); back() }
}

func oneWay(w *world, _ time.Duration) func() {
	a, b := w.end(), w.end()
	if a == b {
		return nil
	}
	w.logf("   %s to %s", w.names[a], w.names[b])
	return w.partition(a, b)
}

func cutOff(w *world, _ time.Duration) func() {
	a := w.end()
	w.logf("   %s", w.names[a])
	return w.split(func(id int) bool { return id == a })
}

func halves(w *world, _ time.Duration) func() {
	side := make([]bool, w.endpoints)
	for i := range side {
		side[i] = w.chance(2)
	}
	return w.split(func(id int) bool { return side[id] })
}

// split parts those inside from those outside.
func (w *world) split(inside func(int) bool) func() {
	var heal []func()
	for a := range w.endpoints {
		for b := range w.endpoints {
			if inside(a) != inside(b) {
				heal = append(heal, w.partition(a, b))
			}
		}
	}
	return func() {
		for _, do := range heal {
			do()
		}
	}
}

func storm(w *world, _ time.Duration) func() {
	w.storm += 20
	return func() { w.storm -= 20 }
}

func leaderless(w *world, _ time.Duration) func() {
	if !w.consul.leader {
		return nil
	}
	w.consul.leader = false
	return func() { w.consul.leader = true; w.consul.tell() }
}

func consulCutOff(w *world, _ time.Duration) func() {
	c := w.leading()
	there, back := w.partition(c.id, w.consul.id), w.partition(w.consul.id, c.id)
	return func() { there(); back() }
}

// wiped stops Consul and starts it empty. That takes longer than a leader goes on without it.
func wiped(w *world, lasts time.Duration) func() {
	if !w.consul.leader {
		return nil
	}
	w.consul.leader, w.consul.starting = false, true
	w.after(max(lasts, 3*s), func() {
		w.consul.wipe()
		w.consul.leader, w.consul.starting = true, false
		w.calm = w.now
		w.logf("Consul is back, empty")
	})
	return func() {}
}

// restored stops Consul and all control planes, and starts them with an old state. Only nodes know what came after it.
func restored(w *world, lasts time.Duration) func() {
	k := w.consul
	if !k.leader || len(k.backups) == 0 {
		return nil
	}
	k.leader, k.starting = false, true
	for _, c := range w.planes {
		c.crash(true)
		c.lost = true
	}
	w.after(max(lasts, 3*s), func() {
		k.wipe()
		k.kept, k.index = pick(w, k.backups), k.next()
		k.leader, k.starting = true, false
		w.calm = w.now
		w.judge.restored(k.kept)
		w.logf("Consul is back, with revision %d", k.kept.revision)
		for _, c := range w.planes {
			c.lost = false
			c.start()
		}
	})
	return func() {}
}

func sessionEnded(w *world, _ time.Duration) func() {
	if w.consul.holder == "" || !w.consul.leader {
		return nil
	}
	w.consul.end(w.consul.holder)
	return func() {}
}

func (w *world) crashes(c *plane, lose bool) func() {
	if !c.up {
		return nil
	}
	c.crash(lose)
	return func() {
		c.begin()
	}
}

func planeCrashes(w *world, _ time.Duration) func()   { return w.crashes(w.leading(), false) }
func planeLosesDisk(w *world, _ time.Duration) func() { return w.crashes(w.leading(), true) }

func planeStops(w *world, _ time.Duration) func() {
	c := w.leading()
	if !c.up {
		return nil
	}
	c.leave()
	return func() {
		c.begin()
	}
}

func planeStandsStill(w *world, _ time.Duration) func() {
	c := w.leading()
	if !c.up || c.paused {
		return nil
	}
	c.pause()
	return c.resume
}

func clockSteps(w *world, _ time.Duration) func() {
	c := w.leading()
	c.wall += w.upTo(48*time.Hour) - 24*time.Hour
	return func() {}
}

func agentCrashes(w *world, _ time.Duration) func() {
	a := pick(w, w.agents)
	if !a.up {
		return nil
	}
	a.stop(false)
	return func() {
		if !a.up {
			a.start()
		}
	}
}

func agentStops(w *world, _ time.Duration) func() {
	a := pick(w, w.agents)
	if !a.up {
		return nil
	}
	a.stop(true)
	return func() {
		if !a.up {
			a.start()
		}
	}
}

// agentsGone takes all of them but a few.
func agentsGone(w *world, _ time.Duration) func() {
	left := w.random.IntN(2)
	for _, a := range w.agents[left:] {
		a.stop(w.chance(2))
	}
	return func() {
		for _, a := range w.agents[left:] {
			if !a.up {
				a.start()
			}
		}
	}
}

// operate has an operator ask for something.
func (w *world) operate() {
	m := pick(w, w.members)
	address := pick(w, m.nodes).address
	if w.chance(2) {
		address = ""
	}
	command := shards.Command{Kind: shards.Switch, Pool: m.Pool, Shard: m.Shard, Node: address}
	switch w.random.IntN(6) {
	case 0:
		command.Force = true
	case 1:
		command.Kind, command.Node = shards.Restarted, pick(w, m.nodes).address
	case 2:
		command.Kind, command.Shard, command.Node = shards.Accepted, "", ""
	}
	w.leading().ask(command)
}

// mend makes everything well again.
func (w *world) mend() {
	w.logf("-- all is mended")
	w.mended++
	clear(w.cut)
	w.consul.leader = w.consul.leader || !w.consul.starting
	w.settings.mishap, w.storm, w.faults, w.calm = 0, 0, 0, w.now
	for _, n := range w.nodes {
		n.lie, n.slow, n.stubborn = nil, 0, false
		n.resume()
		if !n.up {
			n.start(false)
		}
	}
	for _, c := range w.planes {
		c.resume()
		c.begin()
	}
	for _, a := range w.agents {
		if !a.up {
			a.start()
		}
	}
}
