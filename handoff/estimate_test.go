package handoff_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
)

func TestEstimate(t *testing.T) {
	p := newPool(t, names(1, 2, 3, 4), names(1, 2, 3, 4, 5), false)
	moving := p.fill(40_000)
	p.do("timelines-1", "SET", "other:key", "no route takes it")
	p.spec.From, p.spec.To = p.placed(p.spec.From), p.placed(p.spec.To)
	plan, err := handoff.Estimate(t.Context(), p.spec)
	if err != nil {
		t.Fatal(err)
	}
	near := func(got, want, part float64) bool { return math.Abs(got-want) <= part*want }
	bytes := float64(p.do("timelines-1", "MEMORY", "USAGE", moving[0], "SAMPLES", "0").(int64)) * float64(len(moving))
	if !near(float64(plan.Keys), float64(len(moving)), 0.15) || !near(float64(plan.Bytes), bytes, 0.15) || !near(plan.Share, 0.2, 0.1) || !near(plan.Ideal, 0.2, 0.05) || plan.Took <= 0 || len(plan.Donors) != 4 {
		t.Errorf("%d keys of about %.0f bytes move: %+v", len(moving), bytes, plan)
	}
	p.spec.From = names(1, 9)
	if _, err := handoff.Estimate(t.Context(), p.spec); err == nil || !strings.Contains(err.Error(), "timelines-9 has no primary") {
		t.Errorf("a donor without a primary: %v", err)
	}
}

func TestRingsThatCannotBe(t *testing.T) {
	good := handoff.Spec{Pool: "timelines", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 1021}, From: names(1), To: names(1, 2), Routes: []mesh.Route{{}}}
	for want, change := range map[string]func(*handoff.Spec){
		"the ring to: a ring needs at least one host": func(s *handoff.Spec) { s.To = nil },
		"the ring from: hash key":                     func(s *handoff.Spec) { s.From = names(1, 1) },
		"the ring from: maglev: size":                 func(s *handoff.Spec) { s.Hashing.Size = 10 },
		"it has no routes":                            func(s *handoff.Spec) { s.Routes = nil },
	} {
		s := good
		change(&s)
		if _, err := handoff.New(s); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "timelines") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestClear(t *testing.T) {
	p := newPool(t, names(1, 2), names(1, 2, 3), false)
	p.fill(2_000)
	p.spec.From, p.spec.To = p.placed(p.spec.From), p.placed(p.spec.To)
	p.do("timelines-1", "SET", "cachemesh:mine", "v")
	removed, err := handoff.Clear(t.Context(), p.spec, "timelines-1", p.nodes["timelines-1"].Address())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2_000 {
		key := fmt.Sprintf("timeline:%d", i)
		if p.from(key) != "timelines-1" {
			continue
		}
		moves := p.to(key) != "timelines-1"
		if there := p.do("timelines-1", "EXISTS", key) == int64(1); there == moves {
			t.Fatalf("%s moves: %t, and is there: %t", key, moves, there)
		}
		if moves {
			removed--
		}
	}
	if removed != 0 {
		t.Errorf("%d keys too many are said to be removed", removed)
	}
	if p.do("timelines-1", "EXISTS", "cachemesh:mine") != int64(1) {
		t.Error("a key of cachemesh's is removed")
	}
}

func TestMarksAreCarried(t *testing.T) {
	p := newPool(t, names(1, 2), names(1, 2, 3), true)
	var moves, stays string
	for i := 0; moves == "" || stays == ""; i++ {
		if k := fmt.Sprintf("timeline:%d", i); p.from(k) == "timelines-1" && p.to(k) != "timelines-1" {
			moves = k
		} else if p.from(k) == "timelines-1" {
			stays = k
		}
	}
	const ends = 4102444800000 // far ahead
	p.do("timelines-1", "ZADD", "cachemesh:held", fmt.Sprint(ends, ".5"), moves, fmt.Sprint(ends), stays)
	p.do("timelines-1", "ZADD", "cachemesh:held:prefixes", fmt.Sprint(ends), "timeline:9")
	p.move()
	p.until(handoff.Copy)
	p.until(handoff.Drain)
	p.until(handoff.Bridge)
	to := p.to(moves)
	if v := p.do(to, "ZSCORE", "cachemesh:held", moves); v != float64(ends)+0.5 && v != fmt.Sprint(ends, ".5") {
		t.Errorf("the recipient holds what moved until %v", v)
	}
	if v := p.do(to, "ZSCORE", "cachemesh:held", stays); v != nil {
		t.Errorf("the recipient holds what is not its own until %v", v)
	}
	if p.do(to, "ZSCORE", "cachemesh:held:prefixes", "timeline:9") == nil || p.do(to, "ZSCORE", "cachemesh:held", "cachemesh:held:prefixes") == nil {
		t.Error("the recipient does not hold a prefix")
	}
}

func TestFlushedDonor(t *testing.T) {
	p := newPool(t, names(1), names(1, 2), false)
	moving := p.fill(1_000)
	p.move()
	p.until(handoff.Copy)
	p.do("timelines-1", "FLUSHALL")
	p.eventually("begun anew", func(now handoff.Progress) bool { return now.Restarts > 0 && now.Done })
	p.do("timelines-1", "SET", moving[0], "new")
	p.until(handoff.Drain)
	if keys := p.keys("timelines-2"); len(keys) > 1 || len(keys) == 1 && p.do("timelines-2", "GET", moving[0]) != "new" {
		t.Errorf("%d keys are left of those that were flushed", len(keys))
	}
}
