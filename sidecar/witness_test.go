package sidecar

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/reports"
)

// newRedis makes a Redis that does not run yet.
func newRedis(t testing.TB) process.Redis {
	t.Helper()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return process.Redis{Port: ports[0], Dir: t.TempDir()}
}

func startRedis(t testing.TB, r process.Redis) *process.Process {
	t.Helper()
	p, err := r.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(time.Second) })
	return p
}

// info is a field of a Redis' INFO.
func info(t testing.TB, r process.Redis, section, field string) string {
	t.Helper()
	options, err := r.Options()
	if err != nil {
		t.Fatal(err)
	}
	all, err := newClient(t, options).InfoMap(t.Context(), section).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, fields := range all {
		if value, ok := fields[field]; ok {
			return value
		}
	}
	t.Fatalf("INFO has no %s", field)
	return ""
}

const (
	testInterval  = 20 * time.Millisecond
	testDownAfter = 200 * time.Millisecond
)

func TestAWitnessSaysWhatHappensToAPrimary(t *testing.T) {
	plane := startedPlane(t)
	r := newRedis(t)
	p := startRedis(t, r)
	first := info(t, r, "server", "run_id")
	ask := func(epoch uint64, run string) {
		plane.heard.ask(testInterval, testDownAfter, &reports.Target{Shard: "all-0", Epoch: epoch, Address: r.Address(), RunId: run})
	}
	ask(1, first)
	startReporting(t, nil, plane)
	plane.heard.waitVerdict(t, "all-0", false, "")

	// Hung: whoever waits for the answer would wait for ever.
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if v := plane.heard.waitVerdict(t, "all-0", true, "no answer"); v.SilentMs < uint64(testDownAfter.Milliseconds()) || v.Epoch != 1 || v.Address != r.Address() {
		t.Errorf("verdict %v", v)
	}
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	plane.heard.waitVerdict(t, "all-0", false, "")

	p.Kill()
	plane.heard.waitVerdict(t, "all-0", true, "refused")

	// Started again it answers, but the data is gone.
	startRedis(t, r)
	plane.heard.waitVerdict(t, "all-0", true, "another process")
	second := info(t, r, "server", "run_id")
	ask(2, second)
	if v := plane.heard.waitVerdict(t, "all-0", false, ""); v.Epoch != 2 {
		t.Errorf("verdict %v, want one on epoch 2", v)
	}

	// Made a replica it is no primary, whatever its data.
	options, err := r.Options()
	if err != nil {
		t.Fatal(err)
	}
	if err := newClient(t, options).ReplicaOf(t.Context(), "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	plane.heard.waitVerdict(t, "all-0", true, "replica of 127.0.0.1:1")
	plane.heard.ask(testInterval, testDownAfter)
	plane.heard.wait(t, func(h *heard) string {
		if len(h.verdicts) != 0 {
			return "want no verdict without a target"
		}
		return ""
	})
}

func TestAWitnessHasNoVerdictBeforeItKnows(t *testing.T) {
	r := newRedis(t)
	p := startRedis(t, r)
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Signal(syscall.SIGCONT) })
	w, a := &witness{probes: map[question]*probe{}}, newAsker()
	defer w.forget(a)
	begun := time.Now()
	err := w.ask(a, &reports.Instructions{IntervalMs: 20, DownAfterMs: 500, Targets: []*reports.Target{{Shard: "all-0", Epoch: 1, Address: r.Address()}}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		verdicts, down := w.verdicts(a)
		if len(verdicts) == 1 {
			if took := time.Since(begun); took < 500*time.Millisecond || down != 1 || !verdicts[0].Down {
				t.Errorf("%v after %v, want that it is down after 500ms", verdicts, took)
			}
			return
		}
		select {
		case <-a.wake:
		case <-time.After(10 * time.Second):
			t.Fatal("no verdict")
		}
	}
}

func TestAVerdictIsSentAtOnceAndRepeated(t *testing.T) {
	plane := startedPlane(t)
	r := newRedis(t)
	p := startRedis(t, r)
	plane.heard.ask(testInterval, testDownAfter, &reports.Target{Shard: "all-0", Epoch: 1, Address: r.Address()})
	startReporting(t, nil, plane)
	plane.heard.waitVerdict(t, "all-0", false, "")
	p.Kill()
	killed := time.Now()
	plane.heard.waitVerdict(t, "all-0", true, "refused")
	// The bound is generous: a machine that runs other tests may be slow.
	if took := time.Since(killed); took > 2*time.Second {
		t.Errorf("the verdict took %v", took)
	}
	plane.heard.mu.Lock()
	count := plane.heard.count
	plane.heard.mu.Unlock()
	plane.heard.wait(t, func(h *heard) string {
		if h.count < count+3 {
			return "want that the verdict is repeated"
		}
		return ""
	})
}

func TestTwoControlPlanesShareAProbe(t *testing.T) {
	r := newRedis(t)
	startRedis(t, r)
	target := &reports.Target{Shard: "all-0", Epoch: 1, Address: r.Address(), RunId: info(t, r, "server", "run_id")}
	first, second := startedPlane(t), startedPlane(t)
	other := &reports.Target{Shard: "all-1", Epoch: 9, Address: shards[1]}
	first.heard.ask(testInterval, testDownAfter, target)
	second.heard.ask(testInterval, testDownAfter, other, target)
	reporting, _ := startReporting(t, nil, first, second)
	first.heard.waitVerdict(t, "all-0", false, "")
	second.heard.waitVerdict(t, "all-0", false, "")
	second.heard.waitVerdict(t, "all-1", false, "")
	reporting.witness.mu.Lock()
	probes := len(reporting.witness.probes)
	reporting.witness.mu.Unlock()
	if probes != 2 {
		t.Errorf("%d probes, want 2", probes)
	}
	// What one gives up stays for the other.
	first.heard.ask(testInterval, testDownAfter)
	first.heard.wait(t, func(h *heard) string {
		if len(h.verdicts) != 0 {
			return "want no verdicts"
		}
		return ""
	})
	second.heard.waitVerdict(t, "all-0", false, "")
	second.heard.ask(testInterval, testDownAfter)
	eventually(t, func() error {
		reporting.witness.mu.Lock()
		defer reporting.witness.mu.Unlock()
		if n := len(reporting.witness.probes); n != 0 {
			return fmt.Errorf("%d probes are left", n)
		}
		return nil
	})
}

func TestAWitnessLogsInAndShowsNoSecret(t *testing.T) {
	const secret = "open-sesame"
	r := newRedis(t)
	r.User, r.PasswordFile = "app", filepath.Join(r.Dir, "password")
	if err := os.WriteFile(r.PasswordFile, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	startRedis(t, r)
	access, err := json.Marshal(&mesh.RedisAccess{Username: "app", PasswordFile: r.PasswordFile})
	if err != nil {
		t.Fatal(err)
	}
	plane := startedPlane(t)
	target := &reports.Target{Shard: "all-0", Epoch: 1, Address: r.Address(), Access: string(access)}
	plane.heard.ask(testInterval, testDownAfter, target)
	startReporting(t, nil, plane)
	plane.heard.waitVerdict(t, "all-0", false, "")
	wrong := filepath.Join(r.Dir, "wrong")
	if err := os.WriteFile(wrong, []byte(secret+"!"), 0o600); err != nil {
		t.Fatal(err)
	}
	plane.heard.ask(testInterval, testDownAfter, &reports.Target{Shard: "all-0", Epoch: 1, Address: r.Address(), Access: strings.Replace(string(access), r.PasswordFile, wrong, 1)})
	if v := plane.heard.waitVerdict(t, "all-0", true, "WRONGPASS"); strings.Contains(v.Error, secret) {
		t.Errorf("the verdict shows the password: %v", v)
	}
}

func TestBadInstructionsChangeNothing(t *testing.T) {
	plane := startedPlane(t)
	good := &reports.Target{Shard: "all-0", Epoch: 1, Address: shards[0]}
	plane.heard.ask(testInterval, testDownAfter, good)
	r, _ := startReporting(t, nil, plane)
	plane.heard.waitVerdict(t, "all-0", false, "")
	many := make([]*reports.Target, reports.Max+1)
	for i := range many {
		many[i] = &reports.Target{Shard: strconv.Itoa(i), Address: shards[0]}
	}
	for want, targets := range map[string][]*reports.Target{
		"targets[1].address":                {good, {Shard: "all-1", Address: "redis:1"}},
		"targets[1].access":                 {good, {Shard: "all-1", Address: shards[1], Access: "{"}},
		"targets has 10001 entries and may": many,
	} {
		plane.heard.ask(testInterval, testDownAfter, targets...)
		eventually(t, func() error {
			if s := r.status(); len(s) != 1 || !s[0].Connected || !strings.Contains(s[0].Problem, want) || s[0].Targets != 1 {
				return fmt.Errorf("status %+v, want a problem with %q and one target", s, want)
			}
			return nil
		})
	}
	plane.heard.ask(testInterval, testDownAfter, good, &reports.Target{Shard: "all-1", Epoch: 1, Address: shards[1]})
	plane.heard.waitVerdict(t, "all-1", false, "")
	if s := r.status(); s[0].Problem != "" {
		t.Errorf("status %+v, want no problem any more", s)
	}
}
