package lane

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/process"
)

// moves are two shards in a handoff that adds shard-2, and the lane of shard-1.
type moves struct {
	*fixture
	here, there *redis.Client
	other       *process.Process // of shard-2
	both        *handoff.Coexistence
	view        View
	topology    mesh.Topology
	// away are keys that move to shard-2, and stays are those that do not.
	away, stays []string
}

func startMoving(t *testing.T) *moves {
	t.Helper()
	m := &moves{both: handoff.NewCoexistence(slog.New(slog.DiscardHandler))}
	t.Cleanup(m.both.Close)
	_, m.here = startRedis(t, process.Redis{})
	m.other, m.there = startRedis(t, process.Redis{})
	shard := func(name string, c *redis.Client) mesh.Shard {
		return mesh.Shard{Name: name, Weight: 1, Nodes: []mesh.Node{{Address: addressOf(c), Role: mesh.Primary}}}
	}
	routes := slices.Clone(routes)
	routes[2].HoldOff = time.Minute
	from := []mesh.Shard{shard("shard-1", m.here)}
	to := append(from, shard("shard-2", m.there))
	m.topology = mesh.Topology{Transactions: mesh.TransactionsLanes, Pools: []mesh.Pool{{
		Name: "p", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 1021}, Routes: routes, Shards: from,
		Handoff: &mesh.Handoff{ID: 1, Generation: 1, Step: mesh.Preparing, From: from, To: to},
	}}}
	m.both.Update(&m.topology)
	m.view = View{Address: addressOf(m.here), Epoch: 3, Routes: routes, ShardOf: func([]byte) string { return "shard-1" }, Pair: m.both.Pair("p")}
	for i := 0; len(m.away) < 5 || len(m.stays) < 5; i++ {
		for _, prefix := range []string{"x:", "u:", "r:"} {
			if k := fmt.Sprint(prefix, i); m.view.Pair.Moves([]byte(k)) {
				m.away = append(m.away, k)
			} else {
				m.stays = append(m.stays, k)
			}
		}
	}
	m.fixture = startLaneOf(t, Config{Both: m.both}, m.view)
	return m
}

// thereOf says which of the keys shard-2 has.
func (m *moves) thereOf(t *testing.T, keys ...string) (n int64) {
	t.Helper()
	n, err := m.there.Exists(t.Context(), keys...).Result()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (m *moves) copied(t *testing.T, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if err := m.there.Set(t.Context(), k, "copy", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *moves) first(prefix string) string {
	for _, k := range m.away {
		if strings.HasPrefix(k, prefix) {
			return k
		}
	}
	return ""
}

func TestWhatMovesIsRemovedAtItsOtherOwner(t *testing.T) {
	m := startMoving(t)
	c := m.connect(t)
	removed := func(key, want string, command ...string) {
		t.Helper()
		m.copied(t, key)
		c.want(want, command...)
		if m.thereOf(t, key) != 0 {
			t.Errorf("%v was answered, and the other owner has the key still", command)
		}
	}
	for _, k := range m.away {
		removed(k, "OK", "SET", k, "v")
		removed(k, "2", "APPEND", k, "w")
		removed(k, "1", "DEL", k)
		removed(k, "0", "DEL", k) // and if there is nothing to be removed here, too
	}
	a, b := m.away[0], m.away[1]
	m.copied(t, a, b)
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", a, "v")
	c.want("QUEUED", "SET", b, "v")
	c.want("[OK OK]", "EXEC")
	if m.thereOf(t, a, b) != 0 {
		t.Error("a transaction was answered, and the other owner has keys still")
	}
	removed(a, "OK", "SET", a, strings.Repeat("v", 3<<20))
	for _, k := range m.stays[:5] {
		m.copied(t, k)
		c.want("OK", "SET", k, "v")
		if m.thereOf(t, k) != 1 {
			t.Errorf("%s has one owner, and was removed elsewhere", k)
		}
	}
	m.copied(t, a)
	c.want("OK", "MULTI")
	c.want("QUEUED", "GET", a)
	c.want("["+strings.Repeat("v", 3<<20)+"]", "EXEC")
	if m.thereOf(t, a) != 1 {
		t.Error("a read removes")
	}
	held := m.first("r:")
	c.do("DEL", held)
	for _, shard := range []*redis.Client{m.here, m.there} {
		if err := shard.ZScore(t.Context(), "cachemesh:held", held).Err(); err != nil {
			t.Errorf("%s was removed, and is not held by both: %v", held, err)
		}
	}
}

func TestTransactionsWhileKeysMove(t *testing.T) {
	m := startMoving(t)
	c := m.connect(t)
	// In the ring before all keys are here, and in the one after not those that move.
	c.want("OK", "MULTI")
	c.want("QUEUED", "SET", m.away[0], "v")
	c.want("QUEUED", "SET", m.stays[0], "v")
	c.want("QUEUED", "SET", m.away[1], "v")
	c.want("[OK OK OK]", "EXEC")
	// The same at the lane of the new shard, where not all of them are in either.
	m.view.Address = addressOf(m.there)
	other := New(Config{Shard: "shard-2", Encode: encode}, m.view)
	t.Cleanup(other.Close)
	p := other.policy.Load()
	together := func(keys ...string) bool {
		h := p.homes([]byte(keys[0]))
		for _, k := range keys {
			h = h.with(p.homes([]byte(k)))
		}
		return p.together(h)
	}
	if together(m.away[0], m.stays[0]) || !together(m.away[0], m.away[1]) || together(m.stays[0]) {
		t.Error("a shard takes keys that are not its own in either ring, or not those that are")
	}
}

func TestOtherOwnerHangs(t *testing.T) {
	m := startMoving(t)
	c := m.connect(t)
	k := m.away[0]
	m.copied(t, k)
	if err := m.other.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c.want("OK", "SET", k, "v")
	if n := m.both.Kept("p"); n != 1 {
		t.Errorf("%d keys are kept", n)
	}
	if err := m.other.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wait(t, "what was kept is removed", func() bool { return m.both.Kept("p") == 0 && m.thereOf(t, k) == 0 })
}

func TestLogins(t *testing.T) {
	m := startMoving(t)
	late, c := m.connect(t), m.connect(t)
	c.want("OK", "SET", "x", "1")
	late.send("SET", "y", strings.Repeat("y", 2<<20)) // has a connection of its own
	late.reply()
	control := node.New(addressOf(m.here), nil, 5*time.Second)
	defer control.Close()
	m.view.Login = 1
	m.Update(m.view)
	wait(t, "all is as the view says", m.Settled)
	if err := control.Fence(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		c.want("OK", "SET", "x", fmt.Sprint(i))
	}
	// What another control plane wants, this lane was not told.
	if err := control.Fence(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"x", m.away[0]} {
		if got := c.do("SET", key, "late"); !strings.Contains(got, "-ERR") || !strings.Contains(got, "it wants login 2") && !strings.Contains(got, io.EOF.Error()) {
			t.Errorf("a late lane answers %q", got)
		}
	}
	got := c.do("SET", "x", "late")
	if v, err := m.here.Get(t.Context(), "x").Result(); err != nil && !errors.Is(err, redis.Nil) || v == "late" {
		t.Errorf("a late lane has written: %q, %v, and answered %q", v, err, got)
	}
	m.view.Login = 2
	m.Update(m.view)
	c.want("OK", "SET", "x", "again")
}

// While the view changes all the time, nothing is lost and every view settles.
func TestSettling(t *testing.T) {
	m := startMoving(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		c := m.connect(t)
		for {
			select {
			case <-stop:
				return
			default:
				c.want("OK", "SET", m.away[0], "v")
			}
		}
	}()
	for login := range uint64(20) {
		v := m.view
		v.Login = login
		if login%2 == 1 {
			v.Pair = nil
		}
		m.Update(v)
		wait(t, "all is as the view says", m.Settled)
		if v.Pair != nil {
			m.copied(t, m.away[0])
			wait(t, "a write has removed it elsewhere", func() bool { return m.thereOf(t, m.away[0]) == 0 })
		}
	}
	close(stop)
	<-done
}
