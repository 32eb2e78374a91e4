package regions

import (
	"slices"
	"testing"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/regions/writers"
)

// A writer that does not come to a new primary is gone with what it knew: all that the shard has is removed in both regions. One that comes
// is no reason.
func TestAMissingWriterIsAGap(t *testing.T) {
	us, eu := newRegion(t, "us", 2), newRegion(t, "eu", 2)
	linked(us, eu)
	us.flowing()
	eu.flowing()
	keys := keysOf("user:", 100)
	its := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return us.shard(k) != 0 })
	others := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return us.shard(k) == 0 })
	join := func(name string, epoch uint64) {
		t.Helper()
		if err := us.nodes[0].client.Do(t.Context(), asAny(writers.Join(name, epoch))...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	joined := func() (names []string) {
		t.Helper()
		all, err := writers.List(t.Context(), us.nodes[0].client)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range all {
			names = append(names, w.Name)
		}
		return names
	}
	us.set(keys...)
	eu.set(keys...)
	raise := func() {
		us.change(func(s []mesh.Shard) { s[0].Epoch++ })
		if err := us.nodes[0].client.Set(t.Context(), "cachemesh:epoch", us.topology.Pools[0].Shards[0].Epoch, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	// The applier has written, and comes by itself.
	eu.remove(others[0])
	us.gone(others[0])
	eu.remove(its[0])
	us.gone(its[0])
	if got := joined(); len(got) != 1 || got[0] != us.applier.writer {
		t.Errorf("%v write to the shard, want the applier %s", got, us.applier.writer)
	}
	join("here", 1)
	raise()
	join("here", 2)
	us.until("the applier joins the new primary", func() bool {
		all, err := writers.List(t.Context(), us.nodes[0].client)
		return err == nil && len(all) == 2 && all[0].Epoch == 2 && all[1].Epoch == 2
	})
	join("lost", 2)
	raise()
	join("here", 3)
	us.gone(its...)
	eu.gone(its...)
	us.until("fences are told of in all regions", func() bool {
		told := map[string]bool{}
		for _, n := range us.links.Notices(0) {
			told[n.Region] = told[n.Region] || n.Reason == journal.Tail && !n.Fence && n.Epoch == 3
			if n.Epoch == 2 && n.Reason == journal.Tail {
				t.Errorf("%+v, but nobody was missing", n)
			}
		}
		return told["us"] && told["eu"]
	})
	if !eu.has(others[1]) || !us.has(others[1]) {
		t.Error("another shard's keys are gone, too")
	}
	if got := joined(); slices.Contains(got, "lost") || !slices.Contains(got, "here") {
		t.Errorf("%v write to the shard", got)
	}
}
