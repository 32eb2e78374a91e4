package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/mesh"
)

// meshStatus is what `status -o json` prints.
type meshStatus struct {
	Regions []controlplane.Status `json:"regions"`
	Errors  []string              `json:"errors"` // of control planes that did not answer
}

func newStatus() *cobra.Command {
	var out output
	var from meshFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the sidecars, the shards and what needs attention",
		Long: `Show a row for each sidecar, each pool, and each node of each shard, and what needs attention.

A sidecar is SYNCED when it has acknowledged everything, STALE while it lacks something or is away, and NACK when its
Envoy rejected something: what it had before still serves.

A pool's spread is the most that one of its shards has over its share by weight: 1 is even. A shard's epoch grows whenever
another node becomes its primary. Behind says how much of the primary's writes a replica has not got yet.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			regions, failed, err := from.statuses(cmd.Context())
			if err != nil {
				return err
			}
			s := meshStatus{Regions: regions, Errors: []string{}}
			if s.Regions == nil {
				s.Regions = []controlplane.Status{}
			}
			for _, err := range failed {
				s.Errors = append(s.Errors, err.Error())
			}
			if err := out.print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, s) }); err != nil {
				return err
			}
			for _, e := range s.Errors {
				fmt.Fprintln(cmd.ErrOrStderr(), "error:", e)
			}
			if len(failed) > 0 {
				return errReported
			}
			return nil
		},
	}
	out.register(cmd)
	from.register(cmd)
	return cmd
}

func printStatus(w io.Writer, s meshStatus) {
	t := newTable(w, "region", "sidecar", "version", "state", "age", "agent", "envoy", "crashes", "reason")
	for _, r := range s.Regions {
		for _, n := range r.Sidecars {
			t.AppendRow([]any{r.Region, n.Name, dash(n.Version), stateText(w, n.State), age(n.Since), dash(n.Agent), n.Envoy, crashes(n), n.Reason})
		}
	}
	t.Render()
	fmt.Fprintln(w)
	printPools(w, s.Regions)
	fmt.Fprintln(w)
	printShards(w, s.Regions)
	for _, r := range s.Regions {
		for _, a := range r.Alerts {
			fmt.Fprintf(w, "\n%s %s: %s\n  %s\n", colour(w, text.FgYellow, "!"), a.Subject, a.Message, a.Remedy)
		}
	}
}

func printPools(w io.Writer, regions []controlplane.Status) {
	t := newTable(w, "region", "leader", "pool", "ring", "spread of keys", "of bytes", "of operations", "state")
	for _, r := range regions {
		for _, p := range r.Pools {
			state := "well"
			if h := p.Handoff; h != nil {
				state = colour(w, text.FgYellow, fmt.Sprintf("%s %s: %s", h.Kind, h.Shard, h.Step))
				if len(h.Waits) > 0 {
					state += ", waiting for " + strings.Join(h.Waits, ", ")
				}
			}
			if p.Frozen != nil {
				state = colour(w, text.FgRed, "FROZEN")
			}
			t.AppendRow([]any{r.Region, leaderText(w, r.Leader), p.Pool, p.Generation, ratio(p.Spread.Keys), ratio(p.Spread.Bytes), ratio(p.Spread.Operations), state})
		}
	}
	t.Render()
}

func leaderText(w io.Writer, l controlplane.LeaderStatus) string {
	switch {
	case l.URL != "":
		return l.URL
	case l.Leading:
		return "this one"
	}
	return colour(w, text.FgYellow, "none")
}

func ratio(r *float64) string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *r)
}

func printShards(w io.Writer, regions []controlplane.Status) {
	t := newTable(w, "region", "pool", "shard", "epoch", "node", "role", "behind", "keys", "memory", "ops/s", "hit rate", "problem")
	for _, r := range regions {
		for _, shard := range r.Shards {
			if shard.StandIn != "" {
				t.AppendRow([]any{r.Region, shard.Pool, shard.Name, shard.Epoch, "sidecars", "stand-in", "-", "-", "-", "-", "-", colour(w, text.FgRed, standInText(shard.StandIn))})
			}
			for _, n := range shard.Nodes {
				row := []any{r.Region, shard.Pool, shard.Name, shard.Epoch, n.Address, n.Role, "-", "-", "-", "-", "-", colour(w, text.FgRed, n.Error)}
				if n.Up {
					hits := "-" // a replica is asked by probes only
					if n.Role == string(mesh.Primary) {
						hits = percent(n.RecentHitRate)
					}
					row = append(row[:6], behind(n), n.Keys, size(n.MemoryBytes), n.OpsPerSecond, hits, "")
				}
				t.AppendRow(row)
			}
		}
	}
	t.Render()
}

func standInText(s mesh.StandIn) string {
	if s == mesh.Null {
		return "no node is left: reads miss, writes are dropped"
	}
	return "requests wait for a new primary"
}

// behind is how far a replica is behind its primary.
func behind(n controlplane.NodeStatus) string {
	switch r := n.Replication; {
	case r == nil:
		return "-"
	case !r.Linked:
		return "not in sync"
	case r.LagBytes == nil:
		return "of " + r.Of
	default:
		return size(*r.LagBytes)
	}
}

func stateText(w io.Writer, s xds.State) string {
	paint := text.FgYellow
	switch s {
	case xds.Synced:
		paint = text.FgGreen
	case xds.Rejected:
		paint = text.FgRed
	}
	return colour(w, paint, string(s))
}

func crashes(n xds.Node) string {
	if n.Agent == "" {
		return "-"
	}
	return fmt.Sprint(n.EnvoyRestarts)
}

func percent(rate *float64) string {
	if rate == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", *rate*100)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
