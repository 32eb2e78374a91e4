package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/bench/aside"
)

// handoffRound is a handoff and what fails meanwhile. All but what comes of it is drawn by its seed.
type handoffRound struct {
	Seed     uint64  `json:"seed"`
	Coherent bool    `json:"coherent"`
	Kind     string  `json:"kind"` // add or remove
	Fault    string  `json:"fault"`
	When     moment  `json:"when"`
	For      float64 `json:"for_seconds"`     // until it is mended
	Abort    *moment `json:"abort,omitempty"` // when an operator gives the handoff up

	What    string          `json:"what,omitempty"`      // failed
	Struck  string          `json:"struck_in,omitempty"` // the step, or that it had ended
	Undone  bool            `json:"undone"`
	Took    float64         `json:"handoff_seconds"`
	Seconds float64         `json:"seconds"`
	Reads   int             `json:"reads"`
	Lost    int             `json:"lost"` // misses of what was there
	Stale   int             `json:"stale_reads"`
	Errors  int             `json:"errors"`
	Gone    int             `json:"gone"` // keys that nobody changed and that are not there any more
	Found   []aside.Finding `json:"findings,omitempty"`
	Wrong   []string        `json:"wrong,omitempty"`
}

// moment is a while after a step of a handoff has begun.
type moment struct {
	Step  string  `json:"step"`
	After float64 `json:"after_seconds"`
}

func (m moment) String() string { return fmt.Sprintf("%s+%.2fs", m.Step, m.After) }

// moving are the steps in their order; what is under way no more is ended.
var moving = []string{"", "copying", "preparing", "fencing", "flipping", "purging", "undoing"}

const ended = "ended"

func drawRound(seed uint64, faults []string) *handoffRound {
	random := rand.New(rand.NewPCG(seed, 1))
	r := &handoffRound{Seed: seed, Coherent: seed%2 == 1, Kind: directions[seed/2%2]}
	drawMoment := func(steps []string) moment {
		// Copying takes the longest, and what holds a step up is one of the faults.
		if step := steps[random.IntN(len(steps))]; step != "copying" {
			return moment{step, rounded(0.1 * random.Float64())}
		}
		return moment{"copying", rounded(0.7 * random.Float64())}
	}
	all := slices.DeleteFunc(slices.Clone(handoffFaults), func(f handoffFault) bool { return len(faults) > 0 && !slices.Contains(faults, f.name) })
	total := 0
	for _, f := range all {
		total += f.weight
	}
	n := random.IntN(total)
	for _, f := range all {
		if n -= f.weight; n < 0 {
			r.Fault, r.When, r.For = f.name, drawMoment(moving[1:6]), rounded(0.05+f.longest*random.Float64()*random.Float64())
			break
		}
	}
	if random.IntN(5) == 0 {
		abort := drawMoment(moving[1:4])
		r.Abort = &abort
	}
	return r
}

func (r *handoffRound) String() string {
	routes, outcome := "local", "done"
	if r.Coherent {
		routes = "coherent"
	}
	if r.Undone {
		outcome = "undone"
	}
	if len(r.Wrong) > 0 {
		outcome = "WRONG"
	}
	s := fmt.Sprintf("seed %d: %s %s", r.Seed, routes, r.Kind)
	if r.Fault != "none" {
		s += fmt.Sprintf(", %s at %s for %.2f s", r.Fault, r.When, r.For)
		if r.Struck != "" {
			s += fmt.Sprintf(" (%s, %s)", r.What, r.Struck)
		}
	}
	if r.Abort != nil {
		s += fmt.Sprintf(", aborted at %s", r.Abort)
	}
	return s + fmt.Sprintf(": %s after %.1f s, round %.1f s; %d reads, %d lost, %d stale, %d errors, %d keys gone", outcome, r.Took, r.Seconds, r.Reads, r.Lost, r.Stale, r.Errors, r.Gone)
}

func (r *handoffRound) wrong(format string, args ...any) {
	const most = 20
	if len(r.Wrong) < most {
		r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...))
	}
}

const (
	// handoffWithin is how long a handoff may take: a leader waits 10 s for those whom it has not heard of, and 30 s for who does not answer.
	handoffWithin = 2 * time.Minute
)

// round does one. What is wrong with the cache is in the round; an error is that it cannot be told.
func (m *handoffMesh) round(ctx context.Context, r *handoffRound) error {
	began := time.Now()
	loaded, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	load.Go(func() { m.app.Run(loaded) })
	defer func() { stop(); load.Wait() }()
	if err := m.prepare(ctx, r); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	begun := time.Now()
	before, err := m.spare.state()
	if err != nil {
		return err
	}
	if err := m.spare.begin(ctx, r.Kind); err != nil {
		return err
	}
	var events sync.WaitGroup
	var fault, abort error
	events.Go(func() { fault = m.fail(ctx, r) })
	if r.Abort != nil {
		events.Go(func() { abort = m.abort(ctx, *r.Abort) })
	}
	end := m.spare.ends(ctx)
	r.Took = rounded(time.Since(begun).Seconds())
	events.Wait()
	if err := errors.Join(fault, abort); err != nil {
		return err
	}
	if end != nil {
		r.wrong("the handoff does not end: %v: %s", end, m.describe(ctx))
		return nil
	}
	after, err := m.spare.state()
	if err != nil {
		return err
	}
	r.Undone = after.generation() == before.generation()
	if r.Undone && r.Abort == nil {
		r.wrong("the handoff was given up, and nobody asked for it: %s", m.describe(ctx))
	}
	m.look(ctx, r)
	stop()
	load.Wait()
	if err := m.app.Look(ctx); err != nil {
		r.wrong("%v", err)
	}
	if err := m.app.Settle(ctx); err != nil {
		r.wrong("%v", err)
	}
	f := m.app.Between(began, time.Now().Add(time.Second))
	r.Reads, r.Lost, r.Errors = f.Reads, f.Lost, f.Errors.Plain+f.Errors.Retried
	r.Found = slices.DeleteFunc(m.app.Findings(), func(f aside.Finding) bool { return m.lapsed(after, f) })
	if r.Stale = len(r.Found); r.Stale > 0 {
		r.wrong("%d reads were stale: %+v", r.Stale, r.Found[:min(3, len(r.Found))])
	}
	if r.Fault == "none" && r.Gone > 0 {
		r.wrong("nothing failed, and %d keys that nobody changed are gone", r.Gone)
	}
	if len(r.Wrong) > 0 {
		r.wrong("%s", m.describe(ctx))
	}
	r.Seconds = rounded(time.Since(began).Seconds())
	return nil
}

// prepare has the ring be one that the round can change, and the keys there that nobody changes.
func (m *handoffMesh) prepare(ctx context.Context, r *handoffRound) error {
	state, err := m.spare.state()
	if err != nil {
		return err
	}
	if state.has(shardName(handoffShards)) != (r.Kind == "remove") {
		kind := "add"
		if r.Kind == "add" {
			kind = "remove"
		} else if err := m.spare.renew(ctx); err != nil {
			return err
		}
		if err := m.spare.begin(ctx, kind); err != nil {
			return err
		}
		if err := m.spare.ends(ctx); err != nil {
			return err
		}
	}
	if err := m.whole(ctx); err != nil {
		return err
	}
	if r.Kind == "add" {
		if err := m.spare.renew(ctx); err != nil {
			return err
		}
	}
	there, err := m.quiet(ctx, nil)
	if err != nil {
		return err
	}
	if err := m.fillQuiet(ctx, there); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	return eventually(ctx, "keys that expire", func(ctx context.Context) error {
		return fillBrief(ctx, m.plain[0], rand.New(rand.NewPCG(r.Seed, 2)), r.Seed)
	})
}
