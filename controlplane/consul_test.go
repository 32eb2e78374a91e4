package controlplane

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// consulWorld is a control plane that watches a real Consul, with real nodes.
type consulWorld struct {
	t       *testing.T
	server  process.Consul
	running *process.Process // the Consul
	client  *consul.Client
	nodes   []string // addresses; all are primaries but the second, which replicates the first
	config  Config
	stop    func()
}

const consulMeshFile = `apiVersion: cachemesh.dev/v1
kind: Mesh
membership: {consul: {address: "CONSUL"}, auto: false}
pools: [{name: cache, failover: follow, routes: [{prefix: ""}]}]
regions: [{name: home, datacenter: east, shards: [{pool: cache, name: cache-0}, {pool: cache, name: cache-1}]}]
`

func newConsulWorld(t *testing.T) *consulWorld {
	t.Helper()
	dir := t.TempDir()
	ports, err := process.FreePorts(10)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	w := &consulWorld{t: t, server: process.Consul{Datacenter: "east", HTTP: ports[0], RPC: ports[1], LAN: ports[2], WAN: ports[3], Dir: dir}}
	w.config = Config{File: filepath.Join(dir, "mesh.yaml"), Region: "home", XDS: at(4), HTTP: at(5), State: filepath.Join(dir, "state"), Version: "test", Logger: quiet}
	for i, port := range ports[6:] {
		r := process.Redis{Port: port, Dir: dir}
		if i == 1 {
			r.ReplicaOf = ports[6]
		}
		p, err := r.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop(time.Second) })
		w.nodes = append(w.nodes, r.Address())
	}
	w.startConsul()
	if w.client, err = consul.New(mesh.ConsulSpec{Address: w.server.Address()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.client.Close)
	w.write("auto: false")
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *consulWorld) startConsul() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	p, err := w.server.Start(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.running = p
	w.t.Cleanup(p.Kill)
}

func (w *consulWorld) write(auto string) {
	w.t.Helper()
	writeFile(w.t, w.config.File, strings.NewReplacer("CONSUL", w.server.Address(), "auto: false", auto).Replace(consulMeshFile))
}

// start runs the control plane; stop ends it.
func (w *consulWorld) start() {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, w.config) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
		w.stop = func() {}
	}
}

func (w *consulWorld) register(shard string, node int) {
	w.t.Helper()
	r := mesh.Registration{ID: shard + "-" + strconv.Itoa(node), Pool: "cache", Shard: shard, Zone: "a", Address: w.nodes[node]}
	if err := w.client.Register(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *consulWorld) deregister(id string) {
	w.t.Helper()
	if err := w.client.Deregister(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
}

func (w *consulWorld) status() (s Status) {
	body, _ := fetch("http://" + w.config.HTTP + "/v1/status")
	json.Unmarshal(body, &s)
	return s
}

// waitFor waits for a status in which the shards are as written (name=address+address, primary first) and ok holds.
func (w *consulWorld) waitFor(what, shards string, ok func(Status) bool) Status {
	w.t.Helper()
	var s Status
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s = w.status(); w.shards(s) == shards && (ok == nil || ok(s)) {
			return s
		}
	}
	w.t.Fatalf("waited 40 s: %s: shards %q, want %q; status %+v", what, w.shards(s), shards, s)
	return s
}

// shards writes a status's shards with the nodes' numbers.
func (w *consulWorld) shards(s Status) string {
	var all []string
	for _, shard := range s.Shards {
		var numbers []string
		for _, n := range shard.Nodes {
			numbers = append(numbers, strconv.Itoa(slices.Index(w.nodes, n.Address)))
		}
		all = append(all, shard.Name+"="+strings.Join(numbers, "+"))
	}
	return strings.Join(all, " ")
}

func alerted(text string) func(Status) bool {
	return func(s Status) bool {
		return slices.ContainsFunc(s.Alerts, func(a Alert) bool { return strings.Contains(a.Subject+": "+a.Message, text) })
	}
}

func (w *consulWorld) metric(line string) {
	w.t.Helper()
	page, _ := fetch("http://" + w.config.HTTP + "/metrics")
	name, value, _ := strings.Cut(line, " ")
	for l := range strings.Lines(string(page)) {
		if fields := strings.Fields(l); len(fields) == 2 && strings.HasPrefix(fields[0], name) && fields[1] == value {
			return
		}
	}
	w.t.Errorf("/metrics lacks %s", line)
}

func TestNodesComeFromConsulAndAnUnbelievableConsulChangesNothing(t *testing.T) {
	t.Parallel()
	w := newConsulWorld(t)
	const both = "cache-0=0+1 cache-1=2"

	// Not ready before every shard has a node, and xDS is closed until then.
	w.waitFor("an empty Consul is seen", "", func(s Status) bool { return s.Membership.Consul != nil && s.Membership.Consul.Up })
	w.register("cache-0", 1)
	w.register("cache-0", 0)
	w.waitFor("the missing shard is named", "", func(s Status) bool {
		return len(s.Config.Problems) == 1 && strings.Contains(s.Config.Problems[0], `not served yet: shard "cache-1" of pool "cache" has no registered node`)
	})
	if body, code := fetch("http://" + w.config.HTTP + "/readyz"); code != 503 || !strings.Contains(string(body), "cache-1") {
		t.Errorf("/readyz answers %d %s", code, body)
	}
	if conn, err := net.Dial("tcp", w.config.XDS); err == nil {
		conn.Close()
		t.Error("the xDS port is open before there is anything to serve")
	}
	began := time.Now()
	w.register("cache-1", 2)
	first := w.waitFor("all is served", both, nil)
	t.Logf("resources %s after the registration", time.Since(began))
	waitFor(t, "xDS is served", func() bool {
		conn, err := net.Dial("tcp", w.config.XDS)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if n := first.Shards[0].Nodes[0]; n.Zone != "a" {
		t.Errorf("node %+v lacks its zone", n)
	}
	w.waitFor("Consul's checks are shown", both, func(s Status) bool { return s.Shards[1].Nodes[0].Check == "passing" })

	// A bad registration is named and harms nothing.
	w.register("cache-9", 3)
	s := w.waitFor("the bad registration is named", both, alerted(`cache-9-3: is ignored: there is no shard "cache-9"`))
	if len(s.Membership.Problems) != 1 || s.Config.Version != first.Config.Version {
		t.Errorf("membership %+v, version %s, want one problem and version %s", s.Membership, s.Config.Version, first.Config.Version)
	}
	w.metric("cachemesh_controlplane_membership_problems 1")
	w.deregister("cache-9-3")
	w.waitFor("it is gone", both, func(s Status) bool { return len(s.Membership.Problems) == 0 })

	// Another primary is followed, and so is the way back.
	if err := w.swap(0, 1); err != nil {
		t.Fatal(err)
	}
	w.waitFor("the new primary is followed", "cache-0=1+0 cache-1=2", nil)
	if err := w.swap(1, 0); err != nil {
		t.Fatal(err)
	}
	w.waitFor("the old primary is followed", both, nil)

	// Consul is killed, comes back, and is killed and wiped.
	w.running.Kill()
	w.waitFor("that Consul is gone", both, alerted("Consul: Consul at "+w.server.Address()))
	w.metric("cachemesh_controlplane_consul_up 0")
	w.startConsul()
	w.waitFor("that Consul is back", both, func(s Status) bool { return s.Membership.Consul.Up && s.Membership.Consul.Nodes == 3 })
	w.metric("cachemesh_controlplane_consul_up 1")
	w.metric("cachemesh_controlplane_membership_frozen 0")
	w.running.Kill()
	if err := os.RemoveAll(w.server.Data()); err != nil {
		t.Fatal(err)
	}
	w.startConsul()
	s = w.waitFor("that Consul is empty", both, alerted("Consul: lists 0 usable nodes where 3 were"))
	w.metric("cachemesh_controlplane_membership_frozen 1")
	if s.Config.Version != first.Config.Version {
		t.Errorf("version %s beside an empty Consul, want %s", s.Config.Version, first.Config.Version)
	}

	// A control plane that restarts now has what it had, and so has one that restarts without Consul.
	w.stop()
	w.start()
	w.waitFor("that Consul is empty, after a restart", both, alerted("Consul: lists 0 usable nodes where 3 were"))
	w.stop()
	w.running.Kill()
	w.start()
	s = w.waitFor("that Consul is gone, after a restart", both, alerted("Consul: Consul at "))
	if s.Config.Version != first.Config.Version {
		t.Errorf("version %s without Consul, want %s", s.Config.Version, first.Config.Version)
	}

	// Everybody registers anew.
	w.startConsul()
	w.register("cache-0", 0)
	w.register("cache-0", 1)
	w.waitFor("a shard is missing still", both, alerted(`those of shard "cache-1" are still missing`))
	w.register("cache-1", 2)
	w.waitFor("all is well", both, func(s Status) bool { return s.Membership.Frozen == "" && len(s.Alerts) == 0 })
}

// swap makes the second of two nodes the primary of the first.
func (w *consulWorld) swap(from, to int) error {
	host, port, _ := net.SplitHostPort(w.nodes[to])
	for node, args := range map[int][2]string{to: {"NO", "ONE"}, from: {host, port}} {
		c := redis.NewClient(&redis.Options{Addr: w.nodes[node], MaxRetries: -1})
		defer c.Close()
		if err := c.ReplicaOf(w.t.Context(), args[0], args[1]).Err(); err != nil {
			return err
		}
	}
	return nil
}

func TestAutomaticShardsComeAndGoByRegistration(t *testing.T) {
	t.Parallel()
	w := newConsulWorld(t)
	w.register("cache-0", 0)
	w.register("cache-1", 2)
	w.register("cache-9", 3)
	w.waitFor("the shard that is not in the mesh is ignored", "cache-0=0 cache-1=2", alerted(`there is no shard "cache-9"`))
	w.write("auto: true")
	w.waitFor("it joins", "cache-0=0 cache-1=2 cache-9=3", func(s Status) bool { return len(s.Alerts) == 0 })
	w.deregister("cache-9-3")
	w.waitFor("it leaves", "cache-0=0 cache-1=2", nil)
	began := time.Now()
	w.register("cache-9", 3)
	w.waitFor("it joins again", "cache-0=0 cache-1=2 cache-9=3", nil)
	t.Logf("on the ring %s after the registration", time.Since(began))

	// Where nodes come from is no matter for a running control plane.
	writeFile(t, w.config.File, goodMesh)
	w.waitFor("that it must restart for that", "cache-0=0 cache-1=2 cache-9=3", alerted("restart the control plane"))
}
