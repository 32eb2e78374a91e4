package lane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
)

// startRedis runs one and returns a client of it.
func startRedis(t *testing.T, r process.Redis) (*process.Process, *redis.Client) {
	t.Helper()
	n := redistest.Start(t, r)
	return n.Process, n.Client
}

// encode is a journal's entry as these tests write it: the keys with their lengths.
func encode(dst []byte, removed [][]byte) []byte {
	for _, k := range removed {
		dst = append(binary.AppendUvarint(dst, uint64(len(k))), k...)
	}
	return dst
}

func decode(entry string) (keys []string) {
	for entry != "" {
		n, size := binary.Uvarint([]byte(entry))
		keys = append(keys, entry[size:size+int(n)])
		entry = entry[size+int(n):]
	}
	return keys
}

// journaled lists the keys in a journal in their order.
func journaled(t *testing.T, c *redis.Client, epoch uint64) (keys []string) {
	t.Helper()
	entries, err := c.XRange(context.Background(), JournalKey(epoch), "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		keys = append(keys, decode(e.Values["e"].(string))...)
	}
	return keys
}

// routes are those of most tests: u: updates, r: refills, d: waits for a replica, anything else is local.
var routes = []mesh.Route{
	{Prefix: "", Coherence: mesh.Local},
	{Prefix: "u:", Coherence: mesh.Invalidate, Writes: mesh.Update},
	{Prefix: "r:", Coherence: mesh.Invalidate, Writes: mesh.Refill},
	{Prefix: "d:", Coherence: mesh.Invalidate, Writes: mesh.Update, Durability: mesh.DurableReplica},
}

// fixture is a lane with what it told.
type fixture struct {
	*Server
	path string

	mu   sync.Mutex
	gaps []Gap
}

func startLane(t *testing.T, v View) *fixture {
	t.Helper()
	return startLaneOf(t, Config{}, v)
}

// patient is of a lane that a slow machine must not make refuse what waits for its turn.
var patient = Config{Timeout: time.Minute}

func startLaneOf(t *testing.T, c Config, v View) *fixture {
	t.Helper()
	if v.Routes == nil {
		v.Routes = routes
	}
	f := &fixture{path: filepath.Join(t.TempDir(), "lane.sock")}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	c.Shard, c.Encode = "shard-1", encode
	c.Gap = func(g Gap) {
		f.mu.Lock()
		defer f.mu.Unlock()
		var keys [][]byte
		for _, k := range g.Removed {
			keys = append(keys, bytes.Clone(k))
		}
		g.Removed = keys
		f.gaps = append(f.gaps, g)
	}
	f.Server = New(c, v)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Serve(l)
	}()
	t.Cleanup(func() {
		f.Close()
		<-done
	})
	return f
}

func (f *fixture) told() []Gap {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.gaps)
}

// client speaks to a lane as Envoy does.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (f *fixture) connect(t *testing.T) *client {
	t.Helper()
	conn, err := net.Dial("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &client{t, conn, bufio.NewReader(conn)}
}

func (c *client) send(args ...string) {
	c.t.Helper()
	if _, err := c.Write(appendCommand(nil, args...)); err != nil {
		c.t.Fatal(err)
	}
}

// reply reads one as text: arrays in brackets.
func (c *client) reply() string {
	c.t.Helper()
	s, err := readReply(c.r)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func readReply(r *bufio.Reader) (string, error) {
	l, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(l, "\r\n") {
		return "", fmt.Errorf("a line without end: %q", l)
	}
	l = strings.TrimSuffix(l, "\r\n")
	var n int
	switch l[0] {
	case '$', '=':
		if _, err := fmt.Sscan(l[1:], &n); err != nil || n < 0 {
			return "nil", err
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(r, b)
		return string(b[:n]), err
	case '*', '~', '%':
		if _, err := fmt.Sscan(l[1:], &n); err != nil || n < 0 {
			return "nil", err
		}
		if l[0] == '%' {
			n *= 2
		}
		var all []string
		for range n {
			s, err := readReply(r)
			if err != nil {
				return "", err
			}
			all = append(all, s)
		}
		return "[" + strings.Join(all, " ") + "]", nil
	case '_':
		return "nil", nil
	case ':', '+':
		return l[1:], nil
	}
	return l, nil
}

func (c *client) do(args ...string) string {
	c.t.Helper()
	c.send(args...)
	return c.reply()
}

func (c *client) want(want string, args ...string) {
	c.t.Helper()
	if got := c.do(args...); got != want && !(strings.HasSuffix(want, "*") && strings.HasPrefix(got, strings.TrimSuffix(want, "*"))) {
		c.t.Errorf("%.200q: got %.200q, want %.200q", args, got, want)
	}
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func addressOf(c *redis.Client) string { return c.Options().Addr }

func TestWritesAndTheirEntries(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node)})
	c := f.connect(t)
	c.want("OK", "SET", "plain", "1")
	c.want("OK", "SET", "u:1", "v")
	c.want("OK", "SET", "r:1", "v")
	c.want("1", "DEL", "r:1")
	c.want("0", "DEL", "r:absent") // another region may have it
	c.want("1", "del", "plain")
	c.want("OK", "SETEX", "r:2", "100", "v")
	c.want("1", "EXPIRE", "r:2", "50")
	c.want("1", "PEXPIRE", "r:2", "0")
	c.want("0", "EXPIREAT", "r:3", "5")
	c.want("v2", "EVAL", "redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]", "1", "r:4", "v2")
	c.want("v2", "GETDEL", "r:4")
	c.want("-ERR wrong number of arguments for 'set' command", "SET", "u:2")
	c.want("-WRONGTYPE*", "LPUSH", "u:1", "x")
	c.want("-ERR unknown command*", "FLUSHALL")
	c.want("-ERR unknown command*", "SUBSCRIBE", "x")
	c.want("PONG", "PING")
	c.want("v", "GET", "u:1")
	equal(t, "journal", journaled(t, node, 0), []string{"u:1", "r:1", "r:absent", "r:2", "r:3", "r:4", "r:4", "u:1"})
	for _, bad := range []string{"cachemesh:journal:0", "cachemesh:epoch"} {
		c.want(`-ERR keys under "cachemesh:" belong to cachemesh`, "DEL", bad)
		c.want(`-ERR keys under "cachemesh:" belong to cachemesh`, "EVAL", "return 1", "2", "a", bad)
	}
	if gaps := f.told(); len(gaps) > 0 {
		t.Error(gaps)
	}
}

func TestRepliesKeepTheirOrder(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLaneOf(t, patient, View{Address: addressOf(node)})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := f.connect(t)
			k := fmt.Sprintf("u:%d", i)
			var out []byte
			var want []string
			for n := range 3000 {
				switch n % 5 {
				case 3:
					out = appendCommand(out, "GET", k) // what was written before
					want = append(want, fmt.Sprint(n-1))
				case 4:
					out = appendCommand(out, "LPUSH", k, "no list")
					want = append(want, "-WRONGTYPE Operation against a key holding the wrong kind of value")
				case 0:
					out = appendCommand(out, "SET", k)
					want = append(want, "-ERR wrong number of arguments for 'set' command")
				default:
					out = appendCommand(out, "SET", k, fmt.Sprint(n))
					want = append(want, "OK")
				}
			}
			go func() { _, _ = c.Write(out) }()
			for n, w := range want {
				if got, err := readReply(c.r); got != w || err != nil {
					t.Errorf("%s: reply %d is %q %v, want %q", k, n, got, err, w)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestOneBadCommandFailsAlone(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node)})
	c := f.connect(t)
	// This Redis knows no Bloom filters, and aborts a transaction with one.
	var out []byte
	out = appendCommand(out, "SET", "u:1", "a")
	out = appendCommand(out, "BF.ADD", "u:2", "x")
	out = appendCommand(out, "SET", "u:3", "c")
	out = appendCommand(out, "GET", "u:3")
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"OK", "-ERR unknown command 'BF.ADD'", "OK", "c"} {
		if got := c.reply(); !strings.HasPrefix(got, want) {
			t.Errorf("%d: got %q, want %q", i, got, want)
		}
	}
	equal(t, "journal", journaled(t, node, 0), []string{"u:1", "u:3"})
}

func TestTransactions(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node), ShardOf: func(k []byte) string { return string(k[len(k)-1]) }})
	c := f.connect(t)
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "u:a:1", "x")
	c.want("QUEUED", "GET", "u:a:1")
	c.want("QUEUED", "INCR", "n:1")
	c.want("QUEUED", "DEL", "r:1")
	c.want("[OK x 1 0]", "EXEC")
	equal(t, "journal", journaled(t, node, 0), []string{"u:a:1", "r:1"})

	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "u:b:1", "x")
	c.want("-"+crossSlot, "SET", "u:b:2", "x")
	c.want("-EXECABORT*", "EXEC")
	c.want("nil", "GET", "u:b:1")

	c.want("OK", "MULTI")
	c.want("-ERR MULTI*", "MULTI")
	c.want("QUEUED", "SET", "u:b:1", "x")
	c.want("OK", "DISCARD")
	c.want("-ERR EXEC without MULTI", "EXEC")
	c.want("nil", "GET", "u:b:1")
	c.want("OK", "MULTI")
	c.want("[]", "EXEC")
	c.want("OK", "MULTI")
	c.want("QUEUED", "BF.ADD", "u:1", "x")
	c.want("-EXECABORT*", "EXEC")
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", "local1", "x")
	c.want("QUEUED", "LPUSH", "local1", "x")
	c.want("[OK -WRONGTYPE Operation against a key holding the wrong kind of value]", "EXEC")
	c.want("-"+crossSlot, "EVAL", "return 1", "2", "a1", "b2")
	c.want("1", "EVAL", "return 1", "2", "a1", "b1")
	c.want("-"+crossSlot, "SORT", "a1", "STORE", "b2")
	equal(t, "journal", journaled(t, node, 0), []string{"u:a:1", "r:1"})
}

func TestRESP3(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node)})
	c := f.connect(t)
	if got := c.do("HELLO", "3"); !strings.Contains(got, "proto 3") {
		t.Fatal(got)
	}
	c.want("2", "HSET", "u:h", "a", "1", "b", "2")
	c.send("HGETALL", "u:h")
	if l, err := c.r.Peek(1); err != nil || l[0] != '%' {
		t.Errorf("a map begins with %q, %v", l, err)
	}
	if got := c.reply(); got != "[a 1 b 2]" {
		t.Error(got)
	}
	c.want("nil", "GETDEL", "u:none")
	equal(t, "journal", journaled(t, node, 0), []string{"u:h", "u:none"})
}
