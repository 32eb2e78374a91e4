package lane

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/regions/holdoff"
)

// heldRoutes have hold-offs: h: and a longer one, l:. u: is of updates, which are no refills, and anything else is local.
func heldRoutes(holdOff time.Duration) []mesh.Route {
	return []mesh.Route{
		{Prefix: ""},
		{Prefix: "h:", Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: holdOff},
		{Prefix: "l:", Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: time.Minute},
		{Prefix: "u:", Coherence: mesh.Invalidate, Writes: mesh.Update, HoldOff: holdOff},
		{Prefix: "n:", Coherence: mesh.Invalidate, Writes: mesh.Refill},
	}
}

func ttl(t *testing.T, c *redis.Client, key string) time.Duration {
	t.Helper()
	d, err := c.PTTL(context.Background(), key).Result()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// wantHeld says whether a key's time to live is the rest of a minute's hold-off. A round trip more is no error.
func wantHeld(t *testing.T, c *redis.Client, key string, is bool) {
	t.Helper()
	if d := ttl(t, c, key); (d > 0 && d <= time.Minute+time.Second) != is {
		t.Errorf("%.50s lives %s, want it in a hold-off: %t", key, d, is)
	}
}

func TestRefillsOfAHoldOff(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	// What one lane removes, another fills: of another sidecar, and of this one later.
	a := startLane(t, View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(time.Minute)}).connect(t)
	other := startLane(t, View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(time.Minute)})
	b := other.connect(t)
	for _, fill := range [][]string{
		{"SET", "l:1", "v"}, {"SET", "l:1", "v", "EX", "3600"}, {"SET", "l:1", "v", "PXAT", fmt.Sprint(time.Now().Add(time.Hour).UnixMilli())},
		{"SETEX", "l:1", "3600", "v"}, {"SETNX", "l:1", "v"}, {"MSET", "l:1", "v"}, {"HSET", "l:1", "f", "v"}, {"ZADD", "l:1", "1", "v"},
		{"EVAL", "return redis.call('SET', KEYS[1], 'v')", "1", "l:1"}, {"BITFIELD", "l:1", "SET", "u8", "0", "1"},
	} {
		a.do("DEL", "l:1")
		b.do(fill...)
		wantHeld(t, node, "l:1", true)
		for _, longer := range [][]string{{"EXPIRE", "l:1", "7200"}, {"PERSIST", "l:1"}} {
			b.want("1", longer...)
			wantHeld(t, node, "l:1", true)
		}
		if fill[0] == "SET" && len(fill) == 3 {
			b.want("1", "PEXPIRE", "l:1", "5000")
			if d := ttl(t, node, "l:1"); d > 5*time.Second {
				t.Errorf("a time to live of 5 s became %s", d)
			}
		}
	}
	for _, remove := range [][]string{{"UNLINK", "l:2"}, {"GETDEL", "l:2"}, {"EXPIRE", "l:2", "-1"}, {"PEXPIREAT", "l:2", "1"}} {
		node.FlushAll(context.Background())
		b.want("OK", "SET", "l:2", "v")
		wantHeld(t, node, "l:2", false)
		a.do(remove...)
		b.want("OK", "SET", "l:2", "v")
		wantHeld(t, node, "l:2", true)
	}
	// Not removals at home, no refills, no hold-off, no coherence.
	b.want("2", "SADD", "l:set", "x", "y")
	a.want("1", "SREM", "l:set", "x")
	a.want("1", "EVAL", "return 1", "1", "l:script")
	a.want("0", "DEL", "u:1")
	a.want("0", "DEL", "n:1")
	a.want("0", "DEL", "local")
	for _, k := range []string{"l:script", "u:1", "n:1", "local"} {
		b.want("OK", "SET", k, "v")
	}
	b.want("1", "SADD", "l:set", "z")
	for _, k := range []string{"l:set", "l:script", "u:1", "n:1", "local"} {
		wantHeld(t, node, k, false)
	}
	if s := other.Stats(); s.Suspect == 0 || s.Unheld > 0 {
		t.Errorf("%+v", s)
	}
}

// In one batch, what comes after a removal is a refill, and what comes before is not.
func TestHoldOffsWithinABatch(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	c := startLane(t, View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(time.Minute)}).connect(t)
	var out []byte
	for _, command := range [][]string{
		{"DEL", "l:1"}, {"SET", "l:1", "v"}, {"SET", "l:2", "v"}, {"DEL", "l:2"}, {"MULTI"}, {"DEL", "l:3"}, {"SET", "l:3", "v"}, {"SET", "l:4", "v"}, {"EXEC"},
		{"LPUSH", "l:1", "wrong"}, {"SET", "l:5", "v"}, {"BF.ADD", "l:6", "aborts"}, {"DEL", "l:5"}, {"SET", "l:5", "v"}, {"GET", "l:5"},
	} {
		out = appendCommand(out, command...)
	}
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"0", "OK", "OK", "1", "OK", "QUEUED", "QUEUED", "QUEUED", "[0 OK OK]", "-WRONGTYPE", "OK", "-ERR unknown command", "1", "OK", "v"} {
		if got := c.reply(); !strings.HasPrefix(got, want) {
			t.Errorf("%d: got %q, want %q", i, got, want)
		}
	}
	for k, held := range map[string]bool{"l:1": true, "l:3": true, "l:4": false, "l:5": true} {
		wantHeld(t, node, k, held)
	}
	if n := node.Exists(context.Background(), "l:2").Val(); n != 0 {
		t.Error("a removed key is there")
	}
}

func TestTheEndOfAHoldOffIsJournaledOnce(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	const holdOff = 2 * time.Second
	view := View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(holdOff)}
	one, two := startLane(t, view), startLane(t, view)
	a, b := one.connect(t), two.connect(t)
	began := time.Now()
	a.want("0", "DEL", "h:refilled")
	a.want("0", "DEL", "h:absent")
	b.want("OK", "SET", "h:refilled", "stale", "EX", "3600")
	// As of an applier, and as if a lane had been killed after a SET.
	link := holdoff.Note{Link: true, Removed: []holdoff.Mark{{Key: []byte("h:link"), For: holdOff}}}
	if err := node.Do(context.Background(), link.Args()...).Err(); err != nil {
		t.Fatal(err)
	}
	b.want("OK", "SET", "h:link", "stale")
	a.want("0", "DEL", "h:unnoted")
	node.Set(context.Background(), "h:unnoted", "stale", 0)
	if took := time.Since(began); took > holdOff {
		t.Fatalf("this host took %s for what should be done within the hold-off", took)
	}
	for _, k := range []string{"h:refilled", "h:link", "h:unnoted"} {
		wait(t, k+" ends with its hold-off", func() bool { return node.Exists(context.Background(), k).Val() == 0 })
		if took := time.Since(began); took < holdOff {
			t.Errorf("%s is gone after %s, and its hold-off is %s", k, took, holdOff)
		}
	}
	wait(t, "no mark is left", func() bool { return node.ZCard(context.Background(), "cachemesh:held").Val() == 0 })
	keys := journaled(t, node, 1)
	slices.Sort(keys)
	equal(t, "journal", keys, []string{"h:absent", "h:refilled", "h:refilled", "h:unnoted", "h:unnoted"})
	if n := one.Stats().Again + two.Stats().Again; n != 2 {
		t.Errorf("%d keys were journaled again, want 2", n)
	}
	b.want("OK", "SET", "h:refilled", "good")
	if d := ttl(t, node, "h:refilled"); d != -1 {
		t.Errorf("what is filled after the hold-off lives %s", d)
	}
}

// Marks are the shard's: neither the lane that set them nor the primary need live.
func TestHoldOffsOutliveLanesAndPrimaries(t *testing.T) {
	primary, node := startRedis(t, process.Redis{})
	_, port, _ := strings.Cut(addressOf(node), ":")
	var n int
	fmt.Sscan(port, &n)
	_, replica := startRedis(t, process.Redis{ReplicaOf: n})
	view := View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(2 * time.Second)}
	f := startLane(t, view)
	c := f.connect(t)
	c.want("0", "DEL", "l:1")
	c.want("0", "DEL", "h:1")
	c.want("OK", "SET", "h:1", "stale")
	if n := node.Wait(context.Background(), 1, 5*time.Second).Val(); n != 1 {
		t.Fatal("the replica has not the marks")
	}
	f.Close()
	primary.Kill()
	if err := replica.ReplicaOf(context.Background(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	view.Address, view.Epoch = addressOf(replica), 2
	f = startLane(t, view)
	c = f.connect(t)
	c.want("OK", "SET", "l:1", "stale")
	wantHeld(t, replica, "l:1", true)
	wait(t, "a lane ends what a dead one began", func() bool { return f.Stats().Again == 1 })
	equal(t, "journal", journaled(t, replica, 2), []string{"h:1"})
}

// What a primary kept to itself is removed on the next one, and held there.
func TestTheLostTailIsHeld(t *testing.T) {
	primary, node := startRedis(t, process.Redis{})
	_, next := startRedis(t, process.Redis{}) // as a replica that had nothing yet
	view := View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(time.Second)}
	f := startLane(t, view)
	c := f.connect(t)
	c.want("0", "DEL", "l:1")
	primary.Kill()
	next.Set(context.Background(), "l:1", "old", 0)
	view.Address, view.Epoch = addressOf(next), 2
	f.Update(view)
	c.want("nil", "GET", "l:1")
	c.want("OK", "SET", "l:1", "stale")
	wantHeld(t, next, "l:1", true)
}

// A primary that begins without its predecessor's marks holds everything, for as long as those would have.
func TestAPrimaryThatBeginsHolds(t *testing.T) {
	primary, node := startRedis(t, process.Redis{})
	_, empty := startRedis(t, process.Redis{})
	view := View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(time.Second)}
	f := startLane(t, view)
	c := f.connect(t)
	c.want("OK", "SET", "l:1", "x")
	wantHeld(t, node, "l:1", false) // nothing was invalidated before it
	c.want("1", "DEL", "l:1")
	primary.Kill()
	view.Address, view.Epoch = addressOf(empty), 2
	f.Update(view)
	for _, k := range []string{"l:1", "l:2", "u:1", "n:1", "other"} {
		c.want("OK", "SET", k, "stale")
		wantHeld(t, empty, k, k[:2] == "l:")
	}
	c.want("OK", "SET", "h:1", "stale")
	wait(t, "what was filled is removed", func() bool { return empty.Exists(context.Background(), "h:1").Val() == 0 })
	// The process goes on in another epoch.
	view.Epoch = 3
	f.Update(view)
	c.want("OK", "SET", "h:2", "x")
	if d := ttl(t, empty, "h:2"); d != -1 {
		t.Errorf("what is filled after the hold-off lives %s", d)
	}
}

func TestALargeRefillIsHeld(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	c := startLane(t, View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(time.Minute)}).connect(t)
	value := strings.Repeat("x", 3<<20)
	c.want("OK", "SET", "l:1", value)
	wantHeld(t, node, "l:1", false)
	c.want("1", "DEL", "l:1")
	c.want("OK", "SET", "l:1", value)
	wantHeld(t, node, "l:1", true)
}

// A removal of a full shard is held too, though it has to go alone.
func TestAFullShardHolds(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	c := startLane(t, View{Address: addressOf(node), Epoch: 1, Routes: heldRoutes(time.Minute)}).connect(t)
	c.want("OK", "SET", "l:1", "v")
	node.ConfigSet(context.Background(), "maxmemory", "1000")
	c.want("-OOM*", "SET", "l:2", "v")
	c.want("1", "DEL", "l:1")
	node.ConfigSet(context.Background(), "maxmemory", "0")
	c.want("OK", "SET", "l:1", "v")
	wantHeld(t, node, "l:1", true)
	equal(t, "journal", journaled(t, node, 1), []string{"l:1"})
}
