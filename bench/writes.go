package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"
)

// writesPlan is how long and how often the ways of a write are measured.
type writesPlan struct {
	connections, rounds int
	warmUp, window      time.Duration
	openRounds          int // of a way and the direct one in turn, at half of the slower one's rate
	openWindow          time.Duration
}

var (
	writesFull  = writesPlan{connections: 50, rounds: 15, warmUp: 150 * time.Millisecond, window: 600 * time.Millisecond, openRounds: 5, openWindow: 800 * time.Millisecond}
	writesQuick = writesPlan{connections: 50, rounds: 2, warmUp: 20 * time.Millisecond, window: 80 * time.Millisecond, openRounds: 1, openWindow: 80 * time.Millisecond}
)

func writesFlags(cmd *cobra.Command, s *settings) {
	cmd.Flags().IntVar(&s.rounds, "rounds", 0, "rounds of each way in a closed loop, and a third of them in an open one (default: 15)")
}

// writesRoutes are of the ways. With update, every SET has an entry in the journal; with refill it has none, but may come too late, for which
// each DEL leaves a mark.
const writesRoutes = `prefix: "near:"
prefix: "lane:", coherence: invalidate, writes: update
prefix: "fill:", coherence: invalidate, writes: refill
prefix: "repl:", coherence: invalidate, writes: update, durability: replica
prefix: ""`

// writesWay is one way of a write: all go through the same Envoy.
type writesWay struct{ name, prefix, label string }

var writesWays = []writesWay{
	{"direct", "near:", "straight to the shards"},
	{"update", "lane:", "lane, writes: update"},
	{"refill", "fill:", "lane, writes: refill"},
	{"replica", "repl:", "lane, writes: update, durability: replica"},
}

var writesCases = []proxyCase{
	{"set_p1", "SET", 1}, {"set_p16", "SET", 16}, {"del_p1", "DEL", 1}, {"del_p16", "DEL", 16},
}

// writesResult is what `bench writes` prints. The first two have p1 and p16, of durability primary: the worst of SET and DEL with update and
// refill.
type writesResult struct {
	header
	Plan            map[string]any     `json:"plan"`
	ThroughputRatio map[string]float64 `json:"throughput_ratio"` // of the lane's over the direct one's
	P50Ratio        map[string]float64 `json:"p50_ratio"`        // in an open loop
	P50RatioClosed  map[string]float64 `json:"p50_ratio_closed_loop"`
	// Ratios go way → case, those of each command.
	ThroughputRatios map[string]map[string]float64        `json:"throughput_ratios"`
	P50Ratios        map[string]map[string]float64        `json:"p50_ratios"`
	P99Ratios        map[string]map[string]float64        `json:"p99_ratios"`
	P50RatiosClosed  map[string]map[string]float64        `json:"p50_ratios_closed_loop"`
	Ways             map[string]map[string]*writesFigures `json:"ways"`
}

// writesFigures are those of one way in one case, medians over the rounds. CPU is microseconds a write.
type writesFigures struct {
	Throughput  float64   `json:"operations_per_second"`
	ClosedP50   float64   `json:"closed_loop_p50_us"` // of a whole batch
	ClosedP99   float64   `json:"closed_loop_p99_us"`
	EnvoyCPU    float64   `json:"envoy_cpu_us_per_write"`
	AgentCPU    float64   `json:"agent_cpu_us_per_write"`
	RedisCPU    float64   `json:"redis_cpu_us_per_write"` // of primaries and replicas
	ClientCPU   float64   `json:"client_cpu_us_per_write"`
	OpenRate    float64   `json:"open_loop_operations_per_second,omitempty"`
	P50         float64   `json:"open_loop_p50_us,omitempty"` // of a whole batch
	P99         float64   `json:"open_loop_p99_us,omitempty"`
	Throughputs []float64 `json:"operations_per_second_rounds"`
	Failed      []string  `json:"failed_windows,omitempty"` // why; measured again

	envoys, agents, redises, clients, p50s, p99s []float64
}

// writesParties are whose CPU time is told apart.
type writesParties struct{ envoy, agent, redis []int }

func benchWrites(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "writes", s.quick)
	if err != nil {
		return nil, err
	}
	plan := writesFull
	if s.quick {
		plan = writesQuick
	}
	if s.rounds > 0 {
		plan.rounds, plan.openRounds = s.rounds, (s.rounds+2)/3
	}
	cachemesh, err := build(ctx, s.dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return nil, err
	}
	// Another region only has to exist: what it does with the journal is not on a write's way, and would run on another machine.
	m, err := startRegions(ctx, s.dir, cachemesh, regionsPlan{names: []string{region}, absent: []string{"away"}, routes: writesRoutes, probe: "lane:",
		shards: shardCount, nodes: 2, sidecars: 1})
	if err != nil {
		return nil, err
	}
	defer m.stop()
	r := &writesResult{header: head, Ways: map[string]map[string]*writesFigures{}, Plan: map[string]any{"shards": shardCount, "nodes_per_shard": 2,
		"keys": keyCount, "value_bytes": valueBytes, "connections": plan.connections, "rounds": plan.rounds, "window_seconds": plan.window.Seconds(),
		"open_loop_rounds": plan.openRounds, "open_loop_window_seconds": plan.openWindow.Seconds(),
		"open_loop_rate": "half of what the slower of the two does in the closed loop"}}
	if err := r.measure(ctx, s.progress, plan, m.regions[0]); err != nil {
		return nil, err
	}
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

func (r *writesResult) measure(ctx context.Context, progress io.Writer, plan writesPlan, home *meshRegion) error {
	sidecar := home.sidecars[0]
	envoy, err := sidecar.envoy()
	if err != nil {
		return err
	}
	parties := writesParties{envoy: []int{envoy}, agent: []int{sidecar.agent.running.PID()}}
	for _, set := range home.sets {
		for _, n := range set.nodes {
			parties.redis = append(parties.redis, n.running.PID())
		}
	}
	to := []endpoint{{"tcp", sidecar.redis}}
	for _, way := range writesWays {
		r.Ways[way.name] = map[string]*writesFigures{}
	}
	r.ThroughputRatio, r.P50Ratio, r.P50RatioClosed = map[string]float64{}, map[string]float64{}, map[string]float64{}
	for _, ratios := range []*map[string]map[string]float64{&r.ThroughputRatios, &r.P50Ratios, &r.P99Ratios, &r.P50RatiosClosed} {
		*ratios = map[string]map[string]float64{}
		for _, way := range writesWays[1:] {
			(*ratios)[way.name] = map[string]float64{}
		}
	}
	for _, c := range writesCases {
		works, cells := make([]workload, len(writesWays)), make([]*writesFigures, len(writesWays))
		for i, way := range writesWays {
			// Keys of a DEL are never set.
			works[i], cells[i] = workloadOf(way.prefix+c.command+":", c.command, c.pipeline), &writesFigures{}
			r.Ways[way.name][c.name] = cells[i]
		}
		for round := range plan.rounds {
			for _, i := range interleaved(len(writesWays), round) {
				if err := retried(ctx, &cells[i].Failed, func() error { return cells[i].closedWindow(plan, to, works[i], parties) }); err != nil {
					return fmt.Errorf("%s, %s: %w", writesWays[i].name, c.name, err)
				}
			}
		}
		for _, cell := range cells {
			cell.summarize()
		}
		for i, way := range writesWays[1:] {
			if err := r.compare(ctx, plan, to, c, way, works[0], works[i+1]); err != nil {
				return fmt.Errorf("%s, %s, open loop: %w", way.name, c.name, err)
			}
		}
		fmt.Fprintf(progress, "%s:", c.name)
		for i, way := range writesWays {
			f := cells[i]
			fmt.Fprintf(progress, " %s %.0f op/s, p50 %.0f µs, CPU %.2f+%.2f+%.2f µs;", way.name, f.Throughput, f.P50, f.EnvoyCPU, f.AgentCPU, f.RedisCPU)
			for _, failed := range f.Failed {
				fmt.Fprintf(progress, " (a window was measured again: %s)", failed)
			}
		}
		fmt.Fprintln(progress)
		pipeline := fmt.Sprintf("p%d", c.pipeline)
		for _, way := range []string{"update", "refill"} {
			if ratio := r.ThroughputRatios[way][c.name]; r.ThroughputRatio[pipeline] == 0 || ratio < r.ThroughputRatio[pipeline] {
				r.ThroughputRatio[pipeline] = ratio
			}
			r.P50Ratio[pipeline] = max(r.P50Ratio[pipeline], r.P50Ratios[way][c.name])
			r.P50RatioClosed[pipeline] = max(r.P50RatioClosed[pipeline], r.P50RatiosClosed[way][c.name])
		}
	}
	return nil
}

// compare measures latencies of a way and the direct one in turn, and takes the ratios.
func (r *writesResult) compare(ctx context.Context, plan writesPlan, to []endpoint, c proxyCase, way writesWay, direct, through workload) error {
	ours, peer := r.Ways[way.name][c.name], r.Ways["direct"][c.name]
	rate := min(ours.Throughput, peer.Throughput) / 2
	works, cells := []workload{direct, through}, []*writesFigures{peer, ours}
	p50s, p99s := make([][]float64, 2), make([][]float64, 2)
	for round := range plan.openRounds {
		for _, i := range interleaved(2, round) {
			if err := retried(ctx, &cells[i].Failed, func() error {
				l, err := openLoad(to, plan.connections, works[i])
				if err != nil {
					return err
				}
				defer l.close()
				if _, err := l.openLoop(rate, plan.warmUp); err != nil {
					return err
				}
				latency, err := l.openLoop(rate, plan.openWindow)
				if err != nil {
					return err
				}
				p50s[i] = append(p50s[i], float64(latency.ValueAtQuantile(50))/1e3)
				p99s[i] = append(p99s[i], float64(latency.ValueAtQuantile(99))/1e3)
				return nil
			}); err != nil {
				return err
			}
		}
	}
	ours.OpenRate, ours.P50, ours.P99 = rounded(rate), rounded(median(p50s[1])), rounded(median(p99s[1]))
	if way.name == "update" {
		peer.OpenRate, peer.P50, peer.P99 = rounded(rate), rounded(median(p50s[0])), rounded(median(p99s[0]))
	}
	for _, ratios := range []struct {
		all    map[string]map[string]float64
		values float64
	}{
		{r.ThroughputRatios, pairedRatio(ours.Throughputs, peer.Throughputs)},
		{r.P50Ratios, pairedRatio(p50s[1], p50s[0])},
		{r.P99Ratios, pairedRatio(p99s[1], p99s[0])},
		{r.P50RatiosClosed, pairedRatio(ours.p50s, peer.p50s)},
	} {
		ratios.all[way.name][c.name] = rounded(ratios.values)
	}
	return nil
}

// closedWindow adds one round's figures.
func (f *writesFigures) closedWindow(plan writesPlan, to []endpoint, work workload, parties writesParties) error {
	l, err := openLoad(to, plan.connections, work)
	if err != nil {
		return err
	}
	defer l.close()
	if _, err := l.closedLoop(plan.warmUp); err != nil {
		return err
	}
	used := func() (all [4]time.Duration, at time.Time, err error) {
		for i, pids := range [][]int{parties.envoy, parties.agent, parties.redis, {os.Getpid()}} {
			if all[i], err = cpuTime(pids...); err != nil {
				return all, at, err
			}
		}
		return all, time.Now(), nil
	}
	before, from, err := used()
	if err != nil {
		return err
	}
	l.latency = hdrhistogram.New(1000, stalled.Nanoseconds(), 3)
	operations, err := l.closedLoop(plan.window)
	if err != nil {
		return err
	}
	after, until, err := used()
	if err != nil {
		return err
	}
	f.Throughputs = append(f.Throughputs, rounded(float64(operations)/until.Sub(from).Seconds()))
	f.p50s = append(f.p50s, float64(l.latency.ValueAtQuantile(50))/1e3)
	f.p99s = append(f.p99s, float64(l.latency.ValueAtQuantile(99))/1e3)
	for i, values := range []*[]float64{&f.envoys, &f.agents, &f.redises, &f.clients} {
		*values = append(*values, perOperation(after[i]-before[i], operations))
	}
	return nil
}

func (f *writesFigures) summarize() {
	f.Throughput, f.ClosedP50, f.ClosedP99 = rounded(median(f.Throughputs)), rounded(median(f.p50s)), rounded(median(f.p99s))
	f.EnvoyCPU, f.AgentCPU, f.RedisCPU, f.ClientCPU = rounded(median(f.envoys)), rounded(median(f.agents)), rounded(median(f.redises)), rounded(median(f.clients))
}

func (r *writesResult) markdown(w io.Writer) {
	r.header.markdown(w, "what a write through a lane costs")
	fmt.Fprintf(w, "%v shards with a replica each, %d-byte values, %v connections, all through one Envoy over TCP: a lane's writes against those of a `local` route, which go\n"+
		"straight to the shards. With durability `primary`, at the worst of SET and DEL, update and refill, throughput is %.2f of theirs without pipelining and %.2f with 16 commands under way;\n"+
		"p50 of a batch is %.2f and %.2f times theirs in an open loop at half of the slower way's rate, and %.2f and %.2f in the closed loop of 50 that throughput is from. CPU is µs\na write.\n\n",
		r.Plan["shards"], valueBytes, r.Plan["connections"], r.ThroughputRatio["p1"], r.ThroughputRatio["p16"], r.P50Ratio["p1"], r.P50Ratio["p16"],
		r.P50RatioClosed["p1"], r.P50RatioClosed["p16"])
	fmt.Fprintln(w, "| | | thousand writes/s | of direct | p50 µs | of direct | p99 µs | Envoy | agent | Redis |")
	fmt.Fprintln(w, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, c := range writesCases {
		for _, way := range writesWays {
			f := r.Ways[way.name][c.name]
			if f == nil {
				continue
			}
			ratio := func(of map[string]map[string]float64) string {
				if x, ok := of[way.name][c.name]; ok && !math.IsNaN(x) {
					return fmt.Sprintf("%.2f", x)
				}
				return ""
			}
			fmt.Fprintf(w, "| %s, pipeline %d | %s | %.1f | %s | %.0f | %s | %.0f | %.2f | %.2f | %.2f |\n", c.command, c.pipeline, way.label,
				f.Throughput/1000, ratio(r.ThroughputRatios), f.P50, ratio(r.P50Ratios), f.P99, f.EnvoyCPU, f.AgentCPU, f.RedisCPU)
		}
	}
}
