package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

// keptNode is a managed Redis node that is started again when it ends by itself, as a service manager does, but not when it is killed.
type keptNode struct {
	server process.Redis
	ended  chan struct{}

	mu      sync.Mutex
	process *process.Process
	starts  int
}

func (m *testMesh) keepNode(t *testing.T) *keptNode {
	t.Helper()
	return keep(t, process.Redis{Port: freePorts(t, 1)[0], Dir: m.dir, Managed: true})
}

// keepAgain starts a node that was killed.
func (m *testMesh) keepAgain(t *testing.T, n *keptNode) *keptNode {
	t.Helper()
	<-n.ended
	return keep(t, n.server)
}

func keep(t *testing.T, server process.Redis) *keptNode {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n := &keptNode{server: server, ended: make(chan struct{})}
	p, err := n.server.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n.process, n.starts = p, 1
	go func() {
		defer close(n.ended)
		for {
			select {
			case <-ctx.Done():
				p.Stop(time.Second)
				return
			case <-p.Done():
			}
			if p.Err() != nil {
				return
			}
			var err error
			if p, err = n.server.Start(ctx); err != nil {
				return
			}
			n.mu.Lock()
			n.process = p
			n.starts++
			n.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-n.ended
	})
	return n
}

func (n *keptNode) kill(t *testing.T) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func (n *keptNode) started() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.starts
}

// managed is a mesh of pools whose nodes the control plane manages, with a sidecar that serves.
type managed struct {
	*testMesh
	kept    map[string]*keptNode // by address
	plane   *controlplane
	sidecar *sidecar
}

// newManaged starts a mesh with so many shards of so many nodes in the pool "all".
func newManaged(t *testing.T, count, nodes int) *managed {
	t.Helper()
	m := &managed{testMesh: newMesh(t), kept: map[string]*keptNode{}}
	m.spec.Pools = append(m.spec.Pools, mesh.PoolSpec{Name: "all", Routes: []mesh.Route{{Prefix: ""}}})
	for i := range count {
		shard := mesh.ShardSpec{Pool: "all", Name: fmt.Sprintf("all-%d", i)}
		for range nodes {
			n := m.keepNode(t)
			m.kept[n.server.Address()] = n
			shard.Nodes = append(shard.Nodes, n.server.Address())
		}
		m.spec.Regions[0].Shards = append(m.spec.Regions[0].Shards, shard)
	}
	m.write(t)
	m.plane = m.startControlplane(t, "--state", m.dir+"/state")
	m.sidecar = m.startSidecar(t, "s-0", m.plane)
	m.plane.waitSynced(t, "s-0")
	m.waitReplicas(t)
	return m
}

// waitReplicas waits until each shard is witnessed, and all of its nodes are in sync.
func (m *managed) waitReplicas(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		for _, s := range m.plane.status(t).Shards {
			if len(s.Witnesses) != 1 || s.Change != nil {
				return fmt.Errorf("%s has the witnesses %v and the change %+v", s.Name, s.Witnesses, s.Change)
			}
			primary := s.Nodes[slices.IndexFunc(s.Nodes, func(n control.NodeStatus) bool { return n.Role == string(mesh.Primary) })]
			for _, n := range s.Nodes {
				if !n.Up || n.Role == string(mesh.Replica) && (n.Replication == nil || !n.Replication.Linked || n.Replication.LagBytes == nil) {
					return fmt.Errorf("%s: %+v", s.Name, n)
				}
				if n.Address == primary.Address {
					continue
				}
				// The status may be of a moment ago.
				c := redis.NewClient(&redis.Options{Addr: n.Address, DisableIdentity: true})
				info, err := c.InfoMap(t.Context(), "replication").Result()
				c.Close()
				if err != nil {
					return err
				}
				if r := info["Replication"]; r["master_port"] != portOf(primary.Address) || r["master_link_status"] != "up" {
					return fmt.Errorf("%s: %v", n.Address, r)
				}
			}
		}
		return nil
	})
}

func (m *managed) primary(t *testing.T, shard string) (address string, epoch uint64) {
	t.Helper()
	for _, s := range m.plane.status(t).Shards {
		if s.Name != shard {
			continue
		}
		for _, n := range s.Nodes {
			if n.Role == string(mesh.Primary) {
				return n.Address, s.Epoch
			}
		}
	}
	t.Fatalf("shard %s has no primary", shard)
	return "", 0
}

func (m *managed) cachemesh(t *testing.T, args ...string) result {
	t.Helper()
	return cachemesh(t, append(args, "--controlplane", m.plane.url)...)
}

// events are those that `cachemesh events -o json` prints.
func (m *managed) events(t *testing.T, flags ...string) (all []shards.Event) {
	t.Helper()
	for line := range strings.Lines(m.cachemesh(t, append([]string{"events", "-o", "json"}, flags...)...).want(t, 0).stdout) {
		var e shards.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, e)
	}
	return all
}

// counter counts up on several keys, each acknowledgement of which must still be there at the end.
type counter struct {
	client  *redis.Client
	keys    []string
	stop    context.CancelFunc
	done    chan struct{}
	counted map[string]int64
	failed  []error
}

func startCounter(t *testing.T, s *sidecar, keys []string) *counter {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := &counter{client: s.client(t), keys: keys, stop: stop, done: make(chan struct{}), counted: map[string]int64{}}
	go func() {
		defer close(c.done)
		for i := 0; ctx.Err() == nil; i++ {
			key := keys[i%len(keys)]
			value, err := c.client.Incr(context.Background(), key).Result()
			switch c.counted[key]++; {
			case err != nil:
				c.failed = append(c.failed, err)
			case value != c.counted[key]:
				c.failed = append(c.failed, fmt.Errorf("%s is %d after %d acknowledged increments", key, value, c.counted[key]))
				c.counted[key] = value
			}
		}
	}()
	t.Cleanup(func() { stop(); <-c.done })
	return c
}

func (c *counter) finish(t *testing.T) {
	t.Helper()
	c.stop()
	<-c.done
	if len(c.failed) > 0 {
		t.Errorf("%d increments failed or were lost, such as %v", len(c.failed), c.failed[:min(3, len(c.failed))])
	}
	for _, key := range c.keys {
		if got, err := c.client.Get(t.Context(), key).Int64(); err != nil || got != c.counted[key] || got < 10 {
			t.Errorf("%s is %d (%v), %d increments were acknowledged", key, got, err, c.counted[key])
		}
	}
}

func TestSwitchAndRollLoseNoWriteAndNoRequest(t *testing.T) {
	m := newManaged(t, 2, 2)
	load := startLoad(t, &redis.Options{Addr: m.sidecar.redis, Protocol: 2}, someKeys("k:", 200))
	counter := startCounter(t, m.sidecar, someKeys("n:", 8))
	load.waitMore(t, 100)

	before, epoch := m.primary(t, "all-1")
	event := decode[shards.Event](t, m.cachemesh(t, "shard", "switch", "all-1", "-o", "json").want(t, 0))
	if event.Kind != shards.Switch || event.Shard != "all-1" || event.Region != region || event.From != before || event.To == before || event.Epoch <= epoch || len(event.Steps) == 0 {
		t.Errorf("the switch is %+v", event)
	}
	load.waitMore(t, 100)
	m.waitReplicas(t)
	back := m.cachemesh(t, "shard", "switch", "all-1", "--to", before).want(t, 0)
	if !strings.Contains(back.stdout, "all-1 (here): "+before+" is the primary") {
		t.Errorf("the switch says %q", back.stdout)
	}
	m.waitReplicas(t)

	rolled := m.cachemesh(t, "shard", "roll", "all", "--yes").want(t, 0)
	if lines := strings.Split(strings.TrimSpace(rolled.stdout), "\n"); len(lines) != 7 || !strings.HasPrefix(lines[5], "[6/6] all-1 (here)") || lines[6] != "restarted 4 nodes of pool all in here" {
		t.Errorf("the roll says\n%s", rolled.stdout)
	}
	for address, n := range m.kept {
		if n.started() != 2 {
			t.Errorf("%s was started %d times, want 2", address, n.started())
		}
	}
	load.waitMore(t, 100)
	load.finish(t)
	counter.finish(t)

	all := m.events(t)
	var kinds []shards.Kind
	for i, e := range all {
		kinds = append(kinds, e.Kind)
		if i > 0 && e.ID <= all[i-1].ID {
			t.Errorf("event %d comes after %d", e.ID, all[i-1].ID)
		}
	}
	for kind, want := range map[shards.Kind]int{shards.Bootstrap: 2, shards.Switch: 4, shards.Restarted: 4, shards.Failover: 0, shards.StandIn: 0} {
		if got := len(slices.DeleteFunc(slices.Clone(kinds), func(k shards.Kind) bool { return k != kind })); got != want {
			t.Errorf("%d events are of kind %s, want %d: %v", got, kind, want, kinds)
		}
	}

	// They survive a restart, once each.
	m.plane.process.Stop(5 * time.Second)
	m.plane.start(t)
	again := m.events(t)
	if len(again) < len(all) {
		t.Errorf("after a restart there are %d events, there were %d", len(again), len(all))
	}
	seen := map[uint64]bool{}
	for _, e := range again {
		if seen[e.ID] {
			t.Errorf("event %d is there twice", e.ID)
		}
		seen[e.ID] = true
	}
}

func TestEventsTellTheStoryOfAFailover(t *testing.T) {
	m := newManaged(t, 2, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	follower := exec.CommandContext(ctx, program(t), "events", "--follow", "--limit", "0", "--shard", "all-0", "--kind", "failover,bootstrap", "-o", "json", "--controlplane", m.plane.url)
	out, err := follower.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var notes bytes.Buffer
	follower.Stderr = &notes
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	next := func() (e shards.Event) {
		t.Helper()
		line, err := lines.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &e)
		}
		if err != nil {
			t.Fatalf("%v in %q; %s", err, line, notes.String())
		}
		return e
	}
	if e := next(); e.Kind != shards.Bootstrap {
		t.Errorf("the first event is %+v", e)
	}
	dead, _ := m.primary(t, "all-0")
	m.kept[dead].kill(t)
	e := next()
	if e.Kind != shards.Failover || e.Shard != "all-0" || e.From != dead || e.To == dead || e.To == "" || e.Reason == "" || len(e.Steps) == 0 {
		t.Errorf("the failover is %+v", e)
	}
	if to, epoch := m.primary(t, "all-0"); to != e.To || epoch != e.Epoch {
		t.Errorf("status has %s and epoch %d, the event %s and %d", to, epoch, e.To, e.Epoch)
	}
	// A control plane that goes away for a while is followed on. It does not wait for its followers.
	m.plane.process.Stop(5 * time.Second)
	if err := m.plane.process.Err(); err != nil {
		t.Errorf("the control plane ends with %v", err)
	}
	m.plane.start(t)
	m.kept[dead] = m.keepAgain(t, m.kept[dead])
	m.waitReplicas(t)
	m.kept[e.To].kill(t)
	if e := next(); e.Kind != shards.Failover || e.To != dead {
		t.Errorf("the next failover is %+v", e)
	}
	follower.Process.Signal(syscall.SIGINT)
	if err := follower.Wait(); err != nil {
		t.Errorf("events --follow ends with %v: %s", err, notes.String())
	}

	table := m.cachemesh(t, "events", "--since", "1h").want(t, 0).stdout
	rows := strings.Split(strings.TrimSuffix(table, "\n"), "\n")
	column := strings.Index(rows[0], "KIND")
	for _, row := range rows[1:] {
		if column < 1 || row[column-1] != ' ' || row[column] == ' ' {
			t.Errorf("the table does not line up:\n%s", table)
			break
		}
	}
	if !strings.Contains(table, "failover") || !strings.Contains(table, dead) {
		t.Errorf("the table is\n%s", table)
	}
	if got := m.events(t, "--since", "1ns"); len(got) != 0 {
		t.Errorf("since a moment ago there are %v", got)
	}
	if got := m.events(t, "--pool", "other"); len(got) != 0 {
		t.Errorf("another pool has %v", got)
	}
}

func TestAFrozenPoolChangesOnceThatIsAccepted(t *testing.T) {
	m := newManaged(t, 2, 2)
	client := m.sidecar.client(t)
	keys := map[string]string{} // one by shard
	for _, p := range m.plane.where(t, someKeys("k:", 50)...) {
		keys[p.Shard] = p.Key
	}
	for _, key := range keys {
		if err := client.Set(t.Context(), key, "here", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	primary, epoch := m.primary(t, "all-1")
	for address, n := range m.kept {
		if address != primary {
			n.kill(t)
		}
	}
	eventually(t, 10*time.Second, func() error {
		s := m.plane.status(t)
		if s.Pools[0].Frozen == nil || len(s.Pools[0].Frozen.Lost) != 3 {
			return fmt.Errorf("the pool is %+v", s.Pools[0])
		}
		if !slices.ContainsFunc(s.Alerts, func(a alert) bool { return strings.Contains(a.Remedy, "cachemesh shard accept all") }) {
			return fmt.Errorf("no alert names the remedy: %+v", s.Alerts)
		}
		return nil
	})
	if table := m.cachemesh(t, "status").want(t, 0).stdout; !strings.Contains(table, "FROZEN") {
		t.Errorf("status does not say so:\n%s", table)
	}
	m.cachemesh(t, "shard", "roll", "all", "--yes").want(t, 1)
	if err := client.Get(t.Context(), keys["all-0"]).Err(); err == nil || err == redis.Nil {
		t.Errorf("a shard of a frozen pool whose nodes are gone answers %v", err)
	}

	accepted := m.cachemesh(t, "shard", "accept", "all").want(t, 0)
	if !strings.HasPrefix(accepted.stdout, "all (here): ") {
		t.Errorf("accept says %q", accepted.stdout)
	}
	eventually(t, 10*time.Second, func() error {
		if err := client.Get(t.Context(), keys["all-0"]).Err(); err != redis.Nil {
			return fmt.Errorf("a shard without nodes answers %v, want a miss", err)
		}
		return nil
	})
	if value, err := client.Get(t.Context(), keys["all-1"]).Result(); err != nil || value != "here" {
		t.Errorf("the shard that has its primary answers %q, %v", value, err)
	}
	if address, now := m.primary(t, "all-1"); address != primary || now != epoch {
		t.Errorf("all-1 has %s and epoch %d, want %s and %d still", address, now, primary, epoch)
	}
	for _, s := range m.plane.status(t).Shards {
		if s.Name == "all-0" && s.StandIn != mesh.Null {
			t.Errorf("all-0 has the stand-in %q", s.StandIn)
		}
	}
	var told []shards.Kind
	for _, e := range m.events(t, "--kind", "frozen", "--kind", "accepted", "--kind", "stand-in") {
		told = append(told, e.Kind)
	}
	if want := []shards.Kind{shards.Frozen, shards.Accepted, shards.StandIn}; !slices.Equal(told, want) {
		t.Errorf("the events are %v, want %v", told, want)
	}
}

func TestACommandToAnotherControlPlaneReachesTheOneThatLeads(t *testing.T) {
	m := newManaged(t, 1, 2)
	other := m.startControlplane(t, "--state", m.dir+"/state")
	eventually(t, 10*time.Second, func() error {
		if l := other.status(t).Leader; l.Leading || l.URL != m.plane.url {
			return fmt.Errorf("the other control plane says that the leader is %+v", l)
		}
		return nil
	})
	before, _ := m.primary(t, "all-0")
	event := decode[shards.Event](t, cachemesh(t, "shard", "switch", "all-0", "-o", "json", "--controlplane", other.url).want(t, 0))
	if event.From != before || event.To == before {
		t.Errorf("the switch is %+v", event)
	}
	eventually(t, 5*time.Second, func() error {
		told := cachemesh(t, "events", "-o", "json", "--controlplane", other.url, "--controlplane", m.plane.url, "--kind", "switch").want(t, 0).stdout
		if strings.Count(told, "\n") != 1 {
			return fmt.Errorf("both control planes tell %q, want one event", told)
		}
		return nil
	})
	m.waitReplicas(t)
	cachemesh(t, "shard", "roll", "all", "--yes", "--controlplane", other.url).want(t, 0)

	m.plane.process.Kill()
	eventually(t, 20*time.Second, func() error {
		got := cachemesh(t, "shard", "switch", "all-0", "--controlplane", other.url)
		if got.code != 0 {
			return fmt.Errorf("after the leader was killed, a switch says %q", got.stderr)
		}
		return nil
	})
}

func TestShardCommandsSayWhyNot(t *testing.T) {
	m := newManaged(t, 1, 2)
	primary, _ := m.primary(t, "all-0")
	alone := newManaged(t, 1, 1)
	for name, c := range map[string]struct {
		mesh *managed
		args []string
		code int
		want string
	}{
		"no such shard":      {m, []string{"shard", "switch", "all-9"}, 2, `there is no shard "all-9"`},
		"no such region":     {m, []string{"shard", "switch", "all-0", "--region", "mars"}, 2, "here"},
		"to no node":         {m, []string{"shard", "switch", "all-0", "--to", "127.0.0.1:1"}, 1, "127.0.0.1:1 is no node of shard"},
		"to the primary":     {m, []string{"shard", "switch", "all-0", "--to", primary}, 1, "already"},
		"no name":            {m, []string{"shard", "switch"}, 2, "arg"},
		"nowhere to go":      {alone, []string{"shard", "switch", "all-0"}, 1, "replica"},
		"not frozen":         {m, []string{"shard", "accept", "all"}, 2, `no frozen pool "all"`},
		"not frozen there":   {m, []string{"shard", "accept", "all", "--region", "here"}, 1, "not frozen"},
		"accept nothing":     {m, []string{"shard", "accept"}, 2, "--all"},
		"accept both":        {m, []string{"shard", "accept", "all", "--all"}, 2, "--all"},
		"roll no such pool":  {m, []string{"shard", "roll", "none", "--yes"}, 2, `no pool "none"`},
		"roll without yes":   {m, []string{"shard", "roll", "all"}, 2, "This restarts 2 nodes of pool all in here, one at a time. Say --yes"},
		"roll without spare": {alone, []string{"shard", "roll", "all", "--yes"}, 1, "it has no replica"},
		"kind":               {m, []string{"events", "--kind", "boom"}, 2, "boom"},
		"region of events":   {m, []string{"events", "--region", "mars"}, 2, "mars"},
		"negative":           {m, []string{"events", "--limit", "-1"}, 2, "negative"},
	} {
		got := c.mesh.cachemesh(t, c.args...)
		if got.code != c.code || !strings.Contains(got.stderr, c.want) {
			t.Errorf("%s: exit status %d, %q, want %d with %q", name, got.code, got.stderr, c.code, c.want)
		}
	}
	if got := m.cachemesh(t, "shard", "accept", "--all").want(t, 0); got.stdout != "no pool is frozen\n" {
		t.Errorf("accept --all says %q", got.stdout)
	}
	for name, n := range m.kept {
		if n.started() != 1 {
			t.Errorf("%s was restarted", name)
		}
	}
}

func TestShardCommandsComplete(t *testing.T) {
	m := newManaged(t, 2, 2)
	primary, _ := m.primary(t, "all-1")
	replica := slices.DeleteFunc(slices.Clone(m.shards()[1].Nodes), func(n string) bool { return n == primary })
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"shard", "switch", ""}, []string{"all-0", "all-1"}},
		{[]string{"shard", "switch", "all-1", "--to", ""}, replica},
		{[]string{"shard", "roll", ""}, []string{"all"}},
		{[]string{"shard", "accept", ""}, nil},
		{[]string{"events", "--shard", ""}, []string{"all-0", "all-1"}},
		{[]string{"events", "--region", ""}, []string{"here"}},
	} {
		args := append([]string{"__complete", c.args[0], "--controlplane", m.plane.url}, c.args[1:]...)
		if c.args[0] == "shard" {
			args = append([]string{"__complete", c.args[0], c.args[1], "--controlplane", m.plane.url}, c.args[2:]...)
		}
		var got []string
		for line := range strings.Lines(cachemesh(t, args...).want(t, 0).stdout) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, ":") {
				got = append(got, line)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q completes to %q, want %q", c.args, got, c.want)
		}
	}
}
