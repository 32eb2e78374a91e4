package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

func newWarmRun() *cobra.Command {
	var f warmFlags
	var wait bool
	cmd := &cobra.Command{
		Use:   "run PLAN",
		Short: "Begin a run of a plan now, in all of its regions",
		Long: `Begin a run of a plan now, in all of its regions or in one. With --wait, show how far it is until it is over; the exit status is then 0 only if every
run was done. What it loads never takes the place of a value, so it may be repeated.`,
		Example:           "  cachemesh warm run morning-trending --region eu-west --wait",
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: f.completePlans,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, bases, failed, err := f.warmings(cmd.Context(), f.region)
			if err != nil {
				return err
			}
			var regions []string
			for _, s := range all {
				if slices.ContainsFunc(s.Plans, func(p controlplane.PlanStatus) bool { return p.Name == args[0] }) {
					regions = append(regions, s.Region)
				}
			}
			if len(regions) == 0 {
				if len(failed) > 0 {
					return report(cmd, failed)
				}
				return usage("there is no plan %q: see `cachemesh warm list`", args[0])
			}
			runs, refused := everywhere(regions, func(region string) (controlplane.RunStatus, error) {
				return post[controlplane.RunStatus](cmd.Context(), &f.meshFlags, bases[region], "/v1/warming/plans/"+args[0]+"/run", struct{}{})
			})
			return f.begun(cmd, runs, append(failed, refused...), wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "show a progress bar until it is over")
	f.register(cmd)
	return cmd
}

func (f *warmFlags) completePlans(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	return f.words(cmd.Context(), func(s controlplane.WarmingStatus) (words []string) {
		for _, p := range s.Plans {
			if len(given) == 0 {
				words = append(words, p.Name)
			}
		}
		return words
	})
}

// begun shows runs that have begun, and waits for their end if that is asked for.
func (f *warmFlags) begun(cmd *cobra.Command, runs []controlplane.RunStatus, failed []error, wait bool) error {
	if wait && len(runs) > 0 {
		var err error
		if runs, err = f.follow(cmd, runs); err != nil {
			return err
		}
		for _, r := range runs {
			if r.State != warming.Done {
				failed = append(failed, fmt.Errorf("%s in %s is %s: %s", r.ID, r.Region, r.State, r.Problem))
			}
		}
	}
	if err := f.out.print(cmd.OutOrStdout(), warmRuns{runs}, func(w io.Writer) {
		if wait {
			printRuns(w, runs)
			return
		}
		for _, r := range runs {
			fmt.Fprintf(w, "%s begins in %s: `cachemesh warm status --watch` shows how far it is\n", r.ID, r.Region)
		}
	}); err != nil {
		return err
	}
	return report(cmd, failed)
}

// follow shows runs until all are over, and returns what became of them. Control planes that are away for a while are asked again.
func (f *warmFlags) follow(cmd *cobra.Command, runs []controlplane.RunStatus) ([]controlplane.RunStatus, error) {
	show, stop := showRuns(cmd.ErrOrStderr())
	defer stop()
	ticker := time.NewTicker(watchEvery / 4)
	defer ticker.Stop()
	for {
		over := true
		now, _, err := f.runs(cmd.Context(), func(r controlplane.RunStatus) bool { return true })
		for i := range runs {
			at := slices.IndexFunc(now, func(r controlplane.RunStatus) bool { return r.ID == runs[i].ID && r.Region == runs[i].Region })
			if err == nil && at >= 0 {
				runs[i] = now[at]
			}
			over = over && runs[i].State.Over()
		}
		show(runs)
		if over {
			return runs, nil
		}
		select {
		case <-cmd.Context().Done():
			return runs, fmt.Errorf("the runs go on: %w", context.Cause(cmd.Context()))
		case <-ticker.C:
		}
	}
}

// showRuns shows a bar of each run on a terminal, and nothing elsewhere.
func showRuns(w io.Writer) (show func([]controlplane.RunStatus), stop func()) {
	if !isTerminal(w) {
		return func([]controlplane.RunStatus) {}, func() {}
	}
	bars := progress.NewWriter()
	bars.SetOutputWriter(w)
	bars.SetUpdateFrequency(100 * time.Millisecond)
	bars.SetTrackerLength(30)
	bars.Style().Visibility.ETA = true
	bars.Style().Visibility.Speed = true
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		bars.Render()
	}()
	trackers := map[string]*progress.Tracker{}
	return func(runs []controlplane.RunStatus) {
			for _, r := range runs {
				name := r.Region + "/" + r.ID
				t := trackers[name]
				if t == nil {
					t = &progress.Tracker{}
					trackers[name] = t
					bars.AppendTracker(t)
				}
				message := r.Plan + " in " + r.Region
				if r.Problem != "" {
					message += ": " + shortened(r.Problem, 60)
				} else if r.State == warming.Paused {
					message += ": paused"
				}
				t.UpdateMessage(message)
				t.UpdateTotal(int64(r.Total))
				t.SetValue(int64(r.Counts.Keys()))
				switch {
				case r.State == warming.Done:
					t.MarkAsDone()
				case r.State.Over():
					t.MarkAsErrored()
				}
			}
		}, func() {
			bars.Stop()
			<-ended
		}
}

func newWarmCopy() *cobra.Command {
	var f warmFlags
	var source, to, route string
	var budget mesh.Budget
	var wait bool
	cmd := &cobra.Command{
		Use:   "copy --from REGION --to REGION [--route PREFIX]",
		Short: "Copy the keys of a route, or of all, from one region to another",
		Long: `Copy the keys of a route, or of all routes, from one region's shards to another's, with their values and times to live. What the other region has
already stays, and nothing is evicted for it. Without --wait it goes on by itself: see ` + "`cachemesh warm status --watch`" + `.`,
		Example: `  cachemesh warm copy --from us-east --to eu-west --route tweet: --wait
  cachemesh warm copy --from us-east --to eu-west --keys-per-second 50000`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if source == "" || to == "" {
				return usage("--from and --to name two regions")
			}
			_, bases, failed, err := f.warmings(cmd.Context(), "")
			if err != nil {
				return err
			}
			base := bases[to]
			if base == "" {
				if len(failed) > 0 {
					return report(cmd, failed)
				}
				return usage("there is no region %q", to)
			}
			routes := []string{route}
			if !cmd.Flags().Changed("route") {
				if routes, err = f.routesOf(cmd.Context(), base); err != nil {
					return err
				}
			}
			f.region = to
			runs, failed := everywhere(routes, func(route string) (controlplane.RunStatus, error) {
				return post[controlplane.RunStatus](cmd.Context(), &f.meshFlags, base, "/v1/warming/copy", controlplane.CopyRequest{From: source, Route: route, Budget: budget})
			})
			return f.begun(cmd, runs, failed, wait)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&source, "from", "", "region that has the keys")
	flags.StringVar(&to, "to", "", "region that is to have them")
	flags.StringVar(&route, "route", "", "prefix of the route (default: each route in turn)")
	flags.IntVar(&budget.KeysPerSecond, "keys-per-second", mesh.DefaultKeysPerSecond, "keys a second, of each route")
	flags.IntVar(&budget.BytesPerSecond, "bytes-per-second", mesh.DefaultBytesPerSecond, "bytes of keys and values a second, of each route")
	flags.IntVar(&budget.Concurrency, "concurrency", mesh.DefaultConcurrency, "chunks that are loaded at a time")
	flags.BoolVar(&wait, "wait", false, "show a progress bar until it is over")
	f.out.register(cmd)
	f.meshFlags.register(cmd)
	for _, flag := range []string{"from", "to"} {
		cmd.RegisterFlagCompletionFunc(flag, f.complete(new(string), func(s controlplane.Status, _ []string) []string { return []string{s.Region} }))
	}
	return cmd
}

// routesOf are the prefixes of a region's routes.
func (f *warmFlags) routesOf(ctx context.Context, base string) ([]string, error) {
	t, err := get[mesh.Topology](ctx, &f.meshFlags, base, "/v1/topology")
	var routes []string
	for _, p := range t.Pools {
		for _, r := range p.Routes {
			routes = append(routes, r.Prefix)
		}
	}
	return routes, err
}

func newWarmStatus() *cobra.Command {
	var f warmFlags
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the runs that are not over, and how far they are",
		Long: `Show the runs that are not over, and how far they are. With --watch, look again every second until all are over; with -o json, each line is then one
look.`,
		Example: "  cachemesh warm status --watch",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			active := func(r controlplane.RunStatus) bool { return !r.State.Over() }
			if watch {
				return f.watch(cmd, active)
			}
			runs, failed, err := f.runs(cmd.Context(), active)
			if err != nil {
				return err
			}
			if err := f.out.print(cmd.OutOrStdout(), warmRuns{runs}, func(w io.Writer) { printProgress(w, runs) }); err != nil {
				return err
			}
			return report(cmd, failed)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "look again every second until all runs are over")
	f.register(cmd)
	return cmd
}

// watch shows runs until all are over, or it is ended.
func (f *warmFlags) watch(cmd *cobra.Command, active func(controlplane.RunStatus) bool) error {
	switch {
	case f.out == "yaml":
		return usage("--watch prints a table or json")
	case f.out == "table" && isTerminal(cmd.ErrOrStderr()):
		runs, failed, err := f.runs(cmd.Context(), active)
		if err != nil {
			return err
		}
		if runs, err = f.follow(cmd, runs); err != nil && cmd.Context().Err() == nil {
			return err
		}
		printRuns(cmd.OutOrStdout(), runs)
		return report(cmd, failed)
	}
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		runs, failed, err := f.runs(cmd.Context(), active)
		if err != nil {
			return err
		}
		if f.out == "json" {
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(warmRuns{runs}); err != nil {
				return err
			}
		} else {
			printProgress(cmd.OutOrStdout(), runs)
		}
		if report(cmd, failed) == nil && len(runs) == 0 {
			return nil
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-ticker.C:
		}
	}
}

func printProgress(w io.Writer, runs []controlplane.RunStatus) {
	if len(runs) == 0 {
		fmt.Fprintln(w, "no run is under way")
		return
	}
	t := newTable(w, "run", "region", "state", "keys", "of", "done", "a second", "left", "problem")
	for _, r := range runs {
		part, left := "-", "-"
		if r.Total > 0 {
			p := float64(r.Counts.Keys()) / float64(r.Total)
			part = percent(&p)
		}
		if r.Remaining != nil {
			left = (time.Duration(*r.Remaining) * time.Second).String()
		}
		t.AppendRow([]any{r.ID, r.Region, runText(w, r.State), r.Counts.Keys(), r.Total, part, fmt.Sprintf("%.0f", r.PerSecond), left, r.Problem})
	}
	t.Render()
}
