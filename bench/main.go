// Bench measures what cachemesh costs and what it is worth, against real peers on this machine:
//
//	go run ./bench list                # what there is
//	go run ./bench proxy -o json       # one of them: one JSON object on standard output
//	go run ./bench all                 # all of them; rewrites the results in README.md
//	go run ./bench report FILE...      # rewrites them from what single benchmarks have printed
//
// Cost is always a ratio to a peer in the same run, never an absolute figure, because the load, the proxies and the
// shards share the machine's few cores. The peers take turns, forwards in one round and backwards in the next; a
// ratio is taken within each round and the median of the rounds is reported, so what slows the machine down for a while
// slows both sides of a ratio.
//
// CPU time per operation is read from the operating system while the loop is closed: 50 connections, each with one batch
// under way, the same client for every peer. A proxy that gets more done in that time also finds more requests
// waiting whenever it looks, and so pays for fewer system calls each; that is a quality of the proxy, which a fixed rate
// would hide: at a fixed rate the figure is mostly the price of being woken up. It is measured there too, and reported
// beside the latencies, which come from an open loop: requests leave on a schedule that answers do not slow down, and
// latency counts from the moment that the schedule says.
//
// Windows are short and many, so that the two sides of a ratio are measured within seconds of each other; the CPU clock
// of a process counts nanoseconds, so short windows cost no precision. Each proxy has a session of its own, as a service
// has, because Linux shares its processors out by session (see startInSession).
//
// Answers are compared byte for byte with what they must be. A wrong one discards its window, which is measured again
// and reported; several fail the benchmark. Every case is reported, those that we lose too.
//
// This package starts what it measures and stops it again. It never measures a mesh that somebody else uses.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// bench is one benchmark.
type bench struct {
	name, summary string
	run           func(context.Context, settings) (result, error)
	empty         func() result                   // to read a result back into
	flags         func(*cobra.Command, *settings) // of its own; nil is none
	apart         bool                            // not one of all
}

// settings are what every benchmark is told.
type settings struct {
	quick    bool      // a run of seconds, which shows that it works and measures nothing
	dir      string    // for files and sockets; removed afterwards
	progress io.Writer // for people
	// Of failover, how often each fault is inflicted; of writes, how often each way is measured. 0 and -1 leave it to the plan.
	rounds, sentinelRounds int
	chaos                  chaosPlan // what is not set is left to the plan
	handoffs               handoffsPlan
	day                    dayPlan
	chart                  string // file of a picture; "" is none
}

// result is printed as JSON. The README's section is made of several.
type result interface {
	markdown(io.Writer)
}

// verdict is of a result that may be bad.
type verdict interface{ err() error }

var benches = []bench{
	{"proxy", "CPU, throughput and latency of the sidecar, plain Envoy, twemproxy and direct Redis (8 min)", benchProxy, func() result { return new(proxyResult) }, nil, false},
	{"client", "CPU of go-redis, sidecar and Redis, with and without automatic pipelining (1 min)", benchClient, func() result { return new(clientResult) }, nil, false},
	{"twitter", "the example application with a slow database, with and without the cache (4 min)", benchTwitter, func() result { return new(twitterResult) }, nil, false},
	{"push", "a change on its way to 10,000 sidecars, against go-control-plane's snapshot cache (8 min)", benchPush, func() result { return new(pushResult) }, nil, false},
	{"invalidation", "how fast regions learn of writes, delays and a partition between them, against Redis Pub/Sub (8 min)", benchInvalidation, func() result { return new(invalidationResult) }, nil, false},
	{"writes", "what writes through lanes cost, against the same Envoy's writes straight to the shards (5 min)", benchWrites, func() result { return new(writesResult) }, writesFlags, false},
	{"failover", "primaries killed and stopped under load, against Redis Sentinel (30 min)", benchFailover, func() result { return new(failoverResult) }, failoverFlags, false},
	{"reshard", "a shard is added under load, and removed, against a plain Envoy and twemproxy (14 min)", benchReshard, func() result { return new(reshardResult) }, reshardFlags, false},
	{"warming", "a region's cache copied into another's, against redis-cli --pipe and a copier of GET and SET (3 min)", benchWarming, func() result { return new(warmingResult) }, nil, false},
	{"coldstart", "a region whose shards come back empty, with and without warming (6 min)", benchColdstart, func() result { return new(coldResult) }, nil, false},
	{"day", "a day of two regions whose hours pass in seconds, with and without warming; writes a page (15 min; not one of all)", benchDay, func() result { return new(dayResult) }, dayFlags, true},
	{"chaos", "everything is killed, by seed, while a checker looks whether an invalidation is lost (20 min; not one of all)", benchChaos, func() result { return new(chaosResult) }, chaosFlags, true},
	{"handoffs", "shards come and go while something fails, by seed (20 min; not one of all)", benchHandoffs, func() result { return new(handoffsResult) }, handoffsFlags, true},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// failure is an error of what a benchmark did; other errors are of how it was called.
type failure struct{ error }

// execute runs one command and returns the exit status: 0 fine, 1 failed, 2 called wrongly.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "bench:", err)
	if errors.As(err, new(failure)) {
		return 1
	}
	return 2
}

func newRoot() *cobra.Command {
	root := &cobra.Command{Use: "bench", Short: "Measure what cachemesh costs and what it is worth", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(listCommand(), allCommand(), reportCommand(), clientLoadCommand(), naiveCopyCommand(), sessionCommand(), pushServerCommand(), pushDriverCommand())
	for _, b := range benches {
		var format string
		var s settings
		cmd := &cobra.Command{Use: b.name, Short: b.summary, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "json" {
				return fmt.Errorf("--output %s: only json", format)
			}
			s.progress = cmd.ErrOrStderr()
			r, err := runIn(cmd.Context(), b, s)
			if err != nil {
				return failure{fmt.Errorf("%s: %w", b.name, err)}
			}
			if err := printJSON(cmd.OutOrStdout(), r); err != nil {
				return err
			}
			if v, ok := r.(verdict); ok && v.err() != nil {
				return failure{fmt.Errorf("%s: %w", b.name, v.err())}
			}
			return nil
		}}
		s.sentinelRounds = -1
		if b.flags != nil {
			b.flags(cmd, &s)
		}
		cmd.Flags().StringVarP(&format, "output", "o", "json", "how to print: json")
		cmd.Flags().BoolVar(&s.quick, "quick", false, "run for seconds, to see that it works; the figures mean nothing")
		root.AddCommand(cmd)
	}
	return root
}

func listCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the benchmarks", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) {
		for _, b := range benches {
			fmt.Fprintf(cmd.OutOrStdout(), "%-12s %s\n", b.name, b.summary)
		}
	}}
}

func allCommand() *cobra.Command {
	var readme string
	s := settings{sentinelRounds: -1}
	cmd := &cobra.Command{Use: "all", Short: "Run all benchmarks and rewrite the results in README.md", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		s.progress = cmd.ErrOrStderr()
		results := make(map[string]result)
		var inOrder []result
		for _, b := range benches {
			if b.apart {
				continue
			}
			r, err := runIn(cmd.Context(), b, s)
			if err != nil {
				return failure{fmt.Errorf("%s: %w", b.name, err)}
			}
			results[b.name] = r
			inOrder = append(inOrder, r)
		}
		if err := rewriteResults(readme, inOrder); err != nil {
			return failure{err}
		}
		return printJSON(cmd.OutOrStdout(), results)
	}}
	cmd.Flags().StringVar(&readme, "readme", "README.md", "file whose results are rewritten")
	cmd.Flags().BoolVar(&s.quick, "quick", false, "run for seconds, to see that it works; the figures mean nothing")
	return cmd
}

// runIn gives the benchmark a folder of its own for the time it runs.
func runIn(ctx context.Context, b bench, s settings) (result, error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s.dir = dir
	fmt.Fprintf(s.progress, "%s: %s\n", b.name, b.summary)
	return b.run(ctx, s)
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		return failure{err}
	}
	return nil
}
