package shards

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// handed is a world whose movers and agents do what a handoff wants.
type handed struct {
	*world
	steps []mesh.HandoffStep // that were in the state, each once
	asked []mesh.HandoffStep // moves that were asked for, each once in a row
	fails error              // what moves end in
	once  bool               // they say so once, as real ones do, not with each decision
	told  Move               // the last of them
	away  map[string]bool    // agents that say nothing
	kept  map[string]uint64  // by agent
}

func newHanded(t *testing.T, lanes bool, agents ...string) *handed {
	members := []Member{
		{Pool: "p", Shard: "s", Lanes: lanes, Nodes: []string{"a", "b"}},
		{Pool: "p", Shard: "t", Lanes: lanes, Nodes: []string{"c", "d"}},
	}
	h := &handed{world: newWorld(t, members, agents...), away: map[string]bool{}, kept: map[string]uint64{}}
	h.m.Configure(300*time.Millisecond, 0.5, 500*time.Millisecond)
	for _, a := range []string{"e", "f"} {
		h.nodes[a] = &Node{Address: a, RunID: "run-" + a, ReplID: "own-" + a, Role: mesh.Replica, Of: "127.0.0.1:1"}
	}
	h.tick = h.follow
	h.run(15 * time.Second) // it has led for long enough to know all agents
	return h
}

// follow does the moves and has the agents acknowledge what they are told.
func (h *handed) follow() {
	for _, move := range h.moves {
		if n := len(h.asked); n == 0 || h.asked[n-1] != move.Step {
			h.asked = append(h.asked, move.Step)
		}
		if !h.once || h.told != move {
			h.m.Moved(move, h.fails)
		}
		h.told = move
	}
	state := h.m.state
	hand, busy := state.Handoffs["p"]
	if busy && !slices.Contains(h.steps, hand.Step) {
		h.steps = append(h.steps, hand.Step)
	}
	for _, agent := range h.agents {
		if h.away[agent] {
			h.m.Follows(agent, nil)
			continue
		}
		f := Following{Pool: "p", Generation: state.Rings["p"].Generation, Kept: h.kept[agent]}
		if busy {
			f.Handoff, f.Step = hand.ID, hand.Step
		}
		h.m.Follows(agent, []Following{f})
	}
}

func (h *handed) ask(c Command) error {
	h.t.Helper()
	c.Pool = "p"
	id := h.m.Ask(c)
	for range 100 {
		h.run(50 * time.Millisecond)
		for _, a := range h.last {
			if a.ID == id {
				return a.Err
			}
		}
	}
	h.t.Fatalf("%+v is not answered: %+v", c, h.m.state.Handoffs)
	return nil
}

func (h *handed) add() {
	h.t.Helper()
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: AddShard, Shard: "u", Nodes: []string{"e", "f"}}); err != nil {
		h.t.Fatal(err)
	}
}

// ring is how the pool's keys are spread.
func (h *handed) ring() string {
	served, _ := Topology(mesh.Topology{Pools: []mesh.Pool{{Name: "p", Shards: []mesh.Shard{{Name: "s", Weight: 1}, {Name: "t", Weight: 1}}}}}, h.m.state)
	var all []string
	for _, s := range served.Pools[0].Shards {
		all = append(all, fmt.Sprintf("%s*%d", s.Name, s.Weight))
	}
	return fmt.Sprintf("%d: %s", served.Pools[0].Generation, strings.Join(all, " "))
}

func (h *handed) is(ring string, busy bool) {
	h.t.Helper()
	_, in := h.m.state.Handoffs["p"]
	if got := h.ring(); got != ring || in != busy {
		h.t.Fatalf("the ring is %q, in a handoff: %t; want %q, %t: %+v", got, in, ring, busy, h.m.state.Handoffs["p"])
	}
}

func TestAHandoffAddsAShardAndAnotherRemovesIt(t *testing.T) {
	for _, lanes := range []bool{false, true} {
		h := newHanded(t, lanes, "x", "y")
		h.is("0: s*1 t*1", false)
		h.add()
		h.run(10 * time.Second)
		h.is("1: s*1 t*1 u*1", false)
		all := []mesh.HandoffStep{mesh.Copying, mesh.Preparing, mesh.Fencing, mesh.Flipping, mesh.Purging}
		if !slices.Equal(h.steps, all) || !slices.Equal(h.asked, all) {
			t.Errorf("lanes %t: it went through %v, and moves were %v", lanes, h.steps, h.asked)
		}
		if u := h.shard("u"); u.Primary != "e" || h.nodes["f"].Of != "e" {
			t.Errorf("lanes %t: the new shard: %+v", lanes, u)
		}
		login := h.m.state.Rings["p"].Login
		if lanes != (login != 0) {
			t.Errorf("lanes %t: they log in as %d", lanes, login)
		}
		if err := h.ask(Command{Kind: HandoffBegun, Reshape: WeighShard, Shard: "t", Weight: 3}); err != nil {
			t.Fatal(err)
		}
		h.run(10 * time.Second)
		h.is("2: s*1 t*3 u*1", false)
		if err := h.ask(Command{Kind: HandoffBegun, Reshape: RemoveShard, Shard: "u"}); err != nil {
			t.Fatal(err)
		}
		h.run(10 * time.Second)
		h.is("3: s*1 t*3", false)
		if _, known := h.m.state.Shards["u"]; known || h.m.state.Nodes["u"] != nil {
			t.Errorf("lanes %t: the removed shard is still there: %+v", lanes, h.m.state)
		}
		if again := h.m.state.Rings["p"].Login; lanes && again <= login {
			t.Errorf("lanes log in as %d, and did as %d before", again, login)
		}
	}
}

func TestARingThatCannotBeIsRefused(t *testing.T) {
	h := newHanded(t, false, "x")
	for want, c := range map[string]Command{
		`shard "s" is on the ring of pool "p" already`:    {Reshape: AddShard, Shard: "s", Nodes: []string{"e"}},
		`shard "u" has no node`:                           {Reshape: AddShard, Shard: "u"},
		`c is a node of shard "t" already`:                {Reshape: AddShard, Shard: "u", Nodes: []string{"c"}},
		`weight 2000: choose 1 to 1024`:                   {Reshape: AddShard, Shard: "u", Weight: 2000, Nodes: []string{"e"}},
		`shard "u" is not on the ring of pool "p"`:        {Reshape: RemoveShard, Shard: "u"},
		`weight 0: choose 1 to 1024, or remove the shard`: {Reshape: WeighShard, Shard: "s"},
		`shard "s" has weight 1 already`:                  {Reshape: WeighShard, Shard: "s", Weight: 1},
	} {
		c.Kind = HandoffBegun
		if err := h.ask(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := h.ask(Command{Kind: HandoffUndone}); err == nil || !strings.Contains(err.Error(), `pool "p" is in no handoff`) {
		t.Error(err)
	}
	h.fails = errTest
	h.add()
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: RemoveShard, Shard: "s"}); err == nil || !strings.Contains(err.Error(), "in a handoff already") {
		t.Error(err)
	}
	if len(h.m.state.Rings) != 0 {
		t.Errorf("a ring has changed: %+v", h.m.state.Rings)
	}
	if err := h.ask(Command{Kind: HandoffUndone}); err != nil {
		t.Fatal(err)
	}
	h.fails = nil
	h.run(5 * time.Second)
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: RemoveShard, Shard: "s"}); err != nil {
		t.Fatal(err)
	}
	h.run(10 * time.Second)
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: RemoveShard, Shard: "t"}); err == nil || !strings.Contains(err.Error(), "is the last of pool") {
		t.Error(err)
	}
}

func TestAHandoffIsGivenUpBeforeItsFlipAndNotAfter(t *testing.T) {
	for _, step := range []mesh.HandoffStep{mesh.Copying, mesh.Preparing, mesh.Fencing, mesh.Flipping, mesh.Purging} {
		h := newHanded(t, true, "x", "y")
		h.add()
		h.tick = func() {
			if h.m.state.Handoffs["p"].Step == step {
				h.away["y"], h.fails = true, errTest
			}
			h.follow()
		}
		for range 200 {
			if h.m.state.Handoffs["p"].Step == step {
				break
			}
			h.run(50 * time.Millisecond)
		}
		h.run(time.Second)
		err := h.ask(Command{Kind: HandoffUndone})
		h.tick, h.fails = h.follow, nil
		delete(h.away, "y")
		h.run(10 * time.Second)
		if step == mesh.Flipping || step == mesh.Purging {
			if err == nil || !strings.Contains(err.Error(), "is past its flip") {
				t.Errorf("%s: %v", step, err)
			}
			h.is("1: s*1 t*1 u*1", false)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		h.is("0: s*1 t*1", false)
		if last := h.asked[len(h.asked)-1]; last != mesh.Undoing {
			t.Errorf("%s: the last move is %s", step, last)
		}
		if _, known := h.m.state.Shards["u"]; known || len(h.m.state.Nodes) > 0 {
			t.Errorf("%s: something is left: %+v", step, h.m.state)
		}
		if login := h.m.state.Rings["p"].Login; (step == mesh.Fencing) != (login != 0) {
			t.Errorf("%s: lanes log in as %d", step, login)
		}
		h.add()
		h.run(10 * time.Second)
		h.is("1: s*1 t*1 u*1", false)
	}
}

func TestALateAgentIsWaitedForOnceAndSweptAfter(t *testing.T) {
	h := newHanded(t, true, "x", "y")
	h.away["y"] = true
	h.add()
	h.run(lateAfter - 2*time.Second)
	h.is("0: s*1 t*1", true)
	if waits, _ := h.m.Progress("p"); !slices.Equal(waits, []string{"y"}) {
		t.Errorf("it waits for %v", waits)
	}
	h.run(12 * time.Second)
	h.is("1: s*1 t*1 u*1", false)
	if late := h.m.state.Rings["p"].Late; !slices.Equal(late, []string{"y"}) {
		t.Fatalf("late are %v", late)
	}
	h.asked = nil
	h.run(5 * time.Second)
	if len(h.asked) > 0 {
		t.Errorf("moves without an agent that is back: %v", h.asked)
	}
	delete(h.away, "y")
	h.run(2 * time.Second)
	if late := h.m.state.Rings["p"].Late; len(late) > 0 || !slices.Equal(h.asked, []mesh.HandoffStep{mesh.Purging}) {
		t.Errorf("late are %v, and moves were %v", late, h.asked)
	}
}

func TestNoStepBeginsWhileKeysAreKept(t *testing.T) {
	h := newHanded(t, true, "x", "y")
	h.kept["x"] = 3
	h.add()
	h.run(10 * time.Second)
	if step := h.m.state.Handoffs["p"].Step; step != mesh.Preparing {
		t.Fatalf("it is %s", step)
	}
	h.kept["x"] = 0
	h.run(10 * time.Second)
	h.is("1: s*1 t*1 u*1", false)
}

func TestAMoveCountsForThePrimariesThatItHad(t *testing.T) {
	h := newHanded(t, false, "x", "y")
	h.tick = func() {
		h.fails = nil
		if h.m.state.Handoffs["p"].Step == mesh.Fencing && h.shard("t").Primary == "c" {
			h.dead["c"], h.fails = true, errTest
		}
		h.follow()
	}
	h.add()
	h.run(20 * time.Second)
	if s := h.shard("t"); s.Primary != "d" {
		t.Fatalf("%+v", s)
	}
	h.is("1: s*1 t*1 u*1", false)
	for _, s := range h.writes {
		if r, flipped := s.Rings["p"]; flipped && r.Generation == 1 && s.Shards["t"].Primary != "d" {
			t.Fatal("it flipped with what was moved to a primary that is gone")
		}
	}
}

func TestWhoIsPromotedInAFlipIsClearedFirst(t *testing.T) {
	h := newHanded(t, false, "x", "y")
	var cleared []string
	h.refuses = func(a Action) bool {
		if a.Op == Clear {
			if s := h.shard(a.Shard); s.Primary == a.Node {
				t.Errorf("%s is served before it is cleared", a.Node)
			}
			cleared = append(cleared, a.Node)
		}
		return a.Op == Clear && len(cleared) < 3
	}
	h.tick = func() {
		h.fails = nil
		if h.m.state.Handoffs["p"].Step == mesh.Flipping && h.shard("u").Primary == "e" {
			h.dead["e"], h.fails = true, errTest
		}
		h.follow()
	}
	h.add()
	h.run(20 * time.Second)
	h.is("1: s*1 t*1 u*1", false)
	if u := h.shard("u"); u.Primary != "f" || !slices.Equal(cleared, []string{"f", "f", "f"}) {
		t.Errorf("%+v, cleared were %v", u, cleared)
	}
}

func TestARingChangesOnlyWithAHandoff(t *testing.T) {
	h := newHanded(t, false, "x")
	h.add()
	h.run(10 * time.Second)
	// mesh.yaml lacks a shard of the ring, has other weights, and one that is not on it.
	h.m.Members([]Member{{Pool: "p", Shard: "t", Weight: 7, Nodes: []string{"c", "d"}}, {Pool: "p", Shard: "s", Nodes: []string{"a", "b"}}, {Pool: "p", Shard: "v", Nodes: []string{"g"}}})
	h.run(time.Second)
	h.is("1: s*1 t*1 u*1", false)
	if _, known := h.m.state.Shards["v"]; known {
		t.Error("a shard that is not on a ring has got a primary")
	}
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: AddShard, Shard: "v"}); err != nil {
		t.Error(err)
	}
}

func TestALeaderThatHasJustBegunWaitsForAgentsToComeBack(t *testing.T) {
	h := newHanded(t, true, "x", "y")
	h.away["x"], h.away["y"] = true, true
	h.add()
	h.run(5 * time.Second)
	state, revision := h.m.State()
	second := newHanded(t, true)
	second.nodes = h.nodes
	second.m = New(second.m.config)
	second.m.Members(h.m.offered)
	second.m.Loaded(second.now, state, revision)
	second.tick = func() {
		for _, move := range second.moves {
			second.m.Moved(move, nil)
		}
	}
	second.run(settled + 5*time.Second)
	second.is("0: s*1 t*1", true)
	second.run(lateAfter + 5*time.Second)
	second.is("1: s*1 t*1 u*1", false)
	if late := second.m.state.Rings["p"].Late; !slices.Equal(late, []string{"x", "y"}) {
		t.Errorf("late are %v", late)
	}
}

func TestAJournalIsReadToItsEndBeforeItsShardGoes(t *testing.T) {
	h := newHanded(t, true, "x")
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: RemoveShard, Shard: "t"}); err != nil {
		t.Fatal(err)
	}
	h.m.Unread(map[string]string{"p": "region q has not read it"})
	h.run(10 * time.Second)
	h.is("1: s*1", true)
	h.m.Unread(nil)
	h.run(time.Second)
	h.is("1: s*1", false)
}

// Who is added again under its name is another shard: what anybody knows of the epochs that it had is not of this one.
func TestAShardThatIsAddedAgainHasOtherEpochs(t *testing.T) {
	h := newHanded(t, true, "x")
	h.add()
	h.run(10 * time.Second)
	before := h.shard("u").Epoch
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: RemoveShard, Shard: "u"}); err != nil {
		t.Fatal(err)
	}
	h.run(10 * time.Second)
	for _, a := range []string{"e", "f"} {
		h.nodes[a] = &Node{Address: a, RunID: "new-" + a, ReplID: "new-" + a, Role: mesh.Replica, Of: "127.0.0.1:1"}
	}
	h.add()
	h.run(10 * time.Second)
	h.is("3: s*1 t*1 u*1", false)
	if again := h.shard("u").Epoch; again <= before {
		t.Errorf("it has epoch %d, and had %d before", again, before)
	}
}

func TestAWriteThatFailsLosesNoMove(t *testing.T) {
	h := newHanded(t, true, "x", "y")
	h.once = true
	failed := map[string]bool{}
	h.loses = func(s State) bool {
		step := fmt.Sprint(s.Handoffs["p"].Step, s.Rings["p"].Late)
		first := !failed[step]
		failed[step] = true
		return first
	}
	h.add()
	h.run(10 * time.Second)
	h.is("1: s*1 t*1 u*1", false)
	if len(failed) < 6 {
		t.Errorf("of the writes of a handoff only %v failed once", failed)
	}
	// So it is with what late agents left.
	h.away["y"] = true
	if err := h.ask(Command{Kind: HandoffBegun, Reshape: RemoveShard, Shard: "u"}); err != nil {
		t.Fatal(err)
	}
	h.run(3 * time.Minute)
	h.is("2: s*1 t*1", false)
	if late := h.m.state.Rings["p"].Late; !slices.Equal(late, []string{"y"}) {
		t.Fatalf("late are %v", late)
	}
	clear(failed)
	delete(h.away, "y")
	h.run(10 * time.Second)
	if late := h.m.state.Rings["p"].Late; len(late) != 0 {
		t.Errorf("%v are late still: what they left was removed, and that was not written", late)
	}
}
