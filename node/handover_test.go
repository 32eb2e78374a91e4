package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// writers write to a node until it refuses, and say what it has acknowledged and the longest that a write took.
func (s *server) writers(ctx context.Context, t *testing.T, n int) func() (acknowledged []string, longest time.Duration) {
	t.Helper()
	options, err := s.Options()
	if err != nil {
		t.Fatal(err)
	}
	options.PoolSize = n
	client := redis.NewClient(options)
	t.Cleanup(func() { client.Close() })
	var (
		mu      sync.Mutex
		all     []string
		longest time.Duration
		wait    sync.WaitGroup
	)
	begun := make(chan struct{}, n)
	for w := range n {
		wait.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("writer-%d-%d", w, i)
				start := time.Now()
				err := client.Set(ctx, key, i, 0).Err()
				mu.Lock()
				longest = max(longest, time.Since(start))
				if err == nil {
					all = append(all, key)
				}
				mu.Unlock()
				if i == 100 {
					begun <- struct{}{}
				}
				if err != nil {
					if !redis.IsReadOnlyError(err) && ctx.Err() == nil {
						t.Errorf("%s: %v", key, err)
					}
					return
				}
			}
		})
	}
	for range n {
		<-begun
	}
	return func() ([]string, time.Duration) {
		wait.Wait()
		return all, longest
	}
}

// takesOver hands a shard over. A busy machine may need another try.
func (s *server) takesOver(t *testing.T, from *server, epoch uint64) shards.Node {
	t.Helper()
	for try := 1; ; try++ {
		n, err := s.Do(t.Context(), shards.Action{Op: shards.Handover, Node: s.Address(), From: from.Address(), Epoch: epoch})
		if err == nil {
			return n
		}
		if try == 5 || !strings.Contains(err.Error(), "not caught up") {
			t.Fatal(err)
		}
		t.Log(err)
	}
}

func TestHandoverLosesNoAcknowledgedWrite(t *testing.T) {
	first, second := shard(t)
	from, to := first, second
	for epoch := uint64(6); epoch < 16; epoch++ {
		join := from.writers(t.Context(), t, 8)
		begun := time.Now()
		if n := to.takesOver(t, from, epoch); n.Role != mesh.Primary || n.Epoch != epoch {
			t.Fatalf("%+v", n)
		}
		took := time.Since(begun)
		acknowledged, longest := join()
		for _, key := range acknowledged {
			if to.do(t, "EXISTS", key) != int64(1) {
				t.Fatalf("epoch %d: %s was acknowledged and is lost", epoch, key)
			}
		}
		t.Logf("epoch %d: %d writes acknowledged, the handover took %s, the longest write %s", epoch, len(acknowledged), took.Round(10*time.Microsecond), longest.Round(10*time.Microsecond))
		to.do(t, "FLUSHALL")
		to.must(t, shards.Action{Op: shards.Mirror, Epoch: epoch})
		old := from.eventually(t, "linked", linked)
		if old.Of != to.Address() || old.Epoch > epoch {
			t.Errorf("the old primary: %+v", old)
		}
		from.eventually(t, "of the epoch", func(n shards.Node) bool { return n.Epoch == epoch })
		from, to = to, from
	}
}

func TestHandoverTwice(t *testing.T) {
	first, second := shard(t)
	second.takesOver(t, first, 6)
	if n := second.must(t, shards.Action{Op: shards.Handover, From: first.Address(), Epoch: 6}); n.Role != mesh.Primary || n.Epoch != 6 {
		t.Errorf("%+v", n)
	}
	second.do(t, "SET", "k", "v") // nobody has paused it
	first.eventually(t, "linked", linked)
	// Another leader finishes it after the old primary is gone.
	first.Kill()
	if n := second.must(t, shards.Action{Op: shards.Handover, From: first.Address(), Epoch: 6}); n.Role != mesh.Primary || n.Epoch != 6 {
		t.Errorf("%+v", n)
	}
}

// goesOn says that a primary takes writes again, without the wait for the end of a pause.
func (s *server) goesOn(t *testing.T) {
	t.Helper()
	begun := time.Now()
	s.do(t, "SET", "k", "v")
	if took := time.Since(begun); took > 200*time.Millisecond {
		t.Errorf("a write took %s: it is still paused", took)
	}
	if n := s.probe(t); n.Role != mesh.Primary || n.Epoch != 5 {
		t.Errorf("%+v", n)
	}
}

func TestHandoverThatIsRefused(t *testing.T) {
	first, second := shard(t)
	stranger := managed(t)
	handover := func(to, from *server, epoch uint64) error {
		_, err := to.Do(t.Context(), shards.Action{Op: shards.Handover, Node: to.Address(), From: from.Address(), Epoch: epoch})
		return err
	}
	if err := handover(second, first, 4); !errors.Is(err, shards.ErrEpoch) {
		t.Errorf("an old epoch: %v", err)
	}
	if err := handover(stranger, first, 6); err == nil {
		t.Error("to a node without the data: no error")
	}
	if err := handover(stranger, second, 6); err == nil {
		t.Error("from a replica: no error")
	}
	first.goesOn(t)
	if n := second.probe(t); n.Role != mesh.Replica {
		t.Errorf("%+v", n)
	}
	if n := stranger.probe(t); n.Role != mesh.Replica {
		t.Errorf("%+v", n)
	}
}

func TestHandoverFromANodeThatIsGone(t *testing.T) {
	first, second := shard(t)
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		if err := first.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Do(t.Context(), shards.Action{Op: shards.Handover, Node: second.Address(), From: first.Address(), Epoch: 6}); err == nil {
			t.Errorf("%s: no error", signal)
		}
		if n := second.probe(t); n.Role != mesh.Replica {
			t.Errorf("%s: %+v", signal, n)
		}
	}
}

// slow is a shard whose replica is reached, and gets nothing more from its primary.
func slow(t *testing.T) (primary, replica *server) {
	t.Helper()
	primary, replica = managed(t), managed(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var stalled atomic.Bool
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", primary.Address())
			if err != nil {
				in.Close()
				continue
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go io.Copy(out, in)
			go func() {
				buffer := make([]byte, 64<<10)
				for {
					n, err := out.Read(buffer)
					if err != nil {
						return
					}
					if !stalled.Load() {
						in.Write(buffer[:n])
					}
				}
			}()
		}
	}()
	primary.must(t, shards.Action{Op: shards.Promote, Epoch: 5})
	replica.must(t, shards.Action{Op: shards.Demote, Epoch: 5, Of: listener.Addr().String()})
	replica.eventually(t, "linked", linked)
	stalled.Store(true)
	primary.do(t, "SET", "missing", "v")
	return primary, replica
}

// paused waits until a node holds writes.
func (s *server) paused(t *testing.T) {
	t.Helper()
	options, err := s.Options()
	if err != nil {
		t.Fatal(err)
	}
	options.ReadTimeout = 20 * time.Millisecond
	client := redis.NewClient(options)
	defer client.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it never pauses")
		}
	}
}

func TestHandoverToANodeThatDoesNotCatchUp(t *testing.T) {
	primary, replica := slow(t)
	begun := time.Now()
	_, err := replica.Do(t.Context(), shards.Action{Op: shards.Handover, Node: replica.Address(), From: primary.Address(), Epoch: 6})
	if err == nil || !strings.Contains(err.Error(), "bytes are missing") {
		t.Errorf("%v", err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	primary.goesOn(t)
	if n := replica.probe(t); n.Role != mesh.Replica {
		t.Errorf("%+v", n)
	}
}

func TestHandoverInWhichANodeGoes(t *testing.T) {
	for _, test := range []struct {
		name   string
		from   bool
		signal syscall.Signal
	}{
		{"new primary dies", false, syscall.SIGKILL},
		{"new primary hangs", false, syscall.SIGSTOP},
		{"old primary dies", true, syscall.SIGKILL},
		{"old primary hangs", true, syscall.SIGSTOP},
	} {
		t.Run(test.name, func(t *testing.T) {
			primary, replica := slow(t)
			done := make(chan error)
			go func() {
				_, err := replica.Do(t.Context(), shards.Action{Op: shards.Handover, Node: replica.Address(), From: primary.Address(), Epoch: 6})
				done <- err
			}()
			primary.paused(t)
			victim := replica
			if test.from {
				victim = primary
			}
			if err := victim.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-done:
				if err == nil {
					t.Error("no error")
				}
			case <-time.After(5 * time.Second):
				t.Fatal("it never ends")
			}
			if test.signal == syscall.SIGSTOP {
				if err := victim.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			}
			switch {
			case !test.from:
				primary.goesOn(t)
			case test.signal == syscall.SIGSTOP:
				primary.do(t, "SET", "k", "v") // it may have been told to pause when it hung, and then waits for the end
			}
			if test.from || test.signal == syscall.SIGSTOP {
				if n := replica.probe(t); n.Role != mesh.Replica {
					t.Errorf("%+v", n)
				}
			}
		})
	}
}
