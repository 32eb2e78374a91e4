package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

// managed starts a node as a mesh's are.
func managed(t *testing.T) *server {
	t.Helper()
	return start(t, process.Redis{Managed: true}, nil)
}

// must does an action twice, which is to be as if it had been done once.
func (s *server) must(t *testing.T, a shards.Action) shards.Node {
	t.Helper()
	a.Node = s.Address()
	var all [2]shards.Node
	for i := range all {
		n, err := s.Do(t.Context(), a)
		if err != nil {
			t.Fatalf("%+v, time %d: %v", a, i+1, err)
		}
		all[i] = n
	}
	// A replica may have got its primary's data meanwhile.
	same := all[0].Role == mesh.Replica || all[0].Epoch == all[1].Epoch && all[0].ReplID == all[1].ReplID
	if !same || all[0].Role != all[1].Role || all[0].RunID != all[1].RunID || all[0].Of != all[1].Of {
		t.Errorf("%+v: once %+v, twice %+v", a, all[0], all[1])
	}
	return all[1]
}

// refused is an action that a node refuses for a newer epoch, and that leaves it as it was.
func (s *server) refused(t *testing.T, a shards.Action, newer uint64) {
	t.Helper()
	a.Node = s.Address()
	before := s.probe(t)
	n, err := s.Do(t.Context(), a)
	if !errors.Is(err, shards.ErrEpoch) || n.Epoch != newer {
		t.Errorf("%+v: %+v, %v, want ErrEpoch and epoch %d", a, n, err, newer)
	}
	if after := s.probe(t); after.Role != before.Role || after.Of != before.Of || after.RunID != before.RunID || after.ReplID != before.ReplID || after.Epoch != before.Epoch {
		t.Errorf("%+v was refused, and changed\n%+v to\n%+v", a, before, after)
	}
}

// shard is a primary of epoch 5 and a replica that has its data.
func shard(t *testing.T) (primary, replica *server) {
	t.Helper()
	primary, replica = managed(t), managed(t)
	primary.must(t, shards.Action{Op: shards.Promote, Epoch: 5})
	replica.must(t, shards.Action{Op: shards.Demote, Epoch: 5, Of: primary.Address()})
	replica.eventually(t, "linked", linked)
	return primary, replica
}

func TestPromoteANodeWithoutPrimary(t *testing.T) {
	s := managed(t)
	n := s.must(t, shards.Action{Op: shards.Promote, Epoch: 1})
	if n.Role != mesh.Primary || n.Epoch != 1 || n.Of != "" {
		t.Errorf("%+v", n)
	}
	s.do(t, "SET", "k", "v")
	if n := s.must(t, shards.Action{Op: shards.Promote, Epoch: 2}); n.Epoch != 2 {
		t.Errorf("promoted again: %+v", n)
	}
	if got := s.do(t, "GET", "k"); got != "v" {
		t.Errorf("its data: %v", got)
	}
}

func TestPromoteAReplicaWhosePrimaryIsDead(t *testing.T) {
	primary, replica := shard(t)
	primary.do(t, "SET", "k", "v")
	primary.do(t, "WAIT", 1, 5000)
	history := primary.probe(t).ReplID
	primary.Kill()
	lost := replica.eventually(t, "unlinked", func(n shards.Node) bool { return !n.Linked })
	if lost.Epoch != 0 || lost.ReplID != history {
		t.Errorf("before: %+v, want no epoch, and history %s", lost, history)
	}
	// Its epoch can be read although it answers MASTERDOWN, which it still does afterwards.
	replica.refused(t, shards.Action{Op: shards.Promote, Epoch: 4}, 5)
	replica.refused(t, shards.Action{Op: shards.Demote, Epoch: 4, Of: "127.0.0.1:2"}, 5)
	if _, err := replica.redis.Get(t.Context(), "k").Result(); !redis.IsMasterDownError(err) {
		t.Errorf("GET: %v, want MASTERDOWN", err)
	}
	n := replica.must(t, shards.Action{Op: shards.Promote, Epoch: 6})
	if n.Role != mesh.Primary || n.Epoch != 6 {
		t.Errorf("%+v", n)
	}
	if got := replica.do(t, "GET", "k"); got != "v" {
		t.Errorf("its data: %v", got)
	}
}

func TestPromoteFresh(t *testing.T) {
	primary, replica := shard(t)
	primary.do(t, "SET", "k", "v")
	primary.do(t, "WAIT", 1, 5000)
	fresh := shards.Action{Op: shards.Promote, Epoch: 6, Fresh: true, Node: replica.Address()}
	if n, err := replica.Do(t.Context(), fresh); err != nil || n.Role != mesh.Primary || n.Epoch != 6 {
		t.Fatalf("%+v, %v", n, err)
	}
	if got := replica.do(t, "DBSIZE"); got != int64(1) {
		t.Errorf("%v keys, want only the epoch", got)
	}
	replica.do(t, "SET", "new", "v")
	if _, err := replica.Do(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	if got := replica.do(t, "GET", "new"); got != "v" {
		t.Errorf("done twice, it lost what was written after it was done: %v", got)
	}
	if got := primary.do(t, "GET", "k"); got != "v" {
		t.Errorf("the other node's data: %v", got)
	}
}

func TestANodeThatIsFull(t *testing.T) {
	s := start(t, process.Redis{Managed: true, Args: []string{"--maxmemory", "1mb", "--maxmemory-policy", "noeviction"}}, nil)
	n := s.must(t, shards.Action{Op: shards.Promote, Epoch: 1})
	if err := s.redis.Set(t.Context(), "k", 1, 0).Err(); !redis.IsOOMError(err) {
		t.Fatalf("it is not full: %v", err)
	}
	if n.Role != mesh.Primary || n.Epoch != 1 {
		t.Errorf("%+v", n)
	}
	if n := s.must(t, shards.Action{Op: shards.Mirror, Epoch: 2}); n.Epoch != 2 {
		t.Errorf("%+v", n)
	}
	if n := s.must(t, shards.Action{Op: shards.Promote, Epoch: 3}); n.Epoch != 3 {
		t.Errorf("%+v", n)
	}
	if n := s.must(t, shards.Action{Op: shards.Demote, Epoch: 4, Of: "127.0.0.1:1"}); n.Role != mesh.Replica {
		t.Errorf("%+v", n)
	}
}

func TestDemote(t *testing.T) {
	primary, _ := shard(t)
	old := start(t, process.Redis{}, nil) // as users should not start it
	old.do(t, "SET", "k", "old")
	n := old.must(t, shards.Action{Op: shards.Demote, Epoch: 5, Of: primary.Address()})
	if n.Role != mesh.Replica || n.Of != primary.Address() {
		t.Errorf("%+v", n)
	}
	n = old.eventually(t, "linked", linked)
	if n.Epoch != 5 || n.ReplID != primary.probe(t).ReplID {
		t.Errorf("%+v", n)
	}
	if got := old.do(t, "EXISTS", "k"); got != int64(0) {
		t.Error("it still has what it had")
	}
	old.refused(t, shards.Action{Op: shards.Demote, Epoch: 4, Of: "127.0.0.1:1"}, 5)
	primary.refused(t, shards.Action{Op: shards.Demote, Epoch: 4, Of: old.Address()}, 5)
	primary.refused(t, shards.Action{Op: shards.Promote, Epoch: 4, Fresh: true}, 5)
}

func TestMirror(t *testing.T) {
	primary, replica := shard(t)
	if n := primary.must(t, shards.Action{Op: shards.Mirror, Epoch: 7}); n.Epoch != 7 || n.Role != mesh.Primary {
		t.Errorf("%+v", n)
	}
	replica.eventually(t, "of epoch 7", func(n shards.Node) bool { return n.Epoch == 7 })
	primary.refused(t, shards.Action{Op: shards.Mirror, Epoch: 6}, 7)
	if _, err := replica.Do(t.Context(), shards.Action{Op: shards.Mirror, Node: replica.Address(), Epoch: 8}); !redis.IsReadOnlyError(err) {
		t.Errorf("a replica: %v, want READONLY", err)
	}
}

func TestRestart(t *testing.T) {
	primary, replica := shard(t)
	replica.refused(t, shards.Action{Op: shards.Restart, Epoch: 4}, 5)
	before := replica.probe(t)
	n, err := replica.Do(t.Context(), shards.Action{Op: shards.Restart, Node: replica.Address(), Epoch: 5})
	if err != nil || n.RunID != before.RunID {
		t.Errorf("%+v, %v", n, err)
	}
	select {
	case <-replica.Done():
		if err := replica.Process.Err(); err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on")
	}
	_, err = primary.Do(t.Context(), shards.Action{Op: shards.Restart, Node: primary.Address(), Epoch: 5})
	if err == nil || !strings.Contains(err.Error(), "switch its shard") {
		t.Errorf("a primary: %v", err)
	}
	primary.probe(t)
}

func TestActionsOnNodesThatAreGone(t *testing.T) {
	for _, op := range []shards.Op{shards.Promote, shards.Demote, shards.Mirror, shards.Restart, shards.Handover} {
		t.Run(string(op), func(t *testing.T) {
			primary, replica := shard(t)
			s := replica
			if op == shards.Mirror {
				s = primary
			}
			client := node.New(s.Address(), nil, 200*time.Millisecond)
			defer client.Close()
			a := shards.Action{Op: op, Node: s.Address(), From: primary.Address(), Of: "127.0.0.1:1", Epoch: 6}
			if err := s.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			if _, err := client.Do(t.Context(), a); err == nil {
				t.Error("a hung node: no error")
			}
			if took := time.Since(begun); took > 2*time.Second {
				t.Errorf("a hung node took %s", took)
			}
			// It is in the midst of the next one when it dies.
			done := make(chan error)
			go func() {
				_, err := s.Do(t.Context(), a)
				done <- err
			}()
			select {
			case err := <-done:
				t.Fatalf("a hung node answered: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			s.Kill()
			if err := <-done; err == nil {
				t.Error("a node that died meanwhile: no error")
			}
			if _, err := client.Do(t.Context(), a); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a dead node: %v", err)
			}
		})
	}
}

func TestActionsThatCannotBeDone(t *testing.T) {
	s := managed(t)
	for _, a := range []shards.Action{{}, {Op: "dance"}, {Op: shards.Demote}, {Op: shards.Demote, Of: "nowhere"}} {
		if _, err := s.Do(t.Context(), a); err == nil {
			t.Errorf("%+v: no error", a)
		}
	}
}

// secured are nodes with TLS and a user with a password.
func secured(t *testing.T) (process.Redis, *mesh.RedisAccess) {
	t.Helper()
	dir := t.TempDir()
	if _, err := certs.WriteDevelopment(dir, certs.Development{}); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(file("password"), []byte("correct horse"), 0o600); err != nil {
		t.Fatal(err)
	}
	return process.Redis{Managed: true, User: "app", PasswordFile: file("password"),
			TLS: &process.RedisTLS{CA: file("ca.pem"), Cert: file("redis.pem"), Key: file("redis-key.pem")}},
		&mesh.RedisAccess{Username: "app", PasswordFile: file("password"), TLS: &mesh.TLSFiles{CAFile: file("ca.pem"), ServerName: "redis"}}
}

func TestActionsWithPasswordAndTLS(t *testing.T) {
	r, access := secured(t)
	first, second := start(t, r, access), start(t, r, access)
	first.must(t, shards.Action{Op: shards.Promote, Epoch: 1})
	second.must(t, shards.Action{Op: shards.Demote, Epoch: 1, Of: first.Address()})
	second.eventually(t, "linked", linked)
	first.do(t, "SET", "k", "v")
	if n := second.takesOver(t, first, 2); n.Role != mesh.Primary || n.Epoch != 2 {
		t.Errorf("%+v", n)
	}
	if got := second.do(t, "GET", "k"); got != "v" {
		t.Errorf("GET: %v", got)
	}
	first.eventually(t, "linked", linked)
	if _, err := first.Do(t.Context(), shards.Action{Op: shards.Restart, Node: first.Address(), Epoch: 2}); err != nil {
		t.Error(err)
	}

	plain := node.New(second.Address(), nil, timeout)
	defer plain.Close()
	if _, err := plain.Probe(t.Context()); err == nil {
		t.Error("a probe without TLS succeeds")
	}
	wrong := *access
	wrong.PasswordFile = filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(wrong.PasswordFile, []byte("battery staple"), 0o600); err != nil {
		t.Fatal(err)
	}
	stranger := node.New(second.Address(), &wrong, timeout)
	defer stranger.Close()
	if _, err := stranger.Probe(t.Context()); err == nil || strings.Contains(fmt.Sprint(err), "battery") {
		t.Errorf("a probe with a wrong password: %v", err)
	}
}
