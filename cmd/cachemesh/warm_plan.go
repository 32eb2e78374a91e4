package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/warming"
)

// warmCost is what a plan would cost in a region, for `warm plan -o json`.
type warmCost struct {
	Region string        `json:"region"`
	Plan   string        `json:"plan"`
	Source string        `json:"source"`
	Next   *time.Time    `json:"next"`  // null if no time is known
	Cost   *warming.Cost `json:"cost"`  // null if nothing is known
	Basis  string        `json:"basis"` // where the numbers are from, or why there are none
}

// warmCosts is what `warm plan -o json` prints.
type warmCosts struct {
	Costs []warmCost `json:"costs"`
}

func newWarmPlan() *cobra.Command {
	var f warmFlags
	cmd := &cobra.Command{
		Use:   "plan PLAN",
		Short: "Show what a plan would cost: keys, bytes, seconds, database reads",
		Long: `Show what a run of a plan would cost in each of its regions, and load nothing. From a sibling region, keys and bytes are counted there by a sample;
else they are those of the plan's last run. Seconds follow from the budget, or from the speed of the last run.`,
		Example:           "  cachemesh warm plan morning-trending",
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: f.completePlans,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, bases, failed, err := f.warmings(cmd.Context(), f.region)
			if err != nil {
				return err
			}
			costs := warmCosts{[]warmCost{}}
			for _, s := range all {
				if i := slices.IndexFunc(s.Plans, func(p controlplane.PlanStatus) bool { return p.Name == args[0] }); i >= 0 {
					costs.Costs = append(costs.Costs, f.cost(cmd.Context(), s.Region, s.Plans[i], bases))
				}
			}
			if len(costs.Costs) == 0 && len(failed) == 0 {
				return usage("there is no plan %q: see `cachemesh warm list`", args[0])
			}
			if err := f.out.print(cmd.OutOrStdout(), costs, func(w io.Writer) { printCosts(w, costs.Costs) }); err != nil {
				return err
			}
			return report(cmd, failed)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *warmFlags) cost(ctx context.Context, region string, p controlplane.PlanStatus, bases map[string]string) warmCost {
	c := warmCost{Region: region, Plan: p.Name, Source: p.Source}
	if !p.Next.IsZero() {
		c.Next = &p.Next
	}
	speed := 0.0
	if p.Last != nil {
		speed = p.Last.PerSecond
	}
	estimate := func(keys, bytes uint64, basis string, args ...any) warmCost {
		cost := warming.Estimate(p.Spec, keys, bytes, speed)
		c.Cost, c.Basis = &cost, fmt.Sprintf(basis, args...)
		return c
	}
	from := p.Spec.Source.Region
	switch whole := !p.Spec.Keys.Named && p.Spec.Keys.File == "" && p.Plan.FollowSun == nil; {
	case p.Plan.Rule != nil:
		return estimate(uint64(len(p.Plan.Rule.Keys)), 0, "each event")
	case from != "" && whole && bases[from] != "":
		query := url.Values{"route": {p.Spec.Route}, "prefix": {p.Spec.Keys.Prefix}}
		n, err := get[controlplane.KeyCount](ctx, &f.meshFlags, bases[from], "/v1/warming/keys?"+query.Encode())
		if err == nil {
			return estimate(n.Keys, n.Bytes, "counted in %s by a sample", from)
		}
		c.Basis = err.Error()
	case from != "" && whole:
		c.Basis = "the control plane of " + from + " was not named: add --controlplane"
	default:
		c.Basis = "only its source knows: the first run tells"
	}
	if p.Last == nil {
		return c
	}
	bytes := p.Last.Counts.Bytes
	if loaded := p.Last.Counts.Loaded; loaded > 0 {
		bytes = bytes / loaded * p.Last.Total
	}
	return estimate(p.Last.Total, bytes, "as in its last run, %s ago", age(p.Last.Ended))
}

func printCosts(w io.Writer, costs []warmCost) {
	t := newTable(w, "plan", "region", "source", "next", "keys", "bytes", "time", "database reads", "from")
	for _, c := range costs {
		next, keys, bytes, seconds, reads := "-", "?", "?", "?", "?"
		if c.Next != nil {
			next = until(*c.Next)
		}
		if c.Cost != nil {
			keys, bytes, reads = fmt.Sprint(c.Cost.Keys), size(int64(c.Cost.Bytes)), fmt.Sprint(c.Cost.OriginReads)
			seconds = fmt.Sprintf("%s (%s)", time.Duration(c.Cost.Seconds*float64(time.Second)).Round(time.Second), c.Cost.Bound)
		}
		t.AppendRow([]any{c.Plan, c.Region, c.Source, next, keys, bytes, seconds, reads, c.Basis})
	}
	t.Render()
}
