package test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// lone is an Envoy that is connected to a control plane without an agent.
type lone struct {
	name         string
	redis, resp3 string
	process      *process.Process
}

// The protocols that an Envoy may speak with a control plane, as its bootstrap names them.
const (
	delta           = "DELTA_GRPC"
	stateOfTheWorld = "GRPC"
)

// startEnvoy starts an Envoy whose bootstrap says where its listeners are to be, and does not wait for them.
func (m *testMesh) startEnvoy(t *testing.T, name, protocol, controlplane string) *lone {
	t.Helper()
	at := freeAddresses(t, 3)
	e := &lone{name: name, redis: at[0], resp3: at[1]}
	config, err := envoy.Bootstrap(envoy.BootstrapConfig{ID: name, Region: region, XDS: controlplane, Admin: at[2],
		Metadata: map[string]string{"redis": e.redis, "redis_resp3": e.resp3}})
	if err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(`"`+delta+`"`), []byte(`"`+protocol+`"`), 1)
	file := filepath.Join(m.dir, name+".json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := process.Find("envoy")
	if err != nil {
		t.Fatal(err)
	}
	e.process, err = process.Start(t.Context(), process.Spec{Name: name, Path: path, Log: filepath.Join(m.dir, name+".log"),
		Args: []string{"-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.process.Stop(2 * time.Second) })
	return e
}

// waitServing waits until both listeners take a key.
func (e *lone) waitServing(t *testing.T, key string) {
	t.Helper()
	for _, options := range []*redis.Options{{Addr: e.redis, Protocol: 2}, {Addr: e.resp3, Protocol: 3}} {
		client := newClient(t, options)
		eventually(t, 15*time.Second, func() error { return client.Set(t.Context(), key, "v", 0).Err() })
	}
}

func TestEnvoyWithoutAgent(t *testing.T) {
	t.Parallel()
	m := onePool(t, "k:", 2)
	c := m.startControlplane(t)
	envoys := []*lone{m.startEnvoy(t, "by-delta", delta, c.xds), m.startEnvoy(t, "by-world", stateOfTheWorld, c.xds)}
	for _, e := range envoys {
		e.waitServing(t, "k:1")
		c.waitSynced(t, e.name)
	}
	before := c.status(t)
	if len(before.Sidecars) != 2 {
		t.Fatalf("the sidecars are %+v, want two", before.Sidecars)
	}
	for _, n := range before.Sidecars {
		if n.Agent != "" || !strings.HasPrefix(n.Envoy, "1.40.") {
			t.Errorf("%s has agent %q and Envoy %q, want none and 1.40", n.Name, n.Agent, n.Envoy)
		}
	}
	// A pool, its route and a shard more reach both.
	m.addPool(t, mesh.PoolSpec{Name: "more", Routes: []mesh.Route{{Prefix: "m:"}}}, 1)
	m.addShard(t, mesh.ShardSpec{Pool: "all", Name: "all-2"})
	m.write(t)
	c.waitVersion(t, before.Config.Version)
	for _, e := range envoys {
		c.waitSynced(t, e.name)
		e.waitServing(t, "m:1")
		e.waitServing(t, "k:1")
	}
}

// sends counts the answers of each type that a server has sent.
type sends struct {
	mu       sync.Mutex
	by       map[string]int
	rejected int
}

func (s *sends) Sent(typeURL string, _, _ int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.by[typeURL]++
}

func (s *sends) Rejected(string, string, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rejected++
}

func (s *sends) Synced(string, time.Duration) {}

func (s *sends) count() (listeners, rejected int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[envoy.ListenerType], s.rejected
}

// serveXDS serves an xDS server as a control plane does, without what would stop bad resources before it.
func serveXDS(t *testing.T) (server *xds.Server, sent *sends, address string) {
	t.Helper()
	sent = &sends{by: map[string]int{}}
	server = xds.NewServer(xds.Config{Region: region, RemoveAfter: 15 * time.Second, KeepGone: time.Minute, Observe: sent})
	listener, err := net.Listen("tcp", freeAddresses(t, 1)[0])
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	ctx, cancel := context.WithCancel(context.Background())
	server.Register(ctx, g)
	go g.Serve(listener)
	t.Cleanup(func() {
		cancel()
		g.Stop()
	})
	return server, sent, listener.Addr().String()
}

// resources are those of the mesh with routes of the prefixes, which no validation has seen.
func (m *testMesh) resources(t *testing.T, prefixes ...string) *envoy.Resources {
	t.Helper()
	pool := mesh.Pool{Name: "all", Hashing: mesh.Hashing{Algorithm: mesh.RingHash, Size: 1024}}
	for _, prefix := range prefixes {
		pool.Routes = append(pool.Routes, mesh.Route{Prefix: prefix, Coherence: mesh.Local})
	}
	for _, s := range m.shards() {
		pool.Shards = append(pool.Shards, mesh.Shard{Name: s.Name, Weight: 1, Nodes: []mesh.Node{{Address: s.Nodes[0], Role: mesh.Primary}}})
	}
	resources, err := envoy.Build(mesh.Topology{Region: region, OpTimeout: mesh.DefaultOpTimeout, Pools: []mesh.Pool{pool}})
	if err != nil {
		t.Fatal(err)
	}
	return resources
}

func waitState(t *testing.T, server *xds.Server, name string, want xds.State) xds.Node {
	t.Helper()
	var found xds.Node
	eventually(t, 15*time.Second, func() error {
		for _, n := range server.Nodes() {
			if n.Name == name && n.State == want {
				found = n
				return nil
			}
		}
		return fmt.Errorf("the nodes are %+v, want %s %s", server.Nodes(), name, want)
	})
	return found
}

// What our own validation lets through, Envoy has always taken so far. So an xDS server is handed here what a validation
// would have to stop: a prefix twice.
func TestRejectedResourceLeavesTheOldOneServing(t *testing.T) {
	t.Parallel()
	for protocol, start := range map[string]func(*testing.T, *testMesh, string) (name, redis string){
		"agent": func(t *testing.T, m *testMesh, xds string) (string, string) {
			s := m.newSidecar(t, "here-0", &controlplane{xds: xds})
			s.start(t)
			return s.name, s.redis
		},
		"delta": func(t *testing.T, m *testMesh, xds string) (string, string) {
			e := m.startEnvoy(t, "by-delta", delta, xds)
			e.waitServing(t, "k:1")
			return e.name, e.redis
		},
		"state of the world": func(t *testing.T, m *testMesh, xds string) (string, string) {
			e := m.startEnvoy(t, "by-world", stateOfTheWorld, xds)
			e.waitServing(t, "k:1")
			return e.name, e.redis
		},
	} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			m := onePool(t, "k:", 1)
			server, sent, address := serveXDS(t)
			server.Set(m.resources(t, "k:"))
			name, at := start(t, m, address)
			waitState(t, server, name, xds.Synced)
			load := startLoad(t, &redis.Options{Addr: at, Protocol: 2}, someKeys("k:", 10))
			load.waitMore(t, 50)

			server.Set(m.resources(t, "k:", "k:"))
			node := waitState(t, server, name, xds.Rejected)
			if len(node.Rejections) != 1 || node.Rejections[0].Type != "listener" || !strings.Contains(node.Reason, "prefix") {
				t.Errorf("the node is %+v, want a listener rejected over its prefix", node)
			}
			before, _ := sent.count()
			load.waitMore(t, 4000) // for at least a second: each worker sends one a millisecond
			after, rejected := sent.count()
			if after != before || rejected != 1 {
				t.Errorf("%d answers were sent after the rejection, and %d rejected in all: want none and one", after-before, rejected)
			}
			load.finish(t)

			server.Set(m.resources(t, "k:", "l:"))
			waitState(t, server, name, xds.Synced)
			client := newClient(t, &redis.Options{Addr: at, Protocol: 2})
			eventually(t, 5*time.Second, func() error { return client.Set(t.Context(), "l:1", "v", 0).Err() })
		})
	}
}
