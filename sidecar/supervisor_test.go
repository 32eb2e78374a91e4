package sidecar

import (
	"errors"
	"fmt"
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
		"long before":  {strings.Repeat("[1][critical] old news\n", 1<<10) + strings.Repeat("[2][warning] x\n", 2<<10) + "[3][critical] now\n", "[3][critical] now"},
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
