package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/bench/aside"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/ring"
)

// byDirection has a value for the shard that is added and for the one that is removed.
type byDirection[T any] struct {
	Add    T `json:"add"`
	Remove T `json:"remove"`
}

func (b *byDirection[T]) set(direction string, v T) {
	if direction == "add" {
		b.Add = v
	} else {
		b.Remove = v
	}
}

// ofRetries has a value for clients that try again, and for those that do not.
type ofRetries[T any] struct {
	On  T `json:"retries_on"`
	Off T `json:"retries_off"`
}

// movement is how many keys a change moves, over what it must at least.
type movement struct {
	Default float64 `json:"default"` // of the algorithm that a pool has without a word
	Best    float64 `json:"best"`
}

// reshardResult is what `bench reshard` prints.
type reshardResult struct {
	header
	Plan           map[string]any        `json:"plan"`
	MovedOverIdeal byDirection[movement] `json:"moved_over_ideal"`
	// Algorithms are all that are offered.
	Algorithms map[string]byDirection[float64] `json:"moved_over_ideal_by_algorithm"`
	reshardSummary
	Peers map[string]*reshardSummary `json:"peers"`
}

// reshardSummary is of one way.
type reshardSummary struct {
	// Percentage points of the reads that missed a key which nobody had taken away, until 60 s after the barrier.
	MoveMisses  byDirection[float64]         `json:"move_misses_pp"`
	Stale       byDirection[int]             `json:"stale_reads"`
	Errors      ofRetries[byDirection[int]]  `json:"errors"`
	Requests    ofRetries[byDirection[int]]  `json:"requests"`
	OriginPeak  byDirection[float64]         `json:"origin_peak_ratio"`
	P99         byDirection[float64]         `json:"foreground_p99_ratio"`
	KeysASecond byDirection[float64]         `json:"copy_keys_per_second"`
	CPUAKey     byDirection[float64]         `json:"copy_cpu_us_per_key"`
	Figures     byDirection[*reshardFigures] `json:"figures"`
}

// reshardFigures is one change of one way.
type reshardFigures struct {
	Took        float64      `json:"change_seconds"` // until the barrier
	Copied      int          `json:"keys_copied"`
	KeysASecond float64      `json:"copy_keys_per_second"`
	CPUAKey     float64      `json:"copy_cpu_us_per_key"` // outside of Redis
	Reads       int          `json:"reads"`
	MoveMisses  int          `json:"move_misses"`
	Stale       int          `json:"stale_reads"`
	Requests    aside.Counts `json:"requests"`
	Errors      aside.Counts `json:"errors"`
	HitRate     float64      `json:"hit_rate"`
	HitBefore   float64      `json:"hit_rate_before"`
	Peak        int          `json:"origin_reads_peak_10s"`
	PeakBefore  int          `json:"origin_reads_peak_10s_before"`
	P99         float64      `json:"p99_ms"` // while it lasts, a second at least
	P99Before   float64      `json:"p99_ms_before"`
}

// peakSeconds is the stretch whose database reads are counted for a peak.
const peakSeconds = 10

// newReshardFigures compares a change, from begun until the barrier and on until end, with as long a time of calm before it.
func newReshardFigures(app *aside.App, calm, begun, barrier, end time.Time, m moved) *reshardFigures {
	since := begun.Add(-end.Sub(begun))
	if since.Before(calm) {
		since = calm
	}
	before, all := app.Between(since, begun), app.Between(begun, end)
	while := app.Between(begun, barrier.Add(time.Second))
	f := &reshardFigures{
		Took: rounded(barrier.Sub(begun).Seconds()), Copied: m.keys,
		Reads: all.Reads, MoveMisses: all.Lost, Stale: all.Stale, Requests: all.Requests, Errors: all.Errors,
		HitRate: rounded(share(all.Hits, all.Reads)), HitBefore: rounded(share(before.Hits, before.Reads)),
		Peak: all.Peak(peakSeconds), PeakBefore: before.Peak(peakSeconds),
		P99: milliseconds(while.Quantile(0.99)), P99Before: milliseconds(before.Quantile(0.99)),
	}
	if m.keys > 0 {
		f.KeysASecond, f.CPUAKey = rounded(float64(m.keys)/m.took.Seconds()), rounded(perOperation(m.cpu, m.keys))
	}
	return f
}

func share(part, whole int) float64 { return float64(part) / float64(max(1, whole)) }

func (f *reshardFigures) String() string {
	return fmt.Sprintf("%.1f s, %d keys copied (%.0f a second), %d of %d reads missed what was there, %d stale, errors %+v of %+v, database peak %d after %d, p99 %.2f ms after %.2f",
		f.Took, f.Copied, f.KeysASecond, f.MoveMisses, f.Reads, f.Stale, f.Errors, f.Requests, f.Peak, f.PeakBefore, f.P99, f.P99Before)
}

func newReshardResult(head header, p reshardPlan) *reshardResult {
	return &reshardResult{header: head, Peers: map[string]*reshardSummary{}, Plan: map[string]any{"shards": shardCount, "keys": p.load.Keys,
		"value_bytes": p.load.Bytes, "zipf_alpha": p.load.Alpha, "facts_cluster": factsCluster, "requests_per_second": p.load.Rate,
		"write_share": p.load.Writes, "seconds_after_barrier": p.after.Seconds()}}
}

func (r *reshardResult) take(name string, of map[string]*reshardFigures) {
	s := &r.reshardSummary
	if name != "cachemesh" {
		s = &reshardSummary{}
		r.Peers[name] = s
	}
	for direction, f := range of {
		s.MoveMisses.set(direction, rounded(100*share(f.MoveMisses, f.Reads)))
		s.Stale.set(direction, f.Stale)
		s.Errors.On.set(direction, f.Errors.Retried)
		s.Errors.Off.set(direction, f.Errors.Plain)
		s.Requests.On.set(direction, f.Requests.Retried)
		s.Requests.Off.set(direction, f.Requests.Plain)
		s.OriginPeak.set(direction, rounded(float64(f.Peak)/float64(max(1, f.PeakBefore))))
		s.P99.set(direction, rounded(f.P99/f.P99Before))
		s.KeysASecond.set(direction, f.KeysASecond)
		s.CPUAKey.set(direction, f.CPUAKey)
		s.Figures.set(direction, f)
	}
}

// movedKeys is the sample by which algorithms are compared.
const movedKeys = 500_000

// movement compares the algorithms: the share of the keys that change their shard, over the least that must.
func (r *reshardResult) movement() error {
	r.Algorithms = map[string]byDirection[float64]{}
	var best, standard float64
	for _, algorithm := range []mesh.Algorithm{"", mesh.Maglev, mesh.RingHash} { // "" is the default
		few, err := algorithmRing(algorithm, shardCount)
		if err != nil {
			return err
		}
		many, err := algorithmRing(algorithm, shardCount+1)
		if err != nil {
			return err
		}
		changed := 0
		for i := range movedKeys {
			if k := fmt.Appendf(nil, "item:%08d", i); few.Find(k) != many.Find(k) {
				changed++
			}
		}
		ratio := rounded(float64(changed) / (movedKeys / (shardCount + 1)))
		if algorithm == "" {
			standard, best = ratio, ratio
			continue
		}
		best = min(best, ratio)
		r.Algorithms[string(algorithm)] = byDirection[float64]{ratio, ratio} // the same keys come and go
	}
	r.MovedOverIdeal = byDirection[movement]{movement{standard, best}, movement{standard, best}}
	return nil
}

func algorithmRing(a mesh.Algorithm, shards int) (*ring.Ring, error) {
	nodes := make([][]string, shards)
	for i := range nodes {
		nodes[i] = []string{localAddress(1000 + i)}
	}
	m, err := mesh.Load("mesh.yaml", []byte(meshFile(nodes)))
	if err != nil {
		return nil, err
	}
	if a != "" {
		m, err = mesh.Load("mesh.yaml", []byte(strings.Replace(meshFile(nodes), "    routes:", "    hashing: {algorithm: "+string(a)+"}\n    routes:", 1)))
		if err != nil {
			return nil, err
		}
	}
	t, err := m.Topology(region)
	if err != nil {
		return nil, err
	}
	return envoy.Ring(t.Pools[0])
}

func (r *reshardResult) markdown(w io.Writer) {
	r.header.markdown(w, "a shard is added, and removed again, under load")
	fmt.Fprintf(w, "%v keys, %v requests/s, Zipf %v, a tenth of them writes. A move miss is a read of a key that nobody had taken away; the time counts until 60 s\nafter the last sidecar has changed.\n\n",
		r.Plan["keys"], r.Plan["requests_per_second"], r.Plan["zipf_alpha"])
	fmt.Fprintln(w, "| | | move misses, % of reads | stale reads | errors with / without retries | highest 10 s of database reads / before | p99 / before | change s | keys copied a second |")
	fmt.Fprintln(w, "|---|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, way := range []struct {
		label string
		of    *reshardSummary
	}{{"cachemesh", &r.reshardSummary}, {"plain Envoy", r.Peers["envoy"]}, {"twemproxy", r.Peers["twemproxy"]}} {
		row := func(direction string, misses float64, stale, on, off int, peak, p99 float64, f *reshardFigures) {
			fmt.Fprintf(w, "| %s | %s | %.3f | %d | %d / %d | %.2f | %.2f | %.1f | %.0f |\n", way.label, direction, misses, stale, on, off, peak, p99, f.Took, f.KeysASecond)
		}
		s := way.of
		row("add", s.MoveMisses.Add, s.Stale.Add, s.Errors.On.Add, s.Errors.Off.Add, s.OriginPeak.Add, s.P99.Add, s.Figures.Add)
		row("remove", s.MoveMisses.Remove, s.Stale.Remove, s.Errors.On.Remove, s.Errors.Off.Remove, s.OriginPeak.Remove, s.P99.Remove, s.Figures.Remove)
	}
	fmt.Fprint(w, "\nKeys that move, over the fewest that must:")
	for _, a := range []mesh.Algorithm{mesh.Maglev, mesh.RingHash} {
		fmt.Fprintf(w, " %s %.2f.", a, r.Algorithms[string(a)].Add)
	}
	fmt.Fprint(w, "\n\n![Hit rate while a shard is added and removed](docs/resharding.svg)\n")
}
