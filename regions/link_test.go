package regions

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/regions/journal"
)

func TestARemovalReachesTheOtherRegionWhateverItsShards(t *testing.T) {
	us, eu := newRegion(t, "us", 2), newRegion(t, "eu", 3)
	linked(us, eu)
	us.flowing()
	eu.flowing()
	keys := append(keysOf("user:", 200), "user:\x00\r\n\xff", "user:{tag}x")
	us.set(keys...)
	eu.set(keys...)
	eu.set("user:other")
	us.remove(keys...)
	eu.gone(keys...)
	if !eu.has("user:other") {
		t.Error("a key that nobody removed is gone")
	}
	// What is applied is not journaled again, and the other way works, too.
	us.set(keys...)
	eu.remove(keys[:5]...)
	us.gone(keys[:5]...)
	if us.has(keys[0]) || !us.has(keys[6]) {
		t.Error("removals of one region came back to it")
	}
	var lags []time.Duration
	for _, k := range keys[6:106] {
		eu.set(k)
		began := time.Now()
		us.remove(k)
		eu.gone(k)
		lags = append(lags, time.Since(began))
	}
	slices.Sort(lags)
	t.Logf("removal to removal elsewhere: median %v, most %v", lags[len(lags)/2], lags[len(lags)-1])
	for _, p := range us.links.Pairs() {
		if p.Gaps > 0 || p.Fences > 0 || p.Lag > time.Second {
			t.Errorf("%+v", p)
		}
	}
}

// cut is a TCP proxy that can be cut.
type cut struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	parted   bool
	conns    map[net.Conn]bool
}

func newCut(t *testing.T, to string) *cut {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cut{listener: l, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); c.part(true) })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go c.pass(in)
		}
	}()
	return c
}

func (c *cut) pass(in net.Conn) {
	out, err := net.Dial("tcp", c.to)
	c.mu.Lock()
	if err != nil || c.parted {
		c.mu.Unlock()
		in.Close()
		if err == nil {
			out.Close()
		}
		return
	}
	c.conns[in], c.conns[out] = true, true
	c.mu.Unlock()
	go func() { io.Copy(in, out); in.Close(); out.Close() }()
	io.Copy(out, in)
	in.Close()
	out.Close()
}

func (c *cut) part(parted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parted = parted
	for conn := range c.conns {
		conn.Close()
	}
	clear(c.conns)
}

func TestAPartitionCostsNothingButTime(t *testing.T) {
	us, eu := newRegion(t, "us", 1), newRegion(t, "eu", 2)
	wire := newCut(t, eu.address)
	us.dial = func(a string) string { return wire.listener.Addr().String() }
	linked(us, eu)
	us.flowing()
	wire.part(true)
	keys := keysOf("user:", 20_000)
	eu.set(keys...)
	us.until("a problem", func() bool { return us.links.Pairs()[0].Problem != "" })
	us.remove(keys...)
	us.until("a backlog", func() bool { return us.links.Pairs()[0].Backlog > 19_000 })
	us.until("a lag", func() bool { return us.links.Pairs()[0].Lag > 2*time.Second })
	wire.part(false)
	began := time.Now()
	eu.gone(keys...)
	t.Logf("%d removals after a partition: %v", len(keys), time.Since(began))
	us.until("the end of the backlog", func() bool { return us.links.Pairs()[0].Backlog < 10 })
	if p := us.links.Pairs()[0]; p.Gaps > 0 {
		t.Errorf("%+v", p)
	}
	us.until("a trimmed journal", func() bool {
		return us.nodes[0].client.XLen(t.Context(), journal.Key(1)).Val() < 100
	})
}

func TestAGapFencesWhatTheShardHas(t *testing.T) {
	us, eu := newRegion(t, "us", 2), newRegion(t, "eu", 3)
	linked(us, eu)
	us.flowing()
	keys := keysOf("user:", 2000)
	eu.set(keys...)
	eu.set(keysOf("local:", 50)...)
	began := time.Now()
	us.nodes[1].client.Del(t.Context(), journal.Key(1))
	var its, others []string
	for _, k := range keys {
		if us.shard(k) == 1 {
			its = append(its, k)
		} else {
			others = append(others, k)
		}
	}
	eu.gone(its...)
	t.Logf("fenced %d keys %v after the journal was lost", len(its), time.Since(began))
	us.until("a confirmation", func() bool {
		p := us.links.Pairs()[1]
		return p.Fences == 1 && p.FencedKeys == uint64(len(its)) && len(p.Pending) == 0
	})
	for _, k := range append(others, keysOf("local:", 50)...) {
		if !eu.has(k) {
			t.Fatalf("%s is not the shard's, and gone", k)
		}
	}
	notices := us.links.Notices(0)
	if len(notices) != 2 || notices[0].Fence || notices[0].Reason != journal.Lost || !notices[1].Fence || notices[1].Keys != uint64(len(its)) {
		t.Errorf("%+v", notices)
	}
	if again := us.links.Notices(notices[0].ID); len(again) != 1 || again[0].ID != notices[1].ID {
		t.Errorf("after the first: %+v", again)
	}
	// It goes on.
	for _, k := range its[:10] {
		eu.set(k)
		us.remove(k)
	}
	eu.gone(its[:10]...)
	if p := us.links.Pairs()[1]; p.Gaps != 1 {
		t.Errorf("%+v", p)
	}
}

// takeOver makes a replica of a shard's node, has it caught up, and returns what makes it the primary of the next epoch.
func (r *testRegion) replica(shard int) *testNode {
	r.t.Helper()
	n := startRedis(r.t, process.Redis{ReplicaOf: r.nodes[shard].Port})
	r.change(func(s []mesh.Shard) {
		s[shard].Nodes = append(s[shard].Nodes[:1:1], mesh.Node{Address: n.Address(), Role: mesh.Replica})
	})
	return n
}

// failover kills a shard's primary and promotes a node, as the manager does.
func (r *testRegion) failover(shard int, n *testNode) {
	r.t.Helper()
	r.nodes[shard].Kill()
	if err := n.client.ReplicaOf(r.t.Context(), "NO", "ONE").Err(); err != nil {
		r.t.Fatal(err)
	}
	r.change(func(s []mesh.Shard) {
		s[shard].Epoch++
		s[shard].Nodes = []mesh.Node{{Address: n.Address(), Role: mesh.Primary}}
	})
	r.nodes[shard] = n
	epoch := r.topology.Pools[0].Shards[shard].Epoch
	if err := n.client.Set(r.t.Context(), "cachemesh:epoch", epoch, 0).Err(); err != nil {
		r.t.Fatal(err)
	}
	// What a lane does when it arrives.
	if err := n.client.Set(r.t.Context(), journal.Key(epoch)+":made", 1, 0).Err(); err != nil {
		r.t.Fatal(err)
	}
	if err := n.client.Do(r.t.Context(), "XADD", journal.Key(epoch), "*", "e", journal.Append(nil, nil)).Err(); err != nil {
		r.t.Fatal(err)
	}
}

func TestAFailoverAtHomeLosesNothing(t *testing.T) {
	us, eu := newRegion(t, "us", 2), newRegion(t, "eu", 2)
	wire := newCut(t, eu.address)
	us.dial = func(a string) string { return wire.listener.Addr().String() }
	linked(us, eu)
	second := us.replica(0)
	us.flowing()
	keys := keysOf("user:", 500)
	eu.set(keys...)
	wire.part(true) // so that the rest of the old epoch is read from the new primary
	us.remove(keys[:250]...)
	if n := us.nodes[0].client.Do(t.Context(), "WAIT", 1, 5000).Val(); n != int64(1) {
		t.Fatalf("%v replicas", n)
	}
	us.failover(0, second)
	us.remove(keys[250:]...)
	wire.part(false)
	eu.gone(keys...)
	us.until("the new epoch's cursor", func() bool { return us.links.Pairs()[0].Cursor.Epoch == 2 })
	for _, p := range us.links.Pairs() {
		if p.Gaps > 0 {
			t.Errorf("%+v", p)
		}
	}
}

func TestAFailoverElsewhereLosesNothing(t *testing.T) {
	us, eu := newRegion(t, "us", 1), newRegion(t, "eu", 2)
	linked(us, eu)
	us.flowing()
	second := eu.replica(1)
	keys := keysOf("user:", 500)
	eu.set(keys...)
	if n := eu.nodes[1].client.Do(t.Context(), "WAIT", 1, 5000).Val(); n != int64(1) {
		t.Fatalf("%v replicas", n)
	}
	// The replica hangs, has none of the removals, and yet takes over.
	eu.nodes[1].client.ConfigSet(t.Context(), "repl-timeout", "3600")
	second.client.Do(t.Context(), "REPLICAOF", "NO", "ONE")
	us.remove(keys[:250]...)
	eu.gone(keys[:250]...)
	us.remove(keys[250:400]...)
	eu.failover(1, second)
	us.remove(keys[400:]...)
	eu.gone(keys...)
	us.until("the end of the backlog", func() bool { return us.links.Pairs()[0].Backlog < 10 })
	eu.gone(keys...)
}

func TestAPrefixIsRemovedHereAndThere(t *testing.T) {
	us, eu := newRegion(t, "us", 2), newRegion(t, "eu", 3)
	linked(us, eu)
	us.flowing()
	odd := []string{"user:[a]*1", "user:[a]*2"}
	for _, r := range []*testRegion{us, eu} {
		r.set(append(odd, "user:a1", "user:b", "user:[a]")...)
	}
	s := journal.Open(us.nodes[0].client, 1)
	for _, region := range []string{"us", "eu"} {
		if err := s.Fence(t.Context(), region, journal.Fence{ID: "asked-1", Reason: journal.Asked, Prefix: []byte("user:[a]*"), Since: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	us.gone(odd...)
	eu.gone(odd...)
	us.until("proof of both regions", func() bool {
		here, err := s.Fences(t.Context(), "us")
		there, err2 := s.Fences(t.Context(), "eu")
		return err == nil && err2 == nil && len(here)+len(there) == 0
	})
	for _, r := range []*testRegion{us, eu} {
		for _, k := range []string{"user:a1", "user:b", "user:[a]"} {
			if !r.has(k) {
				t.Errorf("%s of %s is gone", k, r.name)
			}
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	us, eu := newRegion(t, "us", 1), newRegion(t, "eu", 1)
	linked(us, eu)
	us.flowing()
	s := journal.Open(us.nodes[0].client, 1)
	if err := s.Pause(t.Context(), "eu", true); err != nil {
		t.Fatal(err)
	}
	us.until("a pause", func() bool { p := us.links.Pairs()[0]; return p.Paused && p.To == "" })
	eu.set("user:1")
	us.remove("user:1")
	us.until("a backlog of three", func() bool { return us.links.Pairs()[0].Backlog >= 3 })
	if !eu.has("user:1") {
		t.Error("it was removed in a paused region")
	}
	if err := s.Pause(t.Context(), "eu", false); err != nil {
		t.Fatal(err)
	}
	eu.gone("user:1")
}

func TestWhatNoJournalTookIsSentAndNoFenceFollows(t *testing.T) {
	us, eu := newRegion(t, "us", 1), newRegion(t, "eu", 2)
	linked(us, eu)
	us.flowing()
	eu.set("user:1", "user:2", "user:3")
	us.links.Gap("users-0", 1, journal.Refused, [][]byte{[]byte("user:1"), []byte("user:2")})
	fences, err := journal.Open(us.nodes[0].client, 1).Fences(t.Context(), "eu")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d fences are kept at once", len(fences))
	eu.gone("user:1", "user:2")
	us.until("no fence any more", func() bool {
		fences, err := journal.Open(us.nodes[0].client, 1).Fences(t.Context(), "eu")
		return err == nil && len(fences) == 0
	})
	if !eu.has("user:3") || us.links.Pairs()[0].Fences > 0 {
		t.Error("it was fenced all the same")
	}
}

// If the other region cannot be told, the fence is kept on the shard, and carried out by whoever follows its journal then.
func TestWhatNoJournalTookIsFencedByAnotherAgent(t *testing.T) {
	us, eu := newRegion(t, "us", 1), newRegion(t, "eu", 2)
	wire := newCut(t, eu.address)
	us.dial = func(a string) string { return wire.listener.Addr().String() }
	linked(us, eu)
	us.flowing()
	eu.set("user:1", "user:3")
	wire.part(true)
	us.links.Gap("users-0", 1, journal.Refused, [][]byte{[]byte("user:1")})
	us.links.direct.mu.Lock()
	clear(us.links.direct.queues["eu"].items) // the agent dies
	us.links.direct.queues["eu"].items = nil
	us.links.direct.mu.Unlock()
	wire.part(false)
	eu.gone("user:1", "user:3")
}
