package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"time"
)

// proxyPlan is how long and how often the proxies are measured.
type proxyPlan struct {
	connections int
	rounds      int           // closed loop; each proxy is measured once a round
	warmUp      time.Duration // before each window
	window      time.Duration // closed loop
	openRounds  int
	openWindow  time.Duration
}

// Many short windows beat few long ones: the two sides of a ratio are then measured within seconds of each other. The
// thirty-two cells (four ways, two transports, four cases) take just under eight minutes.
var (
	proxyFull  = proxyPlan{connections: 50, rounds: 15, warmUp: 150 * time.Millisecond, window: 600 * time.Millisecond, openRounds: 3, openWindow: 800 * time.Millisecond}
	proxyQuick = proxyPlan{connections: 50, rounds: 2, warmUp: 20 * time.Millisecond, window: 50 * time.Millisecond, openRounds: 1, openWindow: 50 * time.Millisecond}
)

const shardCount = 4

var transports = []string{"tcp", "unix"}

// proxyCase is one kind of load.
type proxyCase struct {
	name, command string
	pipeline      int
}

var proxyCases = []proxyCase{
	{"get_p1", "GET", 1}, {"get_p16", "GET", 16}, {"set_p1", "SET", 1}, {"set_p16", "SET", 16},
}

// proxyResult is what `bench proxy` prints. The maps go transport → case.
type proxyResult struct {
	header
	Plan           map[string]any                            `json:"plan"`
	RatioNaive     map[string]map[string]float64             `json:"ratio_vs_naive_cpu_per_op"`
	RatioTwemproxy map[string]map[string]float64             `json:"ratio_vs_twemproxy_cpu_per_op"`
	Targets        map[string]map[string]map[string]*figures `json:"targets"`
}

// figures are those of one proxy over one transport in one case, medians over the rounds.
type figures struct {
	Throughput  float64   `json:"operations_per_second"`
	CPU         float64   `json:"cpu_us_per_op"` // of the proxy; Envoy and agent together for the sidecar
	RedisCPU    float64   `json:"redis_cpu_us_per_op"`
	ClientCPU   float64   `json:"client_cpu_us_per_op"`
	CPURounds   []float64 `json:"cpu_us_per_op_rounds"`
	OpenRate    float64   `json:"open_loop_operations_per_second"`
	OpenCPU     float64   `json:"open_loop_cpu_us_per_op"`
	P50         float64   `json:"open_loop_p50_us"` // of a whole batch
	P99         float64   `json:"open_loop_p99_us"`
	Failed      []string  `json:"failed_windows,omitempty"` // why; measured again
	throughputs []float64
	redisCPUs   []float64
	clientCPUs  []float64
}

func benchProxy(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "proxy", s.quick)
	if err != nil {
		return nil, err
	}
	plan := proxyFull
	if s.quick {
		plan = proxyQuick
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
	envoy, err := startEnvoy(ctx, &running, s.dir, shards)
	if err != nil {
		return nil, err
	}
	twemproxy, err := startTwemproxy(ctx, &running, s.dir, shards)
	if err != nil {
		return nil, err
	}
	r, err := runProxy(ctx, s.progress, plan, []target{direct(shards), mesh.target, envoy, twemproxy}, shards)
	if err != nil {
		return nil, err
	}
	r.header = head
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// runProxy measures the targets: all of them in every round of a case before the next case.
func runProxy(ctx context.Context, progress io.Writer, plan proxyPlan, targets []target, shards []shard) (*proxyResult, error) {
	result := &proxyResult{
		Plan: map[string]any{"shards": len(shards), "keys": keyCount, "value_bytes": valueBytes, "connections": plan.connections,
			"rounds": plan.rounds, "window_seconds": plan.window.Seconds(), "open_loop_rounds": plan.openRounds, "open_loop_window_seconds": plan.openWindow.Seconds()},
		Targets: map[string]map[string]map[string]*figures{},
	}
	for _, t := range targets {
		result.Targets[t.name] = map[string]map[string]*figures{"tcp": {}, "unix": {}}
	}
	for _, transport := range transports {
		for _, c := range proxyCases {
			cells := make([]*figures, len(targets))
			for i, t := range targets {
				cells[i] = &figures{}
				result.Targets[t.name][transport][c.name] = cells[i]
			}
			if err := measureCase(ctx, plan, targets, cells, pids(shards), transport, c); err != nil {
				return nil, err
			}
			fmt.Fprintf(progress, "%s %s:", transport, c.name)
			for i, t := range targets {
				fmt.Fprintf(progress, " %s %.0f op/s %.2f µs/op p99 %.0f µs;", t.name, cells[i].Throughput, cells[i].CPU, cells[i].P99)
			}
			fmt.Fprintln(progress)
			for i, t := range targets {
				for _, failed := range cells[i].Failed {
					fmt.Fprintf(progress, "  %s: a window was measured again: %s\n", t.name, failed)
				}
			}
		}
	}
	result.RatioNaive = cpuRatios(result.Targets, "envoy", "sidecar")
	result.RatioTwemproxy = cpuRatios(result.Targets, "twemproxy", "sidecar")
	return result, nil
}

func measureCase(ctx context.Context, plan proxyPlan, targets []target, cells []*figures, redis []int, transport string, c proxyCase) error {
	work := newWorkload(c.command, c.pipeline)
	for round := range plan.rounds {
		for _, i := range interleaved(len(targets), round) {
			err := retried(ctx, &cells[i].Failed, func() error { return closedWindow(plan, targets[i], cells[i], redis, transport, work) })
			if err != nil {
				return fmt.Errorf("%s over %s, %s: %w", targets[i].name, transport, c.name, err)
			}
		}
	}
	slowest := math.Inf(1)
	for _, cell := range cells {
		cell.summarize()
		slowest = min(slowest, cell.Throughput)
	}
	open := make([]openFigures, len(targets))
	for round := range plan.openRounds {
		for _, i := range interleaved(len(targets), round) {
			err := retried(ctx, &cells[i].Failed, func() error { return openWindow(plan, targets[i], &open[i], transport, work, slowest/2) })
			if err != nil {
				return fmt.Errorf("%s over %s, %s, open loop: %w", targets[i].name, transport, c.name, err)
			}
		}
	}
	for i, o := range open {
		cells[i].OpenRate, cells[i].OpenCPU = rounded(slowest/2), rounded(median(o.cpu))
		cells[i].P50, cells[i].P99 = rounded(median(o.p50)), rounded(median(o.p99))
	}
	return nil
}

// maxFailed is how many windows of one case may fail. A machine that stands still for longer than a proxy's timeout makes the
// proxy answer with an error; the window is measured again and the result says so.
const maxFailed = 3

func retried(ctx context.Context, failed *[]string, window func() error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := window()
		if err == nil {
			return nil
		}
		*failed = append(*failed, err.Error())
		if len(*failed) > maxFailed {
			return fmt.Errorf("%d windows failed, the last with: %w", len(*failed), err)
		}
	}
}

// closedWindow adds one round's figures to the cell.
func closedWindow(plan proxyPlan, t target, cell *figures, redis []int, transport string, work workload) error {
	l, err := openLoad(t.endpoints(transport), plan.connections, work)
	if err != nil {
		return err
	}
	defer l.close()
	if _, err := l.closedLoop(plan.warmUp); err != nil {
		return err
	}
	client := []int{os.Getpid()}
	before, err := readUsage(t.pids, redis, client)
	if err != nil {
		return err
	}
	operations, err := l.closedLoop(plan.window)
	if err != nil {
		return err
	}
	after, err := readUsage(t.pids, redis, client)
	if err != nil {
		return err
	}
	cell.throughputs = append(cell.throughputs, float64(operations)/after.at.Sub(before.at).Seconds())
	cell.CPURounds = append(cell.CPURounds, rounded(perOperation(after.proxy-before.proxy, operations)))
	cell.redisCPUs = append(cell.redisCPUs, perOperation(after.redis-before.redis, operations))
	cell.clientCPUs = append(cell.clientCPUs, perOperation(after.client-before.client, operations))
	return nil
}

func (f *figures) summarize() {
	f.Throughput = rounded(median(f.throughputs))
	f.CPU = rounded(median(f.CPURounds))
	f.RedisCPU = rounded(median(f.redisCPUs))
	f.ClientCPU = rounded(median(f.clientCPUs))
}

// openFigures has a value a round.
type openFigures struct{ cpu, p50, p99 []float64 }

func openWindow(plan proxyPlan, t target, open *openFigures, transport string, work workload, rate float64) error {
	l, err := openLoad(t.endpoints(transport), plan.connections, work)
	if err != nil {
		return err
	}
	defer l.close()
	if _, err := l.openLoop(rate, plan.warmUp); err != nil {
		return err
	}
	before, err := cpuTime(t.pids...)
	if err != nil {
		return err
	}
	latency, err := l.openLoop(rate, plan.openWindow)
	if err != nil {
		return err
	}
	after, err := cpuTime(t.pids...)
	if err != nil {
		return err
	}
	open.cpu = append(open.cpu, perOperation(after-before, int(latency.TotalCount())*work.pipeline))
	open.p50 = append(open.p50, float64(latency.ValueAtQuantile(50))/1e3)
	open.p99 = append(open.p99, float64(latency.ValueAtQuantile(99))/1e3)
	return nil
}

// cpuRatios is the other's CPU time per operation over ours, transport → case; above 1, ours is cheaper.
// It is empty when either was not measured.
func cpuRatios(targets map[string]map[string]map[string]*figures, other, ours string) map[string]map[string]float64 {
	ratios := map[string]map[string]float64{}
	for transport, cases := range targets[ours] {
		for name, cell := range cases {
			peer := targets[other][transport][name]
			if peer == nil {
				continue
			}
			if ratios[transport] == nil {
				ratios[transport] = map[string]float64{}
			}
			ratios[transport][name] = rounded(pairedRatio(peer.CPURounds, cell.CPURounds))
		}
	}
	return ratios
}
