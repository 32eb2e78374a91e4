package main

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/bench/aside"
)

func TestASeedIsARound(t *testing.T) {
	drawn := map[string]bool{}
	for seed := range uint64(400) {
		r := drawRound(seed, nil)
		if again := drawRound(seed, nil); !reflect.DeepEqual(r, again) {
			t.Fatalf("seed %d is %s, and then %s", seed, r, again)
		}
		drawn[r.Fault], drawn[r.Kind], drawn[r.When.Step] = true, true, true
		if r.Abort != nil {
			drawn["aborted "+r.Abort.Step] = true
		}
	}
	for _, want := range append(faultNames(), "add", "remove", "copying", "preparing", "fencing", "flipping", "purging", "aborted copying", "aborted fencing") {
		if !drawn[want] {
			t.Errorf("%s is never drawn", want)
		}
	}
	for seed := range uint64(50) {
		if r := drawRound(seed, []string{"donor_killed"}); r.Fault != "donor_killed" {
			t.Errorf("seed %d draws %s", seed, r.Fault)
		}
	}
}

func TestHandoffsVerdict(t *testing.T) {
	r := &handoffsResult{Faults: map[string]int{}}
	r.take(&handoffRound{Seed: 3, Fault: "none"})
	if err := r.err(); err != nil || r.Done != 1 {
		t.Errorf("%d done, %v", r.Done, err)
	}
	r.take(&handoffRound{Seed: 4, Fault: "none", Wrong: []string{"two owners"}})
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "--seed 4 --rounds 1: two owners") || r.Failed != 1 {
		t.Errorf("%d failed, %v", r.Failed, err)
	}
}

func TestOnlyLocalRoutesLapse(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	m := &handoffMesh{local: true, lapses: []lapse{{at, at.Add(time.Second)}}}
	var told ringState
	if err := json.Unmarshal([]byte(`{"Events": [{"time": "2026-01-02T04:00:00Z", "kind": "failover"}, {"time": "2026-01-02T05:00:00Z", "kind": "handoff-done"}]}`), &told); err != nil {
		t.Fatal(err)
	}
	for acked, want := range map[time.Time]bool{
		at: true, at.Add(-1): false, at.Add(time.Second): false,
		told.Events[0].Time.Add(-time.Second): true, told.Events[0].Time.Add(2 * time.Second): false, told.Events[1].Time: false,
	} {
		f := aside.Finding{Acked: acked}
		if got := m.lapsed(told, f); got != want {
			t.Errorf("acknowledged at %v: %v", acked, got)
		}
		if (&handoffMesh{lapses: m.lapses}).lapsed(told, f) {
			t.Errorf("a coherent route may lose what was acknowledged at %v", acked)
		}
	}
}

// TestHandoffsRounds has a few rounds, and then breaks what they look at: it must be seen.
func TestHandoffsRounds(t *testing.T) {
	for name, coherent := range map[string]bool{"local": false, "coherent": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cachemesh, err := build(t.Context(), dir, "cachemesh", "cmd/cachemesh")
			if err != nil {
				t.Fatal(err)
			}
			m, err := startHandoffMesh(t.Context(), filepath.Join(dir, "mesh"), cachemesh, coherent)
			if err != nil {
				t.Fatal(err)
			}
			defer m.stop()
			for _, r := range []*handoffRound{
				{Seed: 1, Coherent: coherent, Kind: "add", Fault: "tracking_cut", When: moment{"copying", 0.2}},
				{Seed: 2, Coherent: coherent, Kind: "remove", Fault: "donor_killed", When: moment{"copying", 0.2}, For: 0.4},
				{Seed: 3, Coherent: coherent, Kind: "add", Fault: "none", Abort: &moment{"copying", 0.2}},
			} {
				if err := m.round(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				t.Log(r)
				if len(r.Wrong) > 0 {
					t.Error(strings.Join(r.Wrong, "\n"))
				}
				if r.Reads == 0 || r.Fault != "none" && r.Struck == "" || r.Undone != (r.Abort != nil) {
					t.Errorf("%+v is not what was to happen", r)
				}
			}
			p, find, err := m.served(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range p.Shards {
				if find("stray").Name == s.Name {
					continue
				}
				primary, _ := s.Primary()
				stranger := patientClient(primary.Address)
				defer stranger.Close()
				if err := stranger.Set(t.Context(), "stray", 1, 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.placed(t.Context()); err == nil || !strings.Contains(err.Error(), "stray") {
				t.Errorf("a key is where it does not belong, and what is seen is %v", err)
			}
			if err := m.spare.renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			spare := m.spare.nodes[0].direct
			if err := spare.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
				t.Fatal(err)
			}
			if err := m.left(t.Context(), ""); err != nil {
				t.Error(err)
			}
			if err := spare.Set(t.Context(), "left", 1, 0).Err(); err != nil {
				t.Fatal(err)
			}
			if err := m.left(t.Context(), ""); err == nil || !strings.Contains(err.Error(), `"left"`) {
				t.Errorf("a key is left, and what is seen is %v", err)
			}
		})
	}
}
