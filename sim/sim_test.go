package main

import (
	"slices"
	"testing"
)

func TestInvariantsHold(t *testing.T) {
	counts, failed := sweep(1, 400, func(uint64) {})
	if failed != nil {
		t.Fatalf("seed %d: %s at %.3f s: %s\nreplay it with: go run ./sim --seed %d --trace", failed.seed, failed.failure.invariant, failed.failure.at.Seconds(), failed.failure.text, failed.seed)
	}
	// What a run claims to try must occur.
	for _, f := range faults {
		if counts["fault "+f.name] == 0 {
			t.Errorf("no %s in all seeds", f.name)
		}
	}
	for _, what := range []string{"change bootstrap", "change failover", "change switch", "change stand-in", "change recovery", "change epoch-raised", "change begun anew",
		"switch abandoned", "switch in quiet times", "leader deposed", "state written again", "witness let go", "pool frozen", "action restart",
		"handoff begun", "handoff flips", "handoff done", "handoff undone", "handoff with a late sidecar"} {
		if counts[what] == 0 {
			t.Errorf("no %s in all seeds", what)
		}
	}
}

func TestASeedGivesTheSameRunAgain(t *testing.T) {
	for seed := range uint64(20) {
		var first, second []string
		simulate(seed, func(line string) { first = append(first, line) })
		simulate(seed, func(line string) { second = append(second, line) })
		if !slices.Equal(first, second) {
			for i := range first {
				if i >= len(second) || first[i] != second[i] {
					t.Fatalf("seed %d: %q, and %q the second time", seed, first[i], second[min(i, len(second)-1)])
				}
			}
			t.Fatalf("seed %d: %d lines and %d", seed, len(first), len(second))
		}
		if len(first) < 10 {
			t.Errorf("seed %d: the trace has %d lines", seed, len(first))
		}
	}
}
