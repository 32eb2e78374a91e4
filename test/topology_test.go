package test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
)

func TestPrimaryIsReplacedUnderLoad(t *testing.T) {
	m := onePool(t, "k:", 3)
	shard := &m.shards()[1]
	old := shard.Nodes[0]
	port, err := strconv.Atoi(portOf(old))
	if err != nil {
		t.Fatal(err)
	}
	replica := m.startNode(t, port)
	shard.Nodes = append(shard.Nodes, replica)
	m.write(t)
	c := m.startControlplane(t)
	s := m.startSidecar(t, "here-0", c)
	version := c.waitSynced(t, s.name)
	keys := someKeys("k:", 200)
	before := c.where(t, keys...)
	load := startLoad(t, s.over()["RESP2"], keys)
	load.waitMore(t, 500)

	if err := newClient(t, &redis.Options{Addr: replica}).ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	shard.Nodes = []string{replica, old}
	m.write(t)
	c.waitVersion(t, version)
	c.waitSynced(t, s.name)
	load.waitMore(t, 500)
	load.finish(t)

	for i, p := range c.where(t, keys...) {
		if p.Shard != before[i].Shard {
			t.Errorf("key %q moved from %s to %s", p.Key, before[i].Shard, p.Shard)
		}
		if p.Shard == shard.Name && p.Primary != replica {
			t.Errorf("key %q is at %s, want %s", p.Key, p.Primary, replica)
		}
	}
	// Nothing comes to the old primary any more: it can go.
	m.nodes[old].Kill()
	client := s.client(t)
	for _, key := range keys {
		if err := client.Set(t.Context(), key, "after", 0).Err(); err != nil {
			t.Errorf("SET %q after the old primary is gone: %v", key, err)
		}
	}
}

func TestShardIsAddedAndRemovedUnderLoad(t *testing.T) {
	m := onePool(t, "k:", 2)
	c := m.startControlplane(t)
	s := m.startSidecar(t, "here-0", c)
	version := c.waitSynced(t, s.name)
	load := startLoad(t, s.over()["RESP3"], someKeys("k:", 200))
	load.waitMore(t, 500)

	m.addShard(t, mesh.ShardSpec{Pool: "all", Name: "all-2", Weight: 2})
	m.write(t)
	c.waitVersion(t, version)
	version = c.waitSynced(t, s.name)
	added := m.shards()[2]
	eventually(t, 5*time.Second, func() error {
		if len(keysOn(t, added.Nodes[0])) == 0 {
			return errors.New("no key comes to the new shard")
		}
		return nil
	})

	m.spec.Regions[0].Shards = m.shards()[:2]
	m.write(t)
	c.waitVersion(t, version)
	c.waitSynced(t, s.name)
	if err := newClient(t, &redis.Options{Addr: added.Nodes[0]}).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	load.waitMore(t, 2000) // sets and gets of every key
	load.finish(t)
	if keys := keysOn(t, added.Nodes[0]); len(keys) > 0 {
		t.Errorf("%d keys came to the shard after it was removed", len(keys))
	}
}

// A change of routes closes connections, so a request that is sent at that moment fails once: clients' own retries, which
// they have by default, are part of this test.
func TestPoolIsAddedAndRemovedUnderLoad(t *testing.T) {
	t.Parallel()
	m := onePool(t, "k:", 2)
	c := m.startControlplane(t)
	s := m.startSidecar(t, "here-0", c)
	version := c.waitSynced(t, s.name)
	options := s.over()["RESP2"]
	options.MaxRetries = 3
	load := startLoad(t, options, someKeys("k:", 200))
	load.waitMore(t, 200)

	pools, shards := m.spec.Pools, m.shards()
	m.addPool(t, mesh.PoolSpec{Name: "more", Routes: []mesh.Route{{Prefix: "m:"}}}, 1)
	m.write(t)
	c.waitVersion(t, version)
	version = c.waitSynced(t, s.name)
	client := s.client(t)
	eventually(t, 5*time.Second, func() error { return client.Set(t.Context(), "m:1", "v", 0).Err() })
	waitCluster(t, s, "more::", true)
	load.waitMore(t, 500)

	m.spec.Pools, m.spec.Regions[0].Shards = pools, shards
	m.write(t)
	c.waitVersion(t, version)
	c.waitSynced(t, s.name)
	eventually(t, 10*time.Second, func() error {
		if err := client.Set(t.Context(), "m:1", "v", 0).Err(); err == nil || !strings.Contains(err.Error(), "no upstream host") {
			return fmt.Errorf("a key of the removed pool: error %v, want no upstream host", err)
		}
		return nil
	})
	// The pool's clusters go once nothing can name them any more.
	waitCluster(t, s, "more::", false)
	load.waitMore(t, 500)
	load.finish(t)
}

// waitCluster waits until the cluster that begins lines of Envoy's /clusters is there or gone.
func waitCluster(t *testing.T, s *sidecar, prefix string, want bool) {
	t.Helper()
	eventually(t, 40*time.Second, func() error {
		page, err := clusters("http://" + s.admin)
		if err == nil && strings.Contains("\n"+page, "\n"+prefix) != want {
			err = errors.New("the cluster " + prefix + " is not as wanted")
		}
		return err
	})
}

func clusters(admin string) (string, error) {
	response, err := http.Get(admin + "/clusters")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	return string(page), err
}
