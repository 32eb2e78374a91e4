package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/process"
)

// childConfig is the environment variable that makes the test binary an agent with this configuration, so that
// tests can kill one.
const childConfig = "CACHEMESH_TEST_SIDECAR"

// shards are the Redis servers behind all sidecars.
var shards []string

func TestMain(m *testing.M) {
	if config := os.Getenv(childConfig); config != "" {
		os.Exit(runChild(config))
	}
	os.Exit(runTests(m))
}

func runChild(config string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var c Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if err := Run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runTests(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "sidecar")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ports, err := process.FreePorts(2)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, port := range ports {
		server := process.Redis{Port: port, Dir: dir}
		p, err := server.Start(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer p.Stop(time.Second)
		shards = append(shards, server.Address())
	}
	return m.Run()
}

// sidecar is a sidecar under test.
type sidecar struct {
	config Config
	log    *lockedBuffer
	cancel context.CancelFunc
	done   chan error
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newSidecar makes a sidecar that does not run yet.
func newSidecar(t testing.TB, planes ...string) *sidecar {
	t.Helper()
	path, err := process.Find("envoy")
	if err != nil {
		t.Fatal(err)
	}
	// A test's own directory would make socket paths too long.
	dir, err := os.MkdirTemp("", "sidecar")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := freeAddresses(t, 4)
	s := &sidecar{log: new(lockedBuffer), config: Config{
		Name: "here-0", Region: "here", Dir: dir, ControlPlanes: planes, Envoy: path, Admin: at[0], Metrics: at[1],
		Addresses:    envoy.Addresses{Redis: at[2], RedisRESP3: at[3], Socket: "redis.sock", SocketRESP3: "redis3.sock"},
		DrainTimeout: time.Second, Version: "test",
	}}
	s.config.Logger = slog.New(slog.NewTextHandler(s.log, nil))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the sidecar's log:\n%s", s.log)
		}
	})
	return s
}

func (s *sidecar) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	go func() { s.done <- Run(ctx, s.config) }()
	t.Cleanup(func() { s.stop(t) })
}

// stop ends a running sidecar as its context would.
func (s *sidecar) stop(t testing.TB) {
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	if err := <-s.done; err != nil {
		t.Errorf("the sidecar ended with: %v", err)
	}
}

// startServing starts a control plane that serves both shards, and a sidecar, and waits until that serves too.
func startServing(t testing.TB) (*sidecar, *controlPlane) {
	t.Helper()
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.start(t)
	s.waitServing(t)
	return s, plane
}

func (s *sidecar) waitServing(t testing.TB) {
	t.Helper()
	client := s.client(t)
	eventually(t, func() error { return client.Set(t.Context(), t.Name(), "value", 0).Err() })
}

// waitSaved waits until the resources that Envoy has are on disk.
func (s *sidecar) waitSaved(t testing.TB) {
	t.Helper()
	eventually(t, func() error {
		saved, err := loadResources(filepath.Join(s.config.Dir, resourcesFile))
		if err != nil {
			return err
		}
		if got, want := saved.version(), s.status(t).XDS.Version; saved == nil || got != want {
			return fmt.Errorf("version %s is saved, Envoy has %s", got, want)
		}
		return nil
	})
}

func (s *sidecar) waitSource(t testing.TB, want string) {
	t.Helper()
	eventually(t, func() error {
		if got := s.status(t).XDS.Source; got != want {
			return fmt.Errorf("resources come from %q, want %q", got, want)
		}
		return nil
	})
}

// client is a Redis client that never retries.
func (s *sidecar) client(t testing.TB) *redis.Client {
	return newClient(t, &redis.Options{Addr: s.config.Addresses.Redis, Protocol: 2})
}

func newClient(t testing.TB, o *redis.Options) *redis.Client {
	o.MaxRetries, o.DisableIdentity = -1, true
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *sidecar) status(t testing.TB) Status {
	t.Helper()
	var status Status
	code, body, err := s.get("/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &status)
	}
	if err != nil || code != http.StatusOK {
		t.Fatalf("/status: code %d, error %v", code, err)
	}
	return status
}

func (s *sidecar) get(path string) (int, string, error) {
	resp, err := http.Get("http://" + s.config.Metrics + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// eventually fails the test if f does not return nil within a generous time.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	eventuallyWithin(t, 15*time.Second, f)
}

func eventuallyWithin(t testing.TB, most time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(most)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestApplicationsReachRedisOverEveryListener(t *testing.T) {
	s, plane := startServing(t)
	s.waitSaved(t)
	for _, at := range []*redis.Options{
		{Addr: s.config.Addresses.Redis, Protocol: 2},
		{Addr: s.config.Addresses.RedisRESP3, Protocol: 3},
		{Network: "unix", Addr: filepath.Join(s.config.Dir, s.config.Addresses.Socket), Protocol: 2},
		{Network: "unix", Addr: filepath.Join(s.config.Dir, s.config.Addresses.SocketRESP3), Protocol: 3},
	} {
		if got, err := newClient(t, at).Get(t.Context(), t.Name()).Result(); err != nil || got != "value" {
			t.Errorf("GET over %s: %q, %v", at.Addr, got, err)
		}
	}
	eventually(t, func() error {
		if code, body, err := s.get("/readyz"); err != nil || code != http.StatusOK {
			return fmt.Errorf("/readyz: %d %s %v", code, body, err)
		}
		return nil
	})
	eventually(t, func() error {
		_, body, err := s.get("/metrics")
		if err != nil {
			return err
		}
		for _, want := range []string{
			`cachemesh_sidecar_envoy_up{region="here",sidecar="here-0"} 1`,
			`cachemesh_sidecar_xds_connected{control_plane="` + plane.address + `",region="here",sidecar="here-0"} 1`,
			`cachemesh_sidecar_xds_source{region="here",sidecar="here-0",source="control_plane"} 1`,
			`cachemesh_sidecar_xds_resources{region="here",sidecar="here-0",type="Cluster"} 2`,
			`cachemesh_sidecar_envoy_restarts_total{reason="SIGSEGV",region="here",sidecar="here-0"} 0`, "cachemesh_sidecar_xds_age_seconds{", "cachemesh_sidecar_xds_version_info{", "envoy_redis_downstream_rq_total",
		} {
			if !strings.Contains(body, want) {
				return fmt.Errorf("/metrics lacks %s", want)
			}
		}
		return nil
	})
	about := plane.lastNode().GetMetadata().GetFields()[envoy.MetadataKey].GetStructValue().GetFields()
	if about["agent"].GetStringValue() != "test" {
		t.Errorf("the node's metadata is %v, want the agent's version in it", about)
	}
}

func TestSecondAgentInADirectoryIsRefused(t *testing.T) {
	s, _ := startServing(t)
	c := s.config
	c.Metrics = freeAddresses(t, 1)[0]
	err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("error %v, want the holder's pid and a remedy", err)
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	for name, set := range map[string]func(*Config, string){
		"admin":   func(c *Config, taken string) { c.Admin = taken },
		"metrics": func(c *Config, taken string) { c.Metrics = taken },
		"redis":   func(c *Config, taken string) { c.Addresses.Redis = taken },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSidecar(t, "127.0.0.1:1")
			set(&s.config, shards[0])
			err := Run(t.Context(), s.config)
			if err == nil || !strings.Contains(err.Error(), shards[0]) || !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("error %v, want one that names %s", err, shards[0])
			}
		})
	}
}
