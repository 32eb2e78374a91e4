package lane

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

// cutter passes connections on, and cuts one when so many bytes went one way. Nothing after the cut arrives anywhere.
type cutter struct {
	net.Listener
	to string

	mu    sync.Mutex
	armed bool
	left  int  // bytes until the cut
	down  bool // which way they go: to the client
	reset bool // the client sees a reset instead of an end
	cut   bool
}

func startCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, to: to}
	var running sync.WaitGroup
	var open sync.Map
	running.Go(func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				down.Close()
				continue
			}
			open.Store(down, up)
			running.Go(func() { c.pass(up, down, down.(*net.TCPConn), false) })
			running.Go(func() { c.pass(down, up, down.(*net.TCPConn), true) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		open.Range(func(down, up any) bool {
			down.(net.Conn).Close()
			up.(net.Conn).Close()
			return true
		})
		running.Wait()
	})
	return c
}

func (c *cutter) pass(to, from net.Conn, client *net.TCPConn, down bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		c.mu.Lock()
		cut := false
		if c.armed && c.down == down {
			if cut = n >= c.left; cut {
				n = c.left
				c.armed, c.cut = false, true
				if c.reset {
					_ = client.SetLinger(0)
				}
			}
			c.left -= n
		}
		c.mu.Unlock()
		if _, err := to.Write(b[:n]); err != nil || cut {
			return
		}
	}
}

func (c *cutter) arm(after int, down, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed, c.left, c.down, c.reset, c.cut = true, after, down, reset, false
}

// disarm says whether there was a cut.
func (c *cutter) disarm() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	return c.cut
}

// mixture is a pipeline with everything that is treated differently, each write under a key of its own.
type mixture struct {
	out  []byte
	keys []string // that are journaled if they are written
	all  []string
	n    int // replies
}

func newMixture(i int, bad bool) *mixture {
	m := &mixture{}
	key := func(prefix string) string {
		k := fmt.Sprintf("%s%d:%d", prefix, i, len(m.all))
		m.all = append(m.all, k)
		if prefix == "u:" || prefix == "d:" {
			m.keys = append(m.keys, k)
		}
		return k
	}
	add := func(args ...string) {
		m.out = appendCommand(m.out, args...)
		m.n++
	}
	add("INCR", key("u:"))
	add("INCR", key("r:"))
	add("INCR", key("local:"))
	if bad {
		add("BF.ADD", "u:bad", "x")
	}
	add("MULTI")
	add("INCR", key("u:"))
	add("INCR", key("r:"))
	add("EXEC")
	add("EVAL", "return redis.call('INCR', KEYS[1])", "1", key("u:"))
	if bad {
		add("SET", "u:bad")
	}
	add("INCR", key("u:"))
	return m
}

func TestACutAnywhereLeavesNoWriteWithoutItsEntry(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	proxy := startCutter(t, addressOf(node))
	f := startLane(t, View{Address: proxy.Addr().String()})
	c := f.connect(t)
	c.want("1", "INCR", "u:first")
	ctx := context.Background()
	last := "-"
	round, unknown, fine := 0, 0, 0
	for _, way := range []struct {
		name             string
		down, reset, bad bool
	}{{"to Redis", false, false, false}, {"from Redis", true, false, false}, {"from Redis with a reset", true, true, false},
		{"to Redis, one bad command", false, false, true}, {"from Redis, one bad command", true, false, true}} {
		for at := 0; ; at++ {
			round++
			m := newMixture(round, way.bad)
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			proxy.arm(at, way.down, way.reset)
			if _, err := c.Write(m.out); err != nil {
				t.Fatal(err)
			}
			var replies []string
			for range m.n {
				replies = append(replies, c.reply())
			}
			cut := proxy.disarm()

			values, err := node.MGet(ctx, m.all...).Result()
			if err != nil {
				t.Fatal(err)
			}
			entries, err := node.XRange(ctx, JournalKey(0), last, "+").Result()
			if err != nil {
				t.Fatal(err)
			}
			var journal []string
			for _, e := range entries {
				journal = append(journal, decode(e.Values["e"].(string))...)
				last = "(" + e.ID
			}
			written := 0
			for i, k := range m.all {
				if values[i] == nil {
					continue
				}
				written++
				if values[i] != "1" {
					t.Errorf("%s, cut after %d bytes: %s was written %v times", way.name, at, k, values[i])
				}
				if slices.Contains(m.keys, k) && !slices.Contains(journal, k) {
					t.Errorf("%s, cut after %d bytes: %s is written and not journaled: %q", way.name, at, k, journal)
				}
			}
			switch said := strings.Join(replies, "|"); {
			case strings.Contains(said, "not known"):
				unknown++
			case written == 0 && strings.Contains(said, "nothing was written"): // a busy machine
			default:
				fine++
				if written != len(m.all) {
					t.Errorf("%s, cut after %d bytes: %d of %d writes, and nobody said so: %s", way.name, at, written, len(m.all), said)
				}
			}
			if t.Failed() || !cut {
				t.Logf("%s: %d places", way.name, at)
				break
			}
		}
	}
	if unknown == 0 || fine == 0 {
		t.Errorf("%d unknown, %d fine: the cuts were not where they should be", unknown, fine)
	}
	if gaps := f.told(); len(gaps) > 0 {
		t.Error(gaps)
	}
}

// The replica of a primary that is killed at any byte of what it replicates has no write without its entry.
func TestACutOfReplicationLeavesNoWriteWithoutItsEntry(t *testing.T) {
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	_, primary := startRedis(t, process.Redis{Args: []string{"--repl-ping-replica-period", "3600"}})
	proxy := startCutter(t, addressOf(primary))
	_, replica := startRedis(t, process.Redis{Port: ports[0]})
	f := startLane(t, View{Address: addressOf(primary)})
	c := f.connect(t)
	c.want("1", "INCR", "u:first")
	ctx := context.Background()
	_, port, err := net.SplitHostPort(proxy.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; ; at += 7 { // a step that is no divisor of anything here
		if err := replica.Do(ctx, "REPLICAOF", "127.0.0.1", port).Err(); err != nil {
			t.Fatal(err)
		}
		wait(t, "the replica has its primary's data", func() bool {
			a, errA := replica.InfoMap(ctx, "replication").Result()
			return errA == nil && a["Replication"]["master_link_status"] == "up"
		})
		m := newMixture(at, false)
		proxy.arm(at, true, false)
		if _, err := c.Write(m.out); err != nil {
			t.Fatal(err)
		}
		for range m.n {
			c.reply()
		}
		wait(t, "the link is cut, or all is replicated", func() bool {
			proxy.mu.Lock()
			defer proxy.mu.Unlock()
			if proxy.cut {
				return true
			}
			n, err := replica.Exists(ctx, m.all[len(m.all)-1]).Result()
			return err == nil && n == 1
		})
		cut := proxy.disarm()
		if err := replica.Do(ctx, "REPLICAOF", "NO", "ONE").Err(); err != nil {
			t.Fatal(err)
		}
		journal := journaled(t, replica, 0)
		for _, k := range m.keys {
			if n, err := replica.Exists(ctx, k).Result(); err != nil || n == 1 && !slices.Contains(journal, k) {
				t.Errorf("cut after %d bytes: the replica has %s and no entry, %v", at, k, err)
			}
		}
		if !cut || t.Failed() {
			t.Logf("%d bytes", at)
			return
		}
	}
}

// wait is for what happens soon.
func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}
