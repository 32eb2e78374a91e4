package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/bench/aside"
)

// handoffsPlan is how often a shard comes or goes while something fails.
type handoffsPlan struct {
	seed   uint64 // of the first round; those that follow have the next
	rounds int
	faults []string // that are drawn; none is all
	logs   string   // folder that keeps all files of the run; "" is none
}

const (
	handoffShards, handoffNodes, handoffSidecars = 2, 2, 2
	handoffPool                                  = "cache"
	// handoffPace has copying take long enough to be met by a fault.
	handoffPace = 1500
	// handoffFailures ends a run that goes wrong again and again.
	handoffFailures = 5
	localRoutes     = `prefix: ""`
	coherentRoutes  = `prefix: "", coherence: invalidate, writes: update, durability: replica`
)

// handoffLoad is light: what is looked at is what it reads.
var handoffLoad = aside.Plan{Keys: 500, Bytes: 100, Alpha: 0.9, Rate: 200, Writes: 0.3, Timeout: 2 * time.Second}

// localBound is for how long a local route may give what was there before, while sidecars change from one ring to the next: milliseconds, and as much
// more as a busy machine has processes wait. What stays is seen in any case, since all keys are read when a round has ended.
const localBound = 3 * time.Second

func handoffsFlags(cmd *cobra.Command, s *settings) {
	f := cmd.Flags()
	f.Uint64Var(&s.handoffs.seed, "seed", 1, "of the first round: what comes or goes, what fails and when; the others have the next")
	f.IntVar(&s.handoffs.rounds, "rounds", 0, "how many (default: 200)")
	f.StringSliceVar(&s.handoffs.faults, "fault", nil, "draw only these: "+strings.Join(faultNames(), ", "))
	f.StringVar(&s.handoffs.logs, "logs", "", "folder that keeps the logs and other files of the run")
}

// handoffsResult is what `bench handoffs` prints.
type handoffsResult struct {
	header
	Plan   map[string]any  `json:"plan"`
	Seed   uint64          `json:"seed"`
	Rounds int             `json:"rounds"`
	Done   int             `json:"done"`
	Undone int             `json:"undone"`
	Failed int             `json:"failed"`
	Faults map[string]int  `json:"faults"` // rounds, by fault
	Reads  int             `json:"reads"`
	Stale  int             `json:"stale_reads"`
	Errors int             `json:"errors"` // of requests while something was down
	All    []*handoffRound `json:"all"`
}

// err is what is wrong with handoffs.
func (r *handoffsResult) err() error {
	var wrong []error
	for _, round := range r.All {
		if len(round.Wrong) > 0 {
			wrong = append(wrong, fmt.Errorf("--seed %d --rounds 1: %s", round.Seed, strings.Join(round.Wrong, "; ")))
		}
	}
	return errors.Join(wrong...)
}

func benchHandoffs(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "handoffs", s.quick)
	if err != nil {
		return nil, err
	}
	plan := s.handoffs
	switch {
	case plan.rounds < 0:
		return nil, fmt.Errorf("--rounds %d: choose 1 or more", plan.rounds)
	case plan.rounds == 0 && s.quick:
		plan.rounds = 4
	case plan.rounds == 0:
		plan.rounds = 200
	}
	if err := plan.validate(); err != nil {
		return nil, err
	}
	if plan.logs != "" {
		s.dir = plan.logs
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return nil, err
		}
	}
	cachemesh, err := build(ctx, s.dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return nil, err
	}
	r := &handoffsResult{header: head, Seed: plan.seed, Faults: map[string]int{}, Plan: map[string]any{"shards": handoffShards, "nodes_per_shard": handoffNodes,
		"sidecars": handoffSidecars, "keys": handoffLoad.Keys + quietKeys, "requests_per_second": handoffLoad.Rate, "write_share": handoffLoad.Writes,
		"copied_keys_per_second": handoffPace, "local_bound_seconds": localBound.Seconds()}}
	// Those of one mesh follow each other, so that only one runs.
	for _, coherent := range []bool{false, true} {
		if err := r.run(ctx, s, plan, cachemesh, coherent); err != nil {
			return nil, err
		}
	}
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// run has the rounds of the plan that are on coherent routes, or those that are not.
func (r *handoffsResult) run(ctx context.Context, s settings, plan handoffsPlan, cachemesh string, coherent bool) error {
	var m *handoffMesh
	defer func() {
		if m != nil {
			m.stop()
		}
	}()
	for seed := plan.seed; seed < plan.seed+uint64(plan.rounds) && r.Failed < handoffFailures; seed++ {
		round := drawRound(seed, plan.faults)
		if round.Coherent != coherent {
			continue
		}
		if m == nil {
			dir := filepath.Join(s.dir, fmt.Sprintf("from-%d", seed))
			var err error
			if m, err = startHandoffMesh(ctx, dir, cachemesh, coherent); err != nil {
				return err
			}
		}
		if err := m.round(ctx, round); err != nil {
			if ctx.Err() != nil {
				return err
			}
			round.wrong("it cannot be judged: %v: %s", err, m.describe(ctx))
		}
		r.take(round)
		fmt.Fprintf(s.progress, "%d of %d: %s\n", r.Rounds, plan.rounds, round)
		if len(round.Wrong) > 0 {
			fmt.Fprintf(s.progress, "  replay it with --seed %d --rounds 1\n  %s\n", seed, strings.Join(round.Wrong, "\n  "))
			m.stop() // what went wrong may stay so
			m = nil
		}
	}
	return nil
}

func (r *handoffsResult) take(round *handoffRound) {
	r.All = append(r.All, round)
	r.Rounds++
	r.Faults[round.Fault]++
	r.Reads += round.Reads
	r.Stale += round.Stale
	r.Errors += round.Errors
	switch {
	case len(round.Wrong) > 0:
		r.Failed++
	case round.Undone:
		r.Undone++
	default:
		r.Done++
	}
}

func (r *handoffsResult) markdown(w io.Writer) {
	r.header.markdown(w, "shards come and go while something fails")
	var faults []string
	for _, fault := range slices.Sorted(maps.Keys(r.Faults)) {
		faults = append(faults, fmt.Sprintf("%s %d", strings.ReplaceAll(fault, "_", " "), r.Faults[fault]))
	}
	fmt.Fprintf(w, "%d handoffs from seed %d, half of them on coherent routes, each with one fault or none: %s. %d were done, %d undone as asked, **%d broke an invariant**;\n"+
		"%d of %d reads were stale.\n", r.Rounds, r.Seed, strings.Join(faults, ", "), r.Done, r.Undone, r.Failed, r.Stale, r.Reads)
}
