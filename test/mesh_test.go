// Package test holds the end-to-end and fault tests: it builds the binaries and uses them as a user does, with real
// Envoys and real Redis nodes on free ports of loopback. Packages test their own insides; here only what can be seen from
// outside counts.
//
// Every test stops what it started, by pid, and touches nothing else.
package test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	agent "github.com/cachemesh/cachemesh/sidecar"
)

// built is the path of the cachemesh that was built for these tests, with twitter beside it. Tests take it from program.
var built string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cachemesh")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	command := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "../cmd/cachemesh", "../examples/twitter")
	command.Stderr = os.Stderr
	if err := command.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the binaries:", err)
		return 1
	}
	built = filepath.Join(dir, "cachemesh")
	return m.Run()
}

// program is what was built. It is asked for within a test, so that `go test`, which repeats an old result unless something
// that a test has opened is newer, learns of the sources: it does not see what the build has read.
func program(t *testing.T) string {
	t.Helper()
	if err := sources(); err != nil {
		t.Fatal(err)
	}
	return built
}

// sources opens every folder of the repository, once.
var sources = sync.OnceValue(func() error {
	return filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && path != ".." && strings.HasPrefix(entry.Name(), ".") {
			return filepath.SkipDir
		}
		return err
	})
})

// region is where every mesh of these tests is.
const region = "here"

// testMesh is a mesh of one region, out of real processes.
type testMesh struct {
	dir   string
	spec  mesh.Mesh                   // see write
	nodes map[string]*process.Process // by address
}

func newMesh(t *testing.T) *testMesh {
	t.Helper()
	return &testMesh{
		dir:   shortDir(t),
		spec:  mesh.Mesh{APIVersion: mesh.APIVersion, Kind: mesh.Kind, Regions: []mesh.RegionSpec{{Name: region}}},
		nodes: map[string]*process.Process{},
	}
}

// shortDir is a temporary folder; a test's own has too long a path for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// onePool is a mesh with one pool, "all", that takes keys of the prefix, out of so many shards.
func onePool(t *testing.T, prefix string, shards int) *testMesh {
	t.Helper()
	m := newMesh(t)
	m.addPool(t, mesh.PoolSpec{Name: "all", Routes: []mesh.Route{{Prefix: prefix}}}, make([]uint32, shards)...)
	m.write(t)
	return m
}

// addPool adds a pool with a shard of each weight; 0 is the default.
func (m *testMesh) addPool(t *testing.T, p mesh.PoolSpec, weights ...uint32) {
	t.Helper()
	m.spec.Pools = append(m.spec.Pools, p)
	for i, weight := range weights {
		m.addShard(t, mesh.ShardSpec{Pool: p.Name, Name: fmt.Sprintf("%s-%d", p.Name, i), Weight: weight})
	}
}

// addShard adds a shard with a new primary.
func (m *testMesh) addShard(t *testing.T, s mesh.ShardSpec) {
	t.Helper()
	s.Nodes = []string{m.startNode(t, 0)}
	m.spec.Regions[0].Shards = append(m.spec.Regions[0].Shards, s)
}

// startNode starts a Redis, a replica if replicaOf is the port of a primary.
func (m *testMesh) startNode(t *testing.T, replicaOf int) (address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	server := process.Redis{Port: freePorts(t, 1)[0], Dir: m.dir, ReplicaOf: replicaOf}
	p, err := server.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(time.Second) })
	m.nodes[server.Address()] = p
	return server.Address()
}

// shards are those of the region, in the file's order.
func (m *testMesh) shards() []mesh.ShardSpec { return m.spec.Regions[0].Shards }

func (m *testMesh) file() string { return filepath.Join(m.dir, "mesh.yaml") }

// write puts the spec into mesh.yaml.
func (m *testMesh) write(t *testing.T) {
	t.Helper()
	data, err := yaml.MarshalWithOptions(m.spec, yaml.IndentSequence(true))
	if err != nil {
		t.Fatal(err)
	}
	m.replace(t, string(data))
}

func (m *testMesh) replace(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(m.file(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// daemon is a cachemesh that runs until it is stopped.
type daemon struct {
	args    []string
	log     string
	ready   string       // page that answers 200 once it serves
	client  *http.Client // for that page; nil is http.DefaultClient
	process *process.Process
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := process.Start(ctx, process.Spec{Name: "cachemesh " + d.args[0], Path: program(t), Args: d.args, Log: d.log,
		Ready: func(ctx context.Context, _ int) error {
			return answersTo(ctx, cmp.Or(d.client, http.DefaultClient), d.ready)
		}})
	if err != nil {
		t.Fatal(err)
	}
	d.process = p
	t.Cleanup(func() {
		p.Stop(8 * time.Second)
		if t.Failed() {
			log, _ := os.ReadFile(d.log)
			t.Logf("the log of cachemesh %v:\n%s", d.args, tail(log))
		}
	})
}

func tail(log []byte) []byte { return log[max(0, len(log)-4000):] }

func answers(ctx context.Context, page string) error {
	return answersTo(ctx, http.DefaultClient, page)
}

func answersTo(ctx context.Context, client *http.Client, page string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", page, response.Status)
	}
	return nil
}

type controlplane struct {
	daemon
	xds string // host:port
	url string
}

// newControlplane is a control plane that does not run yet.
func (m *testMesh) newControlplane(t *testing.T, flags ...string) *controlplane {
	t.Helper()
	at := freeAddresses(t, 2)
	return &controlplane{xds: at[0], url: "http://" + at[1], daemon: daemon{
		args: append([]string{"controlplane", "--config", m.file(), "--xds", at[0], "--http", at[1]}, flags...),
		log:  filepath.Join(m.dir, "controlplane-"+portOf(at[0])+".log"), ready: "http://" + at[1] + "/readyz",
	}}
}

func (m *testMesh) startControlplane(t *testing.T, flags ...string) *controlplane {
	t.Helper()
	c := m.newControlplane(t, flags...)
	c.start(t)
	return c
}

// status is what `cachemesh status` tells of the region.
func (c *controlplane) status(t *testing.T) regionStatus {
	t.Helper()
	return statusOf(t, "--controlplane", c.url)
}

// waitSynced waits until the one sidecar of that name has all of the version that is to be, and returns the version.
func (c *controlplane) waitSynced(t *testing.T, name string) string {
	t.Helper()
	var version string
	eventually(t, 15*time.Second, func() error {
		s := c.status(t)
		version = s.Config.Version
		for _, n := range s.Sidecars {
			if n.Name == name && n.State == "SYNCED" && n.Version == version && n.Connected {
				return nil
			}
		}
		return fmt.Errorf("the sidecars are %+v, want %s SYNCED with %s", s.Sidecars, name, version)
	})
	return version
}

// waitVersion waits until the control plane has another configuration than before in effect.
func (c *controlplane) waitVersion(t *testing.T, before string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		if s := c.status(t); s.Config.Version == before || len(s.Config.Problems) > 0 {
			return fmt.Errorf("still %+v", s.Config)
		}
		return nil
	})
}

type sidecar struct {
	daemon
	name, dir                    string
	redis, resp3, admin, metrics string // addresses
}

func (m *testMesh) newSidecar(t *testing.T, name string, planes ...*controlplane) *sidecar {
	t.Helper()
	at := freeAddresses(t, 4)
	s := &sidecar{name: name, dir: filepath.Join(m.dir, name), redis: at[0], resp3: at[1], admin: at[2], metrics: at[3]}
	s.daemon = daemon{log: filepath.Join(m.dir, name+".log"), ready: "http://" + s.metrics + "/readyz", args: []string{
		"sidecar", "--region", region, "--name", name, "--dir", s.dir, "--redis", s.redis, "--redis-resp3", s.resp3,
		"--admin", s.admin, "--metrics", s.metrics, "--drain-timeout", "1s",
	}}
	for _, c := range planes {
		s.args = append(s.args, "--controlplane", c.xds)
	}
	// An Envoy outlives an agent that is killed, by design.
	t.Cleanup(func() { stopOrphan(s.dir) })
	return s
}

func (m *testMesh) startSidecar(t *testing.T, name string, planes ...*controlplane) *sidecar {
	t.Helper()
	s := m.newSidecar(t, name, planes...)
	s.start(t)
	return s
}

// stopOrphan kills the Envoy that an agent has left in its folder, if it still is that process.
func stopOrphan(dir string) {
	var record struct {
		PID       int    `json:"pid"`
		StartTime uint64 `json:"start_time"`
	}
	data, err := os.ReadFile(filepath.Join(dir, "envoy.json"))
	if err != nil || json.Unmarshal(data, &record) != nil || record.PID <= 0 {
		return
	}
	if started, err := process.StartTime(record.PID); err == nil && started == record.StartTime {
		syscall.Kill(record.PID, syscall.SIGKILL)
	}
}

// agentStatus is what the agent says of itself.
func (s *sidecar) agentStatus() (agent.Status, error) {
	return get[agent.Status]("http://" + s.metrics + "/status")
}

func get[T any](url string) (v T, err error) {
	response, err := http.Get(url)
	if err != nil {
		return v, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return v, errors.New(response.Status)
	}
	return v, json.NewDecoder(response.Body).Decode(&v)
}

// over are a client's options for each way to reach the sidecar.
func (s *sidecar) over() map[string]*redis.Options {
	return map[string]*redis.Options{
		"RESP2":             {Addr: s.redis, Protocol: 2},
		"RESP3":             {Addr: s.resp3, Protocol: 3},
		"RESP2 Unix socket": {Network: "unix", Addr: filepath.Join(s.dir, "redis.sock"), Protocol: 2},
		"RESP3 Unix socket": {Network: "unix", Addr: filepath.Join(s.dir, "redis-resp3.sock"), Protocol: 3},
	}
}

// client never retries, so that each error shows.
func (s *sidecar) client(t *testing.T) *redis.Client {
	return newClient(t, &redis.Options{Addr: s.redis, Protocol: 2})
}

func newClient(t *testing.T, o *redis.Options) *redis.Client {
	o.MaxRetries, o.DisableIdentity = -1, true
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

// eventually fails the test if f does not return nil in time.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s still: %v", within, err)
		}
		<-ticker.C
	}
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	ports, err := process.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var all []string
	for _, port := range freePorts(t, n) {
		all = append(all, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	}
	return all
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
