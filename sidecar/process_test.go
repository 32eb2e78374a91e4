package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// kill sends Envoy a signal and returns its pid.
func (s *sidecar) kill(t *testing.T, signal syscall.Signal) int {
	t.Helper()
	pid := s.status(t).Envoy.PID
	if pid == 0 { // would mean the test itself, and all that it belongs to
		t.Fatal("no Envoy runs")
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatalf("signal Envoy (pid %d): %v", pid, err)
	}
	return pid
}

func (s *sidecar) wantRestart(t *testing.T, reason string) {
	t.Helper()
	if got := s.status(t).Envoy.Restarts[reason]; got != 1 {
		t.Errorf("%d restarts because of %s, want 1", got, reason)
	}
	want := fmt.Sprintf(`cachemesh_sidecar_envoy_restarts_total{reason=%q,region="here",sidecar="here-0"} 1`, reason)
	if _, body, err := s.get("/metrics"); err != nil || !strings.Contains(body, want) {
		t.Errorf("/metrics (error %v) lacks %s", err, want)
	}
}

func TestKilledEnvoyServesAgain(t *testing.T) {
	s, plane := startServing(t)
	client := s.client(t)
	pid := s.kill(t, syscall.SIGKILL)
	began := time.Now()
	eventually(t, func() error { return client.Ping(t.Context()).Err() })
	eventually(t, func() error { return client.Get(t.Context(), t.Name()).Err() })
	t.Logf("serving again after %v", time.Since(began))
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("serving again after %v", took)
	}
	if now := s.status(t).Envoy.PID; now == pid || now == 0 {
		t.Errorf("Envoy has pid %d, killed was %d", now, pid)
	}
	s.wantRestart(t, "SIGKILL")
	eventually(t, func() error { // sockets that the killed one left are in nobody's way
		code, body, err := s.get("/readyz")
		if err == nil && code != http.StatusOK {
			err = errors.New(body)
		}
		return err
	})
	about := plane.lastNode().GetMetadata().GetFields()["cachemesh"].GetStructValue().GetFields()
	if got := about["envoy_restarts"].GetNumberValue(); got != 1 {
		t.Errorf("the control plane learns of %v restarts, want 1", got)
	}
}

func TestPacketThatKillsEnvoyIsRecoveredFrom(t *testing.T) {
	s, _ := startServing(t)
	conn, err := net.Dial("tcp", s.config.Addresses.Redis)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Envoy 1.40 throws where nothing catches when an inline command has a quoted \x with too few digits.
	if _, err := conn.Write([]byte(`PING "x\x4"` + "\r\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if s.status(t).Envoy.Restarts["SIGABRT"] == 0 {
			return errors.New("Envoy did not crash")
		}
		return s.client(t).Get(t.Context(), t.Name()).Err()
	})
	s.wantRestart(t, "SIGABRT")
	if log := s.log.String(); !strings.Contains(log, "SIGABRT") || !strings.Contains(log, "std::terminate") {
		t.Error("the log does not say why Envoy ended")
	}
}

func TestHungEnvoyIsReportedAndLeftAlone(t *testing.T) {
	s, _ := startServing(t)
	pid := s.kill(t, syscall.SIGSTOP)
	defer syscall.Kill(pid, syscall.SIGCONT)
	eventually(t, func() error {
		if s.status(t).Envoy.Up || !strings.Contains(s.log.String(), "does not answer") {
			return errors.New("a hung Envoy counts as up")
		}
		return nil
	})
	s.kill(t, syscall.SIGCONT)
	eventually(t, func() error {
		if st := s.status(t).Envoy; !st.Up || st.PID != pid {
			return fmt.Errorf("Envoy is %+v, want pid %d up", st, pid)
		}
		return s.client(t).Get(t.Context(), t.Name()).Err()
	})
}

// startChild runs the sidecar's agent as a process of its own.
func (s *sidecar) startChild(t *testing.T) *process.Process {
	t.Helper()
	c := s.config
	c.Logger = nil
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := process.Start(ctx, process.Spec{
		Name: "agent", Path: os.Args[0], Env: []string{childConfig + "=" + string(config)}, Log: filepath.Join(c.Dir, "agent.log"),
		Ready: func(context.Context, int) error {
			code, body, err := s.get("/readyz")
			if err == nil && code != http.StatusOK {
				err = errors.New(body)
			}
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(10 * time.Second) })
	return p
}

func TestEnvoyOutlivesAKilledAgentAndIsAdopted(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, plane.address)
	first := s.startChild(t)
	s.waitSaved(t)
	pid := s.status(t).Envoy.PID
	requests := s.startLoad(t)
	requests.waitMore(t, 10)

	first.Kill()
	requests.waitMore(t, 100)
	second := s.startChild(t)
	requests.waitMore(t, 100)
	if st := s.status(t).Envoy; st.PID != pid || !st.Adopted {
		t.Errorf("the second agent has Envoy %+v, want pid %d adopted", st, pid)
	}
	s.waitSource(t, fromControlPlane)
	s.waitSaved(t)
	requests.finish(t)

	// The exit of an adopted Envoy is seen as well as a child's.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return s.client(t).Get(t.Context(), t.Name()).Err() })
	s.wantRestart(t, "unknown")

	pid = s.status(t).Envoy.PID
	second.Stop(10 * time.Second)
	if err := second.Err(); err != nil {
		t.Errorf("the agent ended with %v after SIGTERM", err)
	}
	if syscall.Kill(pid, 0) == nil {
		t.Errorf("Envoy (pid %d) outlives a clean stop", pid)
	}
	for _, left := range []string{recordFile, xdsSocket, s.config.Addresses.Socket, s.config.Addresses.SocketRESP3} {
		if _, err := os.Lstat(filepath.Join(s.config.Dir, left)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a clean stop leaves %s (%v)", left, err)
		}
	}
}

func TestEnvoyOfAnotherConfigurationIsReplaced(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.startChild(t).Kill()
	s.config.Addresses.Redis = freeAddresses(t, 1)[0]
	before, err := os.ReadFile(filepath.Join(s.config.Dir, recordFile))
	if err != nil {
		t.Fatal(err)
	}
	s.start(t)
	s.waitServing(t)
	if s.status(t).Envoy.Adopted {
		t.Error("an Envoy with other addresses was adopted")
	}
	if !strings.Contains(s.log.String(), "another configuration") {
		t.Error("the log does not say why the earlier Envoy was ended")
	}
	var r record
	if err := json.Unmarshal(before, &r); err != nil {
		t.Fatal(err)
	}
	if started, err := process.StartTime(r.PID); err == nil && started == r.StartTime && !zombie(t, r.PID) {
		t.Errorf("the earlier Envoy (pid %d) still runs", r.PID)
	}
}

func zombie(t *testing.T, pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

func TestProcessThatIsNotOursIsLeftAlone(t *testing.T) {
	stranger, err := process.Start(t.Context(), process.Spec{Name: "sleep", Path: "/bin/sleep", Args: []string{"60"}})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Stop(time.Second)
	started, err := process.StartTime(stranger.PID())
	if err != nil {
		t.Fatal(err)
	}
	l := launch{dir: t.TempDir()}
	for name, content := range map[string]string{
		"another start time": fmt.Sprintf(`{"pid": %d, "start_time": %d}`, stranger.PID(), started-1),
		"damaged":            fmt.Sprintf(`{"pid": %d`, stranger.PID()),
		"no pid":             `{}`,
	} {
		if err := os.WriteFile(filepath.Join(l.dir, recordFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := l.adopt(t.Context(), time.Second); err == nil {
			t.Errorf("%s: adopted", name)
		}
		select {
		case <-stranger.Done():
			t.Fatalf("%s: a process that is not ours was ended", name)
		default:
		}
	}
}

func TestRequestsInFlightFinishWhenASidecarStops(t *testing.T) {
	s, _ := startServing(t)
	client := newClient(t, &redis.Options{Addr: s.config.Addresses.Redis, Protocol: 2, PoolSize: 4})
	// The shards hold back their replies, so that the requests are in flight when the sidecar stops.
	for _, address := range shards {
		direct := newClient(t, &redis.Options{Addr: address})
		if err := direct.Do(t.Context(), "CLIENT", "PAUSE", 700, "ALL").Err(); err != nil {
			t.Fatal(err)
		}
	}
	const requests = 4
	replies := make(chan error, requests)
	for range requests {
		go func() { replies <- client.Set(context.Background(), "drain", "value", 0).Err() }()
	}
	eventually(t, func() error {
		_, body, err := newAdmin(s.config.Admin).do(t.Context(), http.MethodGet, "/stats?filter=redis.redis.downstream_rq_active")
		if want := fmt.Sprintf(": %d\n", requests); err == nil && !strings.HasSuffix(string(body), want) {
			err = fmt.Errorf("requests in flight: %s, want %d", body, requests)
		}
		return err
	})
	s.stop(t)
	for range requests {
		if err := <-replies; err != nil {
			t.Errorf("a request in flight failed: %v", err)
		}
	}
}
