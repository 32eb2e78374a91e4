package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
)

func newFlush() *cobra.Command {
	var from meshFlags
	var out output
	var region string
	var yes bool
	cmd := &cobra.Command{
		Use:   "flush POOL",
		Short: "Remove every key of a pool, in all regions",
		Long: `Remove every key of a pool from all of its shards, in all regions, and show what each shard answered. It says first what that will
cost, and asks. Shards are swept at most half of the time; keys that are written meanwhile may stay.

One region writes it into its shards' journals, too: regions whose control planes cannot be asked now learn of it from there, if the pool
has a route with coherence: invalidate.

With --region, only that region's keys are removed, and the others do not hear of it: for a region whose cache is to begin anew.`,
		Example: `  cachemesh flush timelines
  cachemesh flush timelines --region eu-west --yes`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: from.complete(&region, poolNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			reach, err := from.reach(cmd.Context())
			if err != nil {
				return err
			}
			wanted := controlplane.Invalidation{Pool: args[0], Everything: true}
			if region != "" {
				if reach, err = reach.only(region); err != nil {
					return err
				}
			}
			question, err := flushCost(reach, args[0], region == "")
			if err != nil {
				return err
			}
			if !yes {
				if err := confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), question); err != nil {
					return err
				}
			}
			return removeEverywhere(cmd, &from, out, reach, wanted, region == "")
		},
	}
	f := cmd.Flags()
	f.StringVar(&region, "region", "", "remove the keys of this region only")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	out.register(cmd)
	from.register(cmd)
	from.completeNames(cmd, &region)
	return cmd
}

// flushCost says what a flush removes and what comes of it.
func flushCost(r reach, pool string, everywhere bool) (string, error) {
	var parts []string
	var bytes int64
	var busy float64
	for _, p := range r.planes {
		members := poolOf(p.status, pool)
		if len(members) == 0 {
			continue
		}
		var here int64
		for _, s := range members {
			n := primaryOf(s)
			here += n.Keys
			bytes += n.MemoryBytes
			if n.RecentHitRate != nil {
				busy += n.RecentOps * *n.RecentHitRate
			}
		}
		parts = append(parts, fmt.Sprintf("about %d on %d shards in %s", here, len(members), p.status.Region))
	}
	if len(parts) == 0 {
		return "", usage("there is no pool %q", pool)
	}
	text := fmt.Sprintf("This removes every key of pool %s: %s, %s in all. Each is read from the database again when it is wanted: "+
		"at most %.0f reads a second that hit now will miss at first.", pool, strings.Join(parts, ", "), size(bytes), busy)
	if everywhere && len(r.missing) > 0 {
		after := "does not hear of it"
		if journals(r.first, controlplane.Invalidation{Pool: pool}) {
			after = "does the same when it is told"
		}
		text += fmt.Sprintf(" %s cannot be asked now and %s.", strings.Join(r.missing, ", "), after)
	}
	return text, nil
}

// only is one region of those that can be reached.
func (r reach) only(region string) (reach, error) {
	for _, p := range r.planes {
		if p.status.Region == region {
			return reach{planes: []plane{p}}, nil
		}
	}
	if len(r.failed) > 0 {
		return r, r.failed[0]
	}
	return r, usage("there is no region %q: the mesh has %s", region, strings.Join(r.regions(), ", "))
}
