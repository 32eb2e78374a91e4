package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// startReshardEnvoy is a plain Envoy whose ring has the documentation's defaults, of which 1024 entries at least is one. Its shards come
// over EDS, from a file.
func startReshardEnvoy(ctx context.Context, running *programs, dir string, shards []shard) (*reshardable, error) {
	path, err := process.Find("envoy")
	if err != nil {
		return nil, err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return nil, err
	}
	endpoints := filepath.Join(dir, "endpoints.yaml")
	write := func(shards []shard) error {
		return renameio.WriteFile(endpoints, []byte(edsFile(shards)), 0o600)
	}
	if err := write(shards[:shardCount]); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(config, []byte(edsConfig(ports[0], ports[1], endpoints)), 0o600); err != nil {
		return nil, err
	}
	address, admin := localAddress(ports[0]), localAddress(ports[1])
	if _, err := startInSession(ctx, running, dir, process.Spec{
		Name: "plain Envoy", Path: path, Log: filepath.Join(dir, "envoy.log"),
		Args:  []string{"--config-path", config, "--disable-hot-restart", "--log-level", "warning"},
		Ready: func(ctx context.Context, _ int) error { return servesEmpty(ctx, address, nil) },
	}); err != nil {
		return nil, err
	}
	r := &reshardable{name: "envoy", change: func(ctx context.Context, direction string) (moved, error) {
		n, err := grown(direction)
		if err != nil {
			return moved{}, err
		}
		if err := write(shards[:n]); err != nil {
			return moved{}, err
		}
		return moved{}, eventually(ctx, "the change of endpoints", func(ctx context.Context) error {
			body, err := ask(ctx, admin, "/clusters")
			if err != nil {
				return err
			}
			if has := strings.Contains(string(body), shards[shardCount].address); has != (direction == "add") {
				return fmt.Errorf("Envoy has the fifth shard: %t", has)
			}
			return nil
		})
	}}
	r.careful, r.plain = applications(address, nil)
	return r, nil
}

// grown is how many shards there are after a change.
func grown(direction string) (int, error) {
	switch direction {
	case "add":
		return shardCount + 1, nil
	case "remove":
		return shardCount, nil
	}
	return 0, fmt.Errorf("%w, not %q", errDirection, direction)
}

func edsFile(shards []shard) string {
	var b strings.Builder
	b.WriteString("resources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: shards\n  endpoints:\n  - lb_endpoints:")
	for _, s := range shards {
		host, port, _ := net.SplitHostPort(s.address)
		fmt.Fprintf(&b, "\n    - endpoint: {address: {socket_address: {address: %s, port_value: %s}}}", host, port)
	}
	return b.String() + "\n"
}

func edsConfig(port, admin int, endpoints string) string {
	return fmt.Sprintf(`node: {id: plain, cluster: plain}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}
static_resources:
  listeners:
  - name: redis
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: redis
          settings: {op_timeout: 5s, enable_hashtagging: true}
          prefix_routes: {catch_all_route: {cluster: shards}}
  clusters:
  - name: shards
    type: EDS
    connect_timeout: 1s
    lb_policy: RING_HASH
    ring_hash_lb_config: {minimum_ring_size: 1024}
    eds_cluster_config:
      eds_config: {resource_api_version: V3, path_config_source: {path: %q}}
`, admin, port, endpoints)
}

// startReshardTwemproxy is nutcracker with ketama. It reads its configuration when it starts: a change of shards is a restart.
func startReshardTwemproxy(ctx context.Context, running *programs, dir string, shards []shard) (*reshardable, error) {
	path, err := process.Find("nutcracker")
	if err != nil {
		return nil, err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return nil, err
	}
	address := localAddress(ports[0])
	config := filepath.Join(dir, "twemproxy.yaml")
	var proxy *process.Process
	start := func(ctx context.Context, shards []shard) error {
		var b strings.Builder
		fmt.Fprintf(&b, "shards:\n  listen: %s\n  redis: true\n  distribution: ketama\n  servers:\n", address)
		for i, s := range shards {
			fmt.Fprintf(&b, "  - %s:1 shard-%d\n", s.address, i)
		}
		if err := os.WriteFile(config, []byte(b.String()), 0o600); err != nil {
			return err
		}
		proxy, err = running.start(ctx, process.Spec{
			Name: "twemproxy", Path: path, Log: filepath.Join(dir, "twemproxy.log"),
			Args: []string{"--conf-file", config, "--output", filepath.Join(dir, "nutcracker.log"), "--pid-file", filepath.Join(dir, "nutcracker.pid"),
				"--stats-addr", "127.0.0.1", "--stats-port", fmt.Sprint(ports[1])},
			Ready: func(ctx context.Context, _ int) error { return servesEmpty(ctx, address, withoutHello) },
		})
		return err
	}
	if err := start(ctx, shards[:shardCount]); err != nil {
		return nil, err
	}
	r := &reshardable{name: "twemproxy", change: func(ctx context.Context, direction string) (moved, error) {
		n, err := grown(direction)
		if err != nil {
			return moved{}, err
		}
		proxy.Stop(5 * time.Second)
		return moved{}, start(ctx, shards[:n])
	}}
	r.careful, r.plain = applications(address, withoutHello)
	return r, nil
}

// withoutHello dials for a client that begins with HELLO, as go-redis always does, and a server that closes the connection at that, as twemproxy
// does: HELLO is answered here, as by a Redis that does not know it.
func withoutHello(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	return &helloless{Conn: conn}, err
}

type helloless struct {
	net.Conn
	reply []byte
}

func (c *helloless) Write(b []byte) (int, error) {
	if bytes.Contains(b[:min(len(b), 20)], []byte("\r\nhello\r\n")) {
		c.reply = []byte("-ERR unknown command 'hello'\r\n")
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *helloless) Read(b []byte) (int, error) {
	if len(c.reply) > 0 {
		n := copy(b, c.reply)
		c.reply = c.reply[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// servesEmpty is nil when keys enough to meet every shard are answered.
func servesEmpty(ctx context.Context, address string, dial dialer) error {
	client := redis.NewClient(&redis.Options{Addr: address, Dialer: dial, Protocol: 2, MaxRetries: -1, DisableIdentity: true})
	defer client.Close()
	for i := range 100 {
		if err := client.Exists(ctx, key(i)).Err(); err != nil {
			return err
		}
	}
	return nil
}
