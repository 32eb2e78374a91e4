package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cachemesh/cachemesh/mesh"
)

func asJSON(t testing.TB, topology mesh.Topology) []byte {
	t.Helper()
	text, err := json.Marshal(topology)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// withEpoch is a topology that only its epoch tells from others.
func withEpoch(epoch uint64) mesh.Topology {
	t := topology("127.0.0.1:1", "127.0.0.1:2")
	t.Pools[0].Routes[0] = mesh.Route{Coherence: mesh.Invalidate, Writes: mesh.Update}
	t.Pools[0].Shards[0].Epoch = epoch
	return t
}

func epochOf(t *topologies) uint64 {
	if now := t.current(); now != nil {
		return now.Pools[0].Shards[0].Epoch
	}
	return 0
}

func TestTheControlPlaneThatServesEnvoyCounts(t *testing.T) {
	plane := "b"
	all := newTopologies("here", func() string { return plane }, nil, slog.New(slog.DiscardHandler))
	var told []uint64
	all.subscribe(func(next *mesh.Topology) {
		if epochOf(all) == next.Pools[0].Shards[0].Epoch {
			t.Error("it counts before its subscribers have it")
		}
		told = append(told, next.Pools[0].Shards[0].Epoch)
	})
	changes := 0
	all.changed = func() { changes++ }
	offer := func(from string, epoch uint64) {
		t.Helper()
		if err := all.offer(from, from[:1], asJSON(t, withEpoch(epoch))); err != nil {
			t.Fatal(err)
		}
	}
	want := func(epoch uint64) {
		t.Helper()
		if got := epochOf(all); got != epoch {
			t.Fatalf("epoch %d counts, want %d", got, epoch)
		}
	}
	want(0)
	offer("a", 1)
	want(1) // better than none
	offer("b", 2)
	want(2)
	offer("a", 3)
	want(2)
	offer("b", 4)
	want(4)
	offer("b at another address", 5)
	want(5) // the newest of those under its name
	all.withdraw("b at another address")
	want(4)
	plane = "a"
	all.choose()
	want(3)
	plane = ""
	all.choose()
	want(3)
	offer("b", 4)
	want(3)
	offer("a", 7)
	want(7)
	all.withdraw("a")
	want(4)
	all.withdraw("b")
	want(4)
	offer("a", 6)
	want(6)
	if wanted := []uint64{1, 2, 4, 5, 4, 3, 7, 4, 6}; !reflect.DeepEqual(told, wanted) || changes != len(wanted) {
		t.Errorf("told %v in %d changes, want %v", told, changes, wanted)
	}
	late := uint64(0)
	all.subscribe(func(next *mesh.Topology) { late = next.Pools[0].Shards[0].Epoch })
	if late != 6 {
		t.Errorf("a late subscriber is told %d", late)
	}
}

func TestBadTopologiesChangeNothing(t *testing.T) {
	all := newTopologies("here", func() string { return "a" }, nil, slog.New(slog.DiscardHandler))
	if err := all.offer("a", "a", asJSON(t, withEpoch(1))); err != nil {
		t.Fatal(err)
	}
	elsewhere, twice := withEpoch(2), withEpoch(2)
	elsewhere.Region = "there"
	twice.Pools[0].Hashing.Algorithm = "dice"
	for want, text := range map[string][]byte{
		"not what this version": []byte("{"), `region "there"`: asJSON(t, elsewhere), `pool "all"`: asJSON(t, twice),
	} {
		if err := all.offer("a", "a", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if epochOf(all) != 1 {
			t.Error("a bad topology counts")
		}
	}
	if err := all.offer("a", "a", append([]byte(`{"from_the_future":1,`), asJSON(t, withEpoch(7))[1:]...)); err != nil || epochOf(all) != 7 {
		t.Errorf("a field of a newer version: %v", err)
	}
}

func TestTopologiesAreSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), topologyFile)
	if saved, err := loadTopology("here", path); saved != nil || err != nil {
		t.Errorf("nothing saved: %v, %v", saved, err)
	}
	all := newTopologies("here", func() string { return "a" }, nil, slog.New(slog.DiscardHandler))
	for epoch := range uint64(3) {
		if err := all.offer("a", "a", asJSON(t, withEpoch(epoch+1))); err != nil {
			t.Fatal(err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := all.save(ended, path); err != nil {
		t.Fatal(err)
	}
	saved, err := loadTopology("here", path)
	if err != nil {
		t.Fatal(err)
	}
	again := newTopologies("here", func() string { return "" }, saved, slog.New(slog.DiscardHandler))
	if !reflect.DeepEqual(again.current(), all.current()) {
		t.Errorf("read again it is %+v, want %+v", again.current(), all.current())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for want, damaged := range map[string]string{
		"does not begin": "x" + string(data), "is damaged": strings.Replace(string(data), "127.0.0.1:1", "127.0.0.1:9", 1), "region": "",
	} {
		region := "here"
		if damaged == "" {
			region, damaged = "there", string(data)
		}
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if saved, err := loadTopology(region, path); saved != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v, want %q", saved, err, want)
		}
	}
}

// A control plane that moves a shard must not take the move for done while the lane does not follow it.
func TestAgreedIsWhatEnvoyAndLanesHave(t *testing.T) {
	all := newTopologies("here", func() string { return "a" }, nil, slog.New(slog.DiscardHandler))
	has := map[string]string{"all-0": "127.0.0.1:1", "all-1": "hold/all-1.sock", "other": "127.0.0.1:3"}
	lanes := map[string]bool{"all-0": true, "all-1": true}
	expect := func(lanes map[string]bool, all0, all1 string) {
		t.Helper()
		want := map[string]string{"all-0": all0, "all-1": all1, "other": "127.0.0.1:3"}
		if got := all.agreed(has, lanes); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	expect(nil, "127.0.0.1:1", "hold/all-1.sock")
	expect(lanes, "", "")
	next := withEpoch(1)
	for i, standIn := range []mesh.StandIn{"", mesh.Hold} {
		next.Pools[0].Shards[1].StandIn = standIn
		if err := all.offer("a", "a", asJSON(t, next)); err != nil {
			t.Fatal(err)
		}
		expect(lanes, "127.0.0.1:1", []string{"", "hold/all-1.sock"}[i])
	}
}

// An agent learns the topology over its reports, tells a control plane what it follows, and has it again when no control plane answers.
func TestAnAgentFollowsTheTopology(t *testing.T) {
	plane := newControlPlane(t)
	first := laned(shards...)
	plane.serve(t, "1", build(t, first))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.start(t)
	plane.heard.waitHas(t, map[string]string{"all-0": "", "all-1": ""})
	plane.heard.publish(t, first)
	plane.heard.waitHas(t, map[string]string{"all-0": shards[0], "all-1": shards[1]})
	if got := s.status(t).Lanes; got != nil && (got.Folder != "lanes-1" || got.Topology != digest(asJSON(t, first))[:12]) {
		t.Errorf("status of lanes: %+v", got)
	}
	held := laned(shards...)
	held.Pools[0].Shards[0].StandIn = mesh.Hold
	plane.heard.publish(t, held)
	plane.heard.waitHas(t, map[string]string{"all-0": "", "all-1": shards[1]})
	plane.serve(t, "2", build(t, held))
	plane.heard.waitHas(t, map[string]string{"all-0": "hold/all-0.sock", "all-1": shards[1]})
	s.stop(t)
	plane.stop()
	eventually(t, func() error {
		saved, err := loadTopology("here", filepath.Join(s.config.Dir, topologyFile))
		if err != nil || saved == nil {
			return fmt.Errorf("%v, %v", saved, err)
		}
		if !reflect.DeepEqual(*saved.topology, held) {
			return fmt.Errorf("saved is %+v", saved.topology)
		}
		return nil
	})
}
