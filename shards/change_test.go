package shards

import (
	"math"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// The simulator has found each of these.

// restart gives a node a new, empty process.
func (w *world) restart(address string) {
	n := w.nodes[address]
	*n = Node{Address: address, RunID: n.RunID + "'", ReplID: n.ReplID + "'", Role: mesh.Replica, Of: "127.0.0.1:1"}
}

func TestANodeThatRestartsBeforeItIsPromotedIsNotTakenForWhatItWas(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b", "c"}}}, "x")
	w.run(4 * time.Second)
	w.nodes["b"].Offset = 7
	w.refuses = func(a Action) bool { return a.Op == Promote && a.Node == "b" }
	w.dead["a"] = true
	w.run(400 * time.Millisecond)
	if c := w.shard("s").Change; c == nil || c.To != "b" || c.RunID != "run-b" {
		t.Fatalf("%+v", c)
	}
	w.refuses = nil
	w.restart("b")
	w.run(2 * time.Second)
	if s := w.shard("s"); s.Primary != "c" || s.Epoch != 3 {
		t.Errorf("%+v: c has the data, and b none any more", s)
	}
}

func TestAReplicaThatIsNeverMadePrimaryIsPassedOver(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b", "c"}}}, "x")
	w.run(4 * time.Second)
	w.nodes["b"].Offset = 7
	tried := map[string]int{}
	unfit := map[string]bool{"b": true, "c": true}
	w.refuses = func(a Action) bool {
		if a.Fresh {
			t.Errorf("it is emptied: %+v", a)
		}
		tried[a.Node]++
		return a.Op == Promote && unfit[a.Node]
	}
	w.dead["a"] = true
	w.run(2 * time.Second)
	if s := w.shard("s"); tried["b"] != maxRefusals || tried["c"] < maxRefusals || s.Primary != "a" || s.Change == nil || s.Change.To != "c" {
		t.Fatalf("tried %v: %+v", tried, s)
	}
	w.run(refusedFor)
	if tried["b"] <= maxRefusals || tried["b"] > 100 {
		t.Errorf("tried %v: b may have been mended", tried)
	}
	unfit["c"] = false
	w.run(12 * time.Second)
	if s := w.shard("s"); s.Primary != "c" || s.Change != nil {
		t.Errorf("%+v", s)
	}
}

func TestASpareThatIsNeverMadePrimaryIsPassedOver(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b", "c"}}}, "x")
	w.run(4 * time.Second)
	for _, n := range w.nodes {
		w.dead[n.Address] = true
	}
	w.m.Ask(Command{Kind: Accepted, Pool: "p"})
	w.run(2 * time.Second)
	w.m.Ask(Command{Kind: Accepted, Pool: "p"})
	w.run(2 * time.Second)
	if s := w.shard("s"); s.Primary != "" {
		t.Fatalf("%+v", s)
	}
	w.refuses = func(a Action) bool { return a.Op == Promote && a.Node == "b" }
	w.dead["b"], w.dead["c"] = false, false
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "c" || s.Change != nil {
		t.Errorf("%+v after %v", s, w.kinds())
	}
}

func TestAPrimaryWhoseEpochIsRaisedIsReplacedByTheRuleOnly(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}}, "x")
	w.run(4 * time.Second)
	w.refuses = func(a Action) bool { return a.Op == Promote }
	w.nodes["a"].Epoch = 5
	w.run(100 * time.Millisecond)
	if c := w.shard("s").Change; c == nil || c.Kind != Raised {
		t.Fatalf("%+v", c)
	}
	w.sees = func(string) bool { return true }
	w.dead["a"] = true // for the control plane only
	w.run(3 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 6 || s.Change != nil {
		t.Errorf("%+v: no witness says that a is down", s)
	}
}

func TestAStateMadeAnewUsesNoNumberTwice(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}}, "x")
	// a was the primary of epoch 4 and has restarted; b has the data, and hides its epoch as long as it has no link.
	*w.nodes["b"] = Node{Address: "b", RunID: "run-b", ReplID: "history", Role: mesh.Replica, Of: "a", Offset: 9}
	w.hidden = map[string]uint64{"b": 1}
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "b" || s.Epoch != 2 {
		t.Errorf("%+v: b has the data, and has seen epoch 1", s)
	}

	// The state is older than what another node has seen.
	w.m.state.Shards["s"] = Shard{Pool: "p", Epoch: 3, Primary: "b", RunID: "gone", ReplID: "gone", Witnesses: []string{"x"}}
	w.nodes["a"].Epoch = 8
	w.run(2 * time.Second)
	if s := w.shard("s"); s.Epoch <= 8 {
		t.Errorf("%+v: a has seen epoch 8", s)
	}
}

func TestAnEpochBeyondBeliefCountsAsNone(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}}, "x")
	w.run(4 * time.Second)
	w.nodes["a"].Epoch = math.MaxUint64
	w.run(time.Second)
	if s := w.shard("s"); s.Epoch != 1 || s.Change != nil {
		t.Errorf("%+v", s)
	}
}

func TestAStateOlderThanANodeRaisesItsEpoch(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}}, "x")
	w.run(4 * time.Second)
	b := w.nodes["b"] // was made primary after what the state tells, and refuses whatever is older
	b.Role, b.Of, b.Epoch = mesh.Primary, "", 7
	w.run(3 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 8 || b.Of != "a" {
		t.Errorf("%+v, %+v", s, b)
	}
}

func TestAGoodAnswerCountsThoughABadOneFollows(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}}, "x")
	w.run(4 * time.Second)
	w.dead["a"] = true
	w.run(250 * time.Millisecond)
	a := *w.nodes["a"]
	w.m.Probed(w.now, a)
	a.Role = mesh.Replica
	w.m.Probed(w.now, a)
	w.run(200 * time.Millisecond)
	if s := w.shard("s"); s.Epoch != 1 || s.Change != nil {
		t.Errorf("%+v: a was well 200 ms ago", s)
	}
}
