package controlplane

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/reports"
)

func TestRunServesAWatchedFile(t *testing.T) {
	ports, err := process.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	redis, err := process.Redis{Port: ports[2], Dir: t.TempDir(), Managed: true}.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer redis.Stop(time.Second)
	at := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	good := strings.Replace(goodMesh, "127.0.0.1:7001", at(2), 1)
	writeFile(t, path, good)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, Config{File: path, XDS: at(0), HTTP: at(1), State: filepath.Join(filepath.Dir(path), "state"), Version: "test", Logger: quiet})
	}()
	base := "http://" + at(1)
	status := func() (s Status) {
		body, _ := fetch(base + "/v1/status")
		json.Unmarshal(body, &s)
		return s
	}
	waitFor(t, "the node is probed", func() bool {
		s := status()
		return len(s.Shards) == 1 && s.Shards[0].Nodes[0].ReportedRole == "primary"
	})
	first := status()
	if first.Region != "home" || first.Config.Version == "" || first.Shards[0].Nodes[0].ReportedRole != "primary" || len(first.Alerts) != 0 {
		t.Errorf("status %+v", first)
	}

	writeFile(t, path, strings.Replace(good, "cache-0", "cache-0, weight: 0", 1))
	waitFor(t, "the broken file is shown", func() bool { return len(status().Config.Problems) > 0 })
	s := status()
	if s.Config.Version != first.Config.Version || !strings.Contains(s.Config.Problems[0], "regions[0].shards[0].weight") {
		t.Errorf("config %+v, want the first version and the field named", s.Config)
	}
	if len(s.Alerts) == 0 || s.Alerts[0].Subject != path {
		t.Errorf("alerts %+v, want one of the file", s.Alerts)
	}
	metrics, _ := fetch(base + "/metrics")
	for _, want := range []string{`cachemesh_controlplane_config_valid{region="home"} 0`, `cachemesh_shard_up{node="` + at(2) + `",pool="cache",region="home",role="primary",shard="cache-0"} 1`,
		`cachemesh_controlplane_leading{region="home"} 1`, `cachemesh_shard_epoch{pool="cache",region="home",shard="cache-0"} 1`,
		`cachemesh_shard_stand_in{kind="null",pool="cache",region="home",shard="cache-0"} 0`, `cachemesh_shard_witnesses{pool="cache",region="home",shard="cache-0",state="up"} 0`,
		`cachemesh_pool_frozen{pool="cache",region="home"} 0`, `cachemesh_pool_generation{pool="cache",region="home"} 0`,
		`cachemesh_handoff_step_seconds{pool="cache",region="home",step="purging"} 0`, `cachemesh_pool_spread{of="bytes",pool="cache",region="home"} 1`,
		`cachemesh_controlplane_events_total{kind="bootstrap",region="home"} 1`, `cachemesh_failover_seconds_count{region="home"} 0`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}

	writeFile(t, path, strings.Replace(good, "cache-0", "cache-1", 1))
	waitFor(t, "the mended file is in effect", func() bool {
		s := status()
		return s.Config.Version != first.Config.Version && len(s.Config.Problems) == 0 && s.Shards[0].Name == "cache-1"
	})
	writeFile(t, path, strings.Replace(good, "name: home", "name: away", 1))
	waitFor(t, "a file without this region is refused", func() bool {
		problems := status().Config.Problems
		return len(problems) == 1 && strings.Contains(problems[0], `"home" is not in the mesh`)
	})

	// Policies that change nothing for Envoy reach agents all the same.
	stream := connectAgent(t, at(0), insecure.NewCredentials(), &reports.Report{Agent: from("web")})
	for _, writes := range []mesh.Writes{mesh.Refill, mesh.Update} {
		writeFile(t, path, strings.Replace(strings.Replace(good, "cache-0", "cache-1", 1), `prefix: ""`, `prefix: "", coherence: invalidate, writes: `+string(writes), 1))
		var topology mesh.Topology
		for len(topology.Pools) == 0 { // what is to be probed may come first
			if text := receiveInstructions(t, stream).Topology; len(text) > 0 {
				if err := json.Unmarshal(text, &topology); err != nil {
					t.Fatal(err)
				}
			}
		}
		if pool := topology.Pools[0]; topology.Region != "home" || pool.Routes[0].Writes != writes || pool.Shards[0].Epoch == 0 {
			t.Errorf("an agent is told %+v, want writes: %s", topology, writes)
		}
	}

	for page, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/v1/topology": 200, "/v1/sidecars": 200, "/v1/shards": 200, "/nowhere": 404} {
		if body, code := fetch(base + page); code != want {
			t.Errorf("%s answers %d, want %d: %s", page, code, want, body)
		}
	}
	if resp, err := http.Post(base+"/v1/status", "text/plain", strings.NewReader("x")); err != nil || resp.StatusCode != http.StatusMethodNotAllowed && resp.StatusCode != http.StatusNotFound {
		t.Errorf("a POST is not refused: %v, %v", resp, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v, want a clean end", err)
	}
}

func TestRunRefusesWhatIsNotSafe(t *testing.T) {
	for want, c := range map[string]Config{
		"reachable from other hosts": {File: "mesh.yaml", XDS: "0.0.0.0:18000", HTTP: "127.0.0.1:18080"},
		"want IP:port":               {File: "mesh.yaml", XDS: "127.0.0.1:18000", HTTP: "here"},
	} {
		c.Logger = quiet
		if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func fetch(url string) ([]byte, int) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, 0
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return body, resp.StatusCode
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s: %s", what)
		}
	}
}
