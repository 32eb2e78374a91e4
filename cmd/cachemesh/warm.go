package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

func newWarm() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "warm",
		Short: "Load keys into regions before anybody asks for them: plans, runs, copies",
		Long: `Show the plans of warming (list) and what one would cost (plan), begin one (run), copy a region's keys to another (copy), show runs (status, history),
steer them (pause, resume, cancel), and add plans to a running mesh (apply, remove).

Plans are in mesh.yaml under warming.plans, see docs/warming.md. Without --region, a command is about all regions.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newWarmList(), newWarmPlan(), newWarmRun(), newWarmCopy(), newWarmStatus(), newWarmHistory(), newWarmApply(), newWarmRemove(),
		newWarmSteer("pause", "Pause a run: what agents work on they finish", warming.Paused), newWarmSteer("resume", "Go on with a run that was paused", warming.Running),
		newWarmSteer("cancel", "End a run; what it has loaded stays", warming.Cancelled))
	return cmd
}

// warmings asks every region's leader, or that of one region. One that does not answer is an error beside the others' answers.
func (m *meshFlags) warmings(ctx context.Context, region string) (all []controlplane.WarmingStatus, bases map[string]string, failed []error, err error) {
	urls, err := m.urls()
	if err != nil {
		return nil, nil, nil, err
	}
	bases = map[string]string{}
	for _, u := range urls {
		s, err := get[controlplane.WarmingStatus](ctx, m, u, "/v1/warming")
		switch {
		case err != nil:
			failed = append(failed, err)
		case bases[s.Region] != "": // another control plane of that region
		default:
			bases[s.Region] = u
			if region == "" || region == s.Region {
				all = append(all, s)
			}
		}
	}
	if region != "" && len(all) == 0 {
		if len(failed) > 0 {
			return nil, nil, nil, errors.Join(failed...)
		}
		return nil, nil, nil, usage("there is no region %q: the mesh has %s", region, strings.Join(slices.Sorted(maps.Keys(bases)), ", "))
	}
	return all, bases, failed, nil
}

// warmFlags are those of every command about warming.
type warmFlags struct {
	meshFlags
	out    output
	region string
}

func (f *warmFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.region, "region", "", "region that is warmed (default: all that are concerned)")
	f.out.register(cmd)
	f.meshFlags.register(cmd)
	f.completeNames(cmd, new(string))
}

// report prints errors of single regions, and says whether there were any.
func report(cmd *cobra.Command, failed []error) error {
	for _, err := range failed {
		fmt.Fprintln(cmd.ErrOrStderr(), "error:", err)
	}
	if len(failed) > 0 {
		return errReported
	}
	return nil
}

// warmPlan is a plan in a region, for `warm list -o json`.
type warmPlan struct {
	Region string `json:"region"`
	controlplane.PlanStatus
}

// warmPlans is what `warm list -o json` prints.
type warmPlans struct {
	Plans    []warmPlan     `json:"plans"`
	Problems []mesh.Problem `json:"problems"` // of plans that are not used
}

func newWarmList() *cobra.Command {
	var f warmFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the plans, when each begins next, and how much of what it loaded was read",
		Example: `  cachemesh warm list
  cachemesh warm list -o json | jq '.plans[] | select(.useful_ratio < 0.5) | .name'`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, _, failed, err := f.warmings(cmd.Context(), f.region)
			if err != nil {
				return err
			}
			plans := warmPlans{[]warmPlan{}, []mesh.Problem{}}
			for _, s := range all {
				for _, p := range s.Plans {
					plans.Plans = append(plans.Plans, warmPlan{s.Region, p})
				}
				for _, p := range s.Problems {
					if !slices.Contains(plans.Problems, p) {
						plans.Problems = append(plans.Problems, p)
					}
				}
			}
			if err := f.out.print(cmd.OutOrStdout(), plans, func(w io.Writer) { printPlans(w, plans.Plans) }); err != nil {
				return err
			}
			for _, p := range plans.Problems {
				fmt.Fprintln(cmd.ErrOrStderr(), "not used:", p)
			}
			return report(cmd, failed)
		},
	}
	f.register(cmd)
	return cmd
}

func printPlans(w io.Writer, plans []warmPlan) {
	if len(plans) == 0 {
		fmt.Fprintln(w, "there are no plans: see docs/warming.md")
		return
	}
	t := newTable(w, "plan", "region", "when", "keys", "source", "next", "last", "useful", "")
	for _, p := range plans {
		last := "-"
		if p.Last != nil {
			last = age(p.Last.Ended) + " ago"
		}
		notes := ""
		if p.Running != "" {
			notes = colour(w, text.FgGreen, "runs")
		} else if p.Applied {
			notes = "applied"
		}
		t.AppendRow([]any{p.Name, p.Region, shortened(p.When, 40), p.Plan.Keys.Prefix, p.Source, until(p.Next), last, percent(p.UsefulRatio), notes})
	}
	t.Render()
}

// until is a time to come as people say it.
func until(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.Local().Format("Mon 15:04")
}

func shortened(s string, most int) string {
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}

// warmRuns are runs of regions, for `-o json`.
type warmRuns struct {
	Runs []controlplane.RunStatus `json:"runs"`
}

func newWarmHistory() *cobra.Command {
	var f warmFlags
	var plan string
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Show runs, newest first, and what became of their keys",
		Long: `Show runs, newest first, and what became of their keys. Useful is the part of the keys that it loaded that was read since, by a sample; saved is
about how many reads of the database that spared.`,
		Example: "  cachemesh warm history --plan morning-trending",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			runs, failed, err := f.runs(cmd.Context(), func(r controlplane.RunStatus) bool { return plan == "" || r.Plan == plan })
			if err != nil {
				return err
			}
			if err := f.out.print(cmd.OutOrStdout(), warmRuns{runs}, func(w io.Writer) { printRuns(w, runs) }); err != nil {
				return err
			}
			return report(cmd, failed)
		},
	}
	cmd.Flags().StringVar(&plan, "plan", "", "only runs of this plan")
	f.register(cmd)
	return cmd
}

// runs are those that are wanted, newest first.
func (f *warmFlags) runs(ctx context.Context, wanted func(controlplane.RunStatus) bool) ([]controlplane.RunStatus, []error, error) {
	all, _, failed, err := f.warmings(ctx, f.region)
	if err != nil {
		return nil, nil, err
	}
	runs := []controlplane.RunStatus{}
	for _, s := range all {
		for _, r := range s.Runs {
			if wanted(r) {
				runs = append(runs, r)
			}
		}
	}
	slices.SortStableFunc(runs, func(a, b controlplane.RunStatus) int {
		return cmp.Or(b.Begun.Compare(a.Begun), strings.Compare(a.Region, b.Region))
	})
	return runs, failed, nil
}

func printRuns(w io.Writer, runs []controlplane.RunStatus) {
	if len(runs) == 0 {
		fmt.Fprintln(w, "there are no runs")
		return
	}
	t := newTable(w, "run", "region", "trigger", "state", "took", "keys", "loaded", "there", "refused", "missing", "failed", "no room", "bytes", "useful", "evicted", "saved", "")
	for _, r := range runs {
		took := age(r.Begun)
		if r.State.Over() {
			took = r.Took().Round(100 * time.Millisecond).String()
		}
		evicted := "-"
		if r.Use.Sampled > 0 {
			share := float64(r.Use.Evicted) / float64(r.Use.Sampled)
			evicted = percent(&share)
		}
		t.AppendRow([]any{r.ID, r.Region, r.Trigger, runText(w, r.State), took, r.Total, r.Counts.Loaded, r.Counts.There, r.Counts.Refused, r.Counts.Missing, emphasized(w, r.Counts.Failed),
			emphasized(w, r.Counts.Memory), size(int64(r.Counts.Bytes)), percent(r.UsefulRatio), evicted, r.Saved, r.Problem})
	}
	t.Render()
}

func runText(w io.Writer, s warming.State) string {
	paint := text.FgGreen
	switch s {
	case warming.Failed:
		paint = text.FgRed
	case warming.Paused, warming.Waiting, warming.Cancelled:
		paint = text.FgYellow
	}
	return colour(w, paint, string(s))
}

// newWarmSteer is a command that changes the state of a run.
func newWarmSteer(verb, short string, to warming.State) *cobra.Command {
	var f warmFlags
	cmd := &cobra.Command{
		Use:     verb + " RUN",
		Short:   short,
		Example: "  cachemesh warm " + verb + " morning-trending-20260701T060000.000Z",
		Args:    args(cobra.ExactArgs(1)),
		ValidArgsFunction: func(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
			return f.words(cmd.Context(), func(s controlplane.WarmingStatus) (words []string) {
				for _, r := range s.Runs {
					if len(given) == 0 && !r.State.Over() {
						words = append(words, r.ID)
					}
				}
				return words
			})
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			all, bases, failed, err := f.warmings(cmd.Context(), f.region)
			if err != nil {
				return err
			}
			var runs []controlplane.RunStatus
			for _, s := range all {
				if !slices.ContainsFunc(s.Runs, func(r controlplane.RunStatus) bool { return r.ID == args[0] }) {
					continue
				}
				r, err := post[controlplane.RunStatus](cmd.Context(), &f.meshFlags, bases[s.Region], "/v1/warming/runs/"+args[0]+"/"+verb, struct{}{})
				if err != nil {
					failed = append(failed, fmt.Errorf("%s: %w", s.Region, err))
					continue
				}
				runs = append(runs, r)
			}
			if len(runs) == 0 && len(failed) == 0 {
				return usage("there is no run %q: see `cachemesh warm status`", args[0])
			}
			if err := f.out.print(cmd.OutOrStdout(), warmRuns{runs}, func(w io.Writer) {
				for _, r := range runs {
					fmt.Fprintf(w, "%s in %s is %s\n", r.ID, r.Region, to)
				}
			}); err != nil {
				return err
			}
			return report(cmd, failed)
		},
	}
	f.register(cmd)
	return cmd
}

// words offers what the running mesh knows, for completion.
func (f *warmFlags) words(ctx context.Context, of func(controlplane.WarmingStatus) []string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	all, _, _, err := f.warmings(ctx, f.region)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var words []string
	for _, s := range all {
		words = append(words, of(s)...)
	}
	slices.Sort(words)
	return slices.Compact(words), cobra.ShellCompDirectiveNoFileComp
}

// everywhere asks regions at once, and returns the answers in their order.
func everywhere[T any](regions []string, ask func(region string) (T, error)) (answers []T, failed []error) {
	type answer struct {
		value T
		err   error
	}
	all := make([]answer, len(regions))
	var wait sync.WaitGroup
	for i, region := range regions {
		wait.Go(func() { all[i].value, all[i].err = ask(region) })
	}
	wait.Wait()
	for i, a := range all {
		if a.err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", regions[i], a.err))
		} else {
			answers = append(answers, a.value)
		}
	}
	return answers, failed
}
