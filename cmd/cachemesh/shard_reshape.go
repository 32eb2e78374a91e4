package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/demo"
	"github.com/cachemesh/cachemesh/shards"
)

// reshape is a change of a pool's ring that an operator asks for.
type reshape struct {
	from   meshFlags
	out    output
	region string
	pool   string
	yes    bool
	controlplane.ReshapeRequest
}

func (r *reshape) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.region, "region", "", "region of the pool, if several have one of that name")
	r.out.register(cmd)
	r.from.register(cmd)
	r.from.completeNames(cmd, &r.region)
}

// registerLimits adds the flags of what begins a handoff.
func (r *reshape) registerLimits(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&r.yes, "yes", "y", false, "do not ask")
	f.IntVar(&r.Limits.KeysPerSecond, "keys-per-second", 0, "copy at most so many keys a second (default 5000)")
	f.IntVar(&r.Limits.BytesPerSecond, "bytes-per-second", 0, "copy at most so many bytes a second (default 64 MiB)")
	f.Float64Var(&r.Limits.DonorCPU, "donor-cpu", 0, "share of one core that a shard which gives keys may use in all, before copying slows down (default 0.7)")
}

const handoffText = `Keys that change their shard are copied first, while the old shards serve, and sidecars go to the new ring when little is missing: no cache
goes cold. It can be given up until then (` + "`cachemesh shard abort`" + `). A command that is interrupted leaves the handoff under way.`

func newShardAdd() *cobra.Command {
	r := reshape{ReshapeRequest: controlplane.ReshapeRequest{Kind: shards.AddShard}}
	cmd := &cobra.Command{
		Use:   "add [SHARD] --pool POOL",
		Short: "Add a shard to a pool, and move its share of the keys to it",
		Long: `Add a shard to a pool, and move its share of the keys to it. ` + handoffText + `

Its nodes are those of --node, which must be empty, or else those that are registered for it. In the demo, without either, two are started.`,
		Example: `  cachemesh shard add --pool timelines --region us-east --node 10.0.0.9:6379 --node 10.0.1.9:6379
  cachemesh shard add timelines-7 --pool timelines --weight 2 --yes -o json`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: r.inPool(r.begin),
	}
	r.register(cmd)
	r.registerLimits(cmd)
	r.registerAdd(cmd)
	cmd.Flags().StringSliceVar(&r.Nodes, "node", nil, "IP:port of a Redis process of the shard; the first is to be its primary")
	return cmd
}

func (r *reshape) registerAdd(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.pool, "pool", "", "pool that gets the shard")
	cmd.Flags().Uint32Var(&r.Weight, "weight", 0, "share of the keys beside the pool's other shards (default 1)")
	cmd.RegisterFlagCompletionFunc("pool", r.from.complete(&r.region, poolNames))
}

func newShardRemove() *cobra.Command {
	r := reshape{ReshapeRequest: controlplane.ReshapeRequest{Kind: shards.RemoveShard}}
	cmd := &cobra.Command{
		Use:   "remove SHARD",
		Short: "Move a shard's keys to the others of its pool, and remove it",
		Long: `Move a shard's keys to the others of its pool, and remove it from the ring. ` + handoffText + `

Its nodes may be stopped afterwards. With coherent routes it ends when all regions have read the shard's journal.`,
		Example:           `  cachemesh shard remove timelines-3 --region us-east`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: r.from.complete(&r.region, shardNames),
		RunE:              r.ofShard(noMore, r.begin),
	}
	r.register(cmd)
	r.registerLimits(cmd)
	return cmd
}

func newShardWeigh() *cobra.Command {
	r := reshape{ReshapeRequest: controlplane.ReshapeRequest{Kind: shards.WeighShard}}
	cmd := &cobra.Command{
		Use:               "weigh SHARD WEIGHT",
		Short:             "Give a shard another share of its pool's keys",
		Long:              `Give a shard another share of its pool's keys: that of its weight among the pool's. ` + handoffText,
		Example:           `  cachemesh shard weigh timelines-3 2 --region us-east`,
		Args:              args(cobra.ExactArgs(2)),
		ValidArgsFunction: r.from.complete(&r.region, shardNames),
		RunE:              r.ofShard(r.weigh, r.begin),
	}
	r.register(cmd)
	r.registerLimits(cmd)
	return cmd
}

func (r *reshape) weigh(args []string) error {
	n, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil || n < 1 || n > shards.MaxWeight {
		return usage("WEIGHT %q: choose 1 to %d", args[1], shards.MaxWeight)
	}
	r.Weight = uint32(n)
	return nil
}

// noMore is of a command whose arguments name the shard and nothing else.
func noMore([]string) error { return nil }

// inPool runs what is about a shard that may be named, and is to come to a pool.
func (r *reshape) inPool(run func(*cobra.Command, plane) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if r.pool == "" {
			return usage("name the pool with --pool")
		}
		if len(args) > 0 {
			r.Shard = args[0]
		}
		p, err := r.plane(cmd, func(s controlplane.Status) bool { return len(poolOf(s, r.pool)) > 0 }, fmt.Sprintf("pool %q", r.pool))
		if err != nil {
			return err
		}
		return run(cmd, p)
	}
}

// ofShard runs what is about a shard that is there.
func (r *reshape) ofShard(read func(args []string) error, run func(*cobra.Command, plane) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := read(args); err != nil {
			return err
		}
		r.Shard = args[0]
		p, err := r.plane(cmd, hasShard(r.Shard), fmt.Sprintf("shard %q", r.Shard))
		if err != nil {
			return err
		}
		s, _ := shardOf(p.status, r.Shard)
		r.pool = s.Pool
		return run(cmd, p)
	}
}

func (r *reshape) plane(cmd *cobra.Command, has func(controlplane.Status) bool, what string) (plane, error) {
	all, err := r.from.planes(cmd.Context(), r.region)
	if err != nil {
		return plane{}, err
	}
	return only(all, has, what)
}

// plan asks what the handoff would move.
func (r *reshape) plan(cmd *cobra.Command, p plane) (controlplane.PlanAnswer, error) {
	request := controlplane.ReshapeRequest{Kind: r.Kind, Shard: r.Shard, Weight: r.Weight, Nodes: r.Nodes}
	plan, err := post[controlplane.PlanAnswer](cmd.Context(), &r.from, p.url, "/v1/pools/"+r.pool+"/plan", request)
	if err != nil {
		return plan, fmt.Errorf("nothing was done: %w", err)
	}
	return plan, nil
}

// begin says what will move, asks, begins the handoff and shows it until its end.
func (r *reshape) begin(cmd *cobra.Command, p plane) error {
	ctx, notes := cmd.Context(), cmd.ErrOrStderr()
	plan, err := r.plan(cmd, p)
	if err != nil {
		return err
	}
	r.Shard = plan.Shard
	printPlan(notes, plan)
	if !r.yes {
		if err := confirm(cmd.InOrStdin(), notes, fmt.Sprintf("This moves about %d keys of pool %s in %s.", plan.Keys, r.pool, p.status.Region)); err != nil {
			return err
		}
	}
	if r.Kind == shards.AddShard && len(r.Nodes) == 0 && len(plan.Nodes) == 0 {
		if r.Nodes, err = r.from.askDemo(ctx, demo.NodesRequest{Region: p.status.Region, Pool: r.pool, Shard: r.Shard}); err != nil {
			return err
		}
		fmt.Fprintf(notes, "the demo has started %v for %s\n", r.Nodes, r.Shard)
	}
	path := "/v1/shards/" + r.Shard + "/" + string(r.Kind)
	if r.Kind == shards.AddShard {
		path = "/v1/pools/" + r.pool + "/add"
	}
	request := r.ReshapeRequest
	if r.Kind != shards.AddShard {
		request.Shard = ""
	}
	event, err := post[shards.Event](ctx, &r.from, p.url, path, request)
	if err != nil {
		return fmt.Errorf("nothing was moved: %w", err)
	}
	w := handoffWatch{from: &r.from, region: p.status.Region, pool: r.pool, id: event.ID, notes: notes}
	result, err := w.until(ctx)
	if err != nil {
		return err
	}
	if err := r.out.print(cmd.OutOrStdout(), result, func(out io.Writer) { printHandoff(out, result) }); err != nil {
		return err
	}
	if result.Undone {
		return errReported
	}
	return nil
}

func newShardPlan() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Say what adding, removing or weighing a shard would move, and change nothing",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPlanAdd(), newPlanOf("remove SHARD", shards.RemoveShard), newPlanOf("weigh SHARD WEIGHT", shards.WeighShard))
	return cmd
}

func (r *reshape) printPlanOf(cmd *cobra.Command, p plane) error {
	plan, err := r.plan(cmd, p)
	if err != nil {
		return err
	}
	return r.out.print(cmd.OutOrStdout(), plan, func(w io.Writer) { printPlan(w, plan) })
}

func newPlanAdd() *cobra.Command {
	r := reshape{ReshapeRequest: controlplane.ReshapeRequest{Kind: shards.AddShard}}
	cmd := &cobra.Command{
		Use:     "add [SHARD] --pool POOL",
		Short:   "Say what adding a shard would move",
		Example: "  cachemesh shard plan add --pool timelines --region us-east",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE:    r.inPool(r.printPlanOf),
	}
	r.register(cmd)
	r.registerAdd(cmd)
	return cmd
}

func newPlanOf(use string, kind shards.Reshape) *cobra.Command {
	r := reshape{ReshapeRequest: controlplane.ReshapeRequest{Kind: kind}}
	count := map[shards.Reshape]int{shards.RemoveShard: 1, shards.WeighShard: 2}[kind]
	read := noMore
	if kind == shards.WeighShard {
		read = r.weigh
	}
	cmd := &cobra.Command{
		Use:               use,
		Short:             map[shards.Reshape]string{shards.RemoveShard: "Say what removing a shard would move", shards.WeighShard: "Say what another weight of a shard would move"}[kind],
		Args:              args(cobra.ExactArgs(count)),
		ValidArgsFunction: r.from.complete(&r.region, shardNames),
		RunE:              r.ofShard(read, r.printPlanOf),
	}
	r.register(cmd)
	return cmd
}

func printPlan(w io.Writer, p controlplane.PlanAnswer) {
	fmt.Fprintf(w, "%s %s: about %d keys (%s), %.1f %% of the pool's keys (the least possible is %.1f %%), in about %s; about %d reads miss\n",
		p.Kind, p.Shard, p.Keys, size(p.Bytes), 100*p.Share, 100*p.Ideal, p.Took.Round(100_000_000), p.Misses)
	for _, d := range p.Donors {
		if d.Keys == 0 {
			continue
		}
		fmt.Fprintf(w, "  %s gives %d keys (%s)\n", d.Shard, d.Keys, size(d.Bytes))
	}
	if p.Cold > 0 {
		fmt.Fprintf(w, "  %d keys are too large to be copied, and will be missing\n", p.Cold)
	}
}

func newShardAbort() *cobra.Command {
	var r reshape
	cmd := &cobra.Command{
		Use:   "abort [POOL]",
		Short: "Give up a handoff that has not flipped, leaving nothing of it behind",
		Long: `Give up a pool's handoff, as long as sidecars do not go to the new ring: what the recipients got is removed, and the ring stays as it was.
Without POOL, that of the only pool that has one.`,
		Example:           "  cachemesh shard abort timelines --region us-east",
		Args:              args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: r.from.complete(&r.region, handedPools),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				r.pool = args[0]
			}
			inHandoff := func(s controlplane.Status) bool { return len(handedPools(s, nil)) > 0 }
			p, err := r.plane(cmd, func(s controlplane.Status) bool {
				return r.pool == "" && inHandoff(s) || handoffOf(s, r.pool) != nil
			}, "pool in a handoff"+cmp.Or(" named "+r.pool, ""))
			if err != nil {
				return err
			}
			if pools := handedPools(p.status, nil); r.pool == "" && len(pools) > 1 {
				return usage("several pools are in a handoff: name one: %v", pools)
			} else if r.pool == "" {
				r.pool = pools[0]
			}
			h := handoffOf(p.status, r.pool)
			if _, err := post[shards.Event](cmd.Context(), &r.from, p.url, "/v1/pools/"+r.pool+"/abort", struct{}{}); err != nil {
				return err
			}
			w := handoffWatch{from: &r.from, region: p.status.Region, pool: r.pool, id: h.ID, notes: cmd.ErrOrStderr()}
			result, err := w.until(cmd.Context())
			if err != nil {
				return err
			}
			return r.out.print(cmd.OutOrStdout(), result, func(out io.Writer) { printHandoff(out, result) })
		},
	}
	r.register(cmd)
	return cmd
}

// handoffOf is a pool's handoff, nil if there is none.
func handoffOf(s controlplane.Status, pool string) *controlplane.HandoffStatus {
	for _, p := range s.Pools {
		if p.Pool == pool {
			return p.Handoff
		}
	}
	return nil
}

// handedPools names the pools of a region that are in a handoff.
func handedPools(s controlplane.Status, args []string) (names []string) {
	for _, p := range s.Pools {
		if p.Handoff != nil && len(args) == 0 {
			names = append(names, p.Pool)
		}
	}
	return names
}
