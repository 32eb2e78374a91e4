package controlplane

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

// sights collects what health reports.
type sights struct {
	mu   sync.Mutex
	last map[string]shards.Node
	good map[string][]time.Time
	bad  map[string]int
}

func (s *sights) report(n shards.Node, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.bad[n.Address]++
		return
	}
	s.last[n.Address] = n
	s.good[n.Address] = append(s.good[n.Address], time.Now())
}

// forget begins to count anew.
func (s *sights) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.good, s.bad = map[string]shards.Node{}, map[string][]time.Time{}, map[string]int{}
}

func (s *sights) wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		done := is()
		s.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestHealth(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	ports, err := process.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var nodes []process.Redis
	var processes []*process.Process
	for _, port := range ports {
		r := process.Redis{Port: port, Dir: dir, Managed: true}
		p, err := r.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Stop(time.Second)
		nodes, processes = append(nodes, r), append(processes, p)
	}
	hung, lively, dying := nodes[0].Address(), nodes[1].Address(), nodes[2].Address()
	all := map[string]*mesh.RedisAccess{hung: nil, lively: nil, dying: nil}

	h := newHealth()
	s := &sights{}
	s.forget()
	h.want(20*time.Millisecond, 300*time.Millisecond, all) // before it runs
	ended := make(chan error)
	go func() { ended <- h.run(ctx, s.report) }()
	s.wait(t, "all are seen", func() bool { return len(s.last) == 3 })
	s.mu.Lock()
	if n := s.last[lively]; n.Role != mesh.Replica || n.RunID == "" {
		t.Errorf("%+v", n)
	}
	first := s.last[dying].RunID
	s.mu.Unlock()

	// An epoch that is written later is read in time by who must know.
	client := redis.NewClient(&redis.Options{Addr: lively, DisableIdentity: true})
	defer client.Close()
	if err := client.ReplicaOf(ctx, "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	s.wait(t, "it is a primary", func() bool { return s.last[lively].Role == mesh.Primary })
	if err := client.Set(ctx, node.EpochKey, 7, 0).Err(); err != nil {
		t.Fatal(err)
	}
	h.forget()
	s.wait(t, "its epoch is seen", func() bool { return s.last[lively].Epoch == 7 })

	// One that hangs and one that is dead delay nobody.
	if err := processes[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	processes[2].Kill()
	s.forget()
	s.wait(t, "failures of both", func() bool { return s.bad[hung] >= 3 && s.bad[dying] >= 3 })
	s.mu.Lock()
	if good, bad := len(s.good[lively]), s.bad[hung]; good < 4*bad {
		t.Errorf("%d answers of the living node while the hung one gave none %d times", good, bad)
	}
	if len(s.good[hung]) > 0 || len(s.good[dying]) > 0 || s.bad[lively] > 0 {
		t.Errorf("answers: %v, failures: %v", s.good, s.bad)
	}
	s.mu.Unlock()

	if err := processes[0].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	again, err := nodes[2].Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop(time.Second)
	s.wait(t, "both are back, one as another process", func() bool { return len(s.good[hung]) > 0 && s.last[dying].RunID != "" && s.last[dying].RunID != first })

	// Another way to log in counts at once; a node that is not wanted is not asked again.
	h.want(20*time.Millisecond, 300*time.Millisecond, map[string]*mesh.RedisAccess{lively: {PasswordFile: dir + "/none"}})
	s.wait(t, "the file is missed once", func() bool { return s.bad[lively] > 0 })
	s.forget() // also what was under way
	s.wait(t, "the file is missed", func() bool { return s.bad[lively] >= 3 })
	s.mu.Lock()
	if len(s.good) > 0 || len(s.bad) > 1 {
		t.Errorf("answers: %v, failures: %v", s.good, s.bad)
	}
	s.mu.Unlock()

	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	s.forget()
	h.want(20*time.Millisecond, 300*time.Millisecond, all) // too late, and harmless
}
