package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/bench/aside"
	"github.com/cachemesh/cachemesh/bench/chart"
	facts "github.com/cachemesh/cachemesh/examples/twitter/workload"
	"github.com/cachemesh/cachemesh/process"
)

// reshardPlan is a pool that grows by a shard and shrinks again, under load.
type reshardPlan struct {
	load          aside.Plan
	warmUp        time.Duration
	before, after time.Duration // of load, before a change begins and after its barrier
}

// factsCluster is the cluster of the workload's facts whose popularity and value size the load has: storage, of moderate skew. The more
// skewed a load is, the fewer of its reads a moved key can miss.
const factsCluster = 36

var (
	reshardFull  = reshardPlan{load: reshardLoad(200_000, 3000), warmUp: 10 * time.Second, before: 75 * time.Second, after: 60 * time.Second}
	reshardQuick = reshardPlan{load: reshardLoad(5_000, 500), warmUp: time.Second, before: 3 * time.Second, after: 2 * time.Second}
)

func reshardLoad(keys int, rate float64) aside.Plan {
	cluster, err := facts.FindCluster(factsCluster)
	if err != nil {
		panic(err) // the facts are part of the program
	}
	return aside.Plan{Keys: keys, Bytes: cluster.ValueBytes, Alpha: cluster.Alpha, Rate: rate, Writes: 0.1, Timeout: 2 * time.Second}
}

// directions are the changes that are measured, in their order.
var directions = []string{"add", "remove"}

// reshardable is one way to reach shards of which one comes and goes.
type reshardable struct {
	name           string
	careful, plain []*redis.Client
	change         func(ctx context.Context, direction string) (moved, error)
}

// moved is what a change says of itself.
type moved struct {
	keys int           // that were copied
	took time.Duration // the copying
	cpu  time.Duration // that it cost, outside of Redis
}

func benchReshard(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "reshard", s.quick)
	if err != nil {
		return nil, err
	}
	plan := reshardFull
	if s.quick {
		plan = reshardQuick
	}
	redis.SetLogger(silence{})
	r := newReshardResult(head, plan)
	if err := r.movement(); err != nil {
		return nil, err
	}
	var lines []chart.Series
	for _, c := range []struct {
		name  string
		start func(context.Context, *programs, string, []shard) (*reshardable, error)
	}{{"cachemesh", startReshardMesh}, {"envoy", startReshardEnvoy}, {"twemproxy", startReshardTwemproxy}} {
		f, line, err := measureReshard(ctx, s, plan, c.name, c.start)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		r.take(c.name, f)
		lines = append(lines, line)
	}
	r.Seconds = rounded(time.Since(began).Seconds())
	if s.chart == "" {
		return r, nil
	}
	picture := chart.Lines{Title: "A shard is added, and removed again", X: "seconds", Y: "hit rate", Series: lines,
		Marks: []chart.Mark{{Name: "added", X: plan.before.Seconds()}, {Name: "removed", X: removedAt(plan)}}}
	svg, err := picture.SVG()
	if err != nil {
		return nil, err
	}
	return r, renameio.WriteFile(s.chart, svg, 0o644)
}

func reshardFlags(cmd *cobra.Command, s *settings) {
	cmd.Flags().StringVar(&s.chart, "chart", "", "file for the picture of hit rates over time, as SVG")
}

// removedAt is where the picture has the removal: each change begins at the same second of its part for all.
func removedAt(p reshardPlan) float64 { return (2*p.before + p.after).Seconds() }

func measureReshard(ctx context.Context, s settings, plan reshardPlan, name string,
	start func(context.Context, *programs, string, []shard) (*reshardable, error)) (map[string]*reshardFigures, chart.Series, error) {
	line := chart.Series{Name: name}
	dir, err := os.MkdirTemp(s.dir, name+"-")
	if err != nil {
		return nil, line, err
	}
	var running programs
	defer running.stop()
	shards, err := emptyShards(ctx, &running, dir, shardCount+1)
	if err != nil {
		return nil, line, err
	}
	way, err := start(ctx, &running, dir, shards)
	if err != nil {
		return nil, line, err
	}
	defer closeClients(slices.Concat(way.careful, way.plain))
	app := aside.New(plan.load, way.careful, way.plain)
	if err := app.Fill(ctx); err != nil {
		return nil, line, err
	}
	loaded, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); app.Run(loaded) }()
	defer func() { stop(); <-done }()
	if err := sleep(ctx, plan.warmUp); err != nil {
		return nil, line, err
	}
	figures := map[string]*reshardFigures{}
	for i, direction := range directions {
		calm := time.Now()
		if err := sleep(ctx, plan.before); err != nil {
			return nil, line, err
		}
		begun := time.Now()
		m, err := way.change(ctx, direction)
		if err != nil {
			return nil, line, fmt.Errorf("%s a shard: %w", direction, err)
		}
		barrier := time.Now()
		if err := sleep(ctx, plan.after); err != nil {
			return nil, line, err
		}
		f := newReshardFigures(app, calm, begun, barrier, time.Now(), m)
		figures[direction] = f
		fmt.Fprintf(s.progress, "%s: %s: %s\n", name, direction, f)
		at := 0.0
		if i > 0 {
			at = (plan.before + plan.after).Seconds()
		}
		for second, answers := range app.Between(begun.Add(-plan.before), begun.Add(plan.after)).Seconds {
			if answers.Reads > 0 {
				line.X = append(line.X, at+float64(second))
				line.Y = append(line.Y, float64(answers.Hits)/float64(answers.Reads))
			}
		}
	}
	return figures, line, nil
}

// emptyShards are real Redis without data.
func emptyShards(ctx context.Context, running *programs, dir string, count int) ([]shard, error) {
	ports, err := process.FreePorts(count)
	if err != nil {
		return nil, err
	}
	var shards []shard
	for _, port := range ports {
		r := process.Redis{Port: port, Dir: dir}
		started, err := r.Start(ctx)
		if err != nil {
			return nil, err
		}
		*running = append(*running, started)
		shards = append(shards, shard{address: r.Address(), pid: started.PID()})
	}
	return shards, nil
}

// dialer opens connections for a client; nil is its own.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// applications are two clients of an address: one that tries again, as go-redis does by itself, and one that does not.
func applications(address string, dial dialer) (careful, plain []*redis.Client) {
	options := redis.Options{Addr: address, Dialer: dial, Protocol: 2, DisableIdentity: true, PoolSize: 200, DialTimeout: patient, ReadTimeout: patient, WriteTimeout: patient, PoolTimeout: patient}
	again, once := options, options
	once.MaxRetries = -1
	return []*redis.Client{redis.NewClient(&again)}, []*redis.Client{redis.NewClient(&once)}
}

var errDirection = errors.New("a shard is added or removed")
