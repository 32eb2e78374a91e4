package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// record runs one Envoy with a cluster and a listener for each case, in front of responders that tell who
// they are. Host i of every case is responder i. All sockets are files of a temporary folder, named relative
// to it in Envoy's configuration.
func record(ctx context.Context, cases []Case) (vectors []Vector, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "ring-record-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	most := 0
	for _, c := range cases {
		most = max(most, len(c.Hosts))
	}
	for i := range most {
		l, err := net.Listen("unix", filepath.Join(dir, hostSocket(i)))
		if err != nil {
			return nil, err
		}
		defer l.Close()
		go respond(l, i)
	}

	admin := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, adminSocket))
	}}}
	defer admin.CloseIdleConnections()
	envoy, err := startEnvoy(ctx, dir, admin, cases)
	if err != nil {
		return nil, err
	}
	defer envoy.Stop(5 * time.Second)
	version, err := envoyVersion(ctx, admin)
	if err != nil {
		return nil, err
	}
	stats, err := entryStats(ctx, admin)
	if err != nil {
		return nil, err
	}
	for _, c := range cases {
		keys, err := ask(ctx, filepath.Join(dir, c.socket()), c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		unit := map[string]string{ringHash: "hashes", maglev: "entries"}[c.Algorithm]
		stat := func(bound string) int {
			return stats[fmt.Sprintf("cluster.%s.%s_lb.%s_%s_per_host", c.Name, c.Algorithm, bound, unit)]
		}
		vectors = append(vectors, Vector{Envoy: version, Case: c, MinEntries: stat("min"), MaxEntries: stat("max"), Keys: keys})
	}
	return vectors, nil
}

const adminSocket = "admin.sock"

func hostSocket(i int) string { return fmt.Sprintf("host-%d.sock", i) }
func (c Case) socket() string { return c.Name + ".sock" }

// respond answers every command with the responder's index until the listener closes.
func respond(l net.Listener, index int) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			in := bufio.NewReader(conn)
			for readCommand(in) == nil {
				if _, err := fmt.Fprintf(conn, ":%d\r\n", index); err != nil {
					return
				}
			}
		}()
	}
}

// readCommand consumes one RESP array of bulk strings, which is all that Envoy sends.
func readCommand(in *bufio.Reader) error {
	count, err := readLength(in, '*')
	for ; err == nil && count > 0; count-- {
		var size int
		if size, err = readLength(in, '$'); err == nil {
			_, err = io.CopyN(io.Discard, in, int64(size+len("\r\n")))
		}
	}
	return err
}

func readLength(in *bufio.Reader, kind byte) (int, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return 0, err
	}
	if line[0] != kind {
		return 0, fmt.Errorf("RESP: %q does not begin with %q", line, kind)
	}
	return strconv.Atoi(strings.TrimSpace(line[1:]))
}

// ask returns the host's name by key in base64.
func ask(ctx context.Context, socket string, c Case) (map[string]string, error) {
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, Protocol: 2, DisableIdentity: true, PoolSize: 1, MaxRetries: -1})
	defer client.Close()
	keys := c.keys()
	answers := make([]*redis.Cmd, len(keys))
	if _, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, key := range keys {
			answers[i] = p.Do(ctx, "GET", key)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	hosts := make(map[string]string, len(keys))
	for i, key := range keys {
		index, err := answers[i].Int()
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", key, err)
		}
		hosts[base64.StdEncoding.EncodeToString(key)] = c.Hosts[index].Name
	}
	return hosts, nil
}

func startEnvoy(ctx context.Context, dir string, admin *http.Client, cases []Case) (*process.Process, error) {
	path, err := process.Find("envoy")
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(bootstrap(cases))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "envoy.json"), config, 0o600); err != nil {
		return nil, err
	}
	return process.Start(ctx, process.Spec{
		Name: "envoy", Path: path, Dir: dir, Log: filepath.Join(dir, "envoy.log"),
		Args: []string{"-c", "envoy.json", "--disable-hot-restart", "--concurrency", "1", "-l", "warning"},
		Ready: func(ctx context.Context, _ int) error {
			_, err := get(ctx, admin, "/ready")
			return err
		},
	})
}

func get(ctx context.Context, admin *http.Client, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := admin.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("envoy admin %s: %s: %s", path, resp.Status, body)
	}
	return body, err
}

func envoyVersion(ctx context.Context, admin *http.Client) (string, error) {
	body, err := get(ctx, admin, "/server_info")
	if err != nil {
		return "", err
	}
	var info struct{ Version string }
	if err := json.Unmarshal(body, &info); err != nil {
		return "", err
	}
	fields := strings.Split(info.Version, "/") // commit/version/...
	if len(fields) < 2 {
		return "", fmt.Errorf("envoy calls its version %q", info.Version)
	}
	return fields[1], nil
}

func entryStats(ctx context.Context, admin *http.Client) (map[string]int, error) {
	body, err := get(ctx, admin, `/stats?format=json&filter=_per_host$`)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Stats []struct {
			Name  string
			Value int
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	stats := make(map[string]int)
	for _, s := range answer.Stats {
		stats[s.Name] = s.Value
	}
	if len(stats) == 0 {
		return nil, errors.New("envoy admin /stats counts no entries per host")
	}
	return stats, nil
}

type object = map[string]any

func bootstrap(cases []Case) object {
	var listeners, clusters []object
	for _, c := range cases {
		listeners = append(listeners, listener(c))
		clusters = append(clusters, cluster(c))
	}
	return object{
		"admin":            object{"address": pipe(adminSocket)},
		"static_resources": object{"listeners": listeners, "clusters": clusters},
	}
}

func listener(c Case) object {
	return object{
		"name": c.Name, "address": pipe(c.socket()),
		"filter_chains": []object{{"filters": []object{{
			"name": "envoy.filters.network.redis_proxy",
			"typed_config": object{
				"@type":         "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
				"stat_prefix":   c.Name,
				"settings":      object{"op_timeout": "10s", "enable_hashtagging": true},
				"prefix_routes": object{"catch_all_route": object{"cluster": c.Name}},
			},
		}}}},
	}
}

func cluster(c Case) object {
	var endpoints []object
	for i, host := range c.Hosts {
		endpoints = append(endpoints, object{
			"endpoint":              object{"address": pipe(hostSocket(i))},
			"load_balancing_weight": host.Weight,
			"metadata":              object{"filter_metadata": object{"envoy.lb": object{"hash_key": host.Name}}},
		})
	}
	cluster := object{
		"name": c.Name, "type": "STATIC", "connect_timeout": "5s",
		"lb_policy":       strings.ToUpper(c.Algorithm),
		"load_assignment": object{"cluster_name": c.Name, "endpoints": []object{{"lb_endpoints": endpoints}}},
	}
	if c.Algorithm == maglev {
		cluster["maglev_lb_config"] = object{"table_size": c.Size}
	} else {
		cluster["ring_hash_lb_config"] = object{"minimum_ring_size": c.Size}
	}
	return cluster
}

func pipe(path string) object { return object{"pipe": object{"path": path}} }
