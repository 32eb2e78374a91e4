package node_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

const timeout = 2 * time.Second

// server is a real Redis with the program's client of it.
type server struct {
	process.Redis
	*process.Process
	*node.Client
	redis  *redis.Client
	access *mesh.RedisAccess
}

// start runs a Redis and ends it with the test.
func start(t *testing.T, r process.Redis, access *mesh.RedisAccess) *server {
	t.Helper()
	if r.Dir == "" {
		r.Dir = t.TempDir()
	}
	if r.Port == 0 {
		r.Port = freePort(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := r.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(time.Second) })
	options, err := r.Options()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Redis: r, Process: p, Client: node.New(r.Address(), access, timeout), redis: redis.NewClient(options), access: access}
	t.Cleanup(s.Client.Close)
	t.Cleanup(func() { s.redis.Close() })
	return s
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

func (s *server) do(t *testing.T, command ...any) any {
	t.Helper()
	reply, err := s.redis.Do(t.Context(), command...).Result()
	if err != nil {
		t.Fatalf("%v at %s: %v", command, s.Address(), err)
	}
	return reply
}

func (s *server) probe(t *testing.T) shards.Node {
	t.Helper()
	n, err := s.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually waits until the node is as wanted.
func (s *server) eventually(t *testing.T, what string, is func(shards.Node) bool) shards.Node {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s.Forget() // an epoch that comes by replication is else seen late
		n, err := s.Probe(t.Context())
		if err == nil && is(n) {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is never %s: %+v, %v", s.Address(), what, n, err)
		}
	}
}

func linked(n shards.Node) bool { return n.Linked }

func TestProbe(t *testing.T) {
	primary := start(t, process.Redis{}, nil)
	replica := start(t, process.Redis{ReplicaOf: primary.Port}, nil)
	lost := start(t, process.Redis{Managed: true}, nil)

	p := primary.probe(t)
	if p.Role != mesh.Primary || p.Address != primary.Address() || len(p.RunID) != 40 || len(p.ReplID) != 40 || p.Of != "" || p.Epoch != 0 || p.Loading {
		t.Errorf("a primary: %+v", p)
	}
	primary.do(t, "SET", node.EpochKey, "18446744073709551615")
	primary.do(t, "WAIT", 1, 5000)
	r := replica.probe(t)
	if r.Role != mesh.Replica || !r.Linked || r.Of != primary.Address() || r.ReplID != p.ReplID || r.RunID == p.RunID || r.Epoch != 1<<64-1 {
		t.Errorf("a replica: %+v", r)
	}
	if p := primary.probe(t); p.Offset != r.Offset || p.Offset == 0 {
		t.Errorf("offsets: primary %d, replica %d", p.Offset, r.Offset)
	}
	if n := lost.probe(t); n.Role != mesh.Replica || n.Linked || n.Of != "127.0.0.1:1" || n.Epoch != 0 || n.Loading {
		t.Errorf("a replica of nobody: %+v", n)
	}
	if _, err := lost.redis.Get(t.Context(), "k").Result(); !redis.IsMasterDownError(err) {
		t.Errorf("it answers GET with %v, want MASTERDOWN", err)
	}
	primary.do(t, "DEL", node.EpochKey)
	primary.do(t, "RPUSH", node.EpochKey, "x")
	if p := primary.probe(t); p.Epoch != 0 {
		t.Errorf("an epoch that is a list: %+v", p)
	}
}

func TestProbeOfAPrimaryThatLoads(t *testing.T) {
	dir := t.TempDir()
	first := start(t, process.Redis{Dir: dir}, nil)
	first.do(t, "EVAL", "for i = 1, 1000 do redis.call('SET', 'key' .. i, i) end return 1", 0)
	first.do(t, "SAVE")
	first.Kill()

	port := freePort(t)
	path, err := process.Find("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	client := node.New(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil, timeout)
	defer client.Close()
	// 10 ms a key makes it load for long enough to be seen.
	p, err := process.Start(t.Context(), process.Spec{Name: "redis", Path: path,
		Args: []string{"--port", strconv.Itoa(port), "--dir", dir, "--dbfilename", fmt.Sprintf("redis-%d.rdb", first.Port), "--save", "", "--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"},
		Ready: func(ctx context.Context, _ int) error {
			_, err := client.Probe(ctx)
			return err
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	n, err := client.Probe(t.Context())
	if err != nil || !n.Loading || n.Role != mesh.Primary || n.RunID == "" {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestProbeOfNodesThatAreGone(t *testing.T) {
	s := start(t, process.Redis{}, nil)
	hasty := node.New(s.Address(), nil, 200*time.Millisecond)
	defer hasty.Close()
	if _, err := hasty.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		begun := time.Now()
		n, err := hasty.Probe(t.Context())
		if err == nil || n != (shards.Node{Address: s.Address()}) {
			t.Errorf("a hung node: %+v, %v", n, err)
		}
		if took := time.Since(begun); took < 100*time.Millisecond || took > time.Second {
			t.Errorf("a hung node took %s", took)
		}
	}
	if err := s.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Probe(t.Context()); err != nil {
		t.Errorf("after it went on: %v", err)
	}
	before := s.probe(t)
	s.Kill()
	for range 3 {
		if _, err := s.Probe(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a dead node: %v", err)
		}
	}
	again := start(t, process.Redis{Port: s.Port, Dir: s.Dir}, nil)
	after, err := s.Probe(t.Context())
	if err != nil || after.RunID == before.RunID {
		t.Errorf("the first probe of the restarted node: %+v, %v", after, err)
	}
	if n := again.probe(t); n != after {
		t.Errorf("%+v and %+v of one node", n, after)
	}
}
