package main

import (
	"slices"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/bench/checker"
)

func TestFencesExplainStaleValues(t *testing.T) {
	acked := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	plan := chaosPlan{bound: 5 * time.Second, withFence: 30 * time.Second}
	fence := seenFence{From: "a", To: "b", Since: acked.Add(2 * time.Second), Last: acked.Add(8 * time.Second)}
	finding := checker.Finding{Home: "a", Region: "b", Acked: acked, Age: 9, Ended: "gone"}
	for _, test := range []struct {
		name          string
		change        func(*seenFence, *checker.Finding)
		stale, fenced int
	}{
		{"it waited for the fence", func(*seenFence, *checker.Finding) {}, 0, 1},
		{"the fence was over before the change", func(s *seenFence, _ *checker.Finding) { s.Last = acked.Add(-time.Second) }, 1, 0},
		{"the fence came when it had gone", func(s *seenFence, _ *checker.Finding) { s.Since = acked.Add(10 * time.Second) }, 1, 0},
		{"another region's fence", func(s *seenFence, _ *checker.Finding) { s.To = "c" }, 1, 0},
		{"the fence of other writes", func(s *seenFence, _ *checker.Finding) { s.From = "c" }, 1, 0},
		{"later than a fence may be", func(s *seenFence, f *checker.Finding) { s.Last, f.Age = acked.Add(time.Hour), 31 }, 1, 0},
		{"it never went", func(_ *seenFence, f *checker.Finding) { f.Ended = "lost" }, 0, 0}, // counted by the checker
	} {
		s, f := fence, finding
		test.change(&s, &f)
		r := chaosResult{Fences: []seenFence{s}, Reports: map[string]*checker.Report{"refill": {Findings: []checker.Finding{f}}}}
		if f.Ended == "gone" {
			r.Reports["refill"].Late = 1
		}
		r.judge(plan)
		if r.Stale != test.stale || r.Fenced != test.fenced {
			t.Errorf("%s: %d stale and %d until a fence, want %d and %d", test.name, r.Stale, r.Fenced, test.stale, test.fenced)
		}
	}
}

func TestChaosVerdict(t *testing.T) {
	none, some := 0, 7
	for _, test := range []struct {
		name string
		r    chaosResult
		bad  bool
	}{
		{"well", chaosResult{Fenced: 3}, false},
		{"lost", chaosResult{Lost: 1}, true},
		{"stays", chaosResult{Outlived: 1}, true},
		{"for too long", chaosResult{Stale: 1}, true},
		{"Pub/Sub", chaosResult{PubSub: true, Lost: 1}, false},
		{"and Pub/Sub lost some", chaosResult{Peer: &chaosResult{}, PubSubLost: &some}, false},
		{"but Pub/Sub lost none", chaosResult{Peer: &chaosResult{}, PubSubLost: &none}, true},
	} {
		if err := test.r.err(); (err != nil) != test.bad {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestAGapIsAFenceUntilItIsCarriedOut(t *testing.T) {
	w := newFenceWatch(&meshRegions{regions: []*meshRegion{{name: "a"}, {name: "b"}}})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for range 2 { // events are read again and again
		w.told("a", gapEvent{ID: 1, Time: at, Kind: "gap", Shard: "s", To: "b"})
		w.told("a", gapEvent{ID: 2, Time: at.Add(time.Second), Kind: "gap", Shard: "other"})
		w.told("a", gapEvent{ID: 3, Time: at.Add(2 * time.Second), Kind: "fence", Shard: "s", To: "b"})
		w.told("a", gapEvent{ID: 4, Time: at.Add(9 * time.Second), Kind: "fence", Shard: "s", To: "b"})
	}
	var ends []time.Duration
	for _, f := range w.seen() {
		ends = append(ends, f.Last.Sub(at))
	}
	want := []time.Duration{2 * time.Second, time.Second, time.Second, 9 * time.Second}
	if !slices.Equal(ends, want) {
		t.Errorf("the fences end %v after the first gap, want %v: the other shard's are in both regions, and the last is of no gap that is known", ends, want)
	}
}
