package envoy

import (
	"slices"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/cachemesh/cachemesh/mesh"
)

// onLanes is a topology of which the first pool has lanes and shards of every kind.
func onLanes(t *testing.T) mesh.Topology {
	lanes := topology(t, "testdata/lanes.mesh.yaml", "us-east")
	lanes.Pools[0].Shards = standingIn(t).Pools[0].Shards
	return lanes
}

// Whatever answers for a shard, its writes go through its lane, and in the ring of writes its place is as in the other.
func TestLanesStandBeforeStandInsToo(t *testing.T) {
	r, err := Build(onLanes(t))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]Endpoint{
		"mixed": {
			{Shard: "cache-0", Address: "null/cache-0.sock", StandIn: mesh.Null, Weight: 1},
			{Shard: "cache-1", Address: "hold/cache-1.sock", StandIn: mesh.Hold, Weight: 1},
			{Shard: "cache-2", Address: "[::1]:7004", Weight: 1},
		},
		"mixed/writes": {
			{Shard: "cache-0", Address: "lanes/cache-0.sock", Lane: true, Weight: 1},
			{Shard: "cache-1", Address: "lanes/cache-1.sock", Lane: true, Weight: 1},
			{Shard: "cache-2", Address: "lanes/cache-2.sock", Lane: true, Weight: 1},
		},
		"local":        {{Shard: "local-0", Address: "127.0.0.1:7003", Weight: 1}},
		"local/writes": {{Shard: "local-0", Address: "127.0.0.1:7003", Weight: 1}},
	}
	got := map[string][]Endpoint{}
	for _, resource := range r.Endpoints {
		if got[resource.Name], err = Endpoints(resource); err != nil {
			t.Error(err)
		}
		if has := HasLanes(resource); has != (resource.Name == "mixed/writes") {
			t.Errorf("%s has lanes: %v", resource.Name, has)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A route goes on lanes with endpoints and a listener: clusters are never edited.
func TestLanesEditNoCluster(t *testing.T) {
	with := onLanes(t)
	without := onLanes(t)
	without.Pools[0].Routes = slices.Clone(without.Pools[0].Routes)
	without.Pools[0].Routes[0].Coherence = mesh.Local
	a, err := Build(with)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Build(without)
	if err != nil {
		t.Fatal(err)
	}
	for _, typeURL := range []string{ClusterType, SecretType} {
		for i, r := range a.ByType(typeURL) {
			if r.Version != b.ByType(typeURL)[i].Version {
				t.Errorf("%s changes with lanes", r.Name)
			}
		}
	}
}

func TestPlaceLanes(t *testing.T) {
	r, err := Build(onLanes(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, resource := range r.Endpoints {
		before := protojson.Format(resource)
		placed, err := PlaceLanes(resource, "lanes-7")
		if err != nil {
			t.Fatal(err)
		}
		if after := protojson.Format(resource); after != before {
			t.Errorf("%s was changed", resource.Name)
		}
		version, folder := CutLaneVersion(placed.Version)
		if version != resource.Version || placed.Name != resource.Name {
			t.Errorf("%s of version %s is now %s of %s", resource.Name, resource.Version, placed.Name, version)
		}
		if resource.Name != "mixed/writes" {
			if placed != resource || folder != "" {
				t.Errorf("%s, which has no lanes, is placed in %q", resource.Name, folder)
			}
			continue
		}
		if folder != "lanes-7" {
			t.Errorf("the version names the folder %q", folder)
		}
		var paths []string
		for _, h := range hostsOf(t, placed) {
			paths = append(paths, h.GetEndpoint().GetAddress().GetPipe().GetPath())
		}
		if want := []string{"lanes-7/cache-0.sock", "lanes-7/cache-1.sock", "lanes-7/cache-2.sock"}; !slices.Equal(paths, want) {
			t.Errorf("paths %q, want %q", paths, want)
		}
	}
}

func hostsOf(t *testing.T, r *discovery.Resource) []*endpointv3.LbEndpoint {
	t.Helper()
	var assigned endpointv3.ClusterLoadAssignment
	if err := r.Resource.UnmarshalTo(&assigned); err != nil {
		t.Fatal(err)
	}
	return assigned.Endpoints[0].LbEndpoints
}
