package sidecar

import (
	"fmt"
	"testing"

	"github.com/cachemesh/cachemesh/mesh"
)

func TestASidecarAcknowledgesWhatItsLanesAndItsEnvoyHaveTaken(t *testing.T) {
	shard := func(name string) mesh.Shard {
		return mesh.Shard{Name: name, Weight: 1, Epoch: 1, Nodes: []mesh.Node{{Address: "127.0.0.1:7001", Role: mesh.Primary}}}
	}
	before, after := []mesh.Shard{shard("a"), shard("b")}, []mesh.Shard{shard("a"), shard("b"), shard("c")}
	const old, now = "a*1 b*1", "a*1 b*1 c*1"
	for _, c := range []struct {
		step           mesh.HandoffStep
		direct, writes string // Envoy's clusters
		unsettled      bool
		want           string
	}{
		{step: mesh.Copying, direct: old, writes: old, want: "0 copying"},
		{step: mesh.Preparing, direct: old, writes: old, want: "0 preparing"},
		{step: mesh.Fencing, direct: old, writes: old, unsettled: true, want: "0 preparing"},
		{step: mesh.Fencing, direct: old, writes: old, want: "0 fencing"},
		{step: mesh.Flipping, direct: old, writes: old, want: "0 fencing"},
		{step: mesh.Flipping, direct: now, writes: old, want: "0 fencing"},
		{step: mesh.Flipping, direct: now, writes: now, unsettled: true, want: "1 preparing"},
		{step: mesh.Flipping, direct: now, writes: now, want: "1 flipping"},
		{step: mesh.Purging, direct: now, writes: now, want: "1 purging"},
		{step: mesh.Undoing, direct: old, writes: old, want: "0 undoing"},
		{direct: now, writes: now, want: "1 "},
		{direct: old, writes: now, want: "0 "},
	} {
		pool := mesh.Pool{Name: "p", Shards: before}
		if c.step == mesh.Flipping || c.step == mesh.Purging || c.step == "" {
			pool.Shards, pool.Generation = after, 1
		}
		if c.step != "" {
			pool.Handoff = &mesh.Handoff{ID: 7, Generation: 1, Step: c.step, From: before, To: after}
		}
		r := rings{
			topology: func() *mesh.Topology {
				return &mesh.Topology{Pools: []mesh.Pool{pool, {Name: "q", Shards: before}}}
			},
			orders:  func() map[string]string { return map[string]string{"p": c.direct, "p/writes": c.writes} },
			settled: func(string) bool { return !c.unsettled },
			kept:    func(string) uint64 { return 5 },
		}
		all := r.report()
		if len(all) != 1 || all[0].GetPool() != "p" || all[0].GetKept() != 5 {
			t.Fatalf("%s: %v", c.step, all)
		}
		if got := fmt.Sprintf("%d %s", all[0].GetGeneration(), all[0].GetStep()); got != c.want {
			t.Errorf("%s, direct %q, writes %q: %q, want %q", c.step, c.direct, c.writes, got, c.want)
		}
	}
}
