package handoff_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/ring"
)

// pool is a pool's shards, which are real, between two rings.
type pool struct {
	t      testing.TB
	spec   handoff.Spec
	nodes  map[string]*shardNode
	before *ring.Ring
	after  *ring.Ring
	*handoff.Mover
	stop     func()
	unlinked int64 // by Movers before
}

// shardNode is a shard's primary.
type shardNode struct {
	process.Redis
	*process.Process
	redis *redis.Client
}

func names(n ...int) (all []mesh.Shard) {
	for _, i := range n {
		all = append(all, mesh.Shard{Name: fmt.Sprintf("timelines-%d", i), Weight: 1})
	}
	return all
}

// newPool starts the shards. onLanes is of all routes.
func newPool(t testing.TB, from, to []mesh.Shard, onLanes bool) *pool {
	t.Helper()
	p := &pool{t: t, nodes: map[string]*shardNode{}, stop: func() {}}
	p.spec = handoff.Spec{
		Pool: "timelines", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 1021}, From: from, To: to,
		Routes: []mesh.Route{{Prefix: "timeline:"}, {Prefix: "timeline:new:"}, {Prefix: "user:"}}, OnLanes: func(mesh.Route) bool { return onLanes },
		Limits: handoff.Limits{KeysPerSecond: 1_000_000, BytesPerSecond: 1 << 30, DonorCPU: 10},
	}
	for _, s := range slices.Concat(from, to) {
		if p.nodes[s.Name] == nil {
			p.nodes[s.Name] = startNode(t, process.Redis{})
		}
	}
	p.before, p.after = p.ring(from), p.ring(to)
	return p
}

func startNode(t testing.TB, r process.Redis) *shardNode {
	t.Helper()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	r.Port, r.Dir = ports[0], t.TempDir()
	r.Args = append(r.Args, "--repl-diskless-sync-delay", "0")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	running, err := r.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { running.Stop(time.Second) })
	client := redis.NewClient(&redis.Options{Addr: r.Address(), MaxRetries: -1, ReadTimeout: 10 * time.Second})
	t.Cleanup(func() { client.Close() })
	return &shardNode{r, running, client}
}

func (p *pool) ring(shards []mesh.Shard) *ring.Ring {
	p.t.Helper()
	var hosts []ring.Host
	for _, s := range shards {
		hosts = append(hosts, ring.Host{HashKey: s.Name, Weight: s.Weight})
	}
	r, err := ring.New(ring.Config{Algorithm: ring.Algorithm(p.spec.Hashing.Algorithm), Size: p.spec.Hashing.Size}, hosts)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// placed are shards with the nodes that they have now.
func (p *pool) placed(shards []mesh.Shard) []mesh.Shard {
	all := slices.Clone(shards)
	for i := range all {
		all[i].Nodes = []mesh.Node{{Address: p.nodes[all[i].Name].Address(), Role: mesh.Primary}}
	}
	return all
}

func (p *pool) from(key string) string { return p.spec.From[p.before.Find([]byte(key))].Name }
func (p *pool) to(key string) string   { return p.spec.To[p.after.Find([]byte(key))].Name }

// move begins with a new Mover, and the nodes that there are. One before ends as if it had been killed.
func (p *pool) move() {
	p.t.Helper()
	p.stop()
	if p.Mover != nil {
		p.unlinked += p.Progress().Unlinked
	}
	spec := p.spec
	spec.From, spec.To = p.placed(spec.From), p.placed(spec.To)
	var err error
	if p.Mover, err = handoff.New(spec); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(p.t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = p.Run(ctx) })
	if now := p.Progress(); now.Task != "" {
		p.t.Fatalf("a Mover works before it is told: %+v", now)
	}
	p.stop = func() { cancel(); running.Wait() }
	p.t.Cleanup(p.stop)
}

// until waits until a task is done.
func (p *pool) until(task handoff.Task) handoff.Progress {
	p.t.Helper()
	p.Set(task)
	return p.eventually("done with "+string(task), func(now handoff.Progress) bool { return now.Task == task && now.Done })
}

func (p *pool) eventually(what string, is func(handoff.Progress) bool) handoff.Progress {
	p.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		now := p.Progress()
		if is(now) {
			return now
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not %s: %+v", what, now)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// wait waits until something is so.
func (p *pool) wait(is func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatal("it never is")
		}
	}
}

// do does a command at a shard.
func (p *pool) do(shard string, command ...any) any {
	p.t.Helper()
	v, err := p.nodes[shard].redis.Do(p.t.Context(), command...).Result()
	if err != nil && err != redis.Nil {
		p.t.Fatalf("%.80q at %s: %v", fmt.Sprint(command...), shard, err)
	}
	return v
}

// fill sets keys where the ring before places them, and returns those that move.
func (p *pool) fill(n int) (moving []string) {
	p.t.Helper()
	pipes := map[string]redis.Pipeliner{}
	for i := range n {
		key := fmt.Sprintf("timeline:%d", i)
		home := p.from(key)
		if pipes[home] == nil {
			pipes[home] = p.nodes[home].redis.Pipeline()
		}
		pipes[home].Set(p.t.Context(), key, strings.Repeat("v", 200), 0)
		if home != p.to(key) {
			moving = append(moving, key)
		}
	}
	for _, pipe := range pipes {
		if _, err := pipe.Exec(p.t.Context()); err != nil {
			p.t.Fatal(err)
		}
	}
	return moving
}

// keys are a shard's, without those of cachemesh.
func (p *pool) keys(shard string) map[string]bool {
	p.t.Helper()
	all := map[string]bool{}
	found, err := p.nodes[shard].redis.Keys(p.t.Context(), "*").Result()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, k := range found {
		if !strings.HasPrefix(k, mesh.ReservedPrefix) {
			all[k] = true
		}
	}
	return all
}

// settled checks that each key is where the ring places it and nowhere else, and returns all of them.
func (p *pool) settled(home func(string) string) map[string]bool {
	p.t.Helper()
	all := map[string]bool{}
	for shard := range p.nodes {
		keys := p.keys(shard)
		for k := range keys {
			if home(k) != shard {
				p.t.Errorf("%s is left on %s, and belongs on %s", k, shard, home(k))
			}
		}
		maps.Copy(all, keys)
	}
	return all
}
