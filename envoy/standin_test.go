package envoy

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/cachemesh/cachemesh/mesh"
)

// standingIn is a topology with TLS in which the first pool has shards of every kind.
func standingIn(t *testing.T) mesh.Topology {
	topology := topology(t, "testdata/tls.mesh.yaml", "home")
	shard := func(name string, kind mesh.StandIn, nodes ...mesh.Node) mesh.Shard {
		return mesh.Shard{Name: name, Weight: 1, StandIn: kind, Nodes: nodes}
	}
	topology.Pools[0].Shards = []mesh.Shard{
		shard("cache-0", mesh.Null),
		shard("cache-1", mesh.Hold, mesh.Node{Address: "127.0.0.1:7003", Role: mesh.Primary}),
		shard("cache-2", "", mesh.Node{Address: "[::1]:7004", Role: mesh.Primary}),
	}
	return topology
}

func TestStandInsMatchTheGoldenFile(t *testing.T) {
	r, err := Build(standingIn(t))
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "testdata/stand-ins.json", dump(t, r))
}

// A stand-in takes a shard's place on the ring: its cluster stays as it is, so that no request in flight is lost.
func TestStandInsChangeEndpointsAlone(t *testing.T) {
	with := standingIn(t)
	without := standingIn(t)
	for i := range without.Pools[0].Shards {
		without.Pools[0].Shards[i].StandIn = ""
	}
	a, err := Build(with)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Build(without)
	if err != nil {
		t.Fatal(err)
	}
	for _, typeURL := range []string{ClusterType, SecretType, ListenerType} {
		for i, r := range a.ByType(typeURL) {
			if r.Version != b.ByType(typeURL)[i].Version {
				t.Errorf("%s changes with a stand-in", r.Name)
			}
		}
	}
}

func TestEndpoints(t *testing.T) {
	r, err := Build(standingIn(t))
	if err != nil {
		t.Fatal(err)
	}
	want := []Endpoint{
		{Shard: "cache-0", Address: "null/cache-0.sock", StandIn: mesh.Null, Weight: 1},
		{Shard: "cache-1", Address: "hold/cache-1.sock", StandIn: mesh.Hold, Weight: 1},
		{Shard: "cache-2", Address: "[::1]:7004", Weight: 1},
	}
	for _, resource := range r.Endpoints[:2] {
		got, err := Endpoints(resource)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", resource.Name, err, diff)
		}
	}
}

func TestEndpointsRefusesForeignSockets(t *testing.T) {
	for _, c := range []struct{ shard, path string }{
		{"a", "null/b.sock"}, {"a", "xds.sock"}, {"a", "/null/a.sock"}, {"../a", "null/../a.sock"}, {"", "null/.sock"}, {"a", "other/a.sock"}, {"a", "lanes/b.sock"}, {"a", "lanes-1/a.sock"}, {"../a", "lanes/../a.sock"},
	} {
		resource, err := newResource("pool", &endpointv3.ClusterLoadAssignment{
			ClusterName: "pool",
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{
				host(mesh.Shard{Name: c.shard, Weight: 1}, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: c.path}}}),
			}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Endpoints(resource); err == nil || !strings.Contains(err.Error(), "no stand-in") {
			t.Errorf("shard %q at %q: %v, %v", c.shard, c.path, got, err)
		}
	}
	if _, err := Endpoints(&discovery.Resource{Name: "pool"}); err == nil {
		t.Error("an empty resource has endpoints")
	}
}
