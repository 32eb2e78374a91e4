package sidecar

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
)

// startLaned runs the sidecar with the lanes that it has, and tells it the topology.
func (s *sidecar) startLaned(t testing.TB, to mesh.Topology) *agent {
	t.Helper()
	text, err := json.Marshal(to)
	if err != nil {
		t.Fatal(err)
	}
	return s.startPrepared(t, func(a *agent) {
		if err := a.topologies.offer(t, "the test", text); err != nil {
			t.Fatal(err)
		}
	})
}

// removals counts how often a key is in the journals of the shards.
func removals(t testing.TB, key string) int {
	t.Helper()
	n := 0
	for _, address := range shards {
		client := newClient(t, &redis.Options{Addr: address})
		entries, err := client.XRange(t.Context(), journal.Key(0), "-", "+").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all, err := journal.Decode(nil, []byte(e.Values["e"].(string)))
			if err != nil {
				t.Fatal(err)
			}
			n += len(slices.DeleteFunc(all, func(r journal.Removal) bool { return string(r.Key) != key }))
		}
	}
	return n
}

// Through the real Envoy: every write is on its shard and in that shard's journal, over both protocols, and transactions are checked.
func TestWritesThroughLanesAreJournaled(t *testing.T) {
	to := transactional(shards...)
	to.Pools[0].Routes[0] = laned(shards...).Pools[0].Routes[0]
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, to))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.startLaned(t, to)
	s.waitServing(t)
	ctx := t.Context()
	for name, client := range s.over(t) {
		for i := range 20 {
			key := fmt.Sprintf("%s-%s-%d", t.Name(), name, i)
			if err := client.Set(ctx, key, "x", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if got, err := client.Get(ctx, key).Result(); err != nil || got != "x" {
				t.Errorf("%s: %q, %v", key, got, err)
			}
			if err := client.Del(ctx, key).Err(); err != nil {
				t.Error(err)
			}
			if n := removals(t, key); n != 2 {
				t.Errorf("%s is in the journals %d times, want twice", key, n)
			}
		}
		one, other := fmt.Sprintf("{%s}1", t.Name()), fmt.Sprintf("{%s}2", t.Name())
		if _, err := client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, one, "1", 0)
			p.Incr(ctx, other)
			return nil
		}); err != nil {
			t.Error(name, err)
		}
		if err := client.Eval(ctx, "return redis.call('SET', KEYS[2], 'x')", []string{one, "cachemesh:epoch"}).Err(); err == nil {
			t.Error(name, "a script reached what belongs to cachemesh")
		}
		// Keys of all shards are sure to be among so many.
		_, err := client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for i := range 50 {
				p.Set(ctx, fmt.Sprint("many-", i), "x", 0)
			}
			return nil
		})
		if err == nil {
			t.Error(name, "a transaction over several shards was done")
		}
	}
}

// A planned restart of an agent costs no write and no transaction, and every write is journaled.
func TestLanesAreReplacedUnderLoad(t *testing.T) {
	to := transactional(shards...)
	to.Pools[0].Routes[0] = laned(shards...).Pools[0].Routes[0]
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, to))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.startLaned(t, to)
	s.waitServing(t)
	s.waitSaved(t)
	c := s.startCrowd(t)
	c.transact(t, s)
	c.loads[0].waitMore(t, 100)
	for range 2 {
		next := s.beside()
		next.startLaned(t, to)
		s.ended(t)
		c.loads[0].waitMore(t, 100)
		s = next
	}
	c.finish(t)
}
