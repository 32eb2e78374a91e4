package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

// twitterPlan is the load on the example application. Both ways get the same warm-up and the same load.
type twitterPlan struct {
	users          int
	rate           float64 // requests a second, Poisson arrivals
	warmUp, window time.Duration
}

var (
	twitterFull  = twitterPlan{users: 2000, rate: 300, warmUp: 30 * time.Second, window: 45 * time.Second}
	twitterQuick = twitterPlan{users: 50, rate: 100, warmUp: time.Second, window: 2 * time.Second}
)

const databaseLatency = 200 * time.Millisecond

// twitterResult is what `bench twitter` prints.
type twitterResult struct {
	header
	Plan map[string]any `json:"plan"`
	// Share of the keys looked up in the cache that were there.
	HitRate float64 `json:"hit_rate"`
	// Database reads a request, and the mean latency of requests, with the cache over without.
	ReadsRatio   float64                   `json:"db_reads_ratio"`
	LatencyRatio float64                   `json:"mean_latency_ratio"`
	Ways         map[string]*twitterFigure `json:"ways"`
}

// twitterFigure is of the application with the cache, or without.
type twitterFigure struct {
	Requests        int64   `json:"requests"`
	Errors          int64   `json:"errors"`
	Checked         int64   `json:"checked"` // answers compared with the database
	Wrong           int64   `json:"wrong"`
	Throughput      float64 `json:"requests_per_second"`
	Mean            float64 `json:"mean_ms"`
	P50             float64 `json:"p50_ms"`
	P99             float64 `json:"p99_ms"`
	Hits            int64   `json:"cache_hits"`
	Misses          int64   `json:"cache_misses"`
	ReadsPerRequest float64 `json:"db_reads_per_request"`
}

func benchTwitter(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "twitter", s.quick)
	if err != nil {
		return nil, err
	}
	plan := twitterFull
	if s.quick {
		plan = twitterQuick
	}
	twitter, err := build(ctx, s.dir, "twitter", "examples/twitter")
	if err != nil {
		return nil, err
	}
	database := "sqlite:" + filepath.Join(s.dir, "twitter.db")
	out, err := exec.CommandContext(ctx, twitter, "seed", "--db", database, "--users", fmt.Sprint(plan.users), "--regions", region).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("seed the database: %w\n%s", err, out)
	}
	var running programs
	defer running.stop()
	shards, err := startShards(ctx, &running, s.dir, shardCount)
	if err != nil {
		return nil, err
	}
	mesh, err := startMesh(ctx, &running, s.dir, shards)
	if err != nil {
		return nil, err
	}
	r := &twitterResult{header: head, Ways: map[string]*twitterFigure{}, Plan: map[string]any{"shards": shardCount, "users": plan.users,
		"requests_per_second": plan.rate, "mix": "read-heavy", "database_latency_ms": databaseLatency.Milliseconds(),
		"warm_up_seconds": plan.warmUp.Seconds(), "window_seconds": plan.window.Seconds()}}
	for _, way := range []struct {
		name  string
		flags []string
	}{{"cached", []string{"--redis", mesh.tcp[0].address}}, {"no_cache", []string{"--no-cache"}}} {
		f, err := measureTwitter(ctx, s, plan, twitter, database, way.name, way.flags)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		fmt.Fprintf(s.progress, "%s: mean %.2f ms, p99 %.2f ms, %.4f database reads a request\n", way.name, f.Mean, f.P99, f.ReadsPerRequest)
		r.Ways[way.name] = f
	}
	with, without := r.Ways["cached"], r.Ways["no_cache"]
	r.HitRate = rounded(float64(with.Hits) / float64(max(1, with.Hits+with.Misses)))
	r.ReadsRatio = rounded(with.ReadsPerRequest / without.ReadsPerRequest)
	r.LatencyRatio = rounded(with.Mean / without.Mean)
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// measureTwitter serves the application one way, warms it up and loads it.
func measureTwitter(ctx context.Context, s settings, plan twitterPlan, twitter, database, name string, flags []string) (*twitterFigure, error) {
	ports, err := process.FreePorts(1)
	if err != nil {
		return nil, err
	}
	listen := fmt.Sprintf("127.0.0.1:%d", ports[0])
	url := "http://" + listen
	var running programs
	defer running.stop()
	args := append([]string{"serve", "--listen", listen, "--region", region, "--db", database, "--db-latency", databaseLatency.String()}, flags...)
	if _, err := running.start(ctx, process.Spec{
		Name: "twitter " + name, Path: twitter, Args: args, Log: filepath.Join(s.dir, "twitter-"+name+".log"),
		Ready: func(ctx context.Context, _ int) error { _, err := appStats(ctx, url); return err },
	}); err != nil {
		return nil, err
	}
	load := func(d time.Duration) (*twitterFigure, error) {
		cmd := exec.CommandContext(ctx, twitter, "load", "--targets", url, "--region", region, "--db", database, "--mix", "read-heavy",
			"--rate", fmt.Sprint(plan.rate), "--for", d.String(), "--check", "0.01", "-o", "json")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("load: %w\n%s", err, stderr.Bytes())
		}
		return lastInterval(out)
	}
	if _, err := load(plan.warmUp); err != nil {
		return nil, err
	}
	before, err := appStats(ctx, url)
	if err != nil {
		return nil, err
	}
	figure, err := load(plan.window)
	if err != nil {
		return nil, err
	}
	after, err := appStats(ctx, url)
	if err != nil {
		return nil, err
	}
	figure.Hits, figure.Misses = after.CacheHits-before.CacheHits, after.CacheMisses-before.CacheMisses
	figure.ReadsPerRequest = rounded(float64(after.DBReads-before.DBReads) / float64(after.Requests-before.Requests))
	return figure, nil
}

// stats are counts of the application since its start.
type stats struct {
	Requests    int64 `json:"requests"`
	CacheHits   int64 `json:"cache_hits"`
	CacheMisses int64 `json:"cache_misses"`
	DBReads     int64 `json:"db_reads"`
}

func appStats(ctx context.Context, url string) (s stats, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/stats", nil)
	if err != nil {
		return s, err
	}
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return s, fmt.Errorf("GET %s/stats: %s", url, response.Status)
	}
	return s, json.NewDecoder(response.Body).Decode(&s)
}

// lastInterval reads the totals, which the load generator prints after a line a second.
func lastInterval(out []byte) (*twitterFigure, error) {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var total struct {
		twitterFigure
		RPS   float64 `json:"rps"`
		Final bool    `json:"final"`
	}
	last := lines[len(lines)-1]
	if err := json.Unmarshal(last, &total); err != nil {
		return nil, fmt.Errorf("the load's last line %q: %w", last, err)
	}
	if !total.Final {
		return nil, fmt.Errorf("the load's last line is not its total: %q", last)
	}
	total.Throughput = total.RPS
	return &total.twitterFigure, nil
}
