package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/demo"
	"github.com/cachemesh/cachemesh/shards"
)

// replaced is what `shard replace` prints.
type replaced struct {
	Region string        `json:"region"`
	Shard  string        `json:"shard"`
	Old    string        `json:"old"` // its process may be ended
	New    string        `json:"new"`
	Epoch  uint64        `json:"epoch"`
	Steps  []shards.Step `json:"steps"`
}

func newShardReplace() *cobra.Command {
	var from meshFlags
	var out output
	var region, to string
	var yes bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "replace SHARD [--node NEW]",
		Short: "Put a new node in the place of a shard's primary, without losing a write or a request",
		Long: `Put a new node in the place of a shard's primary: it becomes a replica, gets all data, and then takes over in a planned switch. No key
moves to another shard. The old primary may be stopped afterwards.

The new node must be one of the shard's: add it to mesh.yaml, or register it. In the demo, without --node, one is started, and the old
one is stopped.`,
		Example:           "  cachemesh shard replace timelines-2 --region us-east --node 10.0.0.12:6379",
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: from.complete(&region, shardNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, notes := cmd.Context(), cmd.ErrOrStderr()
			all, err := from.planes(ctx, region)
			if err != nil {
				return err
			}
			p, err := only(all, hasShard(args[0]), fmt.Sprintf("shard %q", args[0]))
			if err != nil {
				return err
			}
			shard, _ := shardOf(p.status, args[0])
			old := primaryOf(shard).Address
			if _, listed := nodeOf(shard, to); to != "" && !listed {
				return usage("%s is no node of shard %s: add it to mesh.yaml, or register it, and ask again", to, shard.Name)
			}
			if !yes {
				if err := confirm(cmd.InOrStdin(), notes, fmt.Sprintf("This takes %s out of shard %s in %s.", old, shard.Name, p.status.Region)); err != nil {
					return err
				}
			}
			request := demo.NodesRequest{Region: p.status.Region, Pool: shard.Pool, Shard: shard.Name}
			own := to == ""
			if own {
				start := request
				start.Another = true
				nodes, err := from.askDemo(ctx, start)
				if err != nil {
					return err
				}
				to = nodes[0]
				fmt.Fprintf(notes, "the demo has started %s\n", to)
			}
			r := roll{from: &from, pool: shard.Pool, timeout: timeout}
			if _, err := r.until(ctx, p, shard.Name, 0, func(s controlplane.ShardStatus) error { return inSync(s, to) }); err != nil {
				return err
			}
			event, err := switchShard(cmd, &from, p, shard.Name, to, false)
			if err != nil {
				return err
			}
			if own {
				stop := request
				stop.Stop = old
				if _, err := from.askDemo(ctx, stop); err != nil {
					return err
				}
			}
			result := replaced{p.status.Region, shard.Name, old, to, event.Epoch, event.Steps}
			return out.print(cmd.OutOrStdout(), result, func(w io.Writer) {
				printSwitched(w, event)
				if !own {
					fmt.Fprintf(w, "take %s out of mesh.yaml, or deregister it, and stop it\n", old)
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&region, "region", "", "region of the shard, if several have one of that name")
	f.StringVar(&to, "node", "", "IP:port of the new node")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	f.DurationVar(&timeout, "timeout", time.Minute, "how long the new node may take to have all data")
	out.register(cmd)
	from.register(cmd)
	from.completeNames(cmd, &region)
	return cmd
}
