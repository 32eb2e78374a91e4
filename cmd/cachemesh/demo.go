package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/demo"
	"github.com/cachemesh/cachemesh/process"
)

func newDemo() *cobra.Command {
	var o demo.Options
	var out output
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a mesh of two regions with an application under load on this machine",
		Long: `Run a mesh of two regions on this machine: a control plane each, 12 Redis nodes each, two sidecars each, and a
Twitter-like application that serves timelines through them, under load. What the application changes in one region is fresh
in the other a moment later. Ctrl-C stops everything that it started.

When it is ready it writes where everything is to endpoints.json in --dir. It exits with 0 only if nothing failed.`,
		Example: "  cachemesh demo --for 60s\n  cachemesh demo --no-load     # to try the mesh by hand",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.For < 0 || o.Rate < 1 || o.DBLatency < 0 {
				return usage("--for, --rate and --db-latency cannot be negative, and --rate not 0")
			}
			if o.Warming && !o.Coherent {
				return usage("--warming fills caches that are kept coherent: leave --coherent=false out")
			}
			var err error
			if o.Cachemesh, err = os.Executable(); err != nil {
				return err
			}
			if o.Twitter, err = process.Find("twitter"); err != nil {
				return fmt.Errorf("the example application: %w", err)
			}
			tools := []string{"redis-server", "envoy"}
			if o.Membership == "consul" {
				tools = append(tools, "consul")
			}
			if o.Prometheus {
				tools = append(tools, "prometheus")
			}
			for _, tool := range tools {
				if _, err := process.Find(tool); err != nil {
					return err
				}
			}
			return runDemo(cmd, o, out)
		},
	}
	out.register(cmd, "table", "json")
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", defaultDir, "folder for its files")
	f.DurationVar(&o.For, "for", 0, "how long to run once ready (default: until Ctrl-C)")
	f.BoolVar(&o.NoLoad, "no-load", false, "start everything but the load generators")
	f.IntVar(&o.Rate, "rate", 700, "requests a second in each region")
	f.IntVar(&o.PortOffset, "port-offset", 0, "add this to every port")
	f.BoolVar(&o.Coherent, "coherent", true, "the regions tell each other what applications change; with =false all routes are local")
	f.BoolVar(&o.Warming, "warming", false, "fill caches ahead, by plans")
	f.StringVar(&o.Clock, "warming-clock", "", "")
	f.BoolVar(&o.NoPlans, "no-plans", false, "")
	f.MarkHidden("warming-clock") // for the benchmark of a day
	f.MarkHidden("no-plans")
	f.BoolVar(&o.TLS, "tls", false, "TLS and passwords everywhere but between an application and its sidecar")
	f.BoolVar(&o.Prometheus, "prometheus", false, "start a Prometheus that watches, on port 9090")
	f.DurationVar(&o.DBLatency, "db-latency", 0, "imitate a distant database")
	o.Membership = "static"
	f.Var(&choice{value: &o.Membership, of: []string{"static", "consul"}}, "membership", "where nodes are known from: static (mesh.yaml) or consul (two Consul servers)")
	cmd.MarkFlagDirname("dir")
	return cmd
}

func runDemo(cmd *cobra.Command, o demo.Options, out output) error {
	stderr := cmd.ErrOrStderr()
	o.Notes = func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }
	began := time.Now()
	d, err := demo.Start(cmd.Context(), o)
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "ready after %.1fs; everything is listed in %s; try: cachemesh status --dir %s\n",
		time.Since(began).Seconds(), filepath.Join(o.Dir, "endpoints.json"), o.Dir)
	screen := &liveScreen{w: stderr, terminal: isTerminal(stderr)}
	summary, runErr := d.Run(cmd.Context(), screen.show)
	fmt.Fprintln(stderr, "stopping")
	summary.Failed = append(summary.Failed, d.Stop()...)
	if runErr != nil {
		return runErr
	}
	if out == "json" {
		data, err := json.Marshal(summary)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s\n", data)
	} else {
		printSummary(cmd.OutOrStdout(), summary)
	}
	if len(summary.Failed) == 0 {
		return nil
	}
	for _, f := range summary.Failed {
		fmt.Fprintln(stderr, "failed:", f)
	}
	return errReported
}

// liveScreen shows the traffic: in place on a terminal, else a line every ten seconds.
type liveScreen struct {
	w        io.Writer
	terminal bool
	lines    int
	last     time.Time
}

func (s *liveScreen) show(elapsed time.Duration, traffic []demo.Traffic) {
	if !s.terminal {
		if time.Since(s.last) < 10*time.Second {
			return
		}
		s.last = time.Now()
	}
	if s.lines > 0 && s.terminal {
		fmt.Fprintf(s.w, "\033[%dA\033[J", s.lines)
	}
	fmt.Fprintf(s.w, "%s\n", elapsed.Round(time.Second))
	printTraffic(s.w, traffic)
	s.lines = len(traffic) + 2
}

func printTraffic(w io.Writer, traffic []demo.Traffic) {
	t := newTable(w, "region", "requests", "req/s", "hit rate", "redis says", "p50 ms", "p99 ms", "errors", "checked", "wrong", "db reads")
	for _, r := range traffic {
		t.AppendRow([]any{r.Region, r.Requests, fmt.Sprintf("%.0f", r.RPS), percent(r.HitRate), percent(r.RedisHitRate),
			fmt.Sprintf("%.2f", r.P50), fmt.Sprintf("%.2f", r.P99), r.Errors, r.Checked, r.Wrong, r.DBReads})
	}
	t.Render()
}

func printSummary(w io.Writer, s demo.Summary) {
	fmt.Fprintf(w, "%.0f s; hit rates of the last 30 s\n", s.Seconds)
	printTraffic(w, s.Regions)
}
