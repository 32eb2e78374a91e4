package main

import (
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/bench/aside"
)

// Without a handoff, what moves is missed, and old when it comes back: the benchmark must see that.
func TestPeersMissWhatMoves(t *testing.T) {
	plan := reshardPlan{load: aside.Plan{Keys: 3000, Bytes: 40, Alpha: 0.5, Rate: 400, Writes: 0.1, Timeout: 2 * time.Second}, before: 2 * time.Second, after: 3 * time.Second}
	s := settings{dir: t.TempDir(), progress: t.Output()}
	figures, line, err := measureReshard(t.Context(), s, plan, "envoy", startReshardEnvoy)
	if err != nil {
		t.Fatal(err)
	}
	if f := figures["add"]; f.Reads < 500 || f.MoveMisses < 20 {
		t.Errorf("%d of %d reads missed what moved: want many", f.MoveMisses, f.Reads)
	}
	// The keys' former shards have what they had when they lost them.
	if f := figures["remove"]; f.Reads < 500 || f.Stale < 5 {
		t.Errorf("%d of %d reads were stale: want some", f.Stale, f.Reads)
	}
	if len(line.X) != len(line.Y) || len(line.X) < 5 {
		t.Errorf("the line has %d points", len(line.X))
	}
}

func TestMovement(t *testing.T) {
	r := newReshardResult(header{}, reshardQuick)
	if err := r.movement(); err != nil {
		t.Fatal(err)
	}
	if got := r.MovedOverIdeal.Add; got.Default < 1 || got.Default > 1.5 || got.Best > got.Default {
		t.Errorf("moved over ideal: %+v", got)
	}
	if r.Algorithms["ring_hash"].Add <= r.Algorithms["maglev"].Add {
		t.Errorf("a ring of constant size is not worse: %+v", r.Algorithms)
	}
}

func TestReshardQuick(t *testing.T) {
	printed := quick(t, "reshard")
	for _, field := range []string{"moved_over_ideal", "move_misses_pp", "stale_reads", "origin_peak_ratio", "foreground_p99_ratio", "copy_keys_per_second", "copy_cpu_us_per_key"} {
		of, _ := printed[field].(map[string]any)
		if of["add"] == nil || of["remove"] == nil {
			t.Errorf("%s is %v, want both directions", field, of)
		}
	}
	for _, direction := range directions {
		positive(t, "copied "+direction, printed["copy_keys_per_second"].(map[string]any)[direction])
		peers, _ := printed["peers"].(map[string]any)
		for _, peer := range []string{"envoy", "twemproxy"} {
			f, _ := peers[peer].(map[string]any)["figures"].(map[string]any)[direction].(map[string]any)
			positive(t, peer+"'s reads "+direction, f["reads"])
		}
	}
}
