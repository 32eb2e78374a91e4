package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
)

func newRegionPause() *cobra.Command {
	return newRegionSwitch("pause", "Send nothing to a region until that is resumed",
		`Send nothing to a region, from any other, until that is resumed: while it is rebuilt, or its network is to be spared. What it should learn
waits in the other regions' journals. Those keep ten minutes at most; what is older is then fenced: the region removes all keys that may be stale.

The region itself goes on serving, what it has grows stale, and what it writes still reaches the others.`)
}

func newRegionResume() *cobra.Command {
	return newRegionSwitch("resume", "Go on sending to a region that was paused",
		"Go on sending to a region that was paused. What has waited is sent first.")
}

// newRegionSwitch is a command that asks the other regions' control planes about a region.
func newRegionSwitch(verb, short, long string) *cobra.Command {
	var from meshFlags
	var out output
	everywhere := ""
	cmd := &cobra.Command{
		Use:     verb + " REGION",
		Short:   short,
		Long:    long,
		Example: "  cachemesh region " + verb + " eu-west",
		Args:    args(cobra.ExactArgs(1)),
		ValidArgsFunction: from.complete(&everywhere, func(s controlplane.Status, args []string) []string {
			if len(args) > 0 {
				return nil
			}
			return []string{s.Region}
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			reach, err := from.reach(cmd.Context())
			if err != nil {
				return err
			}
			region := args[0]
			if known := reach.regions(); !slices.Contains(known, region) {
				return usage("there is no region %q: the mesh has %s", region, strings.Join(known, ", "))
			}
			s := regionsStatus{Links: []controlplane.LinkStatus{}, Errors: []string{}}
			asked := 0
			for _, p := range reach.planes {
				if p.status.Region == region {
					continue
				}
				asked++
				answer, err := post[controlplane.RegionsStatus](cmd.Context(), &from, p.url, "/v1/regions/"+verb, controlplane.PauseRequest{Region: region})
				if err != nil {
					s.Errors = append(s.Errors, fmt.Sprintf("%s: %v", p.status.Region, err))
					continue
				}
				for _, l := range answer.Links {
					if l.To == region {
						s.Links = append(s.Links, l)
					}
				}
			}
			for _, name := range reach.missing {
				if name != region {
					s.Errors = append(s.Errors, fmt.Sprintf("%s was not asked: name its control plane, too (--controlplane)", name))
				}
			}
			for _, err := range reach.failed {
				if len(reach.missing) != 1 || reach.missing[0] != region { // else it is that region's own, which need not be asked
					s.Errors = append(s.Errors, err.Error())
				}
			}
			sortLinks(s.Links)
			if asked == 0 && len(s.Errors) == 0 {
				return usage("no other region was named: nothing sends to %s", region)
			}
			if err := out.print(cmd.OutOrStdout(), s, func(w io.Writer) {
				if len(s.Links) > 0 {
					printLinks(w, s.Links)
				}
			}); err != nil {
				return err
			}
			for _, e := range s.Errors {
				fmt.Fprintln(cmd.ErrOrStderr(), "error:", e)
			}
			if len(s.Errors) > 0 {
				return errReported
			}
			return nil
		},
	}
	out.register(cmd)
	from.register(cmd)
	return cmd
}
