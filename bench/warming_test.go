package main

import "testing"

func TestCopyPeers(t *testing.T) {
	const keys = 2000
	peers, err := startWarmingPeers(t.Context(), t.TempDir(), keys, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer peers.stop()
	floor, err := peers.floor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	naive, err := peers.naive(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]copied{"redis-cli --pipe": floor, "GET and SET": naive} {
		if c.keys != keys || c.took <= 0 || c.loader <= 0 || c.target <= 0 {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if naive.cpu() < floor.cpu() {
		t.Errorf("one key after the other costs %s, all of them at once %s", naive.cpu(), floor.cpu())
	}
}

func TestWarmingQuick(t *testing.T) {
	printed := quick(t, "warming")
	for _, field := range []string{"ratio_vs_pipe_keys_per_cpu_second", "ratio_vs_naive", "foreground_p99_ratio"} {
		positive(t, field, printed[field])
	}
}

func TestColdstartQuick(t *testing.T) {
	printed := quick(t, "coldstart")
	for _, field := range []string{"time_ratio", "origin_reads_ratio"} {
		positive(t, field, printed[field])
		if ratio, _ := printed[field].(float64); ratio >= 1 {
			t.Errorf("%s is %v: warming was worth nothing", field, ratio)
		}
	}
	warmed := printed["warmed"].(map[string]any)
	if runs, _ := warmed["runs"].([]any); len(runs) == 0 || runs[0].(map[string]any)["trigger"] != "onReturn" {
		t.Errorf("runs %v, want one that began as the shards came back", warmed["runs"])
	}
	if warmed["wrong_answers"] != 0.0 {
		t.Errorf("%v wrong answers", warmed["wrong_answers"])
	}
}
