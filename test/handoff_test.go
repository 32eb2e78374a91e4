package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// stalls are how many requests may fail in a test, because a program stands still for longer than a request may take. A ring that changes
// badly fails each request for a while.
const stalls = 10

// still are keys that nobody writes while a handoff moves them.
const still = 3000

// reshaped is a mesh of one pool of two shards, whose ring changes under load.
type reshaped struct {
	*testMesh
	plane    *controlplane
	way      *way // from the second sidecar to the control plane
	sidecars []*sidecar
}

func newReshaped(t *testing.T, lanes bool) *reshaped {
	t.Helper()
	m := &reshaped{testMesh: newMesh(t)}
	m.spec.Health.DownAfter = 2 * time.Second // nobody is to fail over by chance
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Routes: []mesh.Route{{Prefix: ""}}}}
	if lanes {
		m.spec.Transactions = mesh.TransactionsLanes
	}
	for i := range 2 {
		m.spec.Regions[0].Shards = append(m.spec.Regions[0].Shards, mesh.ShardSpec{Pool: "all", Name: fmt.Sprintf("all-%d", i), Nodes: m.shardNodes(t)})
	}
	m.write(t)
	m.plane = m.startControlplane(t, "--state", m.dir+"/state")
	m.way = newWay(t, m.plane.xds)
	parted := *m.plane
	parted.xds = m.way.address
	m.sidecars = []*sidecar{m.startSidecar(t, "s-0", m.plane), m.startSidecar(t, "s-1", &parted)}
	for _, s := range m.sidecars {
		m.plane.waitSynced(t, s.name)
	}
	m.fill(t)
	return m
}

// fill writes the keys that nobody writes again.
func (m *reshaped) fill(t *testing.T) {
	t.Helper()
	pipe := m.sidecars[0].client(t).Pipeline()
	for i := range still {
		pipe.Set(t.Context(), fmt.Sprintf("still-%d", i), i, 0)
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// shardNodes starts the nodes of a shard.
func (m *testMesh) shardNodes(t *testing.T) []string {
	t.Helper()
	return []string{m.keepNode(t).server.Address(), m.keepNode(t).server.Address()}
}

// begin begins a handoff as its API does.
func (m *reshaped) begin(t *testing.T, path string, body control.ReshapeRequest) uint64 {
	t.Helper()
	event, err := ask(m.plane.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return event.ID
}

func ask(url string, body any) (e shards.Event, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return e, err
	}
	response, err := http.Post(url, "application/json", bytes.NewReader(text))
	if err != nil {
		return e, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var refused struct{ Error string }
		_ = json.NewDecoder(response.Body).Decode(&refused)
		return e, errors.New(refused.Error)
	}
	return e, json.NewDecoder(response.Body).Decode(&e)
}

// pool is its row in the status.
func (c *controlplane) pool() (control.PoolStatus, error) {
	s, err := c.read()
	if err != nil || len(s.Pools) != 1 {
		return control.PoolStatus{}, fmt.Errorf("%d pools: %w", len(s.Pools), err)
	}
	return s.Pools[0], nil
}

// finished waits until the pool is in no handoff and its ring has a generation.
func (c *controlplane) finished(t *testing.T, within time.Duration, generation uint64) {
	t.Helper()
	eventually(t, within, func() error {
		p, err := c.pool()
		if err == nil && (p.Handoff != nil || p.Generation != generation) {
			err = fmt.Errorf("generation %d, want %d; in the handoff %+v", p.Generation, generation, p.Handoff)
		}
		return err
	})
}

// placed checks that each key is on the shard that the ring gives it, and on no other, and that no key is missing that nobody has written.
func (m *testMesh) placed(t *testing.T, c *controlplane) {
	t.Helper()
	topology, err := get[mesh.Topology](c.url + "/v1/topology")
	if err != nil {
		t.Fatal(err)
	}
	pool := topology.Pools[0]
	ring, err := envoy.Ring(pool)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		found := map[string]bool{}
		for _, s := range pool.Shards {
			primary, _ := s.Primary()
			client := newClient(t, &redis.Options{Addr: primary.Address, Protocol: 2})
			keys, err := client.Keys(t.Context(), "*").Result()
			client.Close()
			if err != nil {
				return err
			}
			for _, k := range keys {
				if strings.HasPrefix(k, mesh.ReservedPrefix) {
					continue
				}
				if owner := pool.Shards[ring.Find([]byte(k))].Name; owner != s.Name {
					return fmt.Errorf("%s has key %q, which is %s's", s.Name, k, owner)
				}
				found[k] = true
			}
		}
		for i := range still {
			if k := fmt.Sprintf("still-%d", i); !found[k] {
				return fmt.Errorf("key %q is missing", k)
			}
		}
		return nil
	})
}

// traffic writes and reads its keys through each sidecar, until it is finished.
type traffic struct {
	stop    context.CancelFunc
	working sync.WaitGroup
	rounds  atomic.Int64
	misses  atomic.Int64
	errors  atomic.Int64
	mu      sync.Mutex
	wrong   []string
}

// startTraffic has each of readers read what the writer beside it writes.
func startTraffic(t *testing.T, writers, readers []*sidecar) *traffic {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &traffic{stop: stop}
	t.Cleanup(func() { stop(); l.working.Wait() })
	for i := range writers {
		write, read := writers[i].client(t), readers[i].client(t)
		l.working.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.round(ctx, write, read, fmt.Sprintf("busy-%d-%d", i, n%200), n)
			}
		})
	}
	return l
}

func (l *traffic) round(ctx context.Context, write, read *redis.Client, key string, n int) {
	if n%10 == 9 {
		if err := write.Del(ctx, key).Err(); err != nil {
			l.failed(ctx, err)
			return
		}
		if v, err := read.Get(ctx, key).Result(); err == nil {
			l.complain("%s is %s after it was deleted", key, v)
		} else if !errors.Is(err, redis.Nil) {
			l.failed(ctx, err)
		}
		return
	}
	if err := write.Set(ctx, key, n, 0).Err(); err != nil {
		l.failed(ctx, err)
		return
	}
	switch v, err := read.Get(ctx, key).Int(); {
	case errors.Is(err, redis.Nil):
		l.misses.Add(1)
	case err != nil:
		l.failed(ctx, err)
	case v != n:
		l.complain("%s is %d after %d was written", key, v, n)
	}
	l.rounds.Add(1)
}

func (l *traffic) failed(ctx context.Context, err error) {
	if ctx.Err() == nil && l.errors.Add(1) > stalls {
		l.complain("%v", err)
	}
}

func (l *traffic) complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) < 10 {
		l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
	}
}

// waitMore waits for more rounds.
func (l *traffic) waitMore(t *testing.T, n int64) {
	t.Helper()
	goal := l.rounds.Load() + n
	eventually(t, 20*time.Second, func() error {
		if now := l.rounds.Load(); now < goal {
			return fmt.Errorf("%d rounds, want %d: %v", now, goal, l.wrong)
		}
		return nil
	})
}

// finish ends it. Nothing may have been wrong.
func (l *traffic) finish(t *testing.T) {
	t.Helper()
	l.stop()
	l.working.Wait()
	t.Logf("%d rounds, %d misses, %d errors", l.rounds.Load(), l.misses.Load(), l.errors.Load())
	if len(l.wrong) > 0 {
		t.Errorf("wrong: %s", strings.Join(l.wrong, "\n"))
	}
	if rounds, misses := l.rounds.Load(), l.misses.Load(); misses*20 > rounds {
		t.Errorf("%d of %d reads missed", misses, rounds)
	}
}

func TestAShardIsAddedAndRemovedUnderLoad(t *testing.T) {
	t.Parallel()
	for name, lanes := range map[string]bool{"local": false, "lanes": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newReshaped(t, lanes)
			readers := slices.Clone(m.sidecars)
			if lanes {
				slices.Reverse(readers) // what one sidecar writes, the other one reads
			}
			load := startTraffic(t, m.sidecars, readers)
			load.waitMore(t, 200)
			nodes := m.shardNodes(t)
			cachemesh(t, "shard", "plan", "add", "--pool", "all", "--controlplane", m.plane.url).want(t, 0)
			out := cachemesh(t, "shard", "add", "--pool", "all", "--node", nodes[0], "--node", nodes[1], "--yes", "-o", "json", "--controlplane", m.plane.url).want(t, 0)
			var result struct {
				Shard  string
				Undone bool
				Steps  []shards.Step
				Keys   int64
			}
			if err := json.Unmarshal([]byte(out.stdout), &result); err != nil || result.Shard != "all-2" || result.Undone || len(result.Steps) != 5 || result.Keys < still/4 {
				t.Fatalf("%v: %s", err, out.stdout)
			}
			load.waitMore(t, 200)
			m.plane.finished(t, time.Second, 1)
			cachemesh(t, "shard", "remove", "all-0", "--yes", "--controlplane", m.plane.url).want(t, 0)
			load.waitMore(t, 200)
			load.finish(t)
			m.plane.finished(t, time.Second, 2)
			m.placed(t, m.plane)
		})
	}
}

func TestAnAbortedHandoffLeavesNothing(t *testing.T) {
	t.Parallel()
	m := newReshaped(t, true)
	nodes := m.shardNodes(t)
	m.begin(t, "/v1/pools/all/add", control.ReshapeRequest{Nodes: nodes, Limits: shards.Limits{KeysPerSecond: 200}})
	recipient := newClient(t, &redis.Options{Addr: nodes[0], Protocol: 2})
	eventually(t, 20*time.Second, func() error {
		if n, err := recipient.Exists(t.Context(), stillNames()...).Result(); err != nil || n < 20 {
			return fmt.Errorf("%d keys are copied: %w", n, err)
		}
		return nil
	})
	if _, err := ask(m.plane.url+"/v1/shards/all-0/remove", control.ReshapeRequest{}); err == nil || !strings.Contains(err.Error(), "is in a handoff already") {
		t.Errorf("a second handoff: %v", err)
	}
	cachemesh(t, "shard", "abort", "all", "--controlplane", m.plane.url).want(t, 0)
	m.plane.finished(t, time.Second, 0)
	if keys, err := recipient.Keys(t.Context(), "[^c]*").Result(); err != nil || len(keys) > 0 {
		t.Errorf("the recipient has %d keys: %v", len(keys), err)
	}
	m.placed(t, m.plane)
	if _, err := ask(m.plane.url+"/v1/pools/all/abort", struct{}{}); err == nil || !strings.Contains(err.Error(), "is in no handoff") {
		t.Errorf("a second abort: %v", err)
	}
}

func stillNames() (all []string) {
	for i := range still {
		all = append(all, fmt.Sprintf("still-%d", i))
	}
	return all
}

// TestLeaderKilledInEveryStepOfAHandoff kills the control plane as soon as each step is written, and starts it again.
func TestLeaderKilledInEveryStepOfAHandoff(t *testing.T) {
	t.Parallel()
	m := newReshaped(t, true)
	load := startTraffic(t, m.sidecars, []*sidecar{m.sidecars[1], m.sidecars[0]})
	load.waitMore(t, 100)
	m.begin(t, "/v1/pools/all/add", control.ReshapeRequest{Nodes: m.shardNodes(t), Limits: shards.Limits{KeysPerSecond: 1000}})
	for _, step := range []mesh.HandoffStep{mesh.Copying, mesh.Preparing, mesh.Fencing, mesh.Flipping, mesh.Purging} {
		eventually(t, 60*time.Second, func() error { return m.stateIn(step) })
		if err := m.plane.process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-m.plane.process.Done()
		m.plane.start(t)
	}
	m.plane.finished(t, 60*time.Second, 1)
	load.waitMore(t, 100)
	load.finish(t)
	m.placed(t, m.plane)
	if all := readEvents(t, http.DefaultClient, m.plane.url); count(all, shards.HandoffDone) != 1 || count(all, shards.HandoffStepped) != 4 {
		t.Errorf("the story is %+v", all)
	}
}

// stateIn is nil when the state that is kept has a handoff in a step.
func (m *reshaped) stateIn(step mesh.HandoffStep) error {
	data, err := os.ReadFile(filepath.Join(m.dir, "state", "state.json"))
	if err != nil {
		return err
	}
	var record struct{ State shards.State }
	if err := json.Unmarshal(data, &record); err != nil {
		return err
	}
	if h := record.State.Handoffs["all"]; h.Step != step {
		return fmt.Errorf("the handoff is %q, want %s", h.Step, step)
	}
	return nil
}

// TestASidecarPartedThroughAHandoff has one sidecar miss all of a handoff: it still routes by the ring before.
func TestASidecarPartedThroughAHandoff(t *testing.T) {
	t.Parallel()
	for name, lanes := range map[string]bool{"local": false, "lanes": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newReshaped(t, lanes)
			parted, other := m.sidecars[1].client(t), m.sidecars[0].client(t)
			m.way.cut()
			m.begin(t, "/v1/pools/all/add", control.ReshapeRequest{Nodes: m.shardNodes(t)})
			m.plane.finished(t, 90*time.Second, 1)
			if p, err := m.plane.pool(); err != nil || !slices.Equal(p.Late, []string{"s-1"}) {
				t.Errorf("late are %v: %v", p.Late, err)
			}
			refused := 0
			for i := range 40 {
				key := fmt.Sprintf("still-%d", i)
				if err := other.Set(t.Context(), key, "new", 0).Err(); err != nil {
					t.Fatal(err)
				}
				if v, err := parted.Get(t.Context(), key).Result(); err == nil && v != "new" {
					t.Errorf("the parted sidecar reads %q of %s", v, key)
				}
				if err := parted.Set(t.Context(), key, "new", 0).Err(); err != nil {
					refused++
				}
			}
			if lanes != (refused > 0) {
				t.Errorf("%d writes through the parted sidecar were refused", refused)
			}
			m.way.mend()
			eventually(t, 60*time.Second, func() error {
				p, err := m.plane.pool()
				if err == nil && len(p.Late) > 0 {
					err = fmt.Errorf("late are %v", p.Late)
				}
				return err
			})
			m.plane.waitSynced(t, "s-1")
			for i := range 40 {
				if err := parted.Set(t.Context(), fmt.Sprintf("still-%d", i), "newer", 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
			m.placed(t, m.plane)
		})
	}
}
