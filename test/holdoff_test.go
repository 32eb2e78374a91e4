package test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// staleness is what `twitter load` ends with.
type staleness struct {
	Requests int64   `json:"requests"`
	Errors   int64   `json:"errors"`
	Checked  int64   `json:"checked"`
	Wrong    int64   `json:"wrong"`
	Stalest  float64 `json:"stalest_ms"`
}

// races has two applications, each with a sidecar of its own, change and read few profiles. They read them from a database's replica that lags.
func races(t *testing.T, holdOff, lag, allowed time.Duration) staleness {
	t.Helper()
	m := newMesh(t)
	m.addPool(t, mesh.PoolSpec{Name: "all", Routes: []mesh.Route{{Prefix: "", Coherence: mesh.Invalidate, Writes: mesh.Refill}}}, 1, 1)
	m.write(t)
	text, err := os.ReadFile(m.file())
	if err != nil {
		t.Fatal(err)
	}
	m.replace(t, regexp.MustCompile(`( +)writes: refill`).ReplaceAllString(string(text), "${0}\n${1}holdOff: "+holdOff.String()))
	plane := m.startControlplane(t)
	twitter, db := filepath.Join(filepath.Dir(program(t)), "twitter"), "sqlite:"+filepath.Join(m.dir, "db")
	if out, err := exec.CommandContext(t.Context(), twitter, "seed", "--db", db, "--users", "100", "--tweets", "200", "--regions", region).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var targets []string
	for i, at := range freeAddresses(t, 2) {
		s := m.startSidecar(t, []string{"a", "b"}[i], plane)
		plane.waitSynced(t, s.name)
		app, err := process.Start(t.Context(), process.Spec{Name: "twitter", Path: twitter, Log: filepath.Join(m.dir, s.name+"-app.log"),
			Args:  []string{"serve", "--region", region, "--listen", at, "--db", db, "--redis", s.redis, "--coherent", "--db-replica-lag", lag.String()},
			Ready: func(ctx context.Context, _ int) error { return answers(ctx, "http://"+at+"/healthz") }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { app.Stop(5 * time.Second) })
		targets = append(targets, "http://"+at)
	}
	load := exec.CommandContext(t.Context(), twitter, "load", "--targets", strings.Join(targets, ","), "--region", region, "--db", db,
		"--mix", "races", "--rate", "150", "--for", "20s", "--check", "1", "--max-staleness", allowed.String(), "-o", "json")
	var out, notes bytes.Buffer
	load.Stdout, load.Stderr = &out, &notes
	err = load.Run()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var s staleness
	if jsonErr := json.Unmarshal([]byte(lines[len(lines)-1]), &s); jsonErr != nil {
		t.Fatalf("%v: %v: %s", jsonErr, err, notes.String())
	}
	if (err != nil) != (s.Errors+s.Wrong > 0) {
		t.Errorf("twitter load: %v after %+v", err, s)
	}
	t.Logf("hold-off %s, lag %s: %+v", holdOff, lag, s)
	if s.Checked < 1000 || s.Errors > 0 {
		t.Errorf("%+v: want at least 1000 answers checked and no errors: %s", s, notes.String())
	}
	return s
}

// No value that was read too early, from a database or a replica of it that lags, is served for longer than the lag and the hold-off after its
// replacement.
func TestNoStaleValueOutlivesLagAndHoldOff(t *testing.T) {
	const holdOff = 3 * time.Second
	// Deleting a key takes the application a moment after the change.
	const moment = 500 * time.Millisecond
	for _, lag := range []time.Duration{0, 500 * time.Millisecond, 2 * time.Second} {
		t.Run(lag.String(), func(t *testing.T) {
			if s := races(t, holdOff, lag, lag+holdOff+moment); s.Wrong > 0 {
				t.Errorf("%d answers were older", s.Wrong)
			} else if lag > 0 && s.Stalest < float64(lag.Milliseconds())/2 {
				t.Errorf("the oldest answer was stale for %.0f ms: there were no races", s.Stalest)
			}
		})
	}
}

// Without a hold-off the same races leave stale values, and the checker sees them.
func TestWithoutHoldOffStaleValuesStay(t *testing.T) {
	if s := races(t, 0, 500*time.Millisecond, 4*time.Second); s.Wrong == 0 {
		t.Errorf("%+v: want stale answers", s)
	}
}
