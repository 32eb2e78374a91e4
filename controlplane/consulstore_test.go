package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

// consulServers are Consul servers of one datacenter, not started yet.
func consulServers(t *testing.T, n int) []process.Consul {
	t.Helper()
	ports, err := process.FreePorts(4 * n)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	all := make([]process.Consul, n)
	for i := range all {
		p := ports[4*i:]
		all[i] = process.Consul{Datacenter: "east", HTTP: p[0], RPC: p[1], LAN: p[2], WAN: p[3], Dir: dir}
		if n > 1 {
			all[i].Args = []string{"-bootstrap-expect=" + strconv.Itoa(n)}
			for j := range n {
				if j != i {
					all[i].Args = append(all[i].Args, "-retry-join=127.0.0.1:"+strconv.Itoa(ports[4*j+2]))
				}
			}
		}
	}
	return all
}

func startConsuls(t *testing.T, servers ...process.Consul) []*process.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	running := make([]*process.Process, len(servers))
	var group errgroup.Group
	for i, s := range servers {
		group.Go(func() (err error) {
			running[i], err = s.Start(ctx)
			return err
		})
	}
	err := group.Wait()
	for _, p := range running {
		if p != nil {
			t.Cleanup(p.Kill)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return running
}

// openStore is a store in a Consul, with its copy in a folder of its own.
func openStore(t *testing.T, c process.Consul, name string) *consulStore {
	t.Helper()
	s, err := storeSpec{Listen: name, Dir: filepath.Join(c.Dir, name), Consul: c.Address()}.open()
	if err != nil {
		t.Fatal(err)
	}
	return s.(*consulStore)
}

func consulKeys(t *testing.T, c process.Consul) consul.Keys {
	t.Helper()
	client, err := consul.New(mesh.ConsulSpec{Address: c.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client.Keys("east")
}

func TestOneControlPlaneLeadsByConsulAndHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	c := consulServers(t, 1)[0]
	startConsuls(t, c)
	first := openStore(t, c, "first")
	changes, stop := runStore(t, first)
	until(t, changes, "the first leads", first, leads(first))
	second := openStore(t, c, "second")
	seen, _ := runStore(t, second)
	until(t, seen, "the second knows who leads", second, func() bool { return second.leader() == "http://first" })
	if first.leader() != "http://first" || first.problem() != nil || !hasState(first, "", 0)() {
		t.Errorf("the leader: %q, problem %v", first.leader(), first.problem())
	}

	mustWrite(t, first, `{"a":0}`, 0)
	until(t, seen, "the second reads", second, hasState(second, `{"a":0}`, 1))
	const writes = 200
	began := time.Now()
	for i := range uint64(writes) {
		mustWrite(t, first, `{"a":`+strconv.FormatUint(i, 10)+`}`, i+1)
	}
	t.Logf("a write takes %s", time.Since(began)/writes)
	until(t, seen, "the second reads the last", second, hasState(second, `{"a":199}`, writes+1))
	if leads(second)() || !leads(first)() {
		t.Error("the wrong one leads")
	}
	if _, err := second.write(t.Context(), []byte(`{}`), writes+1); !errors.Is(err, errNotLeading) {
		t.Errorf("a follower's write: %v", err)
	}
	if _, err := first.write(t.Context(), []byte(`{}`), writes); !errors.Is(err, errConflict) {
		t.Errorf("a write upon an old revision: %v", err)
	}

	began = time.Now()
	stop()
	until(t, seen, "the second takes over", second, leads(second))
	t.Logf("handed over in %s", time.Since(began))
	mustWrite(t, second, `{"a":"second"}`, writes+1)
	copied := filepath.Join(c.Dir, "second", stateFile)
	waitFor(t, "the copy is written", func() bool {
		r, err := readCopy(copied)
		return err == nil && string(r.State) == `{"a":"second"}`
	})
}

func TestAKilledLeaderIsDeposedAndAStoppedOneCannotWriteAfterwards(t *testing.T) {
	t.Parallel()
	c := consulServers(t, 1)[0]
	startConsuls(t, c)
	killed := startStore(t, storeSpec{Consul: c.Address()})
	waitFor(t, "it leads", func() bool { return killed.now().Leads })
	if answer := killed.put(`{"a":1}`, 0); answer.Error != "" {
		t.Fatal(answer.Error)
	}
	stopped := startStore(t, storeSpec{Consul: c.Address()})
	waitFor(t, "the second follows", func() bool { return stopped.now().Leader == killed.url && stopped.now().Revision == 1 })
	began := time.Now()
	killed.Kill()
	waitFor(t, "the second takes over", func() bool { return stopped.now().Leads })
	t.Logf("taken over from a killed leader after %s", time.Since(began))
	if answer := stopped.put(`{"a":2}`, 1); answer.Error != "" {
		t.Fatal(answer.Error)
	}

	s := openStore(t, c, "third")
	seen, _ := runStore(t, s)
	until(t, seen, "the third follows", s, hasState(s, `{"a":2}`, 2))
	began = time.Now()
	if err := stopped.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, seen, "the third takes over", s, leads(s))
	t.Logf("taken over from a stopped leader after %s", time.Since(began))
	mustWrite(t, s, `{"a":3}`, 2)
	if err := stopped.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if answer := stopped.put(`{"a":"late"}`, 2); answer.Leads || !strings.HasPrefix(answer.Error, errNotLeading.Error()) && !strings.HasPrefix(answer.Error, errConflict.Error()) {
		t.Errorf("a write by who led before: %+v", answer)
	}
	waitFor(t, "who led before follows", func() bool {
		answer := stopped.now()
		return !answer.Leads && answer.Leader == "http://third" && answer.State == `{"a":3}`
	})
	if !leads(s)() || !hasState(s, `{"a":3}`, 3)() {
		t.Error("it cost the leader its lead")
	}
}

// Whatever ends a session, the next leader starts when the last has stopped.
func TestALeaderWhoseSessionIsEndedStopsBeforeAnotherStarts(t *testing.T) {
	t.Parallel()
	c := consulServers(t, 1)[0]
	startConsuls(t, c)
	first, second := openStore(t, c, "first"), openStore(t, c, "second")
	changes, _ := runStore(t, first)
	until(t, changes, "the first leads", first, leads(first))
	seen, _ := runStore(t, second)
	until(t, seen, "the second follows", second, func() bool { return second.leader() == "http://first" })
	keys := consulKeys(t, c)
	lock, err := keys.Read(t.Context(), first.lockKey)
	if err != nil {
		t.Fatal(err)
	}
	bound := first.leadsUntil()
	if err := keys.Destroy(t.Context(), lock.Session); err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	until(t, changes, "the first knows", first, func() bool {
		if later := first.leadsUntil(); later.After(bound) {
			bound = later
		}
		return !leads(first)()
	})
	t.Logf("noticed after %s", time.Since(ended))
	// Either may be next.
	next, nextChanges := second, seen
	for start := time.Now(); !leads(first)() && !leads(second)(); {
		if time.Since(start) > 30*time.Second {
			t.Fatal("nobody leads after 30 s")
		}
		select {
		case <-changes:
		case <-seen:
		case <-time.After(time.Second):
		}
	}
	if leads(first)() {
		next, nextChanges = first, changes
	}
	began := time.Now()
	t.Logf("the next leads after %s", began.Sub(ended))
	if began.Before(bound.Add(shards.DefaultTerms.Margin/2)) || began.Sub(ended) < shards.DefaultTerms.LockDelay {
		t.Errorf("a leader from %s on, and another might have led until %s", began, bound)
	}
	mustWrite(t, next, `{"a":1}`, 0)
	until(t, nextChanges, "it leads on", next, leads(next))
}

func TestALeaderWithoutAConsulThatHasALeaderStopsAndGoesOnLater(t *testing.T) {
	t.Parallel()
	servers := consulServers(t, 3)
	running := startConsuls(t, servers...)
	s := openStore(t, servers[0], "here")
	changes, _ := runStore(t, s)
	until(t, changes, "it leads", s, leads(s))
	writing := time.Now()
	mustWrite(t, s, `{"a":1}`, 0)
	t.Logf("a write to three servers takes %s", time.Since(writing))
	running[1].Kill()
	running[2].Kill()
	began := time.Now()
	waitFor(t, "it stops", func() bool { return !leads(s)() })
	t.Logf("stopped after %s", time.Since(began))
	if _, err := s.write(t.Context(), []byte(`{"a":2}`), 1); !errors.Is(err, errNotLeading) {
		t.Errorf("write without Consul's leader: %v", err)
	}
	until(t, changes, "it says why", s, func() bool { return s.problem() != nil })
	t.Log(s.problem())
	if !hasState(s, `{"a":1}`, 1)() {
		t.Error("the state is not known any more")
	}
	startConsuls(t, servers[1], servers[2])
	back := time.Now()
	until(t, changes, "it leads again", s, leads(s))
	t.Logf("led again %s after Consul did", time.Since(back))
	mustWrite(t, s, `{"a":2}`, 1)
	until(t, changes, "nothing is wrong any more", s, func() bool { return s.problem() == nil })
}

func TestAConsulThatLostTheStateGetsItBack(t *testing.T) {
	t.Parallel()
	c := consulServers(t, 1)[0]
	running := startConsuls(t, c)
	first, second := openStore(t, c, "first"), openStore(t, c, "second")
	changes, stop := runStore(t, first)
	until(t, changes, "the first leads", first, leads(first))
	seen, stopSecond := runStore(t, second)
	mustWrite(t, first, `{"a":1}`, 0)
	mustWrite(t, first, `{"a":2}`, 1)
	until(t, seen, "the second reads", second, hasState(second, `{"a":2}`, 2))

	running[0].Kill()
	if err := os.RemoveAll(c.Data()); err != nil {
		t.Fatal(err)
	}
	running = startConsuls(t, c)
	keys := consulKeys(t, c)
	stored := func() (record, consul.Pair) {
		p, err := keys.Read(t.Context(), first.stateKey)
		if err != nil {
			return record{}, p
		}
		r, _ := first.decode(p)
		return r, p
	}
	waitFor(t, "the state is there again", func() bool { r, _ := stored(); return string(r.State) == `{"a":2}` && r.Revision == 3 })
	until(t, changes, "the first has it", first, hasState(first, `{"a":2}`, 3))
	until(t, seen, "the second has it", second, hasState(second, `{"a":2}`, 3))

	// Somebody removes it, or writes rubbish, or something older, while a leader looks on.
	leader, leaderChanges := first, changes
	if leads(second)() {
		leader, leaderChanges = second, seen
	}
	until(t, leaderChanges, "one leads", leader, leads(leader))
	old, _ := newRecord([]byte(`{"a":1}`), 1, "somebody")
	packed, err := old.pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range [][]byte{[]byte("rubbish"), packed} {
		before, _ := stored()
		overwrite(t, keys, first.stateKey, value)
		waitFor(t, "the state is there again", func() bool { r, _ := stored(); return r.Revision > before.Revision && string(r.State) == `{"a":2}` })
		until(t, leaderChanges, "the leader leads on", leader, func() bool { r, _ := stored(); return leads(leader)() && hasState(leader, `{"a":2}`, r.Revision)() })
	}
	_, revision := leader.read()
	mustWrite(t, leader, `{"a":3}`, revision)
	until(t, changes, "the first has it", first, hasState(first, `{"a":3}`, revision+1))

	// Nobody runs while it is lost, nor Consul when the next starts.
	stop()
	stopSecond()
	overwrite(t, keys, first.stateKey, packed)
	running[0].Kill()
	third := openStore(t, c, "first")
	changes, _ = runStore(t, third)
	if !hasState(third, `{"a":3}`, revision+1)() {
		t.Error("the copy is not read")
	}
	until(t, changes, "it says that Consul is gone", third, func() bool { return third.problem() != nil })
	if _, err := third.write(t.Context(), []byte(`{}`), revision+1); !errors.Is(err, errNotLeading) || leads(third)() {
		t.Errorf("a write upon the copy: %v", err)
	}
	startConsuls(t, c)
	until(t, changes, "it leads with the newer state", third, func() bool { return leads(third)() && hasState(third, `{"a":3}`, revision+2)() })
	if r, _ := stored(); string(r.State) != `{"a":3}` || r.Revision != revision+2 {
		t.Errorf("Consul has %+v", r)
	}
	until(t, changes, "nothing is wrong any more", third, func() bool { return third.problem() == nil })
}

// overwrite sets a key as an operator would, whatever it holds.
func overwrite(t *testing.T, keys consul.Keys, key string, value []byte) {
	t.Helper()
	const lock = "operator"
	var session string
	waitFor(t, "Consul has its own node in the catalogue", func() bool {
		var err error
		session, err = keys.NewSession(t.Context(), "test", 10*time.Second, time.Second)
		return err == nil
	})
	if ok, err := keys.Acquire(t.Context(), session, lock, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	before, err := keys.Read(t.Context(), key)
	if err == nil {
		_, err = keys.Write(t.Context(), key, value, before.Index, session, lock)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(keys.Release(t.Context(), session, lock), keys.Destroy(t.Context(), session)); err != nil {
		t.Fatal(err)
	}
}

func TestRubbishWhereNothingIsKnownIsAProblemThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	c := consulServers(t, 1)[0]
	startConsuls(t, c)
	s := openStore(t, c, "here")
	overwrite(t, consulKeys(t, c), s.stateKey, []byte("rubbish"))
	changes, _ := runStore(t, s)
	until(t, changes, "it says so", s, func() bool {
		return s.problem() != nil && strings.Contains(s.problem().Error(), "the key cachemesh/home/state") && strings.Contains(s.problem().Error(), "remove it")
	})
	if leads(s)() {
		t.Error("it leads from nothing beside a state that it cannot read")
	}
}

func TestAStateThatIsTooLargeIsRefusedAndChangesNothing(t *testing.T) {
	t.Parallel()
	c := consulServers(t, 1)[0]
	startConsuls(t, c)
	s := openStore(t, c, "here")
	changes, _ := runStore(t, s)
	until(t, changes, "it leads", s, leads(s))
	mustWrite(t, s, `{"a":1}`, 0)
	large := func(n int) []byte {
		random := make([]byte, n)
		rand.Read(random)
		return []byte(`"` + base64.StdEncoding.EncodeToString(random) + `"`)
	}
	if _, err := s.write(t.Context(), large(600_000), 1); !errors.Is(err, consul.ErrTooLarge) || !strings.Contains(err.Error(), "txn_max_req_len") {
		t.Errorf("a state that is too large: %v", err)
	}
	if !hasState(s, `{"a":1}`, 1)() || !leads(s)() {
		t.Error("it changed something")
	}
	mustWrite(t, s, `"`+strings.Repeat("shard ", 500_000)+`"`, 1) // packed it is small
	mustWrite(t, s, string(large(300_000)), 2)
}
