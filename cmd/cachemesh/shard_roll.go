package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// rollPoll is how often a roll looks whether a node is back.
const rollPoll = 100 * time.Millisecond

func newShardRoll() *cobra.Command {
	var from meshFlags
	var out output
	var region string
	var yes bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "roll POOL",
		Short: "Restart every node of a pool, one at a time, without losing a write or a request",
		Long: `Restart every node of a pool, one at a time: of each shard first the replicas, then, after a switch to one of them, the old
primary. The next node's turn comes when the one before is back and has all data. It stops at the first trouble and says
what it is; begun again, it restarts all of them anew.

A node is asked to end. Whatever runs it (a service manager, Kubernetes) must start it again. Each shard needs a replica that is in
sync.`,
		Example: `  cachemesh shard roll timelines
  cachemesh shard roll timelines --region us-east --yes -o json`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: from.complete(&region, poolNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			all, err := from.planes(ctx, region)
			if err != nil {
				return err
			}
			r := roll{from: &from, pool: args[0], timeout: timeout, events: []shards.Event{}}
			var names []string
			for _, p := range all {
				if members := poolOf(p.status, args[0]); len(members) > 0 {
					r.planes = append(r.planes, p)
					names = append(names, p.status.Region)
					for _, s := range members {
						r.total += len(s.Nodes) + 1
						r.nodes += len(s.Nodes)
					}
				}
			}
			if len(r.planes) == 0 {
				return usage("there is no pool %q", args[0])
			}
			for _, p := range r.planes {
				if err := ready(p.status, args[0]); err != nil {
					return fmt.Errorf("nothing was done: %w", err)
				}
			}
			question := fmt.Sprintf("This restarts %d nodes of pool %s in %s, one at a time.", r.nodes, args[0], strings.Join(names, ", "))
			if !yes {
				if err := confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), question); err != nil {
					return err
				}
			}
			notes := cmd.OutOrStdout()
			if out != "table" {
				notes = cmd.ErrOrStderr()
			}
			show, stop := showProgress(notes, r.total)
			r.show = show
			err = r.run(ctx)
			stop()
			if printed := out.print(cmd.OutOrStdout(), r.events, func(w io.Writer) {
				if err == nil {
					fmt.Fprintf(w, "restarted %d nodes of pool %s in %s\n", r.nodes, args[0], strings.Join(names, ", "))
				}
			}); printed != nil {
				return printed
			}
			if err != nil {
				return fmt.Errorf("stopped after %d of %d steps: %w", r.done, r.total, err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&region, "region", "", "region of the pool (default: all, one after the other)")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	f.DurationVar(&timeout, "timeout", time.Minute, "how long a node may take to be back with all data")
	out.register(cmd)
	from.register(cmd)
	from.completeNames(cmd, &region)
	return cmd
}

// confirm asks a person who sits at a terminal.
func confirm(in io.Reader, out io.Writer, question string) error {
	if f, ok := in.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return usage("%s Say --yes", question)
	}
	fmt.Fprintf(out, "%s Go on? [y/N] ", question)
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// showProgress returns what tells of a step that is done: under a bar on a terminal, else a line each.
func showProgress(w io.Writer, total int) (show func(done int, text string), stop func()) {
	if !isTerminal(w) {
		return func(done int, text string) { fmt.Fprintf(w, "[%d/%d] %s\n", done, total, text) }, func() {}
	}
	bar := progress.NewWriter()
	bar.SetOutputWriter(w)
	bar.SetUpdateFrequency(100 * time.Millisecond)
	bar.SetTrackerLength(30)
	bar.Style().Visibility.ETA = true
	bar.Style().Visibility.Speed = false
	tracker := progress.Tracker{Message: "steps", Total: int64(total)}
	bar.AppendTracker(&tracker)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		bar.Render()
	}()
	return func(done int, text string) {
			bar.Log("%s", text)
			tracker.SetValue(int64(done))
		}, func() {
			bar.Stop()
			<-ended
		}
}

// roll restarts the nodes of a pool.
type roll struct {
	from    *meshFlags
	pool    string
	planes  []plane
	timeout time.Duration
	show    func(done int, text string)

	nodes, total, done int
	events             []shards.Event
}

func (r *roll) run(ctx context.Context) error {
	for _, p := range r.planes {
		for _, shard := range poolOf(p.status, r.pool) {
			if err := r.shard(ctx, p, shard.Name); err != nil {
				return fmt.Errorf("shard %s in %s: %w", shard.Name, p.status.Region, err)
			}
		}
	}
	return nil
}

func (r *roll) step(e shards.Event, format string, args ...any) {
	r.done++
	r.events = append(r.events, e)
	r.show(r.done, fmt.Sprintf("%s (%s): ", e.Shard, e.Region)+fmt.Sprintf(format, args...))
}

// shard restarts the nodes of one shard, its primary last.
func (r *roll) shard(ctx context.Context, p plane, name string) error {
	s, err := r.until(ctx, p, name, 0, func(s controlplane.ShardStatus) error { return wellSet(s) })
	if err != nil {
		return err
	}
	primary := primaryOf(s)
	for _, n := range s.Nodes {
		if n.Address == primary.Address {
			continue
		}
		if err := r.restart(ctx, p, s, n); err != nil {
			return err
		}
	}
	began := time.Now()
	event, err := post[shards.Event](ctx, r.from, p.url, "/v1/shards/"+name+"/switch", struct{}{})
	if err != nil {
		return err
	}
	r.step(event, "%s is the primary, after %d ms", event.To, time.Since(began).Milliseconds())
	s, err = r.until(ctx, p, name, event.Epoch, func(s controlplane.ShardStatus) error {
		return cmp.Or(wellSet(s), inSync(s, primary.Address))
	})
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if n.Address == primary.Address {
			return r.restart(ctx, p, s, n)
		}
	}
	return nil // it is not registered any more
}

// restart ends a replica and waits until it is back.
func (r *roll) restart(ctx context.Context, p plane, s controlplane.ShardStatus, n controlplane.NodeStatus) error {
	began := time.Now()
	arguments := struct {
		Node string `json:"node"`
	}{n.Address}
	event, err := post[shards.Event](ctx, r.from, p.url, "/v1/shards/"+s.Name+"/restart", arguments)
	if err != nil {
		return err
	}
	_, err = r.until(ctx, p, s.Name, s.Epoch, func(s controlplane.ShardStatus) error {
		now, ok := nodeOf(s, n.Address)
		switch {
		case !ok:
			return fmt.Errorf("%s is not among its nodes any more", n.Address)
		case !now.Up:
			return fmt.Errorf("%s was restarted and does not answer (does anything start it again?): %s", n.Address, now.Error)
		case now.RunID == n.RunID:
			return fmt.Errorf("%s was asked to end and is still the same process", n.Address)
		}
		return inSync(s, n.Address)
	})
	if err != nil {
		return err
	}
	r.step(event, "%s is back and in sync, after %.1f s", n.Address, time.Since(began).Seconds())
	return nil
}

// until looks at a shard until it is as it should be. A change that is not ours (of another epoch, 0 is any) ends it, and so does a
// pool that froze.
func (r *roll) until(ctx context.Context, p plane, name string, epoch uint64, is func(controlplane.ShardStatus) error) (controlplane.ShardStatus, error) {
	ticker := time.NewTicker(rollPoll)
	defer ticker.Stop()
	deadline := time.Now().Add(r.timeout)
	for {
		status, err := get[controlplane.Status](ctx, r.from, p.url, "/v1/status")
		if err == nil {
			s, ok := shardOf(status, name)
			switch {
			case !ok:
				return s, errors.New("it has left the mesh")
			case isFrozen(status, r.pool):
				return s, fmt.Errorf("pool %s is frozen: see `cachemesh status`", r.pool)
			case epoch != 0 && s.Epoch > epoch:
				return s, fmt.Errorf("its primary has changed meanwhile: see `cachemesh events --shard %s`", name)
			}
			if err = is(s); err == nil {
				return s, nil
			}
		}
		if time.Now().After(deadline) {
			return controlplane.ShardStatus{}, fmt.Errorf("after %s still: %w", r.timeout, err)
		}
		select {
		case <-ctx.Done():
			return controlplane.ShardStatus{}, fmt.Errorf("interrupted: %w", err)
		case <-ticker.C:
		}
	}
}

// ready says why a pool cannot be rolled.
func ready(s controlplane.Status, pool string) error {
	if isFrozen(s, pool) {
		return fmt.Errorf("pool %s in %s is frozen: see `cachemesh status`", pool, s.Region)
	}
	for _, shard := range poolOf(s, pool) {
		if err := wellSet(shard); err != nil {
			return fmt.Errorf("shard %s in %s: %w", shard.Name, s.Region, err)
		}
	}
	return nil
}

// wellSet says why a shard's nodes cannot be restarted one after the other.
func wellSet(s controlplane.ShardStatus) error {
	primary := primaryOf(s)
	switch {
	case s.StandIn == mesh.Null || primary.Address == "":
		return errors.New("no node of it is left")
	case s.Change != nil:
		return fmt.Errorf("a %s is under way", s.Change.Kind)
	case !primary.Up:
		return fmt.Errorf("its primary %s does not answer: %s", primary.Address, primary.Error)
	case len(s.Nodes) < 2:
		return errors.New("it has no replica: a restart would lose its data")
	}
	for _, n := range s.Nodes {
		if n.Address == primary.Address {
			continue
		}
		if err := inSync(s, n.Address); err != nil {
			return err
		}
	}
	return nil
}

// inSync says why a node is no replica that has all data of its shard's primary.
func inSync(s controlplane.ShardStatus, address string) error {
	n, _ := nodeOf(s, address)
	primary := primaryOf(s)
	switch {
	case !n.Up:
		return fmt.Errorf("%s does not answer: %s", address, n.Error)
	case n.Replication == nil || n.Replication.Of != primary.Address:
		return fmt.Errorf("%s is no replica of %s", address, primary.Address)
	case !n.Replication.Linked:
		return fmt.Errorf("%s is not in sync with %s", address, primary.Address)
	}
	return nil
}

func primaryOf(s controlplane.ShardStatus) controlplane.NodeStatus {
	for _, n := range s.Nodes {
		if n.Role == string(mesh.Primary) {
			return n
		}
	}
	return controlplane.NodeStatus{}
}

func nodeOf(s controlplane.ShardStatus, address string) (controlplane.NodeStatus, bool) {
	for _, n := range s.Nodes {
		if n.Address == address {
			return n, true
		}
	}
	return controlplane.NodeStatus{}, false
}
