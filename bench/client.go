package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/process"
)

// clientPlan is how long and how often the client is measured.
type clientPlan struct {
	goroutines     int
	rounds         int
	warmUp, window time.Duration
}

var (
	clientFull  = clientPlan{goroutines: 200, rounds: 9, warmUp: 500 * time.Millisecond, window: time.Second}
	clientQuick = clientPlan{goroutines: 200, rounds: 1, warmUp: 100 * time.Millisecond, window: 200 * time.Millisecond}
)

// clientResult is what `bench client` prints.
type clientResult struct {
	header
	Plan map[string]any `json:"plan"`
	// CPU time per operation of client, sidecar and Redis together, with automatic pipelining over without.
	Ratio      float64                  `json:"autopipeline_cpu_ratio"`
	RatioRESP3 float64                  `json:"autopipeline_cpu_ratio_resp3"`
	Ways       map[string]*clientFigure `json:"ways"`
}

// clientFigure is of one way to use the client, medians over the rounds.
type clientFigure struct {
	Throughput float64   `json:"operations_per_second"`
	ClientCPU  float64   `json:"client_cpu_us_per_op"`
	SidecarCPU float64   `json:"sidecar_cpu_us_per_op"`
	RedisCPU   float64   `json:"redis_cpu_us_per_op"`
	Sums       []float64 `json:"cpu_us_per_op_rounds"` // of the three
	Failed     []string  `json:"failed_windows,omitempty"`

	throughputs, clients, sidecars, rediss []float64
}

// clientWay is one way to use go-redis.
type clientWay struct {
	name     string
	address  string
	protocol int
	auto     bool
}

func benchClient(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "client", s.quick)
	if err != nil {
		return nil, err
	}
	plan := clientFull
	if s.quick {
		plan = clientQuick
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
	ways := []clientWay{
		{"resp2", mesh.tcp[0].address, 2, false},
		{"resp2_autopipeline", mesh.tcp[0].address, 2, true},
		{"resp3", mesh.resp3.address, 3, false},
		{"resp3_autopipeline", mesh.resp3.address, 3, true},
	}
	r := &clientResult{header: head, Ways: map[string]*clientFigure{}, Plan: map[string]any{"shards": shardCount, "keys": keyCount,
		"value_bytes": valueBytes, "goroutines": plan.goroutines, "get_share": getShare, "rounds": plan.rounds, "window_seconds": plan.window.Seconds()}}
	for _, w := range ways {
		r.Ways[w.name] = &clientFigure{}
	}
	for round := range plan.rounds {
		for _, i := range interleaved(len(ways), round) {
			w, f := ways[i], r.Ways[ways[i].name]
			err := retried(ctx, &f.Failed, func() error { return measureClient(ctx, s, plan, w, f, mesh.pids, pids(shards)) })
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
		}
		fmt.Fprintf(s.progress, "round %d of %d\n", round+1, plan.rounds)
	}
	for _, f := range r.Ways {
		f.Throughput, f.ClientCPU = rounded(median(f.throughputs)), rounded(median(f.clients))
		f.SidecarCPU, f.RedisCPU = rounded(median(f.sidecars)), rounded(median(f.rediss))
	}
	r.Ratio = rounded(pairedRatio(r.Ways["resp2_autopipeline"].Sums, r.Ways["resp2"].Sums))
	r.RatioRESP3 = rounded(pairedRatio(r.Ways["resp3_autopipeline"].Sums, r.Ways["resp3"].Sums))
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// measureClient runs this program again as the client, so that the client's CPU time is its own.
func measureClient(ctx context.Context, s settings, plan clientPlan, w clientWay, f *clientFigure, sidecar, redis []int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	reader, writer := io.Pipe()
	child, err := process.Start(ctx, process.Spec{
		Name: "client", Path: self, Stdout: writer, Log: filepath.Join(s.dir, "client.log"),
		Args: []string{"client-load", "--address", w.address, "--protocol", fmt.Sprint(w.protocol), fmt.Sprintf("--autopipeline=%t", w.auto),
			"--goroutines", fmt.Sprint(plan.goroutines), "--warm-up", plan.warmUp.String(), "--for", plan.window.String()},
	})
	if err != nil {
		return err
	}
	defer child.Stop(5 * time.Second)
	go func() {
		<-child.Done()
		writer.CloseWithError(child.Err())
	}()
	lines := bufio.NewScanner(reader)
	mark := func() (operations int64, u usage, err error) {
		if !lines.Scan() {
			if err = lines.Err(); err == nil {
				err = io.ErrUnexpectedEOF
			}
			return 0, u, fmt.Errorf("the client's report: %w", err)
		}
		var m clientMark
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return 0, u, fmt.Errorf("the client's report %q: %w", lines.Text(), err)
		}
		if m.Error != "" {
			return 0, u, errors.New(m.Error)
		}
		u, err = readUsage(sidecar, redis, []int{child.PID()})
		return m.Operations, u, err
	}
	first, before, err := mark()
	if err != nil {
		return err
	}
	last, after, err := mark()
	if err != nil {
		return err
	}
	operations := int(last - first)
	client, proxy, server := perOperation(after.client-before.client, operations), perOperation(after.proxy-before.proxy, operations), perOperation(after.redis-before.redis, operations)
	f.throughputs = append(f.throughputs, float64(operations)/after.at.Sub(before.at).Seconds())
	f.clients, f.sidecars, f.rediss = append(f.clients, client), append(f.sidecars, proxy), append(f.rediss, server)
	f.Sums = append(f.Sums, rounded(client+proxy+server))
	return nil
}

// clientMark is a line of the client: when it has warmed up and when its time is over.
type clientMark struct {
	Operations int64  `json:"operations"` // since its start
	Error      string `json:"error,omitempty"`
}

// getShare of the operations are GETs, the others SETs.
const getShare = 0.9

// clientLoadCommand is the client's own process. It goes on under load until it is stopped, so that the CPU time
// of a window is read while it works.
func clientLoadCommand() *cobra.Command {
	var w clientWay
	var plan clientPlan
	cmd := &cobra.Command{Use: "client-load", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return clientLoad(cmd.Context(), cmd.OutOrStdout(), w, plan)
	}}
	f := cmd.Flags()
	f.StringVar(&w.address, "address", "", "the sidecar")
	f.IntVar(&w.protocol, "protocol", 2, "RESP version")
	f.BoolVar(&w.auto, "autopipeline", false, "use automatic pipelining")
	f.IntVar(&plan.goroutines, "goroutines", 200, "callers")
	f.DurationVar(&plan.warmUp, "warm-up", time.Second, "time before the first report")
	f.DurationVar(&plan.window, "for", time.Second, "time between the reports")
	return cmd
}

func clientLoad(ctx context.Context, out io.Writer, w clientWay, plan clientPlan) error {
	client := redis.NewClient(&redis.Options{Addr: w.address, Protocol: w.protocol})
	defer client.Close()
	var commands redis.Cmdable = client
	if w.auto {
		pipeliner, err := client.AutoPipeline()
		if err != nil {
			return err
		}
		defer pipeliner.Close()
		commands = pipeliner
	}
	keys, values := make([]string, keyCount), make([]string, keyCount)
	for i := range keys {
		keys[i], values[i] = key(i), value(i)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var operations atomic.Int64
	var callers sync.WaitGroup
	for n := range plan.goroutines {
		callers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 1))
			for ctx.Err() == nil {
				i := random.IntN(keyCount)
				if err := call(commands, keys[i], values[i], random.Float64() < getShare); err != nil {
					stop(err)
					return
				}
				operations.Add(1)
			}
		})
	}
	report := json.NewEncoder(out)
	for _, d := range []time.Duration{plan.warmUp, plan.window} {
		select {
		case <-ctx.Done():
			return report.Encode(clientMark{Error: context.Cause(ctx).Error()})
		case <-time.After(d):
		}
		if err := report.Encode(clientMark{Operations: operations.Load()}); err != nil {
			return err
		}
	}
	<-ctx.Done()
	callers.Wait()
	return nil
}

// call is one operation on a key that is present. It takes no notice of cancellation, which would end it with an error.
func call(commands redis.Cmdable, key, value string, get bool) error {
	if !get {
		return commands.Set(context.Background(), key, value, 0).Err()
	}
	got, err := commands.Get(context.Background(), key).Result()
	if err == nil && got != value {
		err = fmt.Errorf("GET %s: got %.80q", key, got)
	}
	return err
}
