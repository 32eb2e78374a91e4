package shards

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// found is a manager that finds a switch from a to b, in which b was promoted, by a leader that is gone.
func found(t *testing.T) *world {
	w := newWorld(t, pair, "x", "y", "z")
	w.run(4 * time.Second)
	state, revision := w.m.State()
	state.Shards = maps.Clone(state.Shards)
	s := state.Shards["s"]
	s.Change = &Change{Kind: Switch, Phase: Holding, Epoch: s.Epoch + 1, From: "a", To: "b", Reason: "a test", Begun: w.now}
	state.Shards["s"] = s
	b := w.nodes["b"]
	b.Role, b.Of, b.Linked, b.ReplID, b.Epoch = mesh.Primary, "", false, "history-of-b", s.Change.Epoch
	w.m.Loaded(w.now, state, revision+1)
	return w
}

func (w *world) isPrimary(t *testing.T, address string, epoch uint64, ended Kind) {
	t.Helper()
	w.run(4 * time.Second)
	kinds := w.kinds()
	if s := w.shard("s"); s.Primary != address || s.Epoch != epoch || s.Change != nil || !slices.Contains(kinds, ended) {
		t.Errorf("%+v after %v, want %s, epoch %d, %s", s, kinds, address, epoch, ended)
	}
	for other, n := range map[string]*Node{"a": w.nodes["a"], "b": w.nodes["b"]} {
		if other != address && !w.dead[other] && n.Of != address {
			t.Errorf("the other node is %+v", n)
		}
	}
}

func TestASwitchWhoseOldPrimaryWentOnIsNone(t *testing.T) {
	w := found(t)
	w.isPrimary(t, "a", 3, SwitchFailed)
}

func TestASwitchWhoseOldPrimaryWasDemotedIsEnded(t *testing.T) {
	w := found(t)
	a := w.nodes["a"]
	a.Role, a.Of, a.Linked = mesh.Replica, "b", true
	w.isPrimary(t, "b", 2, Switch)
}

func TestASwitchWhoseOldPrimaryIsDownIsEnded(t *testing.T) {
	w := found(t)
	w.dead["a"] = true
	w.isPrimary(t, "b", 2, Switch)
}

func TestASwitchWhoseOldPrimaryOnlyTheControlPlaneMissesWaits(t *testing.T) {
	w := found(t)
	w.dead["a"] = true
	w.sees = func(string) bool { return true }
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Change == nil {
		t.Fatalf("%+v", s)
	}
	w.dead["a"] = false
	w.isPrimary(t, "a", 3, SwitchFailed)
}

func TestAHandoverBeginsWhenEnvoysWorkersHoldToo(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	w.m.Ask(Command{Kind: Switch, Shard: "s"})
	w.settle()
	w.m.Acknowledged("x", "s", mesh.Hold.Path("s"))
	w.settle()
	w.now = w.now.Add(workersFor - time.Millisecond)
	w.settle()
	if b := w.nodes["b"]; b.Role != mesh.Replica || w.shard("s").Change == nil {
		t.Fatalf("a worker may still send to the old primary: %+v", b)
	}
	w.now = w.now.Add(time.Millisecond)
	w.settle()
	if b := w.nodes["b"]; b.Role != mesh.Primary {
		t.Errorf("%+v", b)
	}
}

func TestASwitchThatDidNothingEndsAtOnce(t *testing.T) {
	for _, anew := range []bool{false, true} {
		w := newWorld(t, pair, "x")
		w.run(4 * time.Second)
		w.refuses, w.refusal = func(a Action) bool { return a.Op == Handover }, ErrUndone
		w.m.Ask(Command{Kind: Switch, Shard: "s"})
		w.run(100 * time.Millisecond)
		if c := w.shard("s").Change; c == nil || c.Phase != Holding {
			t.Fatalf("%+v", c)
		}
		if anew {
			w.m.Lease(w.now, w.now) // somebody else may have led, and acted
		}
		w.run(150 * time.Millisecond)
		if s := w.shard("s"); s.Primary != "a" || (s.Change != nil) != anew {
			t.Errorf("led anew: %t: %+v after %v", anew, s, w.kinds())
		}
		w.isPrimary(t, "a", 3, SwitchFailed)
	}
}

func TestAHandoverWhoseAnswerIsLostCounts(t *testing.T) {
	w := newWorld(t, pair, "x")
	w.run(4 * time.Second)
	w.lost = Handover
	w.m.Ask(Command{Kind: Switch, Shard: "s"})
	w.isPrimary(t, "b", 2, Switch)
}

func TestAPrimaryThatIsBackBeforeAnotherTookItsPlaceKeepsItsData(t *testing.T) {
	w := newWorld(t, []Member{{Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}}, "x")
	w.run(4 * time.Second)
	w.refuses = func(a Action) bool {
		if a.Fresh {
			t.Errorf("it is emptied: %+v", a)
		}
		return a.Op == Promote && a.Node == "b"
	}
	w.dead["a"] = true
	w.run(500 * time.Millisecond)
	if c := w.shard("s").Change; c == nil || c.To != "b" {
		t.Fatalf("%+v", c)
	}
	w.dead["a"], w.dead["b"] = false, true
	w.run(4 * time.Second)
	if s := w.shard("s"); s.Primary != "a" || s.Epoch != 3 || s.RunID != "run-a" || s.Change != nil {
		t.Errorf("%+v", s)
	}
}

func TestASwitchThatWasDoneIsEndedWithAnEpochReadTooEarly(t *testing.T) {
	w := found(t)
	a := w.nodes["a"]
	a.Role, a.Of, a.Linked = mesh.Replica, "b", true
	w.nodes["b"].Epoch = 1
	w.refuses = func(a Action) bool {
		if a.Fresh {
			t.Errorf("it is emptied: %+v", a)
		}
		return false
	}
	w.isPrimary(t, "b", 2, Switch)
}
