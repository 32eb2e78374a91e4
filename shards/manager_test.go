package shards

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// world is a manager with nodes and agents that do as they are told.
type world struct {
	t      *testing.T
	m      *Manager
	now    time.Time
	nodes  map[string]*Node
	dead   map[string]bool
	agents []string
	sees   func(address string) bool // whether agents reach it
	// Actions that fail, and epochs that nodes show only when they are to be promoted.
	refuses func(Action) bool
	refusal error
	hidden  map[string]uint64
	wrote   int
	last    []Answer
	writes  []State
	lost    Op // actions that are done, and fail for who asked
	moves   []Move
	loses   func(State) bool // a write; nil is never
	tick    func()           // in each step of run
}

func newWorld(t *testing.T, members []Member, agents ...string) *world {
	w := &world{t: t, m: New(Config{Region: "here", DownAfter: 300 * time.Millisecond, MaxLoss: 0.5}), now: time.Unix(1000, 0), refusal: errTest,
		nodes: map[string]*Node{}, dead: map[string]bool{}, agents: agents}
	w.sees = func(address string) bool { return !w.dead[address] }
	for _, m := range members {
		for _, a := range m.Nodes {
			w.nodes[a] = &Node{Address: a, RunID: "run-" + a, ReplID: "own-" + a, Role: mesh.Replica, Of: "127.0.0.1:1"}
		}
	}
	w.m.Members(members)
	w.m.Loaded(w.now, State{}, 0)
	return w
}

// run lets time pass in steps of 50 ms.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(50 * time.Millisecond)
		w.m.Lease(w.now, w.now.Add(time.Hour))
		for a, n := range w.nodes {
			if !w.dead[a] {
				w.m.Probed(w.now, *n)
			}
		}
		for _, a := range w.agents {
			w.m.AgentSeen(w.now, a)
		}
		for a, targets := range w.m.Targets() {
			for _, t := range targets {
				n := w.nodes[t.Address]
				w.m.Verdicts(w.now, a, []Verdict{{Shard: t.Shard, Epoch: t.Epoch, Address: t.Address, Down: !w.sees(t.Address) || n.RunID != t.RunID || n.Role != mesh.Primary}})
			}
		}
		if w.tick != nil {
			w.tick()
		}
		w.settle()
	}
}

func (w *world) settle() {
	for range 20 {
		d := w.m.Decide(w.now)
		w.last = append(w.last, d.Answers...)
		if d.State != nil {
			if w.loses != nil && w.loses(*d.State) {
				return
			}
			w.wrote++
			w.writes = append(w.writes, *d.State)
			w.m.Written(w.now, *d.State, d.Revision+1)
			continue
		}
		if w.moves = d.Moves; len(d.Actions) == 0 {
			return
		}
		for _, a := range d.Actions {
			w.now = w.now.Add(time.Millisecond)
			w.act(a)
		}
	}
	w.t.Fatalf("no end of decisions: %+v", w.m.state)
}

func (w *world) act(a Action) {
	n := w.nodes[a.Node]
	var err error
	switch {
	case w.dead[a.Node]:
		err = errTest
	case w.refuses != nil && w.refuses(a):
		err = w.refusal
	case a.RunID != "" && a.RunID != n.RunID:
		err = errTest
	case a.Op == Promote && n.Role == mesh.Replica && w.hidden[a.Node] >= a.Epoch:
		shown := *n
		shown.Epoch, err = w.hidden[a.Node], ErrEpoch
		w.m.Probed(w.now, shown)
		w.m.Done(w.now, a, err)
		return
	case n.Epoch > a.Epoch:
		err = ErrEpoch
	case a.Op == Promote || a.Op == Handover:
		if n.Role != mesh.Primary {
			n.ReplID = "history-of-" + a.Node
		}
		n.Role, n.Of, n.Linked, n.Epoch = mesh.Primary, "", false, a.Epoch
		for _, other := range w.nodes {
			if other.Of == a.Node {
				other.ReplID, other.Epoch = n.ReplID, n.Epoch
			}
		}
	case a.Op == Demote:
		of := w.nodes[a.Of]
		n.Role, n.Of, n.Linked, n.ReplID, n.Epoch, n.Offset = mesh.Replica, a.Of, true, of.ReplID, of.Epoch, of.Offset
	case a.Op == Mirror:
		n.Epoch = a.Epoch
	case a.Op == Restart:
		n.RunID += "'"
	}
	if a.Op == Handover && err == nil {
		w.nodes[a.From].Role, w.nodes[a.From].Of, w.nodes[a.From].Linked = mesh.Replica, a.Node, true
	}
	if err == nil && a.Op == w.lost {
		w.m.Done(w.now, a, errTest)
		return
	}
	if !w.dead[a.Node] {
		w.m.Probed(w.now, *n)
	}
	w.m.Done(w.now, a, err)
}

type testError string

func (e testError) Error() string { return string(e) }

const errTest = testError("the node does not answer")

func (w *world) shard(name string) Shard { return w.m.state.Shards[name] }

func (w *world) kinds() (all []Kind) {
	for _, e := range w.m.state.Events {
		all = append(all, e.Kind)
	}
	return all
}

var pair = []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}, {Pool: "p", Shard: "t", Nodes: []string{"c", "d"}}}

func TestAPrimaryThatDiesIsReplacedByItsReplica(t *testing.T) {
	w := newWorld(t, pair, "x", "y", "z")
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 1 || len(s.Witnesses) != 3 || s.Change != nil {
		t.Fatalf("after bootstrap: %+v", s)
	}
	if b := w.nodes["b"]; b.Of != "a" {
		t.Fatalf("the replica: %+v", b)
	}
	w.dead["a"] = true
	w.run(600 * time.Millisecond)
	if s := w.shard("s"); s.Primary != "b" || s.Epoch != 2 {
		t.Fatalf("after the primary's death: %+v", s)
	}
	w.run(3 * time.Second)
	w.dead["a"] = false
	w.nodes["a"].Offset = 1 << 40 // newer-looking
	w.run(time.Second)
	if a := w.nodes["a"]; a.Role != mesh.Replica || a.Of != "b" || w.shard("s").Epoch != 2 {
		t.Fatalf("the old primary is back: %+v %+v", a, w.shard("s"))
	}
	t.Log(w.kinds(), w.wrote)
}

func TestNobodyIsPromotedWithoutAMajorityOfWitnesses(t *testing.T) {
	w := newWorld(t, pair, "x", "y", "z")
	w.run(4 * time.Second)
	w.sees = func(string) bool { return true }
	w.dead["a"] = true
	w.run(5 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 1 {
		t.Fatalf("only the control plane cannot reach it: %+v", s)
	}
	if len(w.m.Alerts(w.now)) == 0 {
		t.Error("no alert")
	}
	w.m.Ask(Command{Kind: Switch, Shard: "s", Force: true})
	w.run(3 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || len(w.last) != 1 || w.last[0].Err != nil {
		t.Fatalf("forced: %+v %+v", s, w.last)
	}
}

func TestASwitch(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	w.m.Ask(Command{Kind: Switch, Shard: "s"})
	w.run(3 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || s.Epoch != 2 || len(w.last) != 1 || w.last[0].Err != nil || w.last[0].Event.Kind != Switch {
		t.Fatalf("%+v %+v", s, w.last)
	}
	if a := w.nodes["a"]; a.Of != "b" {
		t.Errorf("the old primary: %+v", a)
	}
}

func TestASwitchWaitsForAReplicaThatKeepsUp(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	write := func(d time.Duration) {
		for end := w.now.Add(d); w.now.Before(end); {
			w.nodes["a"].Offset += 10
			w.run(50 * time.Millisecond)
		}
	}
	write(time.Second)
	w.m.Ask(Command{Kind: Switch, Shard: "s"})
	write(2 * time.Second)
	if s := w.shard("s"); s.Change != nil || s.Epoch != 1 || len(w.last) != 0 {
		t.Fatalf("it is sent nothing: %+v %+v", s, w.last)
	}
	w.nodes["b"].Offset = w.nodes["a"].Offset
	w.run(3 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || s.Epoch != 2 || len(w.last) != 1 || w.last[0].Err != nil {
		t.Fatalf("it keeps up: %+v %+v", s, w.last)
	}

	w = newWorld(t, pair, "x")
	w.run(4 * time.Second)
	write(time.Second)
	w.m.Ask(Command{Kind: Switch, Shard: "s"})
	write(5 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 1 || len(w.last) != 1 || w.last[0].Err == nil || !strings.Contains(w.last[0].Err.Error(), "does not keep up") {
		t.Fatalf("it never keeps up: %+v %+v", s, w.last)
	}
	if kinds := w.kinds(); slices.Contains(kinds, SwitchFailed) {
		t.Errorf("something was held: %v", kinds)
	}
}

func TestASwitchWaitsUntilAFullCopyIsFollowed(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	b := w.nodes["b"]
	b.Linked = false
	w.run(200 * time.Millisecond)
	b.Linked = true
	w.run(100 * time.Millisecond)
	w.m.Ask(Command{Kind: Switch, Shard: "s"})
	w.run(time.Second)
	if s := w.shard("s"); s.Change != nil || s.Epoch != 1 {
		t.Fatalf("%+v: nobody knows yet whether b is sent what is written", s)
	}
	w.run(3 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || len(w.last) != 1 || w.last[0].Err != nil {
		t.Errorf("%+v %+v", s, w.last)
	}
}

func TestAShardWithoutNodes(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	w.dead["a"], w.dead["b"] = true, true
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "" || s.Epoch != 2 {
		t.Fatalf("stand-in: %+v", s)
	}
	w.dead["b"] = false
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || s.Epoch != 3 {
		t.Fatalf("recovered: %+v", s)
	}
	t.Log(w.kinds())
}

// A control plane that stood still hears nobody, and that is nobody's fault: nor are witnesses believed that stood still with it.
func TestAControlPlaneThatStoodStillMovesNothing(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	before := w.m.state.Sequence
	w.now = w.now.Add(6 * time.Second)
	w.m.Lease(w.now, w.now.Add(time.Hour))
	for _, shard := range []string{"s", "t"} {
		s := w.shard(shard)
		w.m.Verdicts(w.now, "x", []Verdict{{Shard: shard, Epoch: s.Epoch, Address: s.Primary, Down: true}})
	}
	w.settle()
	w.run(2 * time.Second)
	if w.m.state.Sequence != before {
		t.Errorf("events %v", w.kinds())
	}
}

func TestTheGuard(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	w.dead["a"], w.dead["b"], w.dead["c"] = true, true, true
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || w.shard("t").Primary != "c" {
		t.Fatalf("frozen: %+v", s)
	}
	w.m.Ask(Command{Kind: Accepted, Pool: "p"})
	w.run(4 * time.Second)
	if s := w.shard("t"); s.Primary != "d" || w.shard("s").Primary != "" {
		t.Fatalf("accepted: %+v %+v", s, w.last)
	}
	t.Log(w.kinds())
}

func TestFollow(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Follow: true, Nodes: []string{"a", "b"}}})
	w.nodes["b"].Role = mesh.Primary
	w.run(2 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || s.Epoch != 1 {
		t.Fatalf("%+v", s)
	}
	w.dead["b"], w.nodes["a"].Role = true, mesh.Primary
	w.run(2 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 2 {
		t.Fatalf("%+v", s)
	}
	w.dead["b"] = false
	w.run(2 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 2 {
		t.Fatalf("the old one claims, too: %+v", s)
	}
	w.m.Members([]Member{{Pool: "p", Shard: "s", Follow: true, First: "b", Nodes: []string{"b", "a"}}})
	w.run(2 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || s.Epoch != 3 {
		t.Fatalf("the file says which of the two: %+v", s)
	}
}
