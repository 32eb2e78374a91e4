package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

func newShardSwitch() *cobra.Command {
	var from meshFlags
	var out output
	var region, to string
	var force bool
	cmd := &cobra.Command{
		Use:   "switch SHARD",
		Short: "Make another node of a shard its primary, without losing a write or a request",
		Long: `Make another node of a shard its primary. Sidecars hold the shard's requests for the moment that it takes, the new primary
first gets all that the old one has acknowledged, and the old one becomes its replica. No key moves.

With --force the switch also happens when nobody can say whether the primary is down, or when the old primary does not answer: what
only it has is lost.`,
		Example: `  cachemesh shard switch timelines-2 --region us-east
  cachemesh shard switch timelines-2 --region us-east --to 10.0.0.7:6379`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: from.complete(&region, shardNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := from.planes(cmd.Context(), region)
			if err != nil {
				return err
			}
			p, err := only(all, hasShard(args[0]), fmt.Sprintf("shard %q", args[0]))
			if err != nil {
				return err
			}
			event, err := switchShard(cmd, &from, p, args[0], to, force)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), event, func(w io.Writer) { printSwitched(w, event) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&region, "region", "", "region of the shard, if several have one of that name")
	f.StringVar(&to, "to", "", "address of the node that is to be the primary (default: the replica that has most)")
	f.BoolVar(&force, "force", false, "also if what only the old primary has is lost")
	out.register(cmd)
	from.register(cmd)
	from.completeNames(cmd, &region)
	cmd.RegisterFlagCompletionFunc("to", func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		return from.complete(&region, func(s controlplane.Status, _ []string) (nodes []string) {
			if len(args) == 0 {
				return nil
			}
			shard, _ := shardOf(s, args[0])
			for _, n := range shard.Nodes {
				if n.Role == string(mesh.Replica) {
					nodes = append(nodes, n.Address)
				}
			}
			return nodes
		})(cmd, args, word)
	})
	return cmd
}

func switchShard(cmd *cobra.Command, from *meshFlags, p plane, shard, to string, force bool) (shards.Event, error) {
	arguments := struct {
		To    string `json:"to,omitempty"`
		Force bool   `json:"force,omitempty"`
	}{to, force}
	return post[shards.Event](cmd.Context(), from, p.url, "/v1/shards/"+shard+"/switch", arguments)
}

func printSwitched(w io.Writer, e shards.Event) {
	took := ""
	if n := len(e.Steps); n > 0 {
		took = fmt.Sprintf(" after %.0f ms", e.Steps[n-1].MS)
	}
	fmt.Fprintf(w, "%s (%s): %s is the primary%s, epoch %d; it was %s\n", e.Shard, e.Region, e.To, took, e.Epoch, dash(e.From))
}

func newShardAccept() *cobra.Command {
	var from meshFlags
	var out output
	var region string
	var everything bool
	cmd := &cobra.Command{
		Use:   "accept POOL | --all",
		Short: "Accept that a frozen pool has lost nodes, so that it changes again",
		Long: `Accept that a pool has lost as many nodes as froze it (health.maxLoss in mesh.yaml): its shards change again, and do without
those nodes. A shard that has none left is answered for by an empty stand-in: its reads miss.

If the nodes are to come back with their data, do not accept: a pool thaws by itself when they are there again.`,
		Example: `  cachemesh shard accept timelines --region us-east
  cachemesh shard accept --all`,
		Args:              args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: from.complete(&region, frozenPools),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) != everything {
				return usage("name the pool, or all that are frozen with --all")
			}
			all, err := from.planes(cmd.Context(), region)
			if err != nil {
				return err
			}
			accepted := []shards.Event{}
			accept := func(p plane, pool string) error {
				event, err := post[shards.Event](cmd.Context(), &from, p.url, "/v1/pools/"+pool+"/accept", struct{}{})
				if err != nil {
					return fmt.Errorf("%s (%s): %w", pool, p.status.Region, err)
				}
				accepted = append(accepted, event)
				return nil
			}
			if everything {
				for _, p := range all {
					frozen := frozenPools(p.status, nil)
					if len(frozen) == 0 && p.status.Membership.Frozen != "" {
						frozen = poolNames(p.status, nil)[:1] // accepted for one, what Consul lost is accepted for all
					}
					for _, pool := range frozen {
						if err := accept(p, pool); err != nil {
							return err
						}
					}
				}
			} else {
				p, err := only(all, func(s controlplane.Status) bool {
					return len(poolOf(s, args[0])) > 0 && (region != "" || isFrozen(s, args[0]))
				},
					fmt.Sprintf("frozen pool %q", args[0]))
				if err != nil {
					return err
				}
				if err := accept(p, args[0]); err != nil {
					return err
				}
			}
			return out.print(cmd.OutOrStdout(), accepted, func(w io.Writer) {
				for _, e := range accepted {
					fmt.Fprintf(w, "%s (%s): %s\n", e.Pool, e.Region, e.Reason)
				}
				if len(accepted) == 0 {
					fmt.Fprintln(w, "no pool is frozen")
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&region, "region", "", "region of the pool, if it is frozen in several")
	f.BoolVar(&everything, "all", false, "accept for all pools that are frozen")
	out.register(cmd)
	from.register(cmd)
	from.completeNames(cmd, &region)
	return cmd
}

// frozenPools names the pools of a region that are frozen.
func frozenPools(s controlplane.Status, args []string) (names []string) {
	if len(args) > 0 {
		return nil
	}
	for _, p := range s.Pools {
		if p.Frozen != nil {
			names = append(names, p.Pool)
		}
	}
	return names
}

func isFrozen(s controlplane.Status, pool string) bool {
	if s.Membership.Frozen != "" {
		return true
	}
	for _, name := range frozenPools(s, nil) {
		if name == pool {
			return true
		}
	}
	return false
}
