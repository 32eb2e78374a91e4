package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
)

// warmApplied is what `warm apply -o json` and `warm remove -o json` print.
type warmApplied struct {
	Applied []controlplane.PlansApplied `json:"applied"`
}

func newWarmApply() *cobra.Command {
	var f warmFlags
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "Add plans to the running mesh, or change those that were added",
		Long: `Add the plans of a file to every region, or to one, and change those of the same name that were added before. The file has what mesh.yaml has under
warming: a list named plans. "-" is standard input. Plans that are added are kept over restarts, by all control planes of the region.

A file with a mistake adds nothing.`,
		Example: "  cachemesh warm apply plans.yaml\n  cachemesh warm remove morning-trending",
		Args:    args(cobra.ExactArgs(1)),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := readFile(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			_, bases, failed, err := f.warmings(cmd.Context(), f.region)
			if err != nil {
				return err
			}
			return f.applied(cmd, bases, failed, "/v1/warming/plans", controlplane.PlanFile{Name: args[0], Content: string(data)}, "has")
		},
	}
	f.register(cmd)
	return cmd
}

func newWarmRemove() *cobra.Command {
	var f warmFlags
	cmd := &cobra.Command{
		Use:   "remove PLAN",
		Short: "Remove a plan that was added by apply",
		Long:  "Remove a plan that was added by apply, from every region or from one. A run of it that is not over goes on. Plans of mesh.yaml are removed there.",
		Args:  args(cobra.ExactArgs(1)),
		ValidArgsFunction: func(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
			return f.words(cmd.Context(), func(s controlplane.WarmingStatus) (words []string) {
				for _, p := range s.Plans {
					if len(given) == 0 && p.Applied {
						words = append(words, p.Name)
					}
				}
				return words
			})
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			_, bases, failed, err := f.warmings(cmd.Context(), f.region)
			if err != nil {
				return err
			}
			return f.applied(cmd, bases, failed, "/v1/warming/plans/"+args[0]+"/remove", struct{}{}, "no longer has")
		},
	}
	f.register(cmd)
	return cmd
}

// applied sends the same to every region, or to one, and prints what came of it.
func (f *warmFlags) applied(cmd *cobra.Command, bases map[string]string, failed []error, path string, body any, verb string) error {
	regions := slices.Sorted(maps.Keys(bases))
	if f.region != "" {
		regions = []string{f.region}
	}
	answers, refused := everywhere(regions, func(region string) (controlplane.PlansApplied, error) {
		return post[controlplane.PlansApplied](cmd.Context(), &f.meshFlags, bases[region], path, body)
	})
	if err := f.out.print(cmd.OutOrStdout(), warmApplied{answers}, func(w io.Writer) {
		for _, a := range answers {
			fmt.Fprintf(w, "%s %s %s\n", a.Region, verb, strings.Join(a.Plans, ", "))
		}
	}); err != nil {
		return err
	}
	return report(cmd, append(failed, refused...))
}
