package envoy

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/cachemesh/cachemesh/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

func topology(t *testing.T, file, region string) mesh.Topology {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.Load(filepath.Base(file), data)
	if err != nil {
		t.Fatal(err)
	}
	topology, err := m.Topology(region)
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

// Each testdata/NAME.mesh.yaml has a NAME.REGION.json for each of its regions, compared by meaning.
func TestBuildMatchesGoldenFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.mesh.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := mesh.Load(filepath.Base(file), data)
		if err != nil {
			t.Fatal(err)
		}
		for _, region := range m.RegionNames() {
			golden := strings.TrimSuffix(file, "mesh.yaml") + region + ".json"
			t.Run(filepath.Base(golden), func(t *testing.T) {
				r, err := Build(topology(t, file, region))
				if err != nil {
					t.Fatal(err)
				}
				checkGolden(t, golden, dump(t, r))
			})
		}
	}
}

func TestBootstrapMatchesGoldenFiles(t *testing.T) {
	for name, c := range map[string]BootstrapConfig{
		"sidecar": {ID: "us-east-0", Region: "us-east", Zone: "us-east-a", XDS: "unix:xds.sock", Admin: "127.0.0.1:9901",
			Metadata: map[string]string{"agent": "v1"}},
		"alone": {ID: "us-east-9", Region: "us-east", XDS: "control.example:18000", Admin: "[::1]:9901"},
	} {
		got, err := Bootstrap(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Bootstrap(c)
		if err != nil || !bytes.Equal(got, again) {
			t.Errorf("%s: two calls differ", name)
		}
		checkGolden(t, "testdata/bootstrap."+name+".json", got)
	}
}

func TestBootstrapRefuses(t *testing.T) {
	for want, c := range map[string]BootstrapConfig{
		"not on loopback":           {ID: "a", Region: "r", XDS: "unix:x", Admin: "10.0.0.1:9901"},
		"want IP:port":              {ID: "a", Region: "r", XDS: "unix:x", Admin: "localhost"},
		"want unix:PATH or host:po": {ID: "a", Region: "r", XDS: "nowhere", Admin: "127.0.0.1:9901"},
	} {
		if _, err := Bootstrap(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", c, err, want)
		}
	}
}

// dump shows resources as a person would read them: by type, unpacked.
func dump(t *testing.T, r *Resources) []byte {
	t.Helper()
	show := func(resources []*discovery.Resource) map[string]json.RawMessage {
		out := map[string]json.RawMessage{}
		for _, resource := range resources {
			data, err := protojson.Marshal(resource)
			if err != nil {
				t.Fatal(err)
			}
			out[resource.Name] = data
		}
		return out
	}
	data, err := json.MarshalIndent(map[string]any{
		"version": r.Version, "clusters": show(r.Clusters), "endpoints": show(r.Endpoints), "secrets": show(r.Secrets), "listeners": show(r.Listeners),
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

func checkGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		var out bytes.Buffer
		if err := json.Indent(&out, got, "", "  "); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var gotValue, wantValue any
	if err := json.Unmarshal(got, &gotValue); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(want, &wantValue); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantValue, gotValue); diff != "" {
		t.Errorf("%s (-want +got), `go test ./envoy -update` rewrites it:\n%s", file, diff)
	}
}

func TestVersionsAreContentHashes(t *testing.T) {
	before, err := Build(topology(t, "testdata/two-regions.mesh.yaml", "us-east"))
	if err != nil {
		t.Fatal(err)
	}
	same, err := Build(topology(t, "testdata/two-regions.mesh.yaml", "us-east"))
	if err != nil {
		t.Fatal(err)
	}
	if before.Version != same.Version {
		t.Errorf("the same topology has versions %s and %s", before.Version, same.Version)
	}
	changed := topology(t, "testdata/two-regions.mesh.yaml", "us-east")
	changed.Pools[0].Shards[0].Nodes[0].Address = "127.0.0.1:9999"
	after, err := Build(changed)
	if err != nil {
		t.Fatal(err)
	}
	if after.Version == before.Version {
		t.Error("a changed address keeps the version")
	}
	var differ []string
	for _, typeURL := range []string{ClusterType, EndpointType, ListenerType} {
		for i, r := range after.ByType(typeURL) {
			if r.Version != before.ByType(typeURL)[i].Version {
				differ = append(differ, typeURL[strings.LastIndexByte(typeURL, '.')+1:]+" "+r.Name)
			}
		}
	}
	want := []string{"ClusterLoadAssignment timelines", "ClusterLoadAssignment timelines/writes"}
	if diff := cmp.Diff(want, differ); diff != "" {
		t.Errorf("a changed address must change the pool's endpoints alone: %s", diff)
	}
}

func TestConsistentFindsDanglingNames(t *testing.T) {
	build := func() *Resources {
		r, err := Build(topology(t, "testdata/two-regions.mesh.yaml", "us-east"))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for want, damage := range map[string]func(*Resources){
		"has no endpoints":     func(r *Resources) { r.Endpoints = r.Endpoints[1:] },
		"belong to no cluster": func(r *Resources) { r.Clusters = r.Clusters[:len(r.Clusters)-1] },
		"does not exist":       func(r *Resources) { r.Clusters, r.Endpoints = r.Clusters[2:], r.Endpoints[2:] },
	} {
		r := build()
		damage(r)
		if err := r.Consistent(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestAddressesAreOnLoopbackAndDiffer(t *testing.T) {
	for want, a := range map[string]Addresses{
		"not on loopback":   {Redis: "0.0.0.0:6379", RedisRESP3: "127.0.0.1:6380"},
		"has no address":    {Redis: "127.0.0.1:6379"},
		"is not IP:port":    {Redis: "localhost:6379", RedisRESP3: "127.0.0.1:6380"},
		"give each its own": {Redis: "127.0.0.1:6379", RedisRESP3: "127.0.0.1:6379"},
	} {
		if err := a.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", a, err, want)
		}
	}
	if err := (Addresses{Socket: "redis.sock", RedisRESP3: "[::1]:6380"}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestPlaceListeners(t *testing.T) {
	r, err := Build(topology(t, "testdata/two-regions.mesh.yaml", "us-east"))
	if err != nil {
		t.Fatal(err)
	}
	version := r.Listeners[0].Version
	placed, err := PlaceListeners(r.Listeners, Addresses{Redis: "127.0.0.1:7777", Socket: "redis.sock", SocketRESP3: "resp3.sock"})
	if err != nil {
		t.Fatal(err)
	}
	text := protojson.Format(placed[0].Resource) + protojson.Format(placed[1].Resource)
	for _, want := range []string{"7777", "redis.sock", "resp3.sock"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
	if placed[0].Version != version {
		t.Errorf("version %s, want the control plane's %s", placed[0].Version, version)
	}
	if strings.Contains(protojson.Format(r.Listeners[0].Resource), "7777") {
		t.Error("the shared resource was changed")
	}
}
