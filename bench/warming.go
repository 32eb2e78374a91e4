package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// warmingPlan is how copying a region's cache is measured.
type warmingPlan struct {
	keys, bytes   int
	naiveKeys     int // that the naive copier copies
	rounds        int
	rate          float64 // requests a second in the foreground
	connections   int
	window, quiet time.Duration // of the foreground; after a change, until a window begins
	windows       int           // while warming, and as many without
	patience      time.Duration
}

var (
	warmingFull = warmingPlan{keys: 1_000_000, bytes: 100, naiveKeys: 50_000, rounds: 3, rate: 2000, connections: 20,
		window: 4 * time.Second, quiet: time.Second, windows: 6, patience: 5 * time.Minute}
	warmingQuick = warmingPlan{keys: 20_000, bytes: 100, naiveKeys: 2_000, rounds: 1, rate: 200, connections: 4,
		window: 300 * time.Millisecond, quiet: 100 * time.Millisecond, windows: 1, patience: time.Minute}
)

// warmingRoutes are coherent: the copy has to look whether a key is held.
const warmingRoutes = `prefix: "item:", coherence: invalidate, writes: refill
prefix: ""`

// warmingPlans are two of one copy: as fast as it goes, and with the budget that a plan has which says nothing of it.
var warmingPlans = fmt.Sprintf(`warming:
  plans:
    - name: copy
      manual: true
      regions: [target]
      keys: {route: %[1]q}
      source: {region: source}
      budget: {keysPerSecond: 10000000, bytesPerSecond: 10000000000, concurrency: 8}
    - name: gentle
      manual: true
      regions: [target]
      keys: {route: %[1]q}
      source: {region: source}
`, copiedPrefix)

// warmingResult is what `bench warming` prints.
type warmingResult struct {
	header
	Plan map[string]any `json:"plan"`
	// Keys a CPU second of all that is involved, ours over the peer's: redis-cli --pipe, which is given all data in a file, and its Redis; a copier of GET
	// and SET, one after the other, and its two.
	RatioPipe  float64 `json:"ratio_vs_pipe_keys_per_cpu_second"`
	RatioNaive float64 `json:"ratio_vs_naive"`
	// p99 of requests to the target region while it is warmed by the default budget, over that of the same while it is not.
	P99Ratio   float64                 `json:"foreground_p99_ratio"`
	Copiers    map[string]*copyFigures `json:"copiers"`
	Foreground *foregroundFigures      `json:"foreground"`
}

// copyFigures are of one copier, medians over the rounds. CPU time is in µs a key.
type copyFigures struct {
	Keys        int       `json:"keys"`
	KeysASecond float64   `json:"keys_per_second"`
	Loader      float64   `json:"loader_cpu_us_per_key"` // ours: agents and control planes of both regions
	Source      float64   `json:"source_redis_cpu_us_per_key"`
	Target      float64   `json:"target_redis_cpu_us_per_key"`
	Rounds      []float64 `json:"keys_per_cpu_second_rounds"`

	speeds, loaders, sources, targets []float64
}

// foregroundFigures are medians over the windows.
type foregroundFigures struct {
	KeysASecond float64   `json:"warming_keys_per_second"`
	P99Calm     float64   `json:"p99_us_calm"`
	P99Warming  float64   `json:"p99_us_warming"`
	Calm        []float64 `json:"p99_us_calm_windows"`
	Warming     []float64 `json:"p99_us_warming_windows"`
	Failed      []string  `json:"failed_windows,omitempty"` // why; measured again
}

func benchWarming(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "warming", s.quick)
	if err != nil {
		return nil, err
	}
	plan := warmingFull
	if s.quick {
		plan = warmingQuick
	}
	r := &warmingResult{header: head, Copiers: map[string]*copyFigures{"cachemesh": {}, "pipe": {}, "naive": {}}, Foreground: &foregroundFigures{},
		Plan: map[string]any{"shards": coldShards, "keys": plan.keys, "value_bytes": plan.bytes, "rounds": plan.rounds, "foreground_requests_per_second": plan.rate,
			"default_keys_per_second": mesh.DefaultKeysPerSecond}}
	if err := r.measure(ctx, s, plan); err != nil {
		return nil, err
	}
	ours := r.Copiers["cachemesh"]
	r.RatioPipe = rounded(pairedRatio(ours.Rounds, r.Copiers["pipe"].Rounds))
	r.RatioNaive = rounded(pairedRatio(ours.Rounds, r.Copiers["naive"].Rounds))
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

func (r *warmingResult) measure(ctx context.Context, s settings, plan warmingPlan) error {
	cachemesh, err := build(ctx, s.dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return err
	}
	peers, err := startWarmingPeers(ctx, s.dir, plan.keys, plan.bytes)
	if err != nil {
		return err
	}
	defer peers.stop()
	m, err := startRegions(ctx, filepath.Join(s.dir, "mesh"), cachemesh, regionsPlan{names: []string{"target", "source"}, routes: warmingRoutes, probe: copiedPrefix, shards: coldShards,
		nodes: 1, sidecars: 1, link: true, near: true, warming: warmingPlans})
	if err != nil {
		return err
	}
	defer m.stop()
	if err := m.regions[1].fill(ctx, s.dir, plan.keys, copiedValue(plan.bytes)); err != nil {
		return err
	}
	copiers := []struct {
		name string
		copy func() (copied, error)
	}{
		{"pipe", func() (copied, error) { return peers.floor(ctx) }},
		{"cachemesh", func() (copied, error) { return m.copy(ctx, plan) }},
		{"naive", func() (copied, error) { return peers.naive(ctx, plan.naiveKeys) }},
	}
	for round := range plan.rounds {
		for _, i := range interleaved(len(copiers), round) {
			c, err := copiers[i].copy()
			if err != nil {
				return fmt.Errorf("%s: %w", copiers[i].name, err)
			}
			r.Copiers[copiers[i].name].add(c)
			fmt.Fprintf(s.progress, "%s: %d keys in %.1f s; µs a key: loader %.2f, source %.2f, target %.2f\n", copiers[i].name, c.keys, c.took.Seconds(),
				perOperation(c.loader, c.keys), perOperation(c.source, c.keys), perOperation(c.target, c.keys))
		}
	}
	for _, f := range r.Copiers {
		f.summarize()
	}
	return r.foreground(ctx, s, plan, m)
}

func (f *copyFigures) add(c copied) {
	f.Keys = c.keys
	f.Rounds = append(f.Rounds, rounded(float64(c.keys)/c.cpu().Seconds()))
	f.speeds = append(f.speeds, float64(c.keys)/c.took.Seconds())
	f.loaders = append(f.loaders, perOperation(c.loader, c.keys))
	f.sources = append(f.sources, perOperation(c.source, c.keys))
	f.targets = append(f.targets, perOperation(c.target, c.keys))
}

func (f *copyFigures) summarize() {
	f.KeysASecond, f.Loader, f.Source, f.Target = rounded(median(f.speeds)), rounded(median(f.loaders)), rounded(median(f.sources)), rounded(median(f.targets))
}

// copy empties the target region, has it warmed from the source as fast as it goes, and tells what it cost.
func (m *meshRegions) copy(ctx context.Context, plan warmingPlan) (c copied, err error) {
	target, source := m.regions[0], m.regions[1]
	if err := target.empty(ctx); err != nil {
		return c, err
	}
	ctx, cancel := context.WithTimeout(ctx, plan.patience)
	defer cancel()
	measure := func() (loader, from, to time.Duration, err error) {
		if loader, err = cpuTime(target.sidecars[0].agent.running.PID(), source.sidecars[0].agent.running.PID(), target.control.running.PID(), source.control.running.PID()); err != nil {
			return 0, 0, 0, err
		}
		if from, err = cpuTime(source.pids()...); err != nil {
			return 0, 0, 0, err
		}
		to, err = cpuTime(target.pids()...)
		return loader, from, to, err
	}
	loader, from, to, err := measure()
	if err != nil {
		return c, err
	}
	began := time.Now()
	id, err := startWarming(ctx, target.http, "copy")
	if err != nil {
		return c, err
	}
	run, err := endOfWarming(ctx, target.http, id)
	if err != nil {
		return c, err
	}
	c.keys, c.took = plan.keys, time.Since(began)
	if c.loader, c.source, c.target, err = measure(); err != nil {
		return c, err
	}
	c.loader, c.source, c.target = c.loader-loader, c.source-from, c.target-to
	if run.Counts.Loaded != uint64(plan.keys) || run.Counts.Keys() != uint64(plan.keys) {
		return c, fmt.Errorf("of %d keys the run counted %+v", plan.keys, run.Counts)
	}
	return c, nil
}

// pids are of the region's Redis nodes.
func (r *meshRegion) pids() []int {
	var all []int
	for _, set := range r.sets {
		for _, n := range set.nodes {
			all = append(all, n.running.PID())
		}
	}
	return all
}

// empty removes every key that was copied, a few at a time: a shard that does not answer meanwhile would be given another primary.
func (r *meshRegion) empty(ctx context.Context) error {
	for _, set := range r.sets {
		client := set.nodes[0].direct
		for cursor, begun := uint64(0), false; cursor != 0 || !begun; begun = true {
			keys, next, err := client.Scan(ctx, cursor, copiedPrefix+"*", 2000).Result()
			if err == nil && len(keys) > 0 {
				err = client.Unlink(ctx, keys...).Err()
			}
			if err != nil {
				return fmt.Errorf("empty %s: %w", set.name, err)
			}
			cursor = next
		}
	}
	return nil
}

// foreground loads the target region through its sidecar, while a run goes on and while it is paused.
func (r *warmingResult) foreground(ctx context.Context, s settings, plan warmingPlan, m *meshRegions) error {
	target, f := m.regions[0], r.Foreground
	if err := target.empty(ctx); err != nil {
		return err
	}
	address := target.sidecars[0].redis
	if err := fill(address); err != nil {
		return err
	}
	load, err := openLoad([]endpoint{{"tcp", address}}, plan.connections, newWorkload("GET", 1))
	if err != nil {
		return err
	}
	defer load.close()
	id, err := startWarming(ctx, target.http, "gentle")
	if err != nil {
		return err
	}
	loaded, warming := uint64(0), time.Duration(0)
	window := func() (float64, error) {
		if _, err := load.openLoop(plan.rate, plan.quiet); err != nil {
			return 0, err
		}
		latency, err := load.openLoop(plan.rate, plan.window)
		if err != nil {
			return 0, err
		}
		return float64(latency.ValueAtQuantile(99)) / 1e3, nil
	}
	for round := range plan.windows {
		for _, calm := range []bool{round%2 == 1, round%2 == 0} {
			before, err := findRun(ctx, target.http, id)
			if err != nil {
				return err
			}
			began := time.Now()
			if !calm {
				if before.State == "paused" {
					err = steerWarming(ctx, target.http, id, "resume")
				}
			} else if before.State != "paused" {
				err = steerWarming(ctx, target.http, id, "pause")
			}
			if err != nil {
				return err
			}
			p99, err := window()
			if err != nil {
				return err
			}
			if calm {
				f.Calm = append(f.Calm, rounded(p99))
				continue
			}
			f.Warming = append(f.Warming, rounded(p99))
			after, err := findRun(ctx, target.http, id)
			if err != nil {
				return err
			}
			if after.State.Over() && !s.quick {
				return fmt.Errorf("the run was over in a window that was to be one of warming")
			}
			loaded += after.Counts.Loaded - before.Counts.Loaded
			warming += time.Since(began)
		}
	}
	f.KeysASecond = rounded(float64(loaded) / warming.Seconds())
	f.P99Calm, f.P99Warming = rounded(median(f.Calm)), rounded(median(f.Warming))
	r.P99Ratio = rounded(pairedRatio(f.Warming, f.Calm))
	fmt.Fprintf(s.progress, "foreground: p99 %.0f µs while %.0f keys/s are loaded, %.0f µs without\n", f.P99Warming, f.KeysASecond, f.P99Calm)
	return nil
}

func (r *warmingResult) markdown(w io.Writer) {
	r.header.markdown(w, "a region's cache is copied into another's")
	fmt.Fprintf(w, "%v values of %v bytes into empty shards, %v of them in either region. Keys a CPU second of all that is involved: %.2f of what `redis-cli --pipe` does, which is given\n"+
		"all data in a file, and %.1f times as many as a copier that gets and sets one key after the other. At the default budget the p99 of %v requests/s through the\nsidecar is %.2f of what it is without warming.\n\n",
		r.Copiers["cachemesh"].Keys, r.Plan["value_bytes"], r.Plan["shards"], r.RatioPipe, r.RatioNaive, r.Plan["foreground_requests_per_second"], r.P99Ratio)
	fmt.Fprintln(w, "| | keys/s | CPU µs a key: loader | source Redis | target Redis |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|")
	for _, way := range []struct{ name, label string }{{"cachemesh", "cachemesh"}, {"pipe", "redis-cli --pipe"}, {"naive", "GET and SET"}} {
		f := r.Copiers[way.name]
		fmt.Fprintf(w, "| %s | %.0f | %.2f | %.2f | %.2f |\n", way.label, f.KeysASecond, f.Loader, f.Source, f.Target)
	}
}
