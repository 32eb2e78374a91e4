package load

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/queue"
)

// agentOf in the environment makes this program an agent: a file with what it is to do.
const agentOf = "WARMING_TEST_AGENT"

type agentSpec struct {
	Name     string
	Topology *mesh.Topology
	Runs     []warming.Run
}

func TestMain(m *testing.M) {
	if path := os.Getenv(agentOf); path != "" {
		runAgent(path)
		return
	}
	os.Exit(m.Run())
}

func runAgent(path string) {
	data, err := os.ReadFile(path)
	var spec agentSpec
	if err == nil {
		err = json.Unmarshal(data, &spec)
	}
	if err != nil {
		panic(err)
	}
	l := New(Config{Region: spec.Topology.Region, Agent: spec.Name, Version: "test", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Dial: func(_, address string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		}})
	l.Update(spec.Topology)
	l.Follow(spec.Runs)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l.Run(ctx)
}

// start runs an agent as a process of its own.
func (r *region) start(name string, run warming.Run) *process.Process {
	r.t.Helper()
	dir := r.t.TempDir()
	data, err := json.Marshal(agentSpec{name, r.topology, []warming.Run{run}})
	if err != nil {
		r.t.Fatal(err)
	}
	path := filepath.Join(dir, "spec.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	self, err := exec.LookPath(os.Args[0])
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := process.Start(r.t.Context(), process.Spec{Name: name, Path: self, Env: []string{agentOf + "=" + path}, Log: filepath.Join(dir, "log")})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		p.Stop(5 * time.Second)
		if log, _ := os.ReadFile(filepath.Join(dir, "log")); r.t.Failed() {
			r.t.Logf("%s: %s", name, log)
		}
	})
	return p
}

// begun makes a run's queue.
func (r *region) begun(run *warming.Run, keys ...string) *queue.Queue {
	r.t.Helper()
	q := r.queue(run)
	if err := q.Create(r.t.Context(), run, keys); err != nil {
		r.t.Fatal(err)
	}
	return q
}

// complete checks that all keys of a fill are there.
func (r *region) complete(prefix string, n int) {
	r.t.Helper()
	missing := 0
	for i := range n {
		key := fmt.Sprint(prefix, i)
		if r.client(key).Get(r.t.Context(), key).Val() != value(key) {
			missing++
		}
	}
	if missing > 0 {
		r.t.Errorf("%d of %d keys are not there", missing, n)
	}
}

func TestAKilledAgentsChunksAreTakenOver(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}), redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}), redistest.Start(t, process.Redis{}))
	const keys = 30_000
	from.fill("tweet:", keys, 0)
	linked(from, to)
	run := copyOf(from, to, "tweet:")
	run.Budget.KeysPerSecond = 8000
	q := to.begun(&run)
	killed := to.start("killed", run)
	until(t, q, "under way", func(p queue.Progress) bool { return p.Counts.Loaded > 5000 })
	killed.Kill()
	at := until(t, q, "read", func(queue.Progress) bool { return true })
	if at.State.Over() || at.Counts.Keys() >= keys {
		t.Fatalf("the run was over before the agent was killed: %+v", at)
	}
	to.start("second", run)
	p := until(t, q, "done", over)
	if p.State != warming.Done || p.Counts.Keys() != keys || p.Counts.Loaded+p.Counts.There != keys || p.Total != keys {
		t.Errorf("each of %d keys was to be counted once: %+v", keys, p)
	}
	to.complete("tweet:", keys)
}

func TestAFullShardIsNotMadeToEvict(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{MaxMemory: "6mb"}))
	from.fill("tweet:", 40_000, 0)
	linked(from, to)
	to.fill("user:", 1000, 0)
	run := copyOf(from, to, "tweet:")
	q := to.begun(&run)
	to.agent("a").Follow([]warming.Run{run})
	// The run is over before the chunk is counted that found no room.
	p := until(t, q, "done", func(p queue.Progress) bool { return over(p) && p.Counts.Memory > 0 })
	if !p.Full || p.Counts.Loaded < 1000 || p.Counts.Loaded > 30_000 {
		t.Errorf("progress at the end: %+v", p)
	}
	info, err := to.nodes[0].InfoMap(t.Context(), "stats").Result()
	if err != nil || info["Stats"]["evicted_keys"] != "0" {
		t.Errorf("%s keys were evicted: %v", info["Stats"]["evicted_keys"], err)
	}
	to.complete("user:", 1000)
}

// What the application writes or removes while a load is under way counts, not what the source said before.
func TestAKeyThatChangesIsTheApplications(t *testing.T) {
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	asked, answer := make(chan struct{}), make(chan struct{})
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(asked)
		<-answer
		fmt.Fprint(w, `{"entries": [{"key": "user:written", "value": "old"}, {"key": "user:removed", "value": "old"}, {"key": "user:left", "value": "value"}, {"key": "user:prefixed", "value": "old"}]}`)
	}))
	t.Cleanup(endpoint.Close)
	run := copyOf(&region{name: "there"}, to, "user:")
	run.Source, run.Keys.Named = mesh.Source{Loader: &mesh.Loader{URL: endpoint.URL}}, true
	q := to.begun(&run, "user:written", "user:removed", "user:left", "user:prefixed")
	to.agent("a").Follow([]warming.Run{run})
	<-asked
	c := to.nodes[0].Client
	c.Set(t.Context(), "user:written", "new", 0)
	note := holdoff.Note{Removed: []holdoff.Mark{{Key: []byte("user:removed"), For: 3 * time.Second}}, Prefixes: []holdoff.Mark{{Key: []byte("user:p"), For: 3 * time.Second}}}
	if err := c.Do(t.Context(), note.Args()...).Err(); err != nil {
		t.Fatal(err)
	}
	close(answer)
	p := until(t, q, "done", over)
	if p.Counts.Loaded != 1 || p.Counts.There != 1 || p.Counts.Refused != 2 {
		t.Errorf("progress at the end: %+v", p)
	}
	for key, want := range map[string]string{"user:written": "new", "user:removed": "", "user:prefixed": "", "user:left": "value"} {
		if got := c.Get(t.Context(), key).Val(); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

// The same while many keys are loaded, of which the application writes some before, and removes others all the time.
func TestKeysThatChangeWhileManyAreLoaded(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	const keys, written, brief = 60_000, 60, 600
	from.fill("user:", keys, 0)
	from.fill("user:brief:", brief, time.Hour)
	linked(from, to)
	c, ctx := to.nodes[0].Client, t.Context()
	for i := range written {
		c.Set(ctx, fmt.Sprint("user:", i*7), "new", 0)
	}
	run := copyOf(from, to, "user:")
	run.Budget.KeysPerSecond = 20_000
	q := to.begun(&run)
	to.agent("a").Follow([]warming.Run{run})

	// What is loaded though its mark is there is what must not be: to remove and to mark is one step, and so is to look and to forget the marks.
	remove := redis.NewScript(`for _, key in ipairs(ARGV) do redis.call('DEL', key) redis.call('ZADD', KEYS[1], 9e15, key) end return 0`)
	look := redis.NewScript(`local loaded = redis.call('EXISTS', unpack(ARGV)) redis.call('DEL', KEYS[1]) return loaded`)
	for n := 0; ; n++ {
		if p, err := q.Progress(ctx); err == nil && p.State.Over() {
			break
		}
		var marked []any
		for i := n % 16; i < keys; i += 16 {
			if i%7 != 0 { // else maybe one that was written
				marked = append(marked, fmt.Sprint("user:", i))
			}
		}
		if err := remove.Run(ctx, c, []string{"cachemesh:held"}, marked...).Err(); err != nil && err != redis.Nil {
			t.Fatal(err)
		}
		if loaded, err := look.Run(ctx, c, []string{"cachemesh:held"}, marked...).Int(); err != nil || loaded != 0 {
			t.Fatalf("%d keys were loaded while they are held: %v", loaded, err)
		}
	}
	p := until(t, q, "done", over)
	if p.State != warming.Done || p.Counts.Keys() != keys+brief || p.Counts.There != written || p.Counts.Loaded+p.Counts.There+p.Counts.Refused != keys+brief {
		t.Errorf("each of %d keys was to be counted once: %+v", keys+brief, p)
	}
	for i := range brief {
		if ttl := c.PTTL(ctx, fmt.Sprint("user:brief:", i)).Val(); ttl <= 59*time.Minute || ttl > time.Hour {
			t.Fatalf("user:brief:%d lives for %v", i, ttl)
		}
	}
	for i := range written {
		if got := c.Get(ctx, fmt.Sprint("user:", i*7)).Val(); got != "new" {
			t.Fatalf("user:%d is %q", i*7, got)
		}
	}
	for _, command := range []string{"msetnx", "exec"} {
		if c.InfoMap(ctx, "commandstats").Val()["Commandstats"]["cmdstat_"+command] == "" {
			t.Errorf("all was loaded without %s", command)
		}
	}
}

func TestAFailoverOfATarget(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
	primary := redistest.Start(t, process.Redis{})
	replica := redistest.Start(t, process.Redis{ReplicaOf: primary.Port})
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}), primary)
	const keys = 30_000
	from.fill("tweet:", keys, 0)
	linked(from, to)
	run := copyOf(from, to, "tweet:")
	run.Budget.KeysPerSecond = 10_000
	q := to.begun(&run)
	agent := to.agent("a")
	agent.Follow([]warming.Run{run})
	until(t, q, "under way", func(p queue.Progress) bool { return p.Counts.Loaded > 5000 })
	before := primary.DBSize(t.Context()).Val()
	primary.Kill()
	if err := replica.Client.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	next := *to.topology
	next.Pools = []mesh.Pool{next.Pools[0]}
	next.Pools[0].Shards = append([]mesh.Shard(nil), next.Pools[0].Shards...)
	next.Pools[0].Shards[1].Epoch, next.Pools[0].Shards[1].Nodes = 2, []mesh.Node{{Address: replica.Address(), Role: mesh.Primary}}
	to.topology, to.nodes[1] = &next, replica
	to.update()
	agent.Update(to.topology)
	p := until(t, q, "done", over)
	if p.State != warming.Done || p.Counts.Failed > 0 || p.Counts.Keys() != keys {
		t.Errorf("progress at the end: %+v", p)
	}
	if after := replica.DBSize(t.Context()).Val(); after <= before {
		t.Errorf("the new primary has %d keys, and the one before had %d", after, before)
	}
}

func TestASourceThatGoesAndComesBack(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	const keys = 20_000
	from.fill("tweet:", keys, 0)
	linked(from, to)
	run := copyOf(from, to, "tweet:")
	run.Budget.KeysPerSecond = 8000
	q := to.begun(&run)
	to.agent("a").Follow([]warming.Run{run})
	until(t, q, "under way", func(p queue.Progress) bool { return p.Counts.Loaded > 2000 })
	from.server.Stop()
	p := until(t, q, "waiting", func(p queue.Progress) bool { return p.Problem != "" })
	if p.State.Over() || !strings.Contains(p.Problem, "there") {
		t.Errorf("progress while the source is gone: %+v", p)
	}
	from.serve()
	if p = until(t, q, "done", over); p.State != warming.Done || p.Counts.Keys() != keys || p.Problem != "" {
		t.Errorf("progress at the end: %+v", p)
	}
	to.complete("tweet:", keys)
}

func TestPauseAndCancel(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	from.fill("tweet:", 30_000, 0)
	linked(from, to)
	run := copyOf(from, to, "tweet:")
	run.Budget.KeysPerSecond = 4000
	q := to.begun(&run)
	to.agent("a").Follow([]warming.Run{run})
	until(t, q, "under way", func(p queue.Progress) bool { return p.Counts.Loaded > 1000 })
	set := func(s warming.State) {
		t.Helper()
		if err := q.Set(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	// What was claimed before is finished. Then the number stays.
	still := func() uint64 {
		t.Helper()
		last, since := to.size(), time.Now()
		for began := time.Now(); time.Since(since) < time.Second; time.Sleep(50 * time.Millisecond) {
			if n := to.size(); n != last {
				last, since = n, time.Now()
			}
			if time.Since(began) > 60*time.Second {
				t.Fatal("it goes on")
			}
		}
		return uint64(last)
	}
	set(warming.Paused)
	paused := still()
	if p := until(t, q, "paused", func(p queue.Progress) bool { return p.State == warming.Paused }); p.Counts.Keys() >= 30_000 {
		t.Fatalf("it was over before it paused: %+v", p)
	}
	set(warming.Running)
	until(t, q, "going on", func(p queue.Progress) bool { return p.Counts.Loaded > paused })
	set(warming.Cancelled)
	if n := still(); n >= 30_000 {
		t.Errorf("%d keys are there after it was cancelled", n)
	}
}

func TestEndpointsThatFail(t *testing.T) {
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	var asked atomic.Int32
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Keys []string `json:"keys"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			panic(err)
		}
		asked.Add(1)
		switch kind, _, _ := strings.Cut(strings.TrimPrefix(body.Keys[0], "tweet:"), "-"); kind {
		case "garbage":
			fmt.Fprint(w, "<html>")
		case "huge":
			for part := []byte(strings.Repeat(" ", 1<<20)); ; {
				if _, err := w.Write(part); err != nil {
					return
				}
			}
		case "later":
			if asked.Load() < 6 {
				w.WriteHeader(503)
				return
			}
			fallthrough
		default:
			type entry struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			}
			var half []entry
			for _, k := range body.Keys[:len(body.Keys)/2] {
				half = append(half, entry{k, value(k)})
			}
			json.NewEncoder(w).Encode(map[string]any{"entries": half})
		}
	}))
	t.Cleanup(endpoint.Close)
	run := copyOf(&region{name: "there"}, to, "tweet:")
	run.Source, run.Keys.Named = mesh.Source{Loader: &mesh.Loader{URL: endpoint.URL}}, true
	run.Budget.Concurrency = 1
	var keys []string
	for _, kind := range []string{"later", "garbage", "huge", "half"} {
		for i := range queue.OriginKeys {
			keys = append(keys, fmt.Sprintf("tweet:%s-%d", kind, i))
		}
	}
	q := to.begun(&run, keys...)
	to.agent("a").Follow([]warming.Run{run})
	p := until(t, q, "done", over)
	if p.State != warming.Done || p.Counts.Loaded != queue.OriginKeys || p.Counts.Missing != queue.OriginKeys || p.Counts.Failed != 2*queue.OriginKeys {
		t.Errorf("progress at the end: %+v", p)
	}
}

func TestAListThatCannotBeHadEndsARun(t *testing.T) {
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	run := copyOf(&region{name: "there"}, to, "tweet:")
	run.Source = mesh.Source{File: filepath.Join(t.TempDir(), "nothing")}
	q := to.begun(&run)
	to.agent("a").Follow([]warming.Run{run})
	if p := until(t, q, "failed", over); p.State != warming.Failed || !strings.Contains(p.Problem, "no such file") {
		t.Errorf("progress at the end: %+v", p)
	}
}

func TestWhatWasLoadedIsLookedAt(t *testing.T) {
	for _, policy := range []string{"allkeys-lru", "allkeys-lfu"} {
		from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
		to := newRegion(t, "here", redistest.Start(t, process.Redis{Args: []string{"--maxmemory-policy", policy}}))
		const keys = 200
		from.fill("tweet:", keys, 0)
		linked(from, to)
		run := copyOf(from, to, "tweet:")
		run.ID += policy
		q := to.begun(&run)
		to.agent("a").Follow([]warming.Run{run})
		until(t, q, "done", over)
		c := to.nodes[0].Client
		stop := time.Now().Add(30 * time.Second)
		var p queue.Progress
		for p.Use.Read < 100 || p.Use.Evicted < 50 {
			for i := range 100 {
				c.Get(t.Context(), fmt.Sprint("tweet:", i))
			}
			for i := range 50 {
				c.Del(t.Context(), fmt.Sprint("tweet:", 100+i))
			}
			time.Sleep(200 * time.Millisecond)
			p = until(t, q, "read", func(queue.Progress) bool { return true })
			if time.Now().After(stop) {
				break
			}
		}
		if p.Use != (warming.Use{Sampled: keys, Read: 100, Evicted: 50}) {
			t.Errorf("%s: %+v", policy, p.Use)
		}
	}
}

// A primary that begins holds all keys for a while. What is to be loaded then is loaded after it.
func TestAShardThatHoldsEverythingIsWaitedFor(t *testing.T) {
	from := newRegion(t, "there", redistest.Start(t, process.Redis{}))
	to := newRegion(t, "here", redistest.Start(t, process.Redis{}))
	const keys = 5000
	from.fill("user:", keys, 0)
	linked(from, to)
	note := holdoff.Note{Prefixes: []holdoff.Mark{{For: 2 * time.Second}}}
	if err := to.nodes[0].Do(t.Context(), note.Args()...).Err(); err != nil {
		t.Fatal(err)
	}
	run := copyOf(from, to, "user:")
	q := to.begun(&run)
	to.agent("a").Follow([]warming.Run{run})
	p := until(t, q, "done", over)
	if p.Counts.Loaded != keys {
		t.Errorf("progress at the end: %+v", p)
	}
	to.complete("user:", keys)
}
