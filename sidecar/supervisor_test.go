package sidecar

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRestartsAreQuickAtFirstThenSlower(t *testing.T) {
	p := newRestartPolicy()
	if got := p.pause(time.Second); got != 0 {
		t.Errorf("pause after the first crash: %v, want none", got)
	}
	first := p.pause(time.Second)
	if first < 50*time.Millisecond || first > 200*time.Millisecond {
		t.Errorf("pause after the second crash: %v, want about 100 ms", first)
	}
	var last time.Duration
	for range 20 {
		if last = p.pause(time.Second); last > 5*time.Second {
			t.Fatalf("pause of %v, want at most 5 s", last)
		}
	}
	if last < 3*time.Second {
		t.Errorf("pause after many crashes: %v, want about 5 s", last)
	}
	if got := p.pause(steadyLife); got != 0 {
		t.Errorf("pause after a steady life: %v, want none", got)
	}
}

func TestLastWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), logFile)
	before, start := "[1][critical] of an earlier life\n", "[2][warning] starting\n"
	for name, test := range map[string]struct{ log, want string }{
		"nothing":      {"", ""},
		"the last":     {start + "[3][error] port taken\n", "[3][error] port taken"},
		"no backtrace": {start + "[3][critical] terminate\n[4][critical] #0\nConnection\n", "[3][critical] terminate"},
	} {
		if err := os.WriteFile(path, []byte(before+test.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(path, int64(len(before))); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestLogIsBounded(t *testing.T) {
	s, plane := startServing(t)
	path := filepath.Join(s.config.Dir, logFile)
	if err := os.Truncate(path, maxLogSize); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !strings.Contains(s.log.String(), "rotated Envoy's log") {
			return errors.New("the log is not rotated")
		}
		return nil
	})
	if info, err := os.Stat(path + ".1"); err != nil || info.Size() < maxLogSize {
		t.Errorf("the old log is not beside the new one: %v", err)
	}
	// What Envoy logs from now on, such as that it rejects a listener, is in a new file.
	plane.serve(t, "2", withBrokenListeners(t, build(t, topology(shards...))))
	eventually(t, func() error {
		log, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(log), "no such filter") {
			err = fmt.Errorf("the new log has %q", log)
		}
		return err
	})
}

func TestConnectionsAreThoseOfApplications(t *testing.T) {
	got, err := countConnections(strings.Join([]string{
		"listener.127.0.0.1_6379.downstream_cx_active: 3",
		"listener.127.0.0.1_6379.worker_0.downstream_cx_active: 2",
		"listener.127.0.0.1_6379.worker_1.downstream_cx_active: 1",
		"listener.redis.sock.downstream_cx_active: 1",
		"listener.admin.downstream_cx_active: 1",
		"listener.admin.main_thread.downstream_cx_active: 1", ""}, "\n"))
	if err != nil || got != 4 {
		t.Errorf("%d connections, error %v, want 4", got, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	valid := newSidecar(t, "127.0.0.1:18000").config
	valid.Logger = slog.New(slog.DiscardHandler)
	if _, err := valid.complete(); err != nil {
		t.Fatalf("a valid configuration: %v", err)
	}
	long := "/tmp/" + strings.Repeat("x", 107)
	for want, change := range map[string]func(*Config){
		"Name is empty":               func(c *Config) { c.Name = "" },
		"Region is empty":             func(c *Config) { c.Region = "" },
		"Dir is empty":                func(c *Config) { c.Dir = "" },
		"use a shorter --dir":         func(c *Config) { c.Dir = long },
		long:                          func(c *Config) { c.Addresses.Socket = long },
		"ControlPlanes is empty":      func(c *Config) { c.ControlPlanes = nil },
		`ControlPlanes: "here"`:       func(c *Config) { c.ControlPlanes = []string{"here"} },
		`"here:0" is not a host`:      func(c *Config) { c.ControlPlanes = []string{"here:0"} },
		`Admin: "0.0.0.0:9901"`:       func(c *Config) { c.Admin = "0.0.0.0:9901" },
		`Admin: ""`:                   func(c *Config) { c.Admin = "" },
		`Metrics: "[::]:9902"`:        func(c *Config) { c.Metrics = "[::]:9902" },
		`Addresses: listener redis: `: func(c *Config) { c.Addresses.Redis = "10.0.0.1:6379" },
		"is not a program":            func(c *Config) { c.Envoy = c.Dir },
		"Concurrency is -1":           func(c *Config) { c.Concurrency = -1 },
		"DrainTimeout is -1s":         func(c *Config) { c.DrainTimeout = -time.Second },
	} {
		c := valid
		change(&c)
		if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}
