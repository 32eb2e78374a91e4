package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

func TestAPrimaryThatFlaps(t *testing.T) {
	m := newOneShard(t, 2, func(m *mesh.Mesh) { m.Health.DownAfter = 450 * time.Millisecond })
	c := m.check(t)
	hang := func(node string, d time.Duration) {
		t.Helper()
		m.kept[node].signal(t, syscall.SIGSTOP)
		time.Sleep(d)
		m.kept[node].signal(t, syscall.SIGCONT)
		c.waitMore(t, 50)
	}
	primary, _ := m.settle(t)
	for range 8 {
		hang(primary, 150*time.Millisecond)
	}
	if all := m.story(t); len(kinds(all, "all-0")) != 1 {
		t.Errorf("short stops led to %+v", all)
	}
	for range 3 {
		primary, _ = m.settle(t)
		before := len(kinds(m.story(t), "all-0"))
		hang(primary, 700*time.Millisecond)
		next, _ := m.settle(t)
		eventually(t, 5*time.Second, func() error { // the event may come a moment later
			if got := kinds(m.story(t), "all-0")[before:]; next != primary && !slices.Contains(got, shards.Failover) {
				return fmt.Errorf("a long stop led to %v", got)
			}
			return nil
		})
		got := kinds(m.story(t), "all-0")[before:]
		if failovers := slices.DeleteFunc(slices.Clone(got), func(k shards.Kind) bool { return k == shards.Demoted }); len(failovers) > 1 {
			t.Errorf("a long stop led to %v", got)
		}
	}
	if n := count(m.story(t), shards.Failover); n == 0 || n > 3 {
		t.Errorf("3 long stops led to %d failovers", n)
	}
	c.finish(t)
}

func TestANodeThatSomebodyMadeAPrimary(t *testing.T) {
	m := newOneShard(t, 3, nil)
	c := m.check(t)
	primary, replicas := m.settle(t)
	for i, replica := range replicas {
		node := m.clients[replica]
		if err := node.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
			t.Fatal(err)
		}
		// It may have been made a replica again already.
		if err := node.Set(t.Context(), "foreign", "data", 0).Err(); err != nil && !strings.Contains(err.Error(), "READONLY") {
			t.Fatal(err)
		}
		c.waitMore(t, 20)
		if now, _ := m.settle(t); now != primary {
			t.Errorf("%s is the primary, %s was", now, primary)
		}
		eventually(t, 5*time.Second, func() error {
			if n := count(m.story(t), shards.Demoted); n != i+1 {
				return fmt.Errorf("%d events of nodes that were demoted, want %d", n, i+1)
			}
			return nil
		})
	}
	if got := kinds(m.story(t), "all-0"); !slices.Equal(got, []shards.Kind{shards.Bootstrap, shards.Demoted, shards.Demoted}) {
		t.Errorf("the events are %v", got)
	}
	for address, node := range m.clients {
		if err := node.Get(t.Context(), "foreign").Err(); address == primary && !errors.Is(err, redis.Nil) {
			t.Errorf("the primary has what was written to a replica: %v", err)
		}
	}
	c.finish(t)
	if c.moves > 0 {
		t.Error("another node than the primary was served")
	}
}

func TestAReplicaOfTheWrongPrimary(t *testing.T) {
	m := newOneShard(t, 2, nil)
	c := m.check(t)
	primary, replicas := m.settle(t)
	replica := m.clients[replicas[0]]
	stranger := m.startNode(t, 0)
	if err := newClient(t, &redis.Options{Addr: stranger}).Set(t.Context(), "foreign", "data", 0).Err(); err != nil {
		t.Fatal(err)
	}
	astray := func() {
		t.Helper()
		if err := replica.ReplicaOf(t.Context(), hostOf(stranger), portOf(stranger)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	astray()
	eventually(t, 5*time.Second, func() error {
		if r, err := replication(t.Context(), replica); err != nil || r["master_port"] != portOf(primary) {
			return fmt.Errorf("the replica says %v, %v", r, err)
		}
		return nil
	})
	if now, _ := m.settle(t); now != primary {
		t.Errorf("%s is the primary, %s was", now, primary)
	}
	c.waitMore(t, 20)
	c.finish(t)
	if c.moves > 0 {
		t.Error("another node than the primary was served")
	}

	// Nobody mends it, and then the primary dies.
	if err := m.plane.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	m.kept[primary].kill(t)
	astray()
	eventually(t, 10*time.Second, func() error {
		if time.Since(stopped) < 2*mesh.DefaultDownAfter {
			return errors.New("what the control plane knows of the nodes is not old yet")
		}
		return replica.Get(t.Context(), "foreign").Err()
	})
	if err := m.plane.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.alerted(t, "no node is left")
	client := m.sidecar.client(t)
	eventually(t, 5*time.Second, func() error {
		value, err := client.Get(t.Context(), "foreign").Result()
		if err == nil {
			t.Fatalf("the shard answers %q, which is another's", value)
		}
		if !errors.Is(err, redis.Nil) {
			return err
		}
		return nil
	})
	if r, err := replication(t.Context(), replica); err != nil || r["role"] != "slave" || r["master_port"] != portOf(stranger) {
		t.Errorf("what others made a replica of theirs is %v (%v) now", r, err)
	}
	m.kept[primary] = m.keepAgain(t, m.kept[primary])
	if now, _ := m.settle(t); now != primary {
		t.Errorf("%s is the primary, want %s, which came back", now, primary)
	}
	if err := client.Get(t.Context(), "foreign").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("another's data is served: %v", err)
	}
	if got := kinds(m.story(t), "all-0"); !slices.Equal(got, []shards.Kind{shards.Bootstrap, shards.StandIn, shards.Recovery}) {
		t.Errorf("the events are %v", got)
	}
}

func TestAnOldPrimaryThatComesBackWithNewerLookingData(t *testing.T) {
	m := newOneShard(t, 2, nil)
	c := m.check(t)
	// newer cuts the primary off, writes much to it once another has taken over, and returns both.
	newer := func() (old, next string) {
		t.Helper()
		old, others := m.settle(t)
		m.ways[old].cut()
		c.waitMore(t, 50)
		next = others[0]
		node := m.clients[old]
		for range 50 {
			if err := node.MSet(t.Context(), "k", "newer", "newer", strings.Repeat("x", 10_000)).Err(); err != nil {
				t.Fatal(err)
			}
		}
		offset := func(address string) int {
			t.Helper()
			r, err := replication(t.Context(), m.clients[address])
			if err != nil || r["role"] != "master" {
				t.Fatalf("%s says %v, %v", address, r, err)
			}
			var n int
			fmt.Sscan(r["master_repl_offset"], &n)
			return n
		}
		if a, b := offset(old), offset(next); a <= b {
			t.Fatalf("the old primary has offset %d, the new one %d", a, b)
		}
		return old, next
	}
	check := func(next string) {
		t.Helper()
		c.waitMore(t, 50)
		if now, _ := m.settle(t); now != next {
			t.Errorf("%s is the primary, want %s", now, next)
		}
		for address, node := range m.clients {
			if n, err := node.Exists(t.Context(), "newer").Result(); address == next && (err != nil || n > 0) {
				t.Errorf("%s has the old primary's data: %d, %v", address, n, err)
			}
		}
		if err := m.sidecar.client(t).Get(t.Context(), "newer").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("the old primary's data is served: %v", err)
		}
	}
	old, next := newer()
	m.ways[old].mend()
	check(next)
	eventually(t, 5*time.Second, func() error {
		if got := kinds(m.story(t), "all-0"); !slices.Equal(got, []shards.Kind{shards.Bootstrap, shards.Failover, shards.Demoted}) {
			return fmt.Errorf("the events are %v", got)
		}
		return nil
	})

	// The same, and the control plane has lost its state: it takes up the epoch that the nodes remember.
	old, next = newer()
	epoch := m.row(t).Epoch
	m.plane.process.Kill()
	if err := os.RemoveAll(filepath.Join(m.dir, "state")); err != nil {
		t.Fatal(err)
	}
	m.ways[old].mend()
	m.plane.start(t)
	check(next)
	for _, e := range m.story(t) {
		if e.Epoch > 0 && e.Epoch <= epoch {
			t.Errorf("after epoch %d there is %+v", epoch, e)
		}
	}
	c.finish(t)
	if c.moves != 2 {
		t.Errorf("%d moves from one process to another, want 2", c.moves)
	}
}

func TestAPrimaryThatRestartsEmpty(t *testing.T) {
	m := newOneShard(t, 2, nil)
	c := m.check(t)
	client := m.sidecar.client(t)
	if err := client.Set(t.Context(), "kept", "data", 0).Err(); err != nil {
		t.Fatal(err)
	}
	has := func() {
		t.Helper()
		if value, err := client.Get(t.Context(), "kept").Result(); err != nil || value != "data" {
			t.Errorf("GET says %q, %v", value, err)
		}
		for address, node := range m.clients {
			if value, err := node.Get(t.Context(), "kept").Result(); err != nil || value != "data" {
				t.Errorf("%s has %q, %v", address, value, err)
			}
		}
	}
	// It is back before anybody can have missed it.
	primary, others := m.settle(t)
	m.kept[primary].kill(t)
	m.kept[primary] = m.keepAgain(t, m.kept[primary])
	c.waitMore(t, 50)
	if now, _ := m.settle(t); now != others[0] {
		t.Errorf("%s is the primary, want %s, which has the data", now, others[0])
	}
	has()

	// It comes up as a primary by itself, once another has taken over.
	primary, others = m.settle(t)
	m.kept[primary].kill(t)
	c.waitMore(t, 50)
	n := m.kept[primary]
	<-n.ended
	n.server.Managed = false
	m.kept[primary] = keep(t, n.server)
	m.alerted(t, "came up as a primary by itself")
	c.waitMore(t, 50)
	if now, _ := m.settle(t); now != others[0] {
		t.Errorf("%s is the primary, want %s, which has the data", now, others[0])
	}
	has()
	eventually(t, 5*time.Second, func() error {
		if got := kinds(m.story(t), "all-0"); !slices.Equal(got, []shards.Kind{shards.Bootstrap, shards.Failover, shards.Failover, shards.Demoted}) {
			return fmt.Errorf("the events are %v", got)
		}
		return nil
	})
	c.finish(t)
	if c.moves != 2 {
		t.Errorf("%d moves from one process to another, want 2", c.moves)
	}
}

// A primary that restarts as one answers empty until somebody notices, and its replicas may copy that: the mesh cannot help it. But it never does
// so with the epoch that it had.
func TestAPrimaryThatRestartsAsOneLosesItsEpoch(t *testing.T) {
	m := newOneShard(t, 2, nil)
	primary, _ := m.settle(t)
	old := m.row(t).Epoch
	m.kept[primary].kill(t)
	n := m.kept[primary]
	<-n.ended
	n.server.Managed = false
	m.kept[primary] = keep(t, n.server)
	node := m.clients[primary]
	eventually(t, 10*time.Second, func() error {
		if epoch, err := node.Get(t.Context(), "cachemesh:epoch").Uint64(); err == nil && epoch <= old {
			t.Fatalf("it has epoch %d, as the process before it", epoch)
		}
		s, err := m.plane.read()
		if err != nil {
			return err
		}
		now, at, err := shardOf(s, "all-0")
		if err == nil && (now.Epoch == old || at == "") {
			err = fmt.Errorf("%s is primary of epoch %d still", at, now.Epoch)
		}
		return err
	})
	m.alerted(t, "came up as a primary by itself")
	m.settle(t)
	c := m.check(t)
	c.waitMore(t, 50)
	c.finish(t)
}
