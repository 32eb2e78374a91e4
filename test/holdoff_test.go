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

// racers are applications that read profiles from a database's replica that lags, each with a sidecar of its own.
type racers struct {
	dir, twitter, db string
	targets          []string
}

func newRacers(t *testing.T, m *testMesh, regions ...string) *racers {
	t.Helper()
	r := &racers{dir: m.dir, twitter: filepath.Join(filepath.Dir(program(t)), "twitter"), db: "sqlite:" + filepath.Join(m.dir, "db")}
	seed := exec.CommandContext(t.Context(), r.twitter, "seed", "--db", r.db, "--users", "100", "--tweets", "200", "--regions", strings.Join(regions, ","))
	if out, err := seed.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

func (r *racers) add(t *testing.T, s *sidecar, region string, lag time.Duration) {
	t.Helper()
	at := freeAddresses(t, 1)[0]
	app, err := process.Start(t.Context(), process.Spec{Name: "twitter", Path: r.twitter, Log: filepath.Join(r.dir, s.name+"-app.log"),
		Args:  []string{"serve", "--region", region, "--listen", at, "--db", r.db, "--redis", s.redis, "--coherent", "--db-replica-lag", lag.String()},
		Ready: func(ctx context.Context, _ int) error { return answers(ctx, "http://"+at+"/healthz") }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Stop(5 * time.Second) })
	r.targets = append(r.targets, "http://"+at)
}

// race changes and reads few profiles through all of them, and says how old the answers were.
func (r *racers) race(t *testing.T, allowed time.Duration) staleness {
	t.Helper()
	load := exec.CommandContext(t.Context(), r.twitter, "load", "--targets", strings.Join(r.targets, ","), "--region", region, "--db", r.db,
		"--mix", "races", "--rate", "150", "--for", "20s", "--check", "1", "--max-staleness", allowed.String(), "-o", "json")
	var out, notes bytes.Buffer
	load.Stdout, load.Stderr = &out, &notes
	err := load.Run()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var s staleness
	if jsonErr := json.Unmarshal([]byte(lines[len(lines)-1]), &s); jsonErr != nil {
		t.Fatalf("%v: %v: %s", jsonErr, err, notes.String())
	}
	if (err != nil) != (s.Errors+s.Wrong > 0) {
		t.Errorf("twitter load: %v after %+v", err, s)
	}
	t.Logf("%+v, allowed %s", s, allowed)
	if s.Checked < 1000 || s.Errors > 0 {
		t.Errorf("%+v: want at least 1000 answers checked and no errors: %s", s, notes.String())
	}
	return s
}

// races is a race in one region, of two applications.
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
	plane, r := m.startControlplane(t), newRacers(t, m, region)
	for _, name := range []string{"a", "b"} {
		s := m.startSidecar(t, name, plane)
		plane.waitSynced(t, name)
		r.add(t, s, region, lag)
	}
	return r.race(t, allowed)
}

const (
	defaultHoldOff = 3 * time.Second
	// The application deletes a key a moment after the change.
	deleted = 500 * time.Millisecond
)

// No value that was read too early, from a database or a replica of it that lags, is served for longer than the lag and the hold-off after its
// replacement.
func TestNoStaleValueOutlivesLagAndHoldOff(t *testing.T) {
	for _, lag := range []time.Duration{0, 500 * time.Millisecond, 2 * time.Second} {
		t.Run(lag.String(), func(t *testing.T) {
			if s := races(t, defaultHoldOff, lag, lag+defaultHoldOff+deleted); s.Wrong > 0 {
				t.Errorf("%d answers were older", s.Wrong)
			} else if lag > 0 && s.Stalest < float64(lag.Milliseconds())/2 {
				t.Errorf("the oldest answer was stale for %.0f ms: there were no races", s.Stalest)
			}
		})
	}
}

// Nor in another region than that in which the value was changed.
func TestNoStaleValueOutlivesLagAndHoldOffElsewhere(t *testing.T) {
	const lag = time.Second
	m := newLinkedRegions(t, 1)
	r := newRacers(t, m.testMesh, region, "there")
	for _, in := range m.regions {
		r.add(t, in.sidecars[0], in.name, lag)
	}
	if s := r.race(t, lag+defaultHoldOff+deleted); s.Wrong > 0 {
		t.Errorf("%d answers were older", s.Wrong)
	}
}

// Without a hold-off the same races leave stale values, and the checker sees them.
func TestWithoutHoldOffStaleValuesStay(t *testing.T) {
	if s := races(t, 0, 500*time.Millisecond, 4*time.Second); s.Wrong == 0 {
		t.Errorf("%+v: want stale answers", s)
	}
}
