package commands_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/commands"
	"github.com/cachemesh/cachemesh/process"
)

// mesh is one real Envoy before two real shards, and a lone Redis that says what an answer should be.
type mesh struct {
	shards [2]string // addresses
	lone   string
	admin  string
	// Envoy's listeners.
	open     string // refuses nothing
	refusing string // refuses commands.Listener{}.Refused()
	reads    string // its writes go to a cluster without hosts
	resp3    string // speaks RESP3
	locked   string // has a password
	narrow   string // its one route has the prefix "narrow:"

	keys      *strings.Replacer // puts real keys in place of A, A2, B and B2
	processes []*process.Process
}

func startMesh(t *testing.T) *mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dir := t.TempDir()
	ports, err := process.FreePorts(10)
	if err != nil {
		t.Fatal(err)
	}
	address := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	m := &mesh{
		shards: [2]string{address(0), address(1)}, lone: address(2), admin: address(3),
		open: address(4), refusing: address(5), reads: address(6), resp3: address(7), locked: address(8), narrow: address(9),
	}
	for _, port := range ports[:3] {
		redis, err := process.Redis{Port: port, Dir: dir}.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { redis.Stop(time.Second) })
		m.processes = append(m.processes, redis)
	}
	path, err := process.Find("envoy")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(config, m.bootstrap(t), 0o600); err != nil {
		t.Fatal(err)
	}
	envoy, err := process.Start(ctx, process.Spec{
		Name: "envoy", Path: path, Log: filepath.Join(dir, "envoy.log"),
		Args: []string{"-c", config, "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"},
		Ready: func(context.Context, int) error {
			response, err := http.Get("http://" + m.admin + "/ready")
			if err != nil {
				return err
			}
			defer response.Body.Close()
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("ready: %s", response.Status)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { envoy.Stop(time.Second) })
	m.processes = append(m.processes, envoy)
	m.placeKeys(t)
	return m
}

// bootstrap is JSON made of maps, so that this package needs no Envoy library.
func (m *mesh) bootstrap(t *testing.T) []byte {
	type object = map[string]any
	socket := func(address string) object {
		host, port, _ := net.SplitHostPort(address)
		n, _ := strconv.Atoi(port)
		return object{"socket_address": object{"address": host, "port_value": n}}
	}
	listener := func(name, address string, routes object, more object) object {
		filter := object{
			"@type":         "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
			"stat_prefix":   name,
			"settings":      object{"op_timeout": "0.5s", "enable_hashtagging": true},
			"prefix_routes": routes,
		}
		for key, value := range more {
			filter[key] = value
		}
		return object{"name": name, "address": socket(address), "filter_chains": []object{{"filters": []object{
			{"name": "envoy.filters.network.redis_proxy", "typed_config": filter}}}}}
	}
	cluster := func(name string, hosts ...string) object {
		var endpoints []object
		for i, host := range hosts {
			endpoints = append(endpoints, object{
				"endpoint": object{"address": socket(host)},
				"metadata": object{"filter_metadata": object{"envoy.lb": object{"hash_key": fmt.Sprint("shard-", i)}}},
			})
		}
		return object{"name": name, "type": "STATIC", "lb_policy": "RING_HASH", "connect_timeout": "1s",
			"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": endpoints}}}}
	}
	every := object{"catch_all_route": object{"cluster": "shards"}}
	data, err := json.Marshal(object{
		"admin": object{"address": socket(m.admin)},
		"static_resources": object{
			"listeners": []object{
				listener("open", m.open, every, nil),
				listener("refusing", m.refusing, every, object{"faults": []object{{
					"fault_type":    "ERROR",
					"fault_enabled": object{"default_value": object{"numerator": 100, "denominator": "HUNDRED"}},
					"commands":      commands.Listener{}.Refused(),
				}}}),
				listener("reads", m.reads, object{"catch_all_route": object{
					"cluster": "nobody", "read_command_policy": object{"cluster": "shards"}}}, nil),
				listener("resp3", m.resp3, every, object{"protocol_version": "RESP3"}),
				listener("locked", m.locked, every, object{
					"downstream_auth_passwords": []object{{"inline_string": "open sesame"}}}),
				listener("narrow", m.narrow, object{"routes": []object{{"prefix": "narrow:", "cluster": "shards"}}}, nil),
			},
			"clusters": []object{cluster("shards", m.shards[:]...), cluster("nobody")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// placeKeys asks the real Envoy which keys live where.
func (m *mesh) placeKeys(t *testing.T) {
	var on [2][]string
	client := dial(t, m.open)
	for i := 0; len(on[0]) < 2 || len(on[1]) < 2; i++ {
		if i == 1000 {
			t.Fatal("1,000 keys, and not two on each shard")
		}
		key := fmt.Sprint("key-", i)
		client.do("set", key, "v")
		for shard := range on {
			if dial(t, m.shards[shard]).do("exists", key) == "1" {
				on[shard] = append(on[shard], key)
			}
		}
	}
	m.keys = strings.NewReplacer("A2", on[0][1], "A", on[0][0], "B2", on[1][1], "B", on[1][0])
}

// command splits a line of an example into words and puts the keys in.
func (m *mesh) command(line string) []string {
	words := strings.Fields(line)
	for i, word := range words {
		switch word {
		case "A", "A2", "B", "B2":
			words[i] = m.keys.Replace(word)
		}
	}
	return words
}

func (m *mesh) flush(t *testing.T) {
	for _, address := range []string{m.shards[0], m.shards[1], m.lone} {
		if reply := dial(t, address).do("flushall"); reply != "OK" {
			t.Fatalf("flushall: %s", reply)
		}
	}
}

// calls says which commands the shards have run since the last call of calls, which leaves nothing of its own behind
// but the reset: INFO counts itself only after it has answered.
func (m *mesh) calls(t *testing.T) []string {
	var calls []string
	for _, address := range m.shards {
		shard := dial(t, address)
		for line := range strings.Lines(shard.do("info", "commandstats")) {
			name, ok := strings.CutPrefix(line, "cmdstat_")
			name, _, _ = strings.Cut(name, ":")
			if ok && name != "config|resetstat" {
				calls = append(calls, name)
			}
		}
		shard.do("config", "resetstat")
	}
	return calls
}

// run plays an example against an address and returns what was answered, a line a command.
func (m *mesh) run(t *testing.T, address, example string) string {
	connections := map[bool]*connection{false: dial(t, address), true: dial(t, address)}
	var answers strings.Builder
	var dump string
	for line := range strings.SplitSeq(example, " ; ") {
		command, second := strings.CutPrefix(line, "2> ")
		words := m.command(command)
		for i, word := range words {
			if word == "DUMP" {
				words[i] = dump
			}
		}
		answer := connections[second].do(words...)
		if words[0] == "dump" {
			dump = answer
		}
		fmt.Fprintf(&answers, "%s -> %q\n", line, answer)
	}
	return answers.String()
}

// connection speaks RESP as it is on the wire, since a client library would hide what is compared here.
type connection struct {
	t      *testing.T
	conn   net.Conn
	reader *bufio.Reader
}

func dial(t *testing.T, address string) *connection {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &connection{t: t, conn: conn, reader: bufio.NewReader(conn)}
}

// do sends a command and returns the answer as text: an error begins with "-", an array is in brackets.
func (c *connection) do(words ...string) string {
	c.t.Helper()
	var request strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(word), word)
	}
	return c.send(request.String())
}

func (c *connection) send(request string) string {
	c.t.Helper()
	c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c.conn, request); err != nil {
		c.t.Fatalf("%q: %v", request, err)
	}
	answer, err := c.read()
	if err != nil {
		c.t.Fatalf("%q: %v", request, err)
	}
	return answer
}

func (c *connection) read() (string, error) {
	line, err := c.reader.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSuffix(line[1:], "\r\n")
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "-" + rest, nil
	case '_':
		return "(nil)", nil
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "(nil)", err
		}
		data := make([]byte, n+2)
		_, err = io.ReadFull(c.reader, data)
		return string(data[:n]), err
	case '*', '%', '~', '>':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "(nil)", err
		}
		if kind == '%' {
			n *= 2
		}
		items := make([]string, n)
		for i := range items {
			if items[i], err = c.read(); err != nil {
				return "", err
			}
		}
		return "[" + strings.Join(items, " ") + "]", nil
	}
	return "", fmt.Errorf("answer of an unknown kind: %q", line)
}
