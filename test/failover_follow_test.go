package test

import (
	"context"
	"fmt"
	"net/http"
	"os"
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

const sentinelMaster = "all-0"

// startSentinels runs three Sentinels of a primary.
func startSentinels(t *testing.T, dir, primary string) {
	t.Helper()
	var all []*redis.SentinelClient
	path, err := process.Find("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range freeAddresses(t, 3) {
		port := portOf(address)
		file := filepath.Join(dir, "sentinel-"+port+".conf")
		config := fmt.Sprintf(`port %s
bind 127.0.0.1
dir %q
sentinel monitor %[3]s 127.0.0.1 %s 2
sentinel down-after-milliseconds %[3]s 500
sentinel failover-timeout %[3]s 2000
`, port, dir, sentinelMaster, portOf(primary))
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		client := redis.NewSentinelClient(&redis.Options{Addr: address, MaxRetries: -1})
		t.Cleanup(func() { client.Close() })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		p, err := process.Start(ctx, process.Spec{Name: "sentinel " + port, Path: path, Args: []string{file, "--sentinel"}, Log: filepath.Join(dir, "sentinel-"+port+".log"),
			Ready: func(ctx context.Context, _ int) error { return client.Ping(ctx).Err() }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop(time.Second) })
		all = append(all, client)
	}
	eventually(t, 20*time.Second, func() error {
		for _, c := range all {
			master, err := c.Master(t.Context(), sentinelMaster).Result()
			if err != nil || master["flags"] != "master" || master["num-other-sentinels"] != "2" || master["num-slaves"] != "1" {
				return fmt.Errorf("a Sentinel says %v, %v", master, err)
			}
			replicas, err := c.Replicas(t.Context(), sentinelMaster).Result()
			if err != nil || len(replicas) != 1 || replicas[0]["master-link-status"] != "ok" {
				return fmt.Errorf("a Sentinel has the replicas %v, %v", replicas, err)
			}
		}
		return nil
	})
}

// untouched fails the test if somebody else than Sentinel has changed a node: Sentinel says SLAVEOF, and nothing of ours in any case.
func untouched(t *testing.T, node *redis.Client) {
	t.Helper()
	stats, err := node.InfoMap(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for command := range stats["Commandstats"] {
		for _, ours := range []string{"replicaof", "flushall", "config|set", "client|pause", "client|unpause", "shutdown", "watch"} {
			if strings.TrimPrefix(command, "cmdstat_") == ours {
				t.Errorf("%s was sent to %s", ours, node.Options().Addr)
			}
		}
	}
	if n, err := node.Exists(t.Context(), "cachemesh:epoch").Result(); err != nil || n != 0 {
		t.Errorf("%s has an epoch: %d, %v", node.Options().Addr, n, err)
	}
}

func TestSentinelIsFollowed(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	primary := m.startNode(t, 0)
	var port int
	fmt.Sscan(portOf(primary), &port)
	replica := m.startNode(t, port)
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Failover: mesh.FollowIts, Routes: []mesh.Route{{Prefix: ""}}}}
	m.spec.Regions[0].Shards = []mesh.ShardSpec{{Pool: "all", Name: "all-0", Nodes: []string{replica, primary}}} // the file's order does not matter
	m.write(t)
	startSentinels(t, m.dir, primary)
	c := m.startControlplane(t, "--state", m.dir+"/state")
	s := m.startSidecar(t, "s-0", c)
	c.waitSynced(t, s.name)
	checker := startChecker(t, s.client(t), "k", newTold())
	checker.waitMore(t, 50)
	served := func(want string, epoch uint64) error {
		status, err := c.read()
		if err != nil {
			return err
		}
		row, now, err := shardOf(status, "all-0")
		if err == nil && (now != want || row.Epoch != epoch) {
			err = fmt.Errorf("%s is the primary of epoch %d, want %s and %d", now, row.Epoch, want, epoch)
		}
		return err
	}
	if err := served(primary, 1); err != nil {
		t.Error(err)
	}

	m.nodes[primary].Kill()
	node := newClient(t, &redis.Options{Addr: replica})
	eventually(t, 20*time.Second, func() error {
		if r, err := replication(t.Context(), node); err != nil || r["role"] != "master" {
			return fmt.Errorf("the replica says %v, %v", r, err)
		}
		return nil
	})
	promoted := time.Now()
	checker.waitMore(t, 1)
	followed := time.Since(promoted)
	t.Logf("followed after %s", followed)
	if followed > time.Second {
		t.Errorf("it was followed after %s, want a second at most", followed)
	}
	if err := served(replica, 2); err != nil {
		t.Error(err)
	}
	untouched(t, node)

	// The old primary comes back, empty, and says that it is primary. Sentinel puts that right when it thinks fit; nobody is served from it.
	server := process.Redis{Port: port, Dir: m.dir}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	again, err := server.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Stop(time.Second) })
	old := newClient(t, &redis.Options{Addr: primary})
	disputed := false
	eventually(t, 30*time.Second, func() error {
		status, err := c.read()
		if err != nil {
			return err
		}
		disputed = disputed || cmpAlert(status, nil, "several nodes say that they are primary") == nil
		if r, err := replication(t.Context(), old); err != nil || r["master_port"] != portOf(replica) || r["master_link_status"] != "up" {
			return fmt.Errorf("the old primary says %v, %v", r, err)
		}
		if len(status.Alerts) > 0 {
			return fmt.Errorf("the alerts are %+v", status.Alerts)
		}
		return nil
	})
	if !disputed {
		t.Error("there was no alert while both said that they are primary")
	}
	if err := served(replica, 2); err != nil {
		t.Error(err)
	}
	untouched(t, old)

	eventually(t, 5*time.Second, func() error {
		if got := kinds(readEvents(t, http.DefaultClient, c.url), "all-0"); !slices.Equal(got, []shards.Kind{shards.Follow, shards.Follow}) {
			return fmt.Errorf("the events are %v", got)
		}
		return nil
	})
	checker.finish(t)
	if checker.moves != 1 {
		t.Errorf("%d moves from one process to another, want 1", checker.moves)
	}
}
