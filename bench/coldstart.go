package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/envoy"
	facts "github.com/cachemesh/cachemesh/examples/twitter/workload"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

// coldPlan is a region whose shards all start again, empty, while its application goes on.
type coldPlan struct {
	keys, bytes     int
	alpha           float64 // Zipf exponent of the keys' popularity
	rate            float64 // requests a second
	databaseReads   float64 // that it has to offer in a second
	databaseLatency time.Duration
	ttl             time.Duration
	before          time.Duration // of load; of its second half is the former hit rate
	away            time.Duration // how long the shards are
	patience        time.Duration // for the recovery
}

var (
	coldFull = coldPlan{keys: 100_000, bytes: 200, alpha: coldCluster().Alpha, rate: 2500, databaseReads: 500, databaseLatency: 5 * time.Millisecond, ttl: time.Hour,
		before: 20 * time.Second, away: time.Second, patience: 10 * time.Minute}
	coldQuick = coldPlan{keys: 2_000, bytes: 200, alpha: coldCluster().Alpha, rate: 500, databaseReads: 200, databaseLatency: 5 * time.Millisecond, ttl: time.Hour,
		before: 3 * time.Second, away: 300 * time.Millisecond, patience: time.Minute}
)

// coldCluster is that of the workload's facts whose popularity the load has: of little skew, as the more skewed a load is, the less of what is cached matters to its hit rate.
func coldCluster() facts.Cluster {
	c, err := facts.FindCluster(26)
	if err != nil {
		panic(err) // the facts are part of the program
	}
	return c
}

const (
	// coldRoutes are local: its values never change. Of a coherent route's keys that a region lost with its journals the other regions' are
	// removed, too, as nobody knows any more whether they were told of all changes.
	coldRoutes = `prefix: "item:"
prefix: ""`
	coldShards    = 2
	coldRecovered = 0.9 // of the former hit rate
	coldWarming   = `warming:
  plans:
    - name: return
      onReturn: true
      keys: {route: "item:"}
      source: {region: nearest}
      budget: {keysPerSecond: 50000}
`
)

// coldResult is what `bench coldstart` prints.
type coldResult struct {
	header
	Plan map[string]any `json:"plan"`
	// Of the warmed region over the one that is not, from when its shards accepted connections until 0.9 of the former hit rate.
	TimeRatio  float64      `json:"time_ratio"`
	ReadsRatio float64      `json:"origin_reads_ratio"`
	Unwarmed   *coldFigures `json:"unwarmed"`
	Warmed     *coldFigures `json:"warmed"`
}

// coldFigures are of one cold start.
type coldFigures struct {
	Former  float64   `json:"former_hit_rate"`
	Seconds float64   `json:"recovery_seconds"`
	Reads   int       `json:"origin_reads"`
	Shed    int       `json:"requests_without_answer"` // as the database had too much to do
	Failed  int       `json:"cache_errors"`            // since the shards accept connections
	Wrong   int       `json:"wrong_answers"`           // of the whole run
	Rates   []float64 `json:"hit_rates"`               // by second since the shards accept connections
	// Of the run that warmed it.
	Runs []coldRun `json:"runs,omitempty"`
}

// coldRun is a run of the plan, as far as it is in the end.
type coldRun struct {
	State   string         `json:"state"`
	Trigger string         `json:"trigger"`
	After   float64        `json:"begun_seconds"` // since the shards accept connections
	Took    float64        `json:"seconds"`
	Counts  warming.Counts `json:"counts"`
}

func benchColdstart(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "coldstart", s.quick)
	if err != nil {
		return nil, err
	}
	plan := coldFull
	if s.quick {
		plan = coldQuick
	}
	cachemesh, err := build(ctx, s.dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return nil, err
	}
	r := &coldResult{header: head, Plan: map[string]any{"shards": coldShards, "keys": plan.keys, "value_bytes": plan.bytes, "zipf_alpha": plan.alpha, "requests_per_second": plan.rate,
		"database_reads_per_second": plan.databaseReads, "database_latency_ms": milliseconds(plan.databaseLatency)}}
	for _, way := range []struct {
		name, plans string
		figures     **coldFigures
	}{{"unwarmed", "", &r.Unwarmed}, {"warmed", coldWarming, &r.Warmed}} {
		f, err := measureCold(ctx, filepath.Join(s.dir, way.name), cachemesh, plan, way.plans)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		fmt.Fprintf(s.progress, "%s: former hit rate %.3f; %.1f s and %d database reads until it is %.2f of that again; %d requests without an answer, %d cache errors, %d wrong\n",
			way.name, f.Former, f.Seconds, f.Reads, coldRecovered, f.Shed, f.Failed, f.Wrong)
		*way.figures = f
	}
	r.TimeRatio = rounded(r.Warmed.Seconds / r.Unwarmed.Seconds)
	r.ReadsRatio = rounded(float64(r.Warmed.Reads) / float64(r.Unwarmed.Reads))
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

func measureCold(ctx context.Context, dir, cachemesh string, plan coldPlan, plans string) (*coldFigures, error) {
	m, err := startRegions(ctx, dir, cachemesh, regionsPlan{names: []string{"cold", "sibling"}, routes: coldRoutes, probe: copiedPrefix, shards: coldShards, nodes: 1, sidecars: 1,
		link: true, near: true, warming: plans})
	if err != nil {
		return nil, err
	}
	defer m.stop()
	for _, region := range m.regions {
		if err := region.fill(ctx, dir, plan.keys, copiedValue(plan.bytes)); err != nil {
			return nil, err
		}
	}
	cold := m.regions[0]
	client := patientClient(cold.sidecars[0].redis)
	defer client.Close()
	app := newColdApp(plan, client)
	app.began = time.Now()
	var load sync.WaitGroup
	loading, stop := context.WithCancel(ctx)
	load.Go(func() { app.run(loading) })
	defer load.Wait()
	defer stop()
	if err := sleep(ctx, plan.before); err != nil {
		return nil, err
	}
	former := hitRate(app.last()[int(plan.before/sliceOf)/2:])
	if err := cold.restart(ctx, plan.away); err != nil {
		return nil, err
	}
	accepting := time.Now()
	from := int(accepting.Sub(app.began)/sliceOf) + 1
	if err := app.recovery(ctx, from, coldRecovered*former); err != nil {
		return nil, err
	}
	stop()
	load.Wait()
	runs, err := warmRuns(ctx, cold.http)
	if err != nil {
		return nil, err
	}
	seen := app.last()
	end, ok := recovered(seen, from, coldRecovered*former)
	if !ok {
		return nil, fmt.Errorf("the hit rate seemed to be %.3f again, and was not", coldRecovered*former)
	}
	f := &coldFigures{Former: rounded(former), Seconds: rounded((time.Duration(end-from) * sliceOf).Seconds())}
	for i, s := range seen {
		f.Wrong += s.Wrong
		if i >= from && i < end {
			f.Reads += s.Reads
			f.Shed += s.Shed
			f.Failed += s.Failed
		}
	}
	for _, r := range runs {
		f.Runs = append(f.Runs, coldRun{State: string(r.State), Trigger: r.Trigger, After: rounded(r.Begun.Sub(accepting).Seconds()), Took: rounded(r.Ended.Sub(r.Begun).Seconds()), Counts: r.Counts})
	}
	const second = int(time.Second / sliceOf)
	for i := from; i+second <= len(seen); i += second {
		f.Rates = append(f.Rates, rounded(hitRate(seen[i:i+second])))
	}
	return f, nil
}

// recovery waits until the hit rate is so high again.
func (a *coldApp) recovery(ctx context.Context, from int, rate float64) error {
	// Of younger slices some requests are not answered, misses more often than hits.
	const answered = int(3 * time.Second / sliceOf)
	ctx, cancel := context.WithTimeoutCause(ctx, a.plan.patience, fmt.Errorf("the hit rate is not %.3f again after %s", rate, a.plan.patience))
	defer cancel()
	for {
		seen := a.last()
		if _, ok := recovered(seen[:max(0, len(seen)-answered)], from, rate); ok {
			return nil
		}
		if err := sleep(ctx, sliceOf); err != nil {
			return err
		}
	}
}

// fill writes every key to the shard where the ring places it.
func (r *meshRegion) fill(ctx context.Context, dir string, keys int, value func(i int) []byte) error {
	body, err := ask(ctx, r.http, "/v1/topology")
	if err != nil {
		return err
	}
	var t mesh.Topology
	if err := json.Unmarshal(body, &t); err != nil {
		return err
	}
	ring, err := envoy.Ring(t.Pools[0])
	if err != nil {
		return err
	}
	for i, set := range r.sets {
		file := filepath.Join(dir, "fill")
		if err := writeCommands(file, keys, value, func(key string) bool { return ring.Find([]byte(key)) == i }); err != nil {
			return err
		}
		if _, err := pipe(ctx, file, set.nodes[0].redis.Address()); err != nil {
			return err
		}
	}
	return nil
}

// restart kills all nodes of a region's shards at once and starts them again, empty.
func (r *meshRegion) restart(ctx context.Context, away time.Duration) error {
	for _, set := range r.sets {
		for _, n := range set.nodes {
			n.running.Kill()
		}
	}
	if err := sleep(ctx, away); err != nil {
		return err
	}
	var errs []error
	for _, set := range r.sets {
		for _, n := range set.nodes {
			started, err := n.redis.Start(ctx)
			if err == nil {
				n.running = started
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (r *coldResult) markdown(w io.Writer) {
	r.header.markdown(w, "a region whose shards come back empty")
	fmt.Fprintf(w, "%v requests/s of %v keys (Zipf %.2f) through the sidecar, %v shards; the database answers %v reads a second. From when the shards accept connections until the\n"+
		"hit rate is %.1f of what it was. The plan `onReturn` copies the sibling region's cache: %.3f of the time, %.3f of the database reads.\n\n",
		r.Plan["requests_per_second"], r.Plan["keys"], r.Plan["zipf_alpha"], r.Plan["shards"], r.Plan["database_reads_per_second"], coldRecovered, r.TimeRatio, r.ReadsRatio)
	fmt.Fprintln(w, "| | former hit rate | seconds | database reads | requests without an answer | wrong answers |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|")
	for _, way := range []struct {
		label string
		f     *coldFigures
	}{{"not warmed", r.Unwarmed}, {"warmed", r.Warmed}} {
		fmt.Fprintf(w, "| %s | %.3f | %.1f | %d | %d | %d |\n", way.label, way.f.Former, way.f.Seconds, way.f.Reads, way.f.Shed, way.f.Wrong)
	}
}
