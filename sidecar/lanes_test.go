package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/commands"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// laned is a topology whose one route is coherent.
func laned(addresses ...string) mesh.Topology {
	t := topology(addresses...)
	t.Pools[0].Routes[0] = mesh.Route{Coherence: mesh.Invalidate, Writes: mesh.Update, Durability: mesh.DurablePrimary}
	return t
}

// wires are lanes that pass bytes to the shard and write down those that come from Envoy.
type wires struct {
	shards map[string]string // addresses

	mu        sync.Mutex
	listeners map[string]net.Listener
	heard     map[string]*strings.Builder // by shard
	unbound   []string
	drained   bool
	running   sync.WaitGroup
}

func newWires(addresses ...string) *wires {
	w := &wires{shards: map[string]string{}, listeners: map[string]net.Listener{}, heard: map[string]*strings.Builder{}}
	for i, address := range addresses {
		w.shards[fmt.Sprint("all-", i)] = address
	}
	return w
}

func (w *wires) bind(shard, path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listeners[shard], w.heard[shard] = l, new(strings.Builder)
	w.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.running.Go(func() { w.pass(shard, conn) })
		}
	})
	return nil
}

func (w *wires) pass(shard string, conn net.Conn) {
	defer conn.Close()
	node, err := net.Dial("tcp", w.shards[shard])
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(conn, node)
		conn.Close()
	}()
	_, _ = io.Copy(io.MultiWriter(listener(func(p []byte) { // before anybody can have an answer
		w.mu.Lock()
		defer w.mu.Unlock()
		w.heard[shard].Write(p)
	}), node), conn)
	node.Close()
}

type listener func(p []byte)

func (l listener) Write(p []byte) (int, error) {
	l(p)
	return len(p), nil
}

func (w *wires) unbind(shard string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listeners[shard].Close()
	w.unbound = append(w.unbound, shard)
}

func (w *wires) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.listeners {
		l.Close()
	}
}

// drain waits for connections to end, as lanes do.
func (w *wires) drain(ctx context.Context) {
	w.close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.running.Wait()
	}()
	select {
	case <-done:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.drained = true
	case <-ctx.Done():
	}
}

// take is what was heard since the last time, by shard.
func (w *wires) take() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[string]string{}
	for shard, b := range w.heard {
		if b.Len() > 0 {
			all[shard] = strings.ToLower(b.String())
		}
		b.Reset()
	}
	return all
}

// startWired runs the sidecar with such lanes.
func (s *sidecar) startWired(t testing.TB, w *wires) *agent {
	t.Helper()
	return s.startPrepared(t, func(a *agent) { a.lanes.bind, a.lanes.unbind, a.lanes.drain = w.bind, w.unbind, w.drain })
}

// startPrepared runs the sidecar once its agent has been made ready.
func (s *sidecar) startPrepared(t testing.TB, prepare func(*agent)) *agent {
	t.Helper()
	c, err := s.config.complete()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	held, before, err := enter(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(c, before != nil)
	if err != nil {
		t.Fatal(err)
	}
	prepare(a)
	s.cancel, s.done = cancel, make(chan error, 1)
	go func() {
		defer held.Close()
		s.done <- a.serve(ctx, held, before)
	}()
	t.Cleanup(func() { s.stop(t) })
	return a
}

// over are clients of both listeners, which never retry.
func (s *sidecar) over(t testing.TB) map[string]*redis.Client {
	return map[string]*redis.Client{
		"RESP2": s.client(t), "RESP3": newClient(t, &redis.Options{Addr: s.config.Addresses.RedisRESP3, Protocol: 3}),
	}
}

// shardOf is the shard to which the ring gives a key.
func shardOf(t testing.TB, topology mesh.Topology, key string) string {
	t.Helper()
	ring, err := envoy.Ring(topology.Pools[0])
	if err != nil {
		t.Fatal(err)
	}
	return topology.Pools[0].Shards[ring.Find([]byte(key))].Name
}

func TestWritesGoToTheLaneOfTheirShardAndReadsToTheShard(t *testing.T) {
	plane := newControlPlane(t)
	to := laned(shards...)
	plane.serve(t, "1", build(t, to))
	plane.start(t)
	s, w := newSidecar(t, plane.address), newWires(shards...)
	s.startWired(t, w)
	s.waitServing(t)
	writes := [][]any{
		{"set", "K", "1"}, {"incr", "K"}, {"expire", "K", "100"}, {"getdel", "K"}, {"setex", "K", "100", "v"}, {"append", "K", "v"}, {"mset", "K", "v"},
		{"touch", "K"}, {"unlink", "K"}, {"del", "K"}, {"hset", "K", "f", "v"}, {"hdel", "K", "f"}, {"lpush", "K", "v"}, {"lpop", "K"},
		{"eval", "return redis.call('set', KEYS[1], ARGV[1])", "1", "K", "v"},
	}
	reads := [][]any{{"get", "K"}, {"mget", "K"}, {"exists", "K"}, {"ttl", "K"}, {"type", "K"}, {"strlen", "K"}, {"object", "encoding", "K"}, {"dump", "K"}}
	for protocol, client := range s.over(t) {
		seen := map[string]bool{}
		for i := range 8 {
			key := fmt.Sprintf("%s-%s-%d", t.Name(), protocol, i)
			shard := shardOf(t, to, key)
			seen[shard] = true
			run := func(command []any) map[string]string {
				args := slices.Clone(command)
				args[slices.Index(args, any("K"))] = key
				w.take()
				if err := client.Do(t.Context(), args...).Err(); err != nil && !errors.Is(err, redis.Nil) {
					t.Errorf("%s: %v: %v", protocol, args, err)
				}
				return w.take()
			}
			for _, command := range writes {
				heard := run(command)
				name := strings.TrimPrefix(command[0].(string), "m") // Envoy makes a SET of each part of an MSET
				if len(heard) != 1 || !strings.Contains(heard[shard], name) || !strings.Contains(heard[shard], strings.ToLower(key)) {
					t.Errorf("%s: %v of %s, on %s: the lanes heard %q", protocol, command, key, shard, heard)
				}
			}
			for _, command := range reads { // of a key that the script has set
				if heard := run(command); len(heard) > 0 {
					t.Errorf("%s: %v of %s: the lanes heard %q", protocol, command, key, heard)
				}
			}
		}
		if len(seen) != len(shards) {
			t.Errorf("only %v were used", seen)
		}
		w.take()
		for _, args := range [][]any{{"getset", "k", "v"}, {"getex", "k", "persist"}, {"xadd", "k", "*", "f", "v"}, {"multi"}, {"exec"}, {"watch", "k"}} {
			if err := client.Do(t.Context(), args...).Err(); err == nil || err.Error() != commands.FaultError {
				t.Errorf("%s: %v: error %v, want %q", protocol, args, err, commands.FaultError)
			}
		}
		if heard := w.take(); len(heard) > 0 {
			t.Errorf("the lanes heard %q", heard)
		}
	}
}

func TestARouteGoesOnLanesAndBack(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s, w := newSidecar(t, plane.address), newWires(shards...)
	s.startWired(t, w)
	s.waitServing(t)
	pid := s.status(t).Envoy.PID
	// Connections of the listener before are drained, which closes them.
	set := func(heard bool) {
		t.Helper()
		eventually(t, func() error {
			w.take()
			client := newClient(t, &redis.Options{Addr: s.config.Addresses.Redis, Protocol: 2})
			defer client.Close()
			if err := client.Set(t.Context(), t.Name(), "v", 0).Err(); err != nil {
				return err
			}
			if got := w.take(); (len(got) > 0) != heard {
				return fmt.Errorf("the lanes heard %q", got)
			}
			return nil
		})
	}
	set(false)
	for range 2 {
		s.move(t, plane, laned(shards...))
		set(true)
		if lanes := s.status(t).Lanes; lanes == nil || len(lanes.Shards) != len(shards) {
			t.Errorf("status of lanes: %+v", lanes)
		}
		s.move(t, plane, topology(shards...))
		set(false)
	}
	if got := s.status(t).Envoy; got.PID != pid || len(got.Restarts) > 0 {
		t.Errorf("Envoy is another: %+v", got)
	}
}

// transactional is a topology in which lanes check transactions.
func transactional(addresses ...string) mesh.Topology {
	t := topology(addresses...)
	t.Transactions = mesh.TransactionsLanes
	return t
}

func TestTransactionsGoToOneLane(t *testing.T) {
	plane := newControlPlane(t)
	to := transactional(shards...)
	plane.serve(t, "1", build(t, to))
	plane.start(t)
	s, w := newSidecar(t, plane.address), newWires(shards...)
	s.startWired(t, w)
	s.waitServing(t)
	for protocol, client := range s.over(t) {
		for i := range 8 {
			key := fmt.Sprintf("%s-%s-%d", t.Name(), protocol, i)
			w.take()
			var get *redis.StringCmd
			if _, err := client.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
				p.Set(t.Context(), key, "v", 0)
				get = p.Get(t.Context(), key)
				return nil
			}); err != nil || get.Val() != "v" {
				t.Fatalf("%s: %v, GET in it: %q", protocol, err, get.Val())
			}
			heard, shard := w.take(), shardOf(t, to, key)
			for _, part := range []string{"multi", "set", "get", "exec"} {
				if len(heard) != 1 || !strings.Contains(heard[shard], part) {
					t.Errorf("%s: %s of a transaction over %s: the lanes heard %q", protocol, part, key, heard)
				}
			}
		}
		if err := client.Do(t.Context(), "watch", "k").Err(); err == nil || err.Error() != commands.FaultError {
			t.Errorf("%s: WATCH: %v", protocol, err)
		}
	}
}

// Envoy 1.40 crashes over a transaction whose first key has a cluster without hosts.
func TestTransactionsOverKeysWithoutAPoolCrashNothing(t *testing.T) {
	plane := newControlPlane(t)
	to := transactional(shards...)
	to.Pools[0].Routes[0].Prefix = "a:"
	plane.serve(t, "1", build(t, to))
	plane.start(t)
	s, w := newSidecar(t, plane.address), newWires(shards...)
	s.startWired(t, w)
	eventually(t, func() error { return s.client(t).Set(t.Context(), "a:1", "v", 0).Err() })
	for protocol, client := range s.over(t) {
		for _, first := range [][]any{{"set", "nowhere", "v"}, {"get", "nowhere"}, {"set", "cachemesh:epoch", "9"}, {"get", "cachemesh:epoch"}} {
			w.take()
			if _, err := client.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
				p.Do(t.Context(), first...)
				return nil
			}); errors.Is(err, io.EOF) {
				t.Fatalf("%s: %v: %v", protocol, first, err)
			}
			reserved := first[0] == "set" && first[1] == "cachemesh:epoch"
			if heard := fmt.Sprint(w.take()); strings.Contains(heard, "cachemesh:epoch") != reserved {
				t.Errorf("%s: %v: the lanes heard %s, which are to refuse it", protocol, first, heard)
			}
		}
		if err := client.Get(t.Context(), "cachemesh:epoch").Err(); err == nil || !strings.Contains(err.Error(), "no upstream host") {
			t.Errorf("%s: a reserved key is read: %v", protocol, err)
		}
	}
	if restarts := s.status(t).Envoy.Restarts; len(restarts) > 0 {
		t.Errorf("Envoy crashed: %v", restarts)
	}
	for _, address := range shards {
		newClient(t, &redis.Options{Addr: address}).Del(t.Context(), "cachemesh:epoch")
	}
}

func TestLaneSocketsAreBoundWhileTheyAreNamed(t *testing.T) {
	dir := t.TempDir()
	log := newSidecar(t, "127.0.0.1:1").config.Logger
	l, err := newLaneSockets(dir, false, log)
	if err != nil {
		t.Fatal(err)
	}
	w := newWires(shards...)
	l.bind, l.unbind = w.bind, w.unbind
	defer w.close()
	endpoints := func(addresses ...string) []*discovery.Resource { return build(t, laned(addresses...)).Endpoints }
	l.apply(build(t, topology(shards...)).Endpoints)
	if got := l.shards(); len(got) > 0 {
		t.Errorf("without coherent routes %v are bound", got)
	}
	l.apply(endpoints(shards...))
	l.apply(endpoints(shards...))
	for _, shard := range []string{"all-0", "all-1"} {
		conn, err := net.Dial("unix", filepath.Join(dir, "lanes-1", shard+".sock"))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	l.sweep(endpoints(shards[0]))
	if got := l.shards(); len(got) != 2 {
		t.Errorf("%v are bound after one sweep", got)
	}
	l.sweep(endpoints(shards...))
	l.sweep(endpoints(shards[0]))
	l.sweep(endpoints(shards[0]))
	if got := l.shards(); !slices.Equal(got, []string{"all-0"}) || !slices.Equal(w.unbound, []string{"all-1"}) {
		t.Errorf("%v are bound, %v were unbound", got, w.unbound)
	}

	// The next agent finds its folder again, one beside this has another, which later is the only one.
	again, err := newLaneSockets(dir, false, log)
	if err != nil || again.folder != "lanes-1" {
		t.Errorf("%v, %v", again.folder, err)
	}
	beside, err := newLaneSockets(dir, true, log)
	if err != nil || beside.folder != "lanes-2" {
		t.Errorf("%v, %v", beside.folder, err)
	}
	beside.tidy(dir)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestVersionsOfAnotherAgentsLanesAreUnknown(t *testing.T) {
	versions := map[string]string{"all": "1", "all/writes": "2@lanes-3", "other/writes": "3@lanes-2"}
	cutLaneVersions(versions, "lanes-3")
	if want := map[string]string{"all": "1", "all/writes": "2", "other/writes": unknownVersion}; !maps.Equal(versions, want) {
		t.Errorf("%v, want %v", versions, want)
	}
}
