package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/demo"
	"github.com/cachemesh/cachemesh/process"
)

// dayPlan is a day of the demo whose hours pass in seconds.
type dayPlan struct {
	length time.Duration // of the day
	peak   float64       // requests a second in each region when most is asked for
	// evening is the part of the day before in which the caches fill.
	evening time.Duration
	page    string // that is written; "" is none
}

var (
	dayFull  = dayPlan{length: 6 * time.Minute, peak: 200, evening: 4 * time.Hour}
	dayQuick = dayPlan{length: time.Minute, peak: 60, evening: 4 * time.Hour}
)

// daysStart is a Monday of winter, so that no clock is changed.
var daysStart = time.Date(2026, 1, 12, 0, 0, 0, 0, time.UTC)

// dayPorts is added to the demo's ports, so that the day does not meet a demo.
const dayPorts = 4000

// dayRegions are the demo's, with the zones in which its users live.
var dayRegions = []struct{ name, zone string }{{"us-east", "America/New_York"}, {"eu-west", "Europe/Paris"}}

func dayFlags(cmd *cobra.Command, s *settings) {
	cmd.Flags().StringVar(&s.day.page, "page", "docs/day.html", "page with plots to write; empty for none")
	cmd.Flags().DurationVar(&s.day.length, "length", 0, "how long the day lasts (default 6m)")
}

func benchDay(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "day", s.quick)
	if err != nil {
		return nil, err
	}
	plan := dayFull
	if s.quick {
		plan = dayQuick
	} else {
		plan.page = s.day.page
	}
	if s.day.length > 0 {
		plan.length = s.day.length
	}
	for name, pkg := range map[string]string{"cachemesh": "cmd/cachemesh", "twitter": "examples/twitter"} {
		if _, err := build(ctx, s.dir, name, pkg); err != nil {
			return nil, err
		}
	}
	r := &dayResult{header: head, Plan: map[string]any{"minutes": plan.length.Minutes(), "peak_requests_per_second": plan.peak}, Peaks: map[string]*peakFigures{}}
	for _, way := range []struct {
		name string
		day  **dayRun
	}{{"with warming", &r.warmed}, {"without", &r.unwarmed}} {
		fmt.Fprintf(s.progress, "a day %s: %s\n", way.name, plan.length)
		if *way.day, err = runDay(ctx, s, plan, way.day == &r.warmed); err != nil {
			return nil, fmt.Errorf("a day %s: %w", way.name, err)
		}
	}
	r.judge()
	r.Seconds = rounded(time.Since(began).Seconds())
	for _, c := range r.Checks {
		fmt.Fprintln(s.progress, c)
	}
	if plan.page != "" {
		if err := r.writePage(plan.page); err != nil {
			return nil, err
		}
		fmt.Fprintln(s.progress, "the plots are in", plan.page)
	}
	return r, nil
}

// dayRun is what was seen of a day.
type dayRun struct {
	samples map[string][]daySample // by region
	posted  []dayPosted
	read    dayRead
	totals  map[string]dayTotal  // by region
	arrived map[string]time.Time // by region, when its cache had the celebrity's tweet
	runs    []warmRun            // of all regions
}

// daySample, dayPosted, dayRead and dayTotal are lines of `twitter day`.
type daySample struct {
	Region      string  `json:"region"`
	Hour        float64 `json:"day"`
	Requests    int64   `json:"requests"`
	Hits        int64   `json:"cache_hits"`
	Misses      int64   `json:"cache_misses"`
	DBReads     int64   `json:"db_reads"`
	LoaderReads int64   `json:"loader_reads"`
}

type dayPosted struct {
	Happening string    `json:"happening"`
	Tweet     int64     `json:"tweet"`
	Home      string    `json:"home"`
	Followers int       `json:"followers"`
	Real      time.Time `json:"real"`
}

type dayTotal struct {
	Region   string `json:"region"`
	Requests int64  `json:"requests"`
	Errors   int64  `json:"errors"`
	Wrong    int64  `json:"wrong"`
	Checked  int64  `json:"checked"`
}

type dayRead struct {
	Tweet     int64          `json:"tweet"`
	Regions   map[string]int `json:"regions"`
	Hundredth time.Time      `json:"hundredth"`
}

// runDay runs the demo for a day.
func runDay(ctx context.Context, s settings, plan dayPlan, warming bool) (*dayRun, error) {
	const starts = 40 * time.Second // of the demo, at most
	dir, err := os.MkdirTemp(s.dir, "day-")
	if err != nil {
		return nil, err
	}
	speed := 24 * time.Hour.Seconds() / plan.length.Seconds()
	evening := time.Duration(float64(plan.evening) / speed)
	clock := fmt.Sprintf("%s@%s*%g", daysStart.Format(time.RFC3339), time.Now().Add(starts+evening).UTC().Format(time.RFC3339), speed)
	args := []string{"demo", "--dir", dir, "--port-offset", fmt.Sprint(dayPorts), "--no-load", "--warming", "--warming-clock", clock}
	if !warming {
		args = append(args, "--no-plans")
	}
	var running programs
	defer running.stop()
	limited, cancel := context.WithTimeout(ctx, starts)
	defer cancel()
	var mesh demo.Endpoints
	if _, err := running.start(limited, process.Spec{
		Name: "demo", Path: filepath.Join(s.dir, "cachemesh"), Args: args, Log: filepath.Join(dir, "demo.log"),
		Ready: func(context.Context, int) (err error) { mesh, err = demo.ReadEndpoints(dir); return err },
	}); err != nil {
		return nil, err
	}
	d := &dayRun{samples: map[string][]daySample{}, totals: map[string]dayTotal{}, arrived: map[string]time.Time{}}
	if err := d.load(ctx, s, plan, dir, clock, mesh); err != nil {
		return nil, err
	}
	for _, region := range mesh.Regions {
		runs, err := warmRuns(ctx, address(region.Controlplane.HTTP))
		if err != nil {
			return nil, err
		}
		d.runs = append(d.runs, runs...)
	}
	return d, nil
}

// load runs the load generator's day and takes in what it tells.
func (d *dayRun) load(ctx context.Context, s settings, plan dayPlan, dir, clock string, mesh demo.Endpoints) error {
	args := []string{"day", "--db", "sqlite:" + filepath.Join(dir, "twitter.db"), "--clock", clock, "--peak", fmt.Sprint(plan.peak)}
	for _, region := range dayRegions {
		args = append(args, "--zone", region.name+"="+region.zone)
	}
	for _, region := range mesh.Regions {
		for _, sidecar := range region.Sidecars {
			args = append(args, "--target", region.Name+"="+sidecar.App)
		}
	}
	lines, output := io.Pipe()
	load, err := process.Start(ctx, process.Spec{Name: "twitter day", Path: filepath.Join(s.dir, "twitter"), Args: args, Stdout: output, Log: filepath.Join(dir, "load.log")})
	if err != nil {
		return err
	}
	defer load.Stop(10 * time.Second)
	go func() {
		<-load.Done()
		output.Close()
	}()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var watchers sync.WaitGroup
	err = d.follow(lines, func(p dayPosted) {
		if p.Happening == "celebrity" {
			watchers.Go(func() { d.watch(watching, mesh, p.Tweet) })
		}
	})
	if err != nil {
		return err
	}
	<-load.Done()
	if len(d.totals) < len(dayRegions) { // else it ended as it should, whatever it says of errors
		text, _ := os.ReadFile(filepath.Join(dir, "load.log"))
		return fmt.Errorf("twitter day: %v\n%s", load.Err(), text[max(0, len(text)-2000):])
	}
	if load.Err() != nil {
		text, _ := os.ReadFile(filepath.Join(dir, "load.log"))
		fmt.Fprintf(s.progress, "twitter day: %v\n%s", load.Err(), text[max(0, len(text)-500):])
	}
	stop()
	watchers.Wait()
	return ctx.Err()
}

// follow reads lines until there are no more.
func (d *dayRun) follow(lines io.Reader, posted func(dayPosted)) error {
	scanner := bufio.NewScanner(lines)
	for scanner.Scan() {
		var kind struct {
			Kind string `json:"kind"`
		}
		err := json.Unmarshal(scanner.Bytes(), &kind)
		switch kind.Kind {
		case "sample":
			var s daySample
			err = json.Unmarshal(scanner.Bytes(), &s)
			d.samples[s.Region] = append(d.samples[s.Region], s)
		case "posted":
			var p dayPosted
			err = json.Unmarshal(scanner.Bytes(), &p)
			d.posted = append(d.posted, p)
			posted(p)
		case "total":
			var t dayTotal
			err = json.Unmarshal(scanner.Bytes(), &t)
			d.totals[t.Region] = t
		case "read":
			err = json.Unmarshal(scanner.Bytes(), &d.read)
		}
		if err != nil {
			return fmt.Errorf("the load's line %q: %w", scanner.Text(), err)
		}
	}
	return scanner.Err()
}
