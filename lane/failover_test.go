package lane

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// What a lost primary had to itself is removed from the next one, and from other regions, before anything else is written there.
func TestANewPrimaryKeepsNothingThatWasOverwritten(t *testing.T) {
	ctx := context.Background()
	old, first := startRedis(t, process.Redis{})
	_, second := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(first), Epoch: 1})
	c := f.connect(t)
	// The second one is a replica that has what was written a moment before.
	for _, k := range []string{"u:1", "r:set", "r:del", "local"} {
		if err := second.Set(ctx, k, "before", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	c.want("OK", "SET", "u:1", "after")
	c.want("OK", "SET", "r:set", "after")
	c.want("0", "DEL", "r:del")
	c.want("OK", "SET", "local", "after")
	old.Kill()
	f.Update(View{Address: addressOf(second), Epoch: 2, Routes: routes})
	wait(t, "old values are gone, though nobody writes", func() bool {
		n, err := second.Exists(ctx, "u:1", "r:set", "r:del").Result()
		return err == nil && n == 0
	})
	c.want("OK", "SET", "u:2", "x")
	for k, want := range map[string]int64{"u:1": 0, "r:set": 0, "r:del": 0, "local": 1, "u:2": 1} {
		if n, err := second.Exists(ctx, k).Result(); err != nil || n != want {
			t.Errorf("%s: %d, %v, want %d", k, n, err, want)
		}
	}
	if got := journaled(t, second, 2); len(got) != 3 || got[2] != "u:2" || !strings.Contains(fmt.Sprint(got), "r:del") || !strings.Contains(fmt.Sprint(got), "u:1") {
		t.Errorf("journal of the new primary: %q", got)
	}
}

// What replicas have confirmed is forgotten.
func TestTheTailEndsWhereReplicasAre(t *testing.T) {
	_, primary := startRedis(t, process.Redis{})
	_, port, err := net.SplitHostPort(addressOf(primary))
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil {
		t.Fatal(err)
	}
	startRedis(t, process.Redis{ReplicaOf: n})
	f := startLane(t, View{Address: addressOf(primary)})
	c := f.connect(t)
	for i := range 100 {
		c.want("OK", "SET", fmt.Sprint("u:", i), "x")
	}
	if f.Stats().Tail == 0 {
		t.Error("nothing is remembered")
	}
	wait(t, "the replica has confirmed all", func() bool { return f.Stats().Tail == 0 })
}

func TestATailThatIsTooLongIsAGap(t *testing.T) {
	var l tail
	for range 20 {
		l.add(make([]byte, 1<<20), true)
	}
	if l.size() > maxTail {
		t.Errorf("it takes %d bytes", l.size())
	}
	if _, _, forgot := l.lost(); !forgot {
		t.Error("nobody knows that it forgot")
	}
	l.written(100)
	l.confirmed(99)
	if _, _, forgot := l.lost(); !forgot {
		t.Error("what nobody has counts as confirmed")
	}
	l.written(100)
	l.confirmed(100)
	if keys, _, forgot := l.lost(); forgot || len(keys) > 0 {
		t.Error("what replicas have is still missed")
	}
}

// A node that restarted is empty, and is not written to before an epoch says so.
func TestARestartedPrimaryIsNotWrittenTo(t *testing.T) {
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	old, first := startRedis(t, process.Redis{Port: ports[0]})
	f := startLane(t, View{Address: addressOf(first), Epoch: 1})
	c := f.connect(t)
	c.want("OK", "SET", "u:1", "x")
	old.Kill()
	<-old.Done()
	_, again := startRedis(t, process.Redis{Port: ports[0]})
	c.want("-ERR the shard's lane reaches no primary*", "SET", "u:1", "y")
	f.Update(View{Address: addressOf(again), Epoch: 2, Routes: routes})
	c.want("OK", "SET", "u:1", "z")
}

// Writes wait for the end of a switch, and none is refused because the old primary is a replica already.
func TestASwitchCostsNoWrite(t *testing.T) {
	ctx := context.Background()
	_, a := startRedis(t, process.Redis{})
	_, b := startRedis(t, process.Redis{})
	_, port, _ := net.SplitHostPort(addressOf(b))
	f := startLane(t, View{Address: addressOf(a), Epoch: 1})
	stop := make(chan struct{})
	done := make(chan map[string]int)
	for _, prefix := range []string{"u:", "r:", ""} { // transactions and plain pipelines
		c := f.connect(t)
		go func() {
			said := map[string]int{}
			defer func() { done <- said }()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.Write(appendCommand(appendCommand(nil, "SET", fmt.Sprint(prefix, i), "x"), "SET", fmt.Sprint(prefix, i), "y")); err != nil {
					said[err.Error()]++
					return
				}
				for range 2 {
					s, err := readReply(c.r)
					if err != nil {
						s = err.Error()
					}
					said[s]++
				}
			}
		}()
	}
	wait(t, "there are writes", func() bool { return f.Stats().Commands > 100 })
	// As a manager does it; but the lane hears of it late, when the node is a replica already.
	if err := a.Do(ctx, "REPLICAOF", "127.0.0.1", port).Err(); err != nil {
		t.Fatal(err)
	}
	f.Update(View{Address: addressOf(a), Epoch: 1, StandIn: mesh.Hold, Routes: routes})
	f.Update(View{Address: addressOf(b), Epoch: 2, Routes: routes})
	before := f.Stats().Commands
	wait(t, "there are writes again", func() bool { return f.Stats().Commands > before+100 })
	close(stop)
	for range 3 {
		for s, n := range <-done {
			if s != "OK" {
				t.Errorf("%d times %s", n, s)
			}
		}
	}
}

// A primary that hangs costs 400 ms and an error, and not the connection.
func TestAHungPrimary(t *testing.T) {
	p, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node)})
	c := f.connect(t)
	c.want("OK", "SET", "u:1", "x")
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.want("-ERR*", "SET", "u:1", "y")
	c.want("-ERR*", "SET", "plain", "y")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.want("OK", "SET", "u:1", "z")
	if got, err := node.Get(context.Background(), "u:1").Result(); err != nil || got != "z" {
		t.Errorf("%q, %v: an old write came later", got, err)
	}
}

// Without any node, removals are told, other coherent writes are refused, and the rest is forgotten.
func TestNoNodeIsLeft(t *testing.T) {
	f := startLane(t, View{StandIn: mesh.Null, Epoch: 3})
	c := f.connect(t)
	c.want("OK", "SET", "plain", "x")
	c.want("OK", "SET", "r:1", "x") // a refill: nobody elsewhere would have been told
	c.want("0", "DEL", "r:1")
	c.want("-ERR no node*", "SET", "u:1", "x")
	c.want("OK", "MULTI")
	c.want("QUEUED", "INCR", "n")
	c.want("QUEUED", "GET", "n")
	c.want("[1 nil]", "EXEC")
	gaps := f.told()
	if len(gaps) != 1 || gaps[0].Reason != GapNull || gaps[0].Epoch != 3 || string(gaps[0].Removed[0]) != "r:1" {
		t.Errorf("told %v", gaps)
	}
}

// A node that is full and evicts nothing still takes removals, with their entries.
func TestAFullNode(t *testing.T) {
	ctx := context.Background()
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node)})
	c := f.connect(t)
	c.want("OK", "SET", "u:1", "x")
	c.want("OK", "SET", "local", "x")
	if err := node.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	var out []byte
	out = appendCommand(out, "SET", "u:2", "x")
	out = appendCommand(out, "DEL", "u:1")
	out = appendCommand(out, "DEL", "local")
	out = appendCommand(out, "GET", "u:1")
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"-OOM*", "1", "1", "nil"} {
		if got := c.reply(); got != want && !(want == "-OOM*" && strings.HasPrefix(got, "-OOM")) {
			t.Errorf("%d: got %q, want %q", i, got, want)
		}
	}
	equal(t, "journal", journaled(t, node, 0), []string{"u:1", "u:1"})
	if gaps := f.told(); len(gaps) > 0 {
		t.Error(gaps)
	}
}

// A journal that is gone is seen at the next write, before its answer.
func TestALostJournal(t *testing.T) {
	ctx := context.Background()
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node), Epoch: 1})
	c := f.connect(t)
	c.want("OK", "SET", "u:1", "x")
	if err := node.Del(ctx, JournalKey(1)).Err(); err != nil {
		t.Fatal(err)
	}
	c.want("OK", "SET", "u:2", "x")
	gaps := f.told()
	if len(gaps) != 1 || gaps[0].Reason != GapLost || string(gaps[0].Removed[0]) != "u:2" {
		t.Errorf("told %v", gaps)
	}
	if n, err := node.Exists(ctx, JournalKey(1)).Result(); err != nil || n != 0 {
		t.Errorf("the lane made the journal anew, unseen: %d %v", n, err)
	}
}

func TestDurabilityReplica(t *testing.T) {
	_, primary := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(primary)})
	c := f.connect(t)
	c.want("-ERR no replica has the write*", "SET", "d:1", "x")
	c.want("x", "GET", "d:1")
	_, port, _ := net.SplitHostPort(addressOf(primary))
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil {
		t.Fatal(err)
	}
	_, replica := startRedis(t, process.Redis{ReplicaOf: n})
	wait(t, "the replica follows", func() bool {
		return strings.Contains(primary.Info(context.Background(), "replication").Val(), "state=online")
	})
	for i := range 20 {
		k := fmt.Sprint("d:", i)
		c.want("OK", "SET", k, "y")
		if got, err := replica.Get(context.Background(), k).Result(); err != nil || got != "y" {
			t.Errorf("%s was answered and the replica has %q, %v", k, got, err)
		}
	}
}

func TestDrain(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node)})
	c := f.connect(t)
	c.want("OK", "SET", "u:1", "x")
	drained := make(chan error)
	go func() { drained <- f.Drain(context.Background()) }()
	wait(t, "no new connection is taken", func() bool {
		conn, err := net.Dial("unix", f.path)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	c.want("OK", "SET", "u:1", "y")
	select {
	case err := <-drained:
		t.Errorf("drained while there is a connection: %v", err)
	default:
	}
	c.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// A Server that knows nothing of its shard yet lets commands wait.
func TestWritesWaitForTheFirstView(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Routes: []mesh.Route{}})
	c := f.connect(t)
	c.want("-ERR the shard's lane does not know its shard", "SET", "u:1", "x")
	c.send("SET", "u:1", "x")
	f.Update(View{Address: addressOf(node), Routes: routes})
	if got := c.reply(); got != "OK" {
		t.Error(got)
	}
	equal(t, "journal", journaled(t, node, 0), []string{"u:1"})
}

// A primary that comes just as a write's time is over neither gets it nor keeps the lane busy with it for ever.
func TestAWriteWhoseTimeIsOverIsGivenUp(t *testing.T) {
	ctx := context.Background()
	_, primary := startRedis(t, process.Redis{})
	there := View{Address: addressOf(primary), Routes: routes}
	gone := View{Address: "127.0.0.1:1", Routes: routes}
	f := startLane(t, there)
	c := f.connect(t)
	for i := range 12 {
		k := fmt.Sprint("u:", i)
		gone, there := gone, there
		gone.Epoch, there.Epoch = uint64(2*i+1), uint64(2*i+2)
		f.Update(gone)
		time.AfterFunc(f.config.Timeout-time.Duration(i)*300*time.Microsecond, func() { f.Update(there) })
		said := c.do("SET", k, "x")
		if n, err := primary.Exists(ctx, k).Result(); err != nil || (n == 1) != (said == "OK") && !strings.Contains(said, "is not known") {
			t.Fatalf("%s: the lane says %q, and the node has %d (%v)", k, said, n, err)
		}
		c.want("OK", "SET", "u:next", "y")
	}
}

// What waited for longer than anybody waits for its answer is not written any more.
func TestWhatCameLongAgoIsNotWritten(t *testing.T) {
	_, primary := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(primary)})
	e := f.executors[0]
	c := f.connect(t)
	c.want("OK", "SET", "u:1", "x")
	wait(t, "a write that is old is refused", func() bool {
		e.mu.Lock()
		e.pending.answer(nil, nil) // is there before
		e.pending.since = time.Now().Add(-time.Minute)
		e.mu.Unlock()
		return strings.Contains(c.do("SET", "u:1", "y"), "is behind")
	})
	c.want("OK", "SET", "u:1", "z")
}
