package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/app"
	"github.com/cachemesh/cachemesh/examples/twitter/day"
	"github.com/cachemesh/cachemesh/examples/twitter/load"
	"github.com/cachemesh/cachemesh/process"
)

// This test binary is the program itself when a test starts it with this variable.
const asProgram = "TWITTER_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// twitter runs the program to its end.
func twitter(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var out, notes bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &notes
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), notes.String(), cmd.ProcessState.ExitCode()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"},
		{"seed"},
		{"seed", "--db", "sqlite:x", "--users", "1"},
		{"seed", "--db", "sqlite:x", "--regions", "a,,b"},
		{"serve", "--db", "sqlite:x"},
		{"serve", "--db", "sqlite:x", "--region", "a", "--peers", "b=nowhere"},
		{"serve", "--db", "sqlite:x", "--region", "a", "--db-replica-lag", "-1s"},
		{"load", "--targets", "http://127.0.0.1:1", "--region", "a", "--db", "sqlite:x", "--max-staleness", "2m"},
		{"load", "--targets", "nowhere", "--region", "a", "--db", "sqlite:x"},
		{"load", "--targets", "http://127.0.0.1:1", "--region", "a", "--db", "sqlite:x", "--mix", "1"},
		{"load", "--targets", "http://127.0.0.1:1", "--region", "a", "--db", "sqlite:x", "--rate", "NaN"},
		{"load", "--targets", "http://127.0.0.1:1", "--region", "a", "--db", "sqlite:x", "-o", "xml"},
		{"serve", "--db", "sqlite:x", "--region", "a", "--events", "nowhere"},
		{"day", "--target", "a=http://127.0.0.1:1", "--zone", "a=Europe/Paris", "--db", "sqlite:x", "--clock", "now"},
		{"day", "--target", "a=http://127.0.0.1:1", "--zone", "a=Nowhere", "--db", "sqlite:x", "--clock", "2026-01-12T00:00:00Z@2026-11-24T14:40:00Z*240"},
		{"day", "--target", "a=http://127.0.0.1:1", "--zone", "b=UTC", "--db", "sqlite:x", "--clock", "2026-01-12T00:00:00Z@2026-11-24T14:40:00Z*240"},
	} {
		if stdout, stderr, status := twitter(t, args...); status != 2 || stdout != "" || !strings.HasPrefix(stderr, "twitter: ") {
			t.Errorf("twitter %s: exit status %d, stdout %q, stderr %q, want 2 and an error", strings.Join(args, " "), status, stdout, stderr)
		}
	}
}

func TestSeedIsIdempotent(t *testing.T) {
	db := "sqlite:" + filepath.Join(t.TempDir(), "db")
	args := []string{"seed", "--db", db, "--users", "50", "--tweets", "100"}
	for _, want := range []string{"seeded in", "already seeded"} {
		if stdout, stderr, status := twitter(t, args...); status != 0 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("seed: exit status %d, stdout %q, stderr %q, want %q", status, stdout, stderr, want)
		}
	}
	if _, stderr, status := twitter(t, append(args, "--seed", "2")...); status != 1 || !strings.Contains(stderr, "seed=1") {
		t.Errorf("seed with another seed: exit status %d, stderr %q", status, stderr)
	}
}

// apps are two regions' on a small world.
type apps struct {
	db        string
	regions   []string
	urls      []string
	processes []*process.Process
}

func startApps(ctx context.Context, t *testing.T) apps {
	t.Helper()
	dir := t.TempDir()
	a := apps{db: "sqlite:" + filepath.Join(dir, "db"), regions: []string{"us-east", "eu-west"}}
	if _, stderr, status := twitter(t, "seed", "--db", a.db, "--users", "60", "--tweets", "300"); status != 0 {
		t.Fatal(stderr)
	}
	ports, err := process.FreePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	for i := range a.regions {
		a.urls = append(a.urls, fmt.Sprintf("http://127.0.0.1:%d", ports[i]))
	}
	for i, region := range a.regions {
		cache, err := process.Redis{Port: ports[2+i], Dir: dir}.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cache.Stop(time.Second) })
		serving, err := process.Start(ctx, process.Spec{
			Name: region, Path: os.Args[0], Env: []string{asProgram + "=1"}, Log: filepath.Join(dir, region+".log"),
			Args: []string{"serve", "--listen", fmt.Sprintf("127.0.0.1:%d", ports[i]), "--region", region, "--db", a.db,
				"--redis", fmt.Sprintf("127.0.0.1:%d", ports[2+i]), "--peers", "us-east=" + a.urls[0] + ",eu-west=" + a.urls[1]},
			Ready: func(context.Context, int) error {
				resp, err := http.Get(a.urls[i] + "/healthz")
				if err == nil {
					resp.Body.Close()
				}
				return err
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(serving.Kill)
		a.processes = append(a.processes, serving)
	}
	return a
}

// Two regions live a day of seconds.
func TestDay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	a := startApps(ctx, t)
	// 24 hours in 9 seconds, from 2 seconds from now on.
	clock := "2026-01-12T00:00:00Z@" + time.Now().Add(2*time.Second).UTC().Format(time.RFC3339) + "*9600"
	stdout, stderr, status := twitter(t, "day", "--target", "us-east="+a.urls[0], "--target", "eu-west="+a.urls[1], "--zone", "us-east=America/New_York", "--zone", "eu-west=Europe/Paris",
		"--db", a.db, "--clock", clock, "--peak", "150", "--check", "0.2")
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	samples, posted, reads, totals := map[string]day.Sample{}, map[string]int{}, 0, 0
	for _, line := range strings.Split(strings.TrimSpace(stdout), "\n") {
		var l struct {
			day.Sample
			Happening string         `json:"happening"`
			Regions   map[string]int `json:"regions"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		switch l.Kind {
		case "sample":
			samples[l.Region] = l.Sample
		case "posted":
			posted[l.Happening]++
		case "total":
			totals++
		case "read":
			reads = l.Regions["us-east"] + l.Regions["eu-west"]
		}
	}
	for _, region := range a.regions {
		if s := samples[region]; s.Day < 20 || s.Hits == 0 || s.DBReads == 0 {
			t.Errorf("the last of %s is %+v", region, s)
		}
	}
	if totals != len(a.regions) {
		t.Errorf("%d regions have a total", totals)
	}
	if posted[day.Celebrity] != 1 || posted[day.Match] == 0 || reads == 0 {
		t.Errorf("posted were %v, and the celebrity's tweet was read %d times", posted, reads)
	}
}

// Two regions are served, one is loaded, and then the other's app is stopped.
func TestSeedServeLoadStop(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	served := startApps(ctx, t)
	db, apps, url := served.db, served.processes, func(i int) string { return served.urls[i] }

	stdout, stderr, status := twitter(t, "load", "--targets", url(0), "--region", "us-east", "--db", db, "--rate", "150", "--for", "3s", "--check", "0.5", "-o", "json")
	if status != 0 {
		t.Fatalf("load: exit status %d\n%s%s", status, stdout, stderr)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var total load.Interval
	for n, line := range lines {
		total = load.Interval{}
		if err := json.Unmarshal([]byte(line), &total); err != nil || total.Final != (n == len(lines)-1) {
			t.Errorf("line %d: %v in %s", n+1, err, line)
		}
	}
	if len(lines) < 3 || total.Requests < 300 || total.Checked == 0 {
		t.Errorf("load printed %d lines and ended with %+v", len(lines), total)
	}
	resp, err := http.Get(url(0) + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var stats app.Stats
	if err := json.NewDecoder(resp.Body).Decode(&stats); err != nil {
		t.Fatal(err)
	}
	if stats.Errors != 0 || stats.CacheErrors != 0 || stats.CacheHits == 0 || stats.Requests < total.Requests {
		t.Errorf("stats %+v after %d requests", stats, total.Requests)
	}

	if err := apps[1].Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-apps[1].Done():
		if err := apps[1].Err(); err != nil {
			t.Errorf("after SIGTERM: %v, want exit status 0", err)
		}
	case <-ctx.Done():
		t.Fatal("an app outlives SIGTERM")
	}
	// Profiles of the region without an app cannot be had.
	if _, stderr, status = twitter(t, "load", "--targets", url(0), "--region", "us-east", "--db", db, "--rate", "150", "--for", "2s"); status != 1 || !strings.Contains(stderr, "eu-west does not answer") {
		t.Errorf("load with a region down: exit status %d\n%s", status, stderr)
	}
}
