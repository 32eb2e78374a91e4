package regions

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/regions/writers"
	"github.com/cachemesh/cachemesh/ring"
)

// testNode is a real Redis.
type testNode struct {
	process.Redis
	*process.Process
	client *redis.Client
}

func startRedis(t *testing.T, r process.Redis) *testNode {
	t.Helper()
	n := redistest.Start(t, r)
	return &testNode{n.Redis, n.Process, n.Client}
}

// testRegion is a region with real shards and one agent's part of the link.
type testRegion struct {
	t        *testing.T
	name     string
	nodes    []*testNode // a shard each
	rings    map[*mesh.Topology]*ring.Ring
	topology *mesh.Topology
	applier  *Applier
	links    *Links
	address  string // of the link
	server   *grpc.Server

	mu   sync.Mutex
	dial func(address string) string // another address to dial, for partitions
}

func newRegion(t *testing.T, name string, shards int) *testRegion {
	t.Helper()
	r := &testRegion{t: t, name: name, dial: func(a string) string { return a }}
	log := slog.New(slog.NewTextHandler(t.Output(), nil)).With("of", name)
	pool := mesh.Pool{Name: "users", Hashing: mesh.Hashing{Algorithm: "maglev", Size: 65537}, Routes: []mesh.Route{
		{Prefix: "user:", Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: 200 * time.Millisecond}, {Prefix: "local:", Coherence: mesh.Local}}}
	for i := range shards {
		n := startRedis(t, process.Redis{})
		r.nodes = append(r.nodes, n)
		pool.Shards = append(pool.Shards, mesh.Shard{Name: fmt.Sprintf("users-%d", i), Weight: 1, Epoch: 1, Nodes: []mesh.Node{{Address: n.Address(), Role: mesh.Primary}}})
	}
	r.topology = &mesh.Topology{Region: name, Pools: []mesh.Pool{pool}, Links: map[string][]string{}}
	r.applier = NewApplier(writers.Name(name+"-agent"), log)
	r.links = NewLinks(Config{Region: name, Agent: name + "-agent", Applier: r.applier, Log: log, Dial: func(_, address string) (*grpc.ClientConn, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return grpc.NewClient(r.dial(address), grpc.WithTransportCredentials(insecure.NewCredentials()))
	}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	r.serve(l, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		r.links.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		r.links.Close()
		r.applier.Close()
		r.server.Stop()
	})
	return r
}

func (r *testRegion) serve(l net.Listener, log *slog.Logger) {
	r.server = NewReceiver(r.name, nil, r.applier, log).Server(nil)
	go r.server.Serve(l)
}

// linked makes two regions tell each other of their writes.
func linked(a, b *testRegion) {
	for _, pair := range [][2]*testRegion{{a, b}, {b, a}} {
		one, other := pair[0], pair[1]
		one.topology.Links[other.name] = []string{other.address}
		one.update()
		followed := map[string]bool{}
		for _, s := range one.topology.Pools[0].Shards {
			followed[s.Name] = false
		}
		one.links.Follow(followed)
	}
}

func (r *testRegion) update() {
	r.applier.Update(r.topology)
	r.links.Update(r.topology)
}

// change gives the region another topology.
func (r *testRegion) change(f func(shards []mesh.Shard)) {
	next := *r.topology
	next.Pools = []mesh.Pool{next.Pools[0]}
	next.Pools[0].Shards = append([]mesh.Shard(nil), next.Pools[0].Shards...)
	f(next.Pools[0].Shards)
	r.topology = &next
	r.update()
}

// shard is where a key is.
func (r *testRegion) shard(key string) int {
	if r.rings[r.topology] == nil {
		made, err := poolRing(&r.topology.Pools[0])
		if err != nil {
			r.t.Fatal(err)
		}
		r.rings = map[*mesh.Topology]*ring.Ring{r.topology: made}
	}
	return r.rings[r.topology].Find([]byte(key))
}

func (r *testRegion) set(keys ...string) {
	r.t.Helper()
	r.pipelined(keys, func(p redis.Pipeliner, _ int, k string) { p.Set(r.t.Context(), k, "v", 0) })
}

// pipelined has f put commands for the keys into pipelines of their shards.
func (r *testRegion) pipelined(keys []string, f func(p redis.Pipeliner, shard int, key string)) {
	r.t.Helper()
	pipes := make([]redis.Pipeliner, len(r.nodes))
	for i, n := range r.nodes {
		pipes[i] = n.client.Pipeline()
	}
	for _, k := range keys {
		i := r.shard(k)
		f(pipes[i], i, k)
	}
	for _, p := range pipes {
		if _, err := p.Exec(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *testRegion) has(key string) bool {
	r.t.Helper()
	n, err := r.nodes[r.shard(key)].client.Exists(r.t.Context(), key).Result()
	if err != nil {
		r.t.Fatal(err)
	}
	return n == 1
}

// remove is what a lane does with DEL.
func (r *testRegion) remove(keys ...string) {
	r.t.Helper()
	r.pipelined(keys, func(p redis.Pipeliner, shard int, k string) {
		p.Do(r.t.Context(), "MULTI")
		p.Do(r.t.Context(), "DEL", k)
		p.Do(r.t.Context(), "XADD", journal.Key(r.topology.Pools[0].Shards[shard].Epoch), "NOMKSTREAM", "*", "e", journal.Append(nil, [][]byte{[]byte(k)}))
		p.Do(r.t.Context(), "EXEC")
	})
}

// flowing waits until all pairs acknowledge.
func (r *testRegion) flowing() {
	r.t.Helper()
	r.until("acknowledgements of every shard", func() bool {
		pairs := r.links.Pairs()
		for _, p := range pairs {
			if p.Cursor.ID == (journal.ID{}) || p.Problem != "" || p.To == "" {
				return false
			}
		}
		return len(pairs) >= len(r.nodes)
	})
}

func (r *testRegion) until(what string, f func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			r.t.Fatalf("no %s within 30 s: %+v", what, r.links.Pairs())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r *testRegion) gone(keys ...string) {
	r.t.Helper()
	r.until("removal of "+strings.Join(keys[:min(3, len(keys))], " "), func() bool {
		left := 0
		var asked []*redis.IntCmd
		r.pipelined(keys, func(p redis.Pipeliner, _ int, k string) { asked = append(asked, p.Exists(r.t.Context(), k)) })
		for _, c := range asked {
			left += int(c.Val())
		}
		return left == 0
	})
}

func keysOf(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint(prefix, i)
	}
	return all
}
