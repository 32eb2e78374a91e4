package load

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
	"github.com/cachemesh/cachemesh/regions"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/queue"
)

// region is one with real shards.
type region struct {
	t        *testing.T
	name     string
	nodes    []*redistest.Node
	topology *mesh.Topology
	at       *place.Map
	link     string // where its agent listens, "" if it does not
	server   *grpc.Server
}

var routes = []mesh.Route{{Prefix: "tweet:", Coherence: mesh.Local},
	{Prefix: "user:", Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: 3 * time.Second}}

func newRegion(t *testing.T, name string, nodes ...*redistest.Node) *region {
	t.Helper()
	r := &region{t: t, name: name, nodes: nodes}
	pool := mesh.Pool{Name: "tweets", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 65537}, Routes: routes}
	for i, n := range nodes {
		pool.Shards = append(pool.Shards, mesh.Shard{Name: fmt.Sprintf("tweets-%d", i), Weight: 1, Epoch: 1, Nodes: []mesh.Node{{Address: n.Address(), Role: mesh.Primary}}})
	}
	r.topology = &mesh.Topology{Region: name, Pools: []mesh.Pool{pool}, Links: map[string][]string{}}
	r.update()
	return r
}

func (r *region) update() {
	r.t.Helper()
	var err error
	if r.at, err = place.New(r.topology); err != nil {
		r.t.Fatal(err)
	}
}

// serve has an agent of the region listen for others.
func (r *region) serve() {
	r.t.Helper()
	address := "127.0.0.1:0"
	if r.link != "" {
		address = r.link
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.link = l.Addr().String()
	log := slog.New(slog.NewTextHandler(r.t.Output(), nil))
	a := regions.NewApplier("", log)
	a.Update(r.topology)
	receiver := regions.NewReceiver(r.name, nil, a, log)
	server := receiver.Server(nil)
	r.server = server
	go server.Serve(l)
	r.t.Cleanup(func() {
		server.Stop()
		receiver.Close()
		a.Close()
	})
}

// client is that of the node that has a key.
func (r *region) client(key string) *redis.Client {
	s, _ := r.at.Find([]byte(key))
	return r.nodes[s.Index].Client
}

// fill sets keys prefix:0 to n-1, to values that name them.
func (r *region) fill(prefix string, n int, ttl time.Duration) {
	r.t.Helper()
	pipes := map[*redis.Client]redis.Pipeliner{}
	for i := range n {
		key := fmt.Sprint(prefix, i)
		c := r.client(key)
		if pipes[c] == nil {
			pipes[c] = c.Pipeline()
		}
		pipes[c].Set(r.t.Context(), key, value(key), ttl)
		if pipes[c].Len() == 1000 || i > n-1000 {
			if _, err := pipes[c].Exec(r.t.Context()); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

func value(key string) string { return key + strings.Repeat("=", 80) }

func (r *region) size() (n int64) {
	r.t.Helper()
	for _, c := range r.nodes {
		size, err := c.DBSize(r.t.Context()).Result()
		if err != nil {
			r.t.Fatal(err)
		}
		n += size
	}
	return n
}

// agent loads a region's runs.
func (r *region) agent(name string) *Loader {
	r.t.Helper()
	l := New(Config{Region: r.name, Agent: name, Version: "test", Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)).With("agent", name),
		Dial: func(_, address string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(1<<20))
		}})
	l.Update(r.topology)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		l.Run(ctx)
		close(done)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-done
	})
	return l
}

func copyOf(from, to *region, prefix string) warming.Run {
	return warming.Run{ID: "copy-1", Plan: "copy", Region: to.name, Pool: "tweets", Route: prefix, Keys: warming.Keys{Prefix: prefix}, Source: mesh.Source{Region: from.name},
		Begun: time.Now(), State: warming.Running, Budget: mesh.Budget{KeysPerSecond: 10_000_000, BytesPerSecond: 10_000_000_000, OriginPerSecond: 10_000_000, Concurrency: 4}}
}

// queue is a run's, as control planes see it.
func (r *region) queue(run *warming.Run) *queue.Queue {
	q := queue.New(run.Pool, run.ID, func() *place.Map { return r.at })
	r.t.Cleanup(q.Close)
	return q
}

// until waits for a run to be as it is to be.
func until(t *testing.T, q *queue.Queue, what string, f func(queue.Progress) bool) queue.Progress {
	t.Helper()
	var p queue.Progress
	var err error
	for began := time.Now(); time.Since(began) < 90*time.Second; time.Sleep(20 * time.Millisecond) {
		if p, err = q.Progress(t.Context()); err == nil && f(p) {
			return p
		}
	}
	t.Fatalf("not %s in time: %+v %v", what, p, err)
	return p
}

func over(p queue.Progress) bool { return p.State.Over() }

// linked makes one region a source of the other.
func linked(from, to *region) {
	from.serve()
	to.topology.Links[from.name] = []string{from.link}
}

func TestARegionIsCopied(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}), redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}), redistest.Start(t, process.Redis{}), redistest.Start(t, process.Redis{}))
	const keys = 20_000
	from.fill("tweet:", keys, time.Hour)
	from.fill("user:", 100, 0)
	for _, key := range []string{"tweet:7", "tweet:8"} {
		to.client(key).Set(t.Context(), key, "newer", 0)
	}
	hash := "tweet:hash"
	from.client(hash).HSet(t.Context(), hash, "a", "b")
	linked(from, to)
	run := copyOf(from, to, "tweet:")
	run.Spread = 0.5
	q := to.queue(&run)
	if err := q.Create(t.Context(), &run, nil); err != nil {
		t.Fatal(err)
	}
	for _, a := range []*Loader{to.agent("a"), to.agent("b")} {
		a.Follow([]warming.Run{run})
	}
	p := until(t, q, "done", over)
	if p.State != warming.Done || p.Counts.Loaded != keys-2+1 || p.Counts.There != 2 || p.Counts.Keys() != keys+1 || p.Total != keys+1 {
		t.Errorf("progress at the end: %+v", p)
	}
	shortest, longest := time.Hour, time.Duration(0)
	for i := range keys {
		key := fmt.Sprint("tweet:", i)
		want := value(key)
		if i == 7 || i == 8 {
			want = "newer"
		}
		if got := to.client(key).Get(t.Context(), key).Val(); got != want {
			t.Fatalf("%s is %q, want %q", key, got, want)
		}
		if i != 7 && i != 8 && i%100 == 0 {
			ttl := to.client(key).PTTL(t.Context(), key).Val()
			shortest, longest = min(shortest, ttl), max(longest, ttl)
		}
	}
	if shortest < 29*time.Minute || longest > time.Hour || longest-shortest < 10*time.Minute {
		t.Errorf("times to live are from %v to %v, of an hour spread by half", shortest, longest)
	}
	if got := to.client(hash).HGet(t.Context(), hash, "a").Val(); got != "b" {
		t.Errorf("a hash was not copied: %q", got)
	}
	if n := to.client("user:1").Exists(t.Context(), "user:1").Val(); n != 0 {
		t.Error("a key of another route was copied")
	}
}

// TestSpeed tells what a key costs: WARM_KEYS=1000000 WARM_PREFIX=user: WARM_TTL=1h go test -run TestSpeed -v.
func TestSpeed(t *testing.T) {
	keys := 20_000
	fmt.Sscan(os.Getenv("WARM_KEYS"), &keys)
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	prefix := "tweet:"
	if p := os.Getenv("WARM_PREFIX"); p != "" {
		prefix = p
	}
	ttl, _ := time.ParseDuration(os.Getenv("WARM_TTL"))
	from.fill(prefix, keys, ttl)
	linked(from, to)
	run := copyOf(from, to, prefix)
	q := to.queue(&run)
	agent := to.agent("a")
	cpu := func() (source, target, own time.Duration) {
		source, _ = process.CPU(from.nodes[0].PID())
		target, _ = process.CPU(to.nodes[0].PID())
		own, _ = process.CPU(os.Getpid())
		return source, target, own
	}
	s0, t0, o0 := cpu()
	began := time.Now()
	if err := q.Create(t.Context(), &run, nil); err != nil {
		t.Fatal(err)
	}
	agent.Follow([]warming.Run{run})
	p := until(t, q, "done", over)
	took := time.Since(began)
	s1, t1, o1 := cpu()
	per := func(d time.Duration) time.Duration { return d / time.Duration(keys) }
	t.Logf("%d keys in %v, %.0f a second; CPU a key: source %v, target %v, both agents %v, together %v", p.Counts.Loaded, took, float64(keys)/took.Seconds(),
		per(s1-s0), per(t1-t0), per(o1-o0), per(s1-s0+t1-t0+o1-o0))
	if int(p.Counts.Loaded) != keys {
		t.Errorf("progress at the end: %+v", p)
	}
}
