package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

// target is one way to reach the shards, over TCP and over a Unix socket.
type target struct {
	name string
	tcp  []endpoint // what the connections are spread over
	unix []endpoint
	pids []int // the processes whose CPU time the way costs, Redis not among them
}

func (t target) endpoints(transport string) []endpoint {
	if transport == "unix" {
		return t.unix
	}
	return t.tcp
}

// programs are stopped in the order opposite to their start.
type programs []*process.Process

func (p *programs) start(ctx context.Context, spec process.Spec) (*process.Process, error) {
	started, err := process.Start(ctx, spec)
	if err == nil {
		*p = append(*p, started)
	}
	return started, err
}

func (p *programs) stop() {
	for i := len(*p) - 1; i >= 0; i-- {
		(*p)[i].Stop(15 * time.Second)
	}
	*p = nil
}

// shard is a real Redis that holds every key of the benchmark, whichever shard a proxy's hash chooses.
type shard struct {
	address, socket string
	pid             int
}

func startShards(ctx context.Context, running *programs, dir string, count int) ([]shard, error) {
	ports, err := process.FreePorts(count)
	if err != nil {
		return nil, err
	}
	var shards []shard
	for _, port := range ports {
		socket := filepath.Join(dir, fmt.Sprintf("redis-%d.sock", port))
		redis := process.Redis{Port: port, Dir: dir, Args: []string{"--unixsocket", socket}}
		started, err := redis.Start(ctx)
		if err != nil {
			return nil, err
		}
		*running = append(*running, started)
		s := shard{address: redis.Address(), socket: socket, pid: started.PID()}
		if err := fill(s.address); err != nil {
			return nil, fmt.Errorf("fill the shard at %s: %w", s.address, err)
		}
		shards = append(shards, s)
	}
	return shards, nil
}

// fill sets every key.
func fill(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	work := newWorkload("SET", 100)
	reader := bufio.NewReader(conn)
	for i, request := range work.requests {
		if _, err := conn.Write(request); err != nil {
			return err
		}
		reply := make([]byte, len(work.replies[i]))
		if _, err := io.ReadFull(reader, reply); err != nil {
			return err
		}
		if string(reply) != string(work.replies[i]) {
			return fmt.Errorf("wrong reply: %.80q", reply)
		}
	}
	return nil
}

func pids(shards []shard) []int {
	var all []int
	for _, s := range shards {
		all = append(all, s.pid)
	}
	return all
}

// direct is a client that knows the shards: its connections are spread over them. It is the floor.
func direct(shards []shard) target {
	t := target{name: "direct"}
	for _, s := range shards {
		t.tcp = append(t.tcp, endpoint{"tcp", s.address})
		t.unix = append(t.unix, endpoint{"unix", s.socket})
	}
	return t
}

// startEnvoy runs Envoy as its documentation's Redis example has it: a static ring hash cluster, op_timeout 5 s,
// hash tags, and defaults for everything else.
func startEnvoy(ctx context.Context, running *programs, dir string, shards []shard) (target, error) {
	path, err := process.Find("envoy")
	if err != nil {
		return target{}, err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return target{}, err
	}
	t := localTarget("envoy", ports[0], filepath.Join(dir, "envoy.sock"))
	config := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(config, []byte(envoyConfig(ports[0], t.unix[0].address, shards)), 0o600); err != nil {
		return target{}, err
	}
	pid, err := startInSession(ctx, running, dir, process.Spec{
		Name: "plain Envoy", Path: path, Log: filepath.Join(dir, "envoy.log"),
		// Hot restart has one Envoy a machine; without it several run side by side.
		Args:  []string{"--config-path", config, "--disable-hot-restart", "--log-level", "warning"},
		Ready: servesKeys(t),
	})
	if err != nil {
		return target{}, err
	}
	t.pids = []int{pid}
	return t, nil
}

func envoyConfig(port int, socket string, shards []shard) string {
	listener := func(name, address string) string {
		return fmt.Sprintf(`
  - name: %s
    address: {%s}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: redis
          settings: {op_timeout: 5s, enable_hashtagging: true}
          prefix_routes: {catch_all_route: {cluster: shards}}`, name, address)
	}
	var b strings.Builder
	b.WriteString("static_resources:\n  listeners:")
	b.WriteString(listener("tcp", fmt.Sprintf("socket_address: {address: 127.0.0.1, port_value: %d}", port)))
	b.WriteString(listener("unix", fmt.Sprintf("pipe: {path: %q}", socket)))
	b.WriteString(`
  clusters:
  - name: shards
    type: STATIC
    connect_timeout: 1s
    lb_policy: RING_HASH
    load_assignment:
      cluster_name: shards
      endpoints:
      - lb_endpoints:`)
	for _, s := range shards {
		host, port, _ := strings.Cut(s.address, ":")
		fmt.Fprintf(&b, "\n        - endpoint: {address: {socket_address: {address: %s, port_value: %s}}}", host, port)
	}
	return b.String() + "\n"
}

// startTwemproxy runs nutcracker with ketama and defaults, its mbuf of 16,384 bytes included.
func startTwemproxy(ctx context.Context, running *programs, dir string, shards []shard) (target, error) {
	path, err := process.Find("nutcracker")
	if err != nil {
		return target{}, err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return target{}, err
	}
	t := localTarget("twemproxy", ports[0], filepath.Join(dir, "twemproxy.sock"))
	config := filepath.Join(dir, "twemproxy.yaml")
	if err := os.WriteFile(config, []byte(twemproxyConfig(t, shards)), 0o600); err != nil {
		return target{}, err
	}
	pid, err := startInSession(ctx, running, dir, process.Spec{
		Name: "twemproxy", Path: path, Log: filepath.Join(dir, "twemproxy.log"),
		Args: []string{"--conf-file", config, "--output", filepath.Join(dir, "nutcracker.log"), "--pid-file", filepath.Join(dir, "nutcracker.pid"),
			"--stats-addr", "127.0.0.1", "--stats-port", fmt.Sprint(ports[1])},
		Ready: servesKeys(t),
	})
	if err != nil {
		return target{}, err
	}
	t.pids = []int{pid}
	return t, nil
}

func twemproxyConfig(t target, shards []shard) string {
	var b strings.Builder
	for _, e := range []endpoint{t.tcp[0], t.unix[0]} {
		fmt.Fprintf(&b, "%s:\n  listen: %s\n  redis: true\n  distribution: ketama\n  servers:\n", e.network, e.address)
		for i, s := range shards {
			fmt.Fprintf(&b, "  - %s:1 shard-%d\n", s.address, i)
		}
	}
	return b.String()
}

func localTarget(name string, port int, socket string) target {
	return target{name: name,
		tcp:  []endpoint{{"tcp", fmt.Sprintf("127.0.0.1:%d", port)}},
		unix: []endpoint{{"unix", socket}},
	}
}

// servesKeys is ready when both endpoints answer a GET of a benchmark key, which goes through to a shard.
func servesKeys(t target) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		for _, e := range append(t.tcp, t.unix...) {
			if err := answers(ctx, e); err != nil {
				return fmt.Errorf("GET through %s: %w", e.address, err)
			}
		}
		return nil
	}
}

func answers(ctx context.Context, e endpoint) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, e.network, e.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	work := newWorkload("GET", 1)
	if _, err := conn.Write(work.requests[0]); err != nil {
		return err
	}
	reply := make([]byte, len(work.replies[0]))
	if n, err := io.ReadFull(conn, reply); err != nil {
		return fmt.Errorf("%w after %.80q", err, reply[:n])
	}
	if string(reply) != string(work.replies[0]) {
		return fmt.Errorf("wrong reply: %.80q", reply)
	}
	return nil
}
