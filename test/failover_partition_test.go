package test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

// apart is a mesh of one shard, each program of it on a host of its own.
type apart struct {
	*testMesh
	*network
	clients   map[string]*redis.Client    // to the nodes, from their own hosts
	processes map[string]*process.Process // the nodes', by address
	agents    []string                    // hosts of sidecars
	http      *http.Client
	url       string
	checkers  []*checker
}

const plane = "plane"

func newApart(t *testing.T) *apart {
	t.Helper()
	nodes := []string{"node-0", "node-1"}
	m := &apart{testMesh: newMesh(t), agents: []string{"sidecar-0", "sidecar-1", "sidecar-2"}, clients: map[string]*redis.Client{}, processes: map[string]*process.Process{}}
	m.network = newNetwork(t, slices.Concat([]string{plane}, nodes, m.agents)...)
	shard := mesh.ShardSpec{Pool: "all", Name: "all-0"}
	for _, name := range nodes {
		shard.Nodes = append(shard.Nodes, m.startRedis(t, m.hosts[name]))
	}
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Routes: []mesh.Route{{Prefix: ""}}}}
	m.spec.Regions[0].Shards = []mesh.ShardSpec{shard}
	m.spec.Health.DownAfter = 500 * time.Millisecond // a busy machine is no partition
	m.write(t)

	h := m.hosts[plane]
	m.http, m.url = h.http(), "http://127.0.0.1:18080"
	ready := func(client *http.Client, page string) func(context.Context, int) error {
		return func(ctx context.Context, _ int) error { return answersTo(ctx, client, page) }
	}
	h.start(t, process.Spec{Name: plane, Path: program(t), Log: filepath.Join(m.dir, plane+".log"), Ready: ready(m.http, m.url+"/readyz"),
		Args: []string{"controlplane", "--config", m.file(), "--xds", h.ip + ":18000", "--http", "127.0.0.1:18080", "--state", m.dir + "/state", "--insecure"}})
	for _, name := range m.agents {
		s := m.hosts[name]
		dir := filepath.Join(m.dir, name)
		t.Cleanup(func() { stopOrphan(dir) })
		s.start(t, process.Spec{Name: name, Path: program(t), Log: filepath.Join(m.dir, name+".log"), Ready: ready(s.http(), "http://127.0.0.1:9902/readyz"),
			Args: []string{"sidecar", "--region", region, "--name", name, "--dir", dir, "--redis", "127.0.0.1:6379", "--redis-resp3", "127.0.0.1:6380",
				"--admin", "127.0.0.1:9901", "--metrics", "127.0.0.1:9902", "--drain-timeout", "1s", "--controlplane", h.ip + ":18000"}})
	}
	m.settle(t)
	all := newTold()
	for _, name := range m.agents {
		client := newClient(t, &redis.Options{Addr: "127.0.0.1:6379", Protocol: 2, Dialer: m.hosts[name].dial})
		m.checkers = append(m.checkers, startChecker(t, client, name, all))
	}
	m.served(t, 20)
	return m
}

// startRedis starts a managed node that notices within seconds when it has lost its primary.
func (m *apart) startRedis(t *testing.T, h *host) (address string) {
	t.Helper()
	path, err := process.Find("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	address = h.ip + ":6379"
	client := newClient(t, &redis.Options{Addr: address, Protocol: 2, Dialer: h.dial})
	dir := filepath.Join(m.dir, h.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.processes[address] = h.start(t, process.Spec{Name: h.name, Path: path, Log: filepath.Join(dir, "log"),
		Args: []string{"--port", "6379", "--bind", h.ip, "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", dir, "--repl-diskless-sync-delay", "0",
			"--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no", "--repl-timeout", "2", "--repl-ping-replica-period", "1"},
		Ready: func(ctx context.Context, _ int) error { return client.Info(ctx).Err() }})
	m.clients[address] = client
	return address
}

// settle waits until the shard is well and all sidecars witness it, and returns the hosts of its primary and of its replica.
func (m *apart) settle(t *testing.T) (primary, replica string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		s, err := readStatus(m.http, m.url)
		if err != nil {
			return err
		}
		row, address, _ := shardOf(s, "all-0")
		if len(row.Witnesses) != len(m.agents) {
			return fmt.Errorf("the witnesses are %v", row.Witnesses)
		}
		for _, a := range s.Alerts {
			if a.Subject == "all-0" || strings.HasPrefix(a.Subject, "all-0 ") {
				return fmt.Errorf("there is an alert: %+v", a)
			}
		}
		for name, h := range m.hosts {
			if h.ip == hostOf(address) {
				primary = name
			} else if m.clients[h.ip+":6379"] != nil {
				replica = name
			}
		}
		return settled(t.Context(), s, "all-0", m.clients)
	})
	return primary, replica
}

// served waits until each sidecar has had n more answers.
func (m *apart) served(t *testing.T, n int64) {
	t.Helper()
	for _, c := range m.checkers {
		c.waitMore(t, n)
	}
}

// refused waits until each sidecar has had n more errors.
func (m *apart) refused(t *testing.T, n int64) {
	t.Helper()
	for _, c := range m.checkers {
		from := c.errors.Load()
		eventually(t, 20*time.Second, func() error {
			if c.errors.Load() < from+n {
				return errors.New("there are not so many errors")
			}
			return nil
		})
	}
}

func (m *apart) errors() (n int64) {
	for _, c := range m.checkers {
		n += c.errors.Load()
	}
	return n
}

func (m *apart) alerted(t *testing.T, text string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		s, err := readStatus(m.http, m.url)
		return cmpAlert(s, err, text)
	})
}

// story is what has happened to the shard.
func (m *apart) story(t *testing.T) []shards.Kind {
	t.Helper()
	all := readEvents(t, m.http, m.url)
	checkEpochs(t, all)
	return kinds(all, "all-0")
}

// between are all pairs of a host of one side and one of the other.
func between(side []string, other ...string) (pairs [][2]string) {
	for _, a := range side {
		for _, b := range other {
			pairs = append(pairs, [2]string{a, b})
		}
	}
	return pairs
}

func (m *apart) cutAll(t *testing.T, pairs [][2]string) {
	t.Helper()
	for _, p := range pairs {
		m.cut(t, p[0], p[1])
	}
}

func (m *apart) mendAll(t *testing.T, pairs [][2]string) {
	t.Helper()
	for _, p := range pairs {
		m.mend(t, p[0], p[1])
	}
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	m := newApart(t)
	primary, replica := m.settle(t)
	want := []shards.Kind{shards.Bootstrap}
	unchanged := func(t *testing.T) {
		t.Helper()
		if got := m.story(t); !slices.Equal(got, want) {
			t.Errorf("the events are %v, want %v", got, want)
		}
	}
	heals := func(t *testing.T, pairs [][2]string) {
		t.Helper()
		m.mendAll(t, pairs)
		m.served(t, 20)
		if now, _ := m.settle(t); now != primary {
			t.Errorf("%s has the primary, %s had it", now, primary)
		}
		unchanged(t)
	}

	t.Run("the control plane does not reach the primary", func(t *testing.T) {
		before := m.errors()
		pairs := between([]string{plane}, primary)
		m.cutAll(t, pairs)
		m.alerted(t, "does not answer this control plane, and 0 of 3 witnesses say that it is down, 3 that it is not: no automatic failover")
		m.served(t, 200)
		unchanged(t)
		if n := m.errors() - before; n > 0 {
			t.Errorf("%d errors", n)
		}
		heals(t, pairs)
	})

	t.Run("the agents do not reach the primary", func(t *testing.T) {
		pairs := between(m.agents, primary)
		fastest := time.Minute
		for range 3 { // the machine may be busy once
			began := time.Now()
			m.cutAll(t, pairs)
			m.alerted(t, "3 of 3 witnesses cannot reach the primary")
			if fastest = min(fastest, time.Since(began)); fastest < time.Second {
				break
			}
			heals(t, pairs)
		}
		t.Logf("the alert came after %s", fastest)
		if fastest > time.Second {
			t.Errorf("the alert came after %s at best, want a second at most", fastest)
		}
		m.refused(t, 3)
		unchanged(t)
		force := exec.Command("ip", "netns", "exec", m.hosts[plane].name, program(t), "shard", "switch", "all-0", "--force", "--controlplane", m.url)
		if out, err := force.CombinedOutput(); err != nil {
			t.Fatalf("switch --force: %v: %s", err, out)
		}
		m.served(t, 50)
		want = append(want, shards.Failover)
		eventually(t, 5*time.Second, func() error {
			if slices.Contains(m.story(t), shards.Demoted) {
				return nil
			}
			return errors.New("the old primary is not demoted yet")
		})
		want = m.story(t)
		if want[1] != shards.Failover || len(want) != 3 {
			t.Errorf("the events are %v", want)
		}
		primary, replica = replica, primary
		heals(t, pairs)
	})

	t.Run("the replica does not reach the primary", func(t *testing.T) {
		before := m.errors()
		pairs := between([]string{replica}, primary)
		m.cutAll(t, pairs)
		node := m.clients[m.hosts[replica].ip+":6379"]
		eventually(t, 20*time.Second, func() error {
			if r, err := replication(t.Context(), node); err != nil || r["master_link_status"] != "down" {
				return fmt.Errorf("the replica says %v, %v", r, err)
			}
			return nil
		})
		m.served(t, 100)
		unchanged(t)
		heals(t, pairs)
		if n := m.errors() - before; n > 0 {
			t.Errorf("%d errors", n)
		}
	})

	t.Run("the control plane reaches the replica only", func(t *testing.T) {
		before := m.errors()
		pairs := between([]string{plane}, append([]string{primary}, m.agents...)...)
		m.cutAll(t, pairs)
		m.alerted(t, "does not answer this control plane")
		m.served(t, 200)
		unchanged(t)
		heals(t, pairs)
		if n := m.errors() - before; n > 0 {
			t.Errorf("%d errors", n)
		}
	})

	t.Run("the control plane is alone with the primary", func(t *testing.T) {
		pairs := between([]string{plane, primary}, append([]string{replica}, m.agents...)...)
		m.cutAll(t, pairs)
		m.refused(t, 4)
		unchanged(t)
		heals(t, pairs)
	})

	// All of that has healed: what is a failover is one.
	m.processes[m.hosts[primary].ip+":6379"].Kill()
	m.served(t, 20)
	want = append(want, shards.Failover)
	eventually(t, 5*time.Second, func() error {
		if got := m.story(t); !slices.Equal(got, want) {
			return fmt.Errorf("the events are %v, want %v", got, want)
		}
		return nil
	})
	for _, c := range m.checkers {
		c.finish(t)
	}
}
