package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/reports"
)

// Regions find each other's agents through their Consuls: each control plane registers its own, and watches the others.
func TestLinksAreFoundThroughConsul(t *testing.T) {
	w := newConsulWorld(t)
	ports, err := process.FreePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	west := process.Consul{Datacenter: "west", HTTP: ports[0], RPC: ports[1], LAN: ports[2], WAN: ports[3], Dir: t.TempDir(), JoinWAN: []int{w.server.WAN}}
	p, err := west.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	w.stop()
	far := `regions: [{name: far, datacenter: west, shards: [{pool: cache, name: cache-0}]}, `
	writeFile(t, w.config.File, strings.NewReplacer("CONSUL", w.server.Address(), "regions: [", far, `prefix: ""`, `prefix: "", coherence: invalidate, writes: refill`).Replace(consulMeshFile))
	w.register("cache-0", 0)
	w.register("cache-1", 2)
	w.start()
	other, err := consul.New(mesh.ConsulSpec{Address: west.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	for _, agents := range []map[string]string{{"f-0": "127.0.0.1:7001"}, {"f-0": "127.0.0.1:7001", "f-1": "127.0.0.1:7002"}} {
		if err := other.RegisterLinks(t.Context(), "far", agents); err != nil {
			t.Fatal(err)
		}
		atLast(t, func() error {
			response, err := http.Get("http://" + w.config.HTTP + "/v1/topology")
			if err != nil {
				return err
			}
			defer response.Body.Close()
			var got mesh.Topology
			if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
				return err
			}
			if len(got.Links["far"]) != len(agents) || got.Links["far"][0] != "127.0.0.1:7001" {
				return fmt.Errorf("the links are %v", got.Links)
			}
			return nil
		})
	}
	conn, err := grpc.NewClient(w.config.XDS, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := reports.NewReportsClient(conn).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reports.Report{Agent: &reports.Agent{Name: "h-0", Region: "home", Link: "127.0.0.1:7100"}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	found := false
	consul.WatchLinks(ctx, mesh.ConsulSpec{Address: west.Address()}, "east", "home", func(l consul.Links) {
		if found = found || slices.Equal(l.Addresses, []string{"127.0.0.1:7100"}); found {
			cancel()
		}
	})
	if !found {
		t.Error("the other region does not find this one's agent")
	}
}

// atLast fails the test if f does not return nil within half a minute.
func atLast(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
