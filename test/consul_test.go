package test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// listed is an element of what `shard list` prints.
type listed struct {
	Datacenter, ID, Pool, Shard, Zone, Address, Agent, Check, Problem string
}

// startConsul runs a Consul server of the region's datacenter.
func (m *testMesh) startConsul(t *testing.T) (process.Consul, *process.Process) {
	t.Helper()
	p := freePorts(t, 4)
	server := process.Consul{Datacenter: region, HTTP: p[0], RPC: p[1], LAN: p[2], WAN: p[3], Dir: m.dir}
	return server, restartConsul(t, server)
}

func restartConsul(t *testing.T, server process.Consul) *process.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	running, err := server.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Kill)
	return running
}

func TestConsulAndControlPlaneAreLostUnderLoad(t *testing.T) {
	m := onePool(t, "k:", 2)
	server, running := m.startConsul(t)
	env := []string{"CONSUL_HTTP_ADDR=" + server.Address()}
	shard := func(args ...string) result {
		t.Helper()
		return invocation{args: append([]string{"shard"}, args...), env: env}.run(t)
	}
	for i, s := range m.shards() {
		shard("register", "--pool", s.Pool, "--shard", s.Name, "--address", s.Nodes[0], "--zone", "z").want(t, 0)
		m.spec.Regions[0].Shards[i].Nodes = nil
	}
	shard("register", "--pool", "none", "--shard", "none-0", "--address", "127.0.0.1:9", "--id", "stray").want(t, 0)
	m.spec.Membership.Consul = &mesh.ConsulSpec{Address: server.Address()}
	m.write(t)
	c := m.startControlplane(t, "--state", m.dir+"/state")
	s := m.startSidecar(t, "here-0", c)
	version := c.waitSynced(t, s.name)

	eventually(t, 15*time.Second, func() error {
		list := decode[[]listed](t, shard("list", "-o", "json").want(t, 0))
		if len(list) != 3 || list[0].Shard != "all-0" || list[0].Zone != "z" || list[0].Datacenter != region || list[0].Check != "passing" {
			return fmt.Errorf("the list is %+v", list)
		}
		return nil
	})
	var fromYAML []listed
	if err := yaml.Unmarshal([]byte(shard("list", "-o", "yaml").want(t, 0).stdout), &fromYAML); err != nil || len(fromYAML) != 3 {
		t.Errorf("as YAML: %+v, %v", fromYAML, err)
	}
	if out := shard("list").want(t, 0).stdout; !strings.Contains(out, "stray") {
		t.Errorf("the table lacks a registration:\n%s", out)
	}
	alerted := func(text string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			status := c.status(t)
			if !slices.ContainsFunc(status.Alerts, func(a alert) bool { return strings.Contains(a.Message, text) }) {
				return fmt.Errorf("the alerts are %+v, want %q", status.Alerts, text)
			}
			return nil
		})
	}
	alerted(`there is no pool "none"`)
	shard("deregister", "--id", "stray").want(t, 0)
	if r := shard("deregister", "--id", "stray").want(t, 1); !strings.Contains(r.stderr, `"stray" is not registered`) {
		t.Errorf("deregistered twice: %s", r.stderr)
	}

	load := startLoad(t, s.over()["RESP2"], someKeys("k:", 100))
	load.waitMore(t, 100)
	running.Kill()
	alerted("Consul at " + server.Address())
	c.process.Kill()
	load.waitMore(t, 1000)
	s.process.Kill() // its Envoy lives on and is adopted
	s.start(t)
	load.waitMore(t, 1000)

	// Everything comes back, Consul without what it knew.
	if err := os.RemoveAll(server.Data()); err != nil {
		t.Fatal(err)
	}
	restartConsul(t, server)
	c.start(t)
	alerted("lists 0 usable nodes where 2 were")
	if got := c.waitSynced(t, s.name); got != version {
		t.Errorf("version %s beside an empty Consul, want %s", got, version)
	}
	load.waitMore(t, 100)
	load.finish(t)
}

func TestShardCommandsNameWhatIsWrong(t *testing.T) {
	for want, args := range map[string][]string{
		"names no pool":              {"register", "--shard", "a", "--address", "127.0.0.1:1"},
		"names no shard":             {"register", "--pool", "a", "--address", "127.0.0.1:1"},
		"not an IP address and port": {"register", "--pool", "a", "--shard", "b", "--address", "here:1"},
		"name the registration with": {"deregister", "--shard", "a"},
	} {
		if r := cachemesh(t, append([]string{"shard"}, args...)...).want(t, 2); !strings.Contains(r.stderr, want) {
			t.Errorf("%v: %s, want %q", args, r.stderr, want)
		}
	}
	port := freeAddresses(t, 1)[0]
	if r := cachemesh(t, "shard", "list", "--consul", port).want(t, 1); !strings.Contains(r.stderr, "Consul at "+port) {
		t.Errorf("without a Consul: %s", r.stderr)
	}
	if r := cachemesh(t, "shard", "list", "--consul", port, "--token-file", "/nowhere").want(t, 1); !strings.Contains(r.stderr, "Consul's token") {
		t.Errorf("without the token's file: %s", r.stderr)
	}
}
