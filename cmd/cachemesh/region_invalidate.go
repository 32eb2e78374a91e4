package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
)

func newRegionInvalidate() *cobra.Command {
	var from meshFlags
	var out output
	var prefix, pool string
	var nul bool
	cmd := &cobra.Command{
		Use:   "invalidate KEY... | --prefix P",
		Short: "Remove keys, or all that begin so, in every region",
		Long: `Remove keys, or all that begin so, from every shard of every region that has them, and show what each shard answered. Keys come as
arguments, or one a line on standard input; there, and with -0 between them, they may hold any byte.

One region writes it into its shards' journals, too: regions whose control planes cannot be asked now learn of it from there, if the route
has coherence: invalidate. The exit status is 0 only if every shard of every region has answered.

With --prefix, shards look at all of their keys, at most half of the time. Keys that are written meanwhile may stay.`,
		Example: `  cachemesh region invalidate user:42 user:43
  cachemesh region invalidate --prefix 'timeline:' --pool timelines
  cut -f1 changed.tsv | cachemesh region invalidate -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted := controlplane.Invalidation{Pool: pool, Prefix: []byte(prefix)}
			switch {
			case cmd.Flags().Changed("prefix") && len(args) > 0:
				return usage("name keys or --prefix, not both")
			case cmd.Flags().Changed("prefix") && prefix == "":
				return usage("every key begins with an empty --prefix: say `cachemesh flush POOL`")
			case prefix == "":
				for _, a := range args {
					wanted.Keys = append(wanted.Keys, []byte(a))
				}
				if len(args) == 0 {
					var err error
					if wanted.Keys, err = readKeys(cmd.InOrStdin(), nul); err != nil {
						return err
					}
				}
				if len(wanted.Keys) == 0 {
					return usage("there are no keys on standard input")
				}
			}
			reach, err := from.reach(cmd.Context())
			if err != nil {
				return err
			}
			return removeEverywhere(cmd, &from, out, reach, wanted, true)
		},
	}
	f := cmd.Flags()
	f.StringVar(&prefix, "prefix", "", "remove all keys that begin so")
	f.StringVar(&pool, "pool", "", "pool of the keys (default: all that may have them)")
	f.BoolVarP(&nul, "null", "0", false, "keys on standard input are separated by NUL, not by line ends")
	out.register(cmd)
	from.register(cmd)
	from.completeNames(cmd, new(string))
	return cmd
}

// removals is what `region invalidate -o json` and `flush -o json` print.
type removals struct {
	Removals  []controlplane.ShardRemoval `json:"removals"`  // what each shard of each region answered
	Unreached []unreached                 `json:"unreached"` // regions without an answer
}

// unreached is a region that did not answer, or not in full.
type unreached struct {
	Region string `json:"region,omitempty"` // left out if the control plane did not even say its name
	Error  string `json:"error"`
}

// removeEverywhere has all regions remove what is wanted and prints what they answered. With tell, one writes it into its journals, too.
func removeEverywhere(cmd *cobra.Command, from *meshFlags, out output, r reach, wanted controlplane.Invalidation, tell bool) error {
	done := removals{Removals: []controlplane.ShardRemoval{}, Unreached: []unreached{}}
	teller := slices.IndexFunc(r.planes, func(p plane) bool { return p.status.Leader.Leading || p.status.Leader.URL != "" })
	heard := "it has not heard of this: ask again when it answers"
	if teller >= 0 && journals(r.first, wanted) {
		heard = "it hears of this from the journals of " + r.planes[teller].status.Region
	}
	for _, name := range r.missing {
		done.Unreached = append(done.Unreached, unreached{name, "none of its control planes answered: " + heard})
	}
	if len(r.missing) == 0 {
		for _, err := range r.failed {
			done.Unreached = append(done.Unreached, unreached{"", fmt.Sprintf("%v: %s", err, heard)})
		}
	}
	show, stop := showRemovals(cmd.ErrOrStderr())
	var lock sync.Mutex
	var wait sync.WaitGroup
	for i, p := range r.planes {
		here := wanted
		here.Journal = tell && i == teller
		wait.Go(func() {
			answers, err := from.remove(cmd.Context(), p.url, here, show)
			lock.Lock()
			defer lock.Unlock()
			done.Removals = append(done.Removals, answers...)
			if err != nil {
				done.Unreached = append(done.Unreached, unreached{p.status.Region, err.Error()})
			}
		})
	}
	wait.Wait()
	stop()
	slices.SortStableFunc(done.Removals, func(a, b controlplane.ShardRemoval) int {
		return strings.Compare(a.Region+"\x00"+a.Pool+"\x00"+a.Shard, b.Region+"\x00"+b.Pool+"\x00"+b.Shard)
	})
	if err := out.print(cmd.OutOrStdout(), done, func(w io.Writer) { printRemovals(w, done.Removals) }); err != nil {
		return err
	}
	failed := len(done.Unreached) > 0
	for _, u := range done.Unreached {
		fmt.Fprintf(cmd.ErrOrStderr(), "error: %s\n", strings.TrimPrefix(u.Region+": "+u.Error, ": "))
	}
	for _, s := range done.Removals {
		failed = failed || !s.Done
	}
	if failed {
		return errReported
	}
	return nil
}

// journals says whether regions that are not asked learn of an invalidation.
func journals(t mesh.Topology, i controlplane.Invalidation) bool {
	for _, p := range t.Pools {
		for _, r := range p.Routes {
			if r.Coherence == mesh.Invalidate && (i.Pool == "" || i.Pool == p.Name) {
				return true
			}
		}
	}
	return false
}

// removeSilence is for how long a control plane may say nothing of a removal.
const removeSilence = 30 * time.Second

// remove has a region remove what is wanted, and returns the last answer of each shard. show is told of each answer; several goroutines
// may call it at once.
func (m *meshFlags) remove(ctx context.Context, base string, wanted controlplane.Invalidation, show func(controlplane.ShardRemoval)) ([]controlplane.ShardRemoval, error) {
	body, err := json.Marshal(wanted)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(removeSilence, func() { cancel(fmt.Errorf("the control plane says nothing for %s", removeSilence)) })
	defer silence.Stop()
	answer, err := m.open(ctx, "POST", base+"/v1/regions/invalidate", body)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	var all []controlplane.ShardRemoval
	lines := json.NewDecoder(answer)
	for {
		var s controlplane.ShardRemoval
		err := lines.Decode(&s)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			for i := range all {
				if !all[i].Done && all[i].Error == "" {
					all[i].Error = "the control plane went away before it was done: ask again"
				}
			}
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return all, fmt.Errorf("not all shards have answered: %w: ask again", err)
		}
		silence.Reset(removeSilence)
		show(s)
		if i := slices.IndexFunc(all, func(b controlplane.ShardRemoval) bool { return b.Shard == s.Shard }); i >= 0 {
			all[i] = s
		} else {
			all = append(all, s)
		}
	}
}

// showRemovals shows a bar of all shards' keys on a terminal.
func showRemovals(w io.Writer) (show func(controlplane.ShardRemoval), stop func()) {
	if !isTerminal(w) {
		return func(controlplane.ShardRemoval) {}, func() {}
	}
	bar := progress.NewWriter()
	bar.SetOutputWriter(w)
	bar.SetUpdateFrequency(100 * time.Millisecond)
	bar.SetTrackerLength(30)
	tracker := progress.Tracker{Message: "keys"}
	bar.AppendTracker(&tracker)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		bar.Render()
	}()
	var lock sync.Mutex
	last := map[string]controlplane.ShardRemoval{}
	return func(s controlplane.ShardRemoval) {
			lock.Lock()
			defer lock.Unlock()
			last[s.Region+"/"+s.Shard] = s
			var seen, of int64
			for _, s := range last {
				seen, of = seen+int64(s.Seen), of+int64(s.Of)
			}
			tracker.UpdateTotal(of)
			tracker.SetValue(seen)
		}, func() {
			tracker.MarkAsDone()
			bar.Stop()
			<-ended
		}
}

func printRemovals(w io.Writer, all []controlplane.ShardRemoval) {
	t := newTable(w, "region", "pool", "shard", "node", "epoch", "keys", "removed", "journal", "answer")
	removed := uint64(0)
	regions := map[string]bool{}
	for _, s := range all {
		answer := "done"
		switch {
		case !s.Done:
			answer = colour(w, text.FgRed, s.Error)
		case s.Node == "":
			answer = "has no node, and so no key"
		}
		if s.Done {
			regions[s.Region] = true
		}
		removed += s.Removed
		t.AppendRow([]any{s.Region, s.Pool, s.Shard, dash(s.Node), s.Epoch, s.Seen, s.Removed, dash(s.Journal), answer})
	}
	t.Render()
	fmt.Fprintf(w, "removed %s of %s in %s\n", counted(removed, "key"), counted(len(all), "shard"), counted(len(regions), "region"))
}

// counted is a number of things in words.
func counted[N int | uint64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
