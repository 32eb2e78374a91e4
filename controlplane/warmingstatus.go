package controlplane

import (
	"fmt"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

// WarmingStatus is the answer of GET /v1/warming.
type WarmingStatus struct {
	Region   string         `json:"region"`
	Leading  bool           `json:"leading"` // else another control plane of the region knows
	Plans    []PlanStatus   `json:"plans"`
	Problems []mesh.Problem `json:"problems"` // of plans that are not used
	Runs     []RunStatus    `json:"runs"`     // newest first
	Events   EventsStatus   `json:"events"`
	Problem  string         `json:"problem,omitempty"` // why nothing can begin
}

// PlanStatus is a plan that may warm the region.
type PlanStatus struct {
	Name        string       `json:"name"`
	Trigger     string       `json:"trigger"` // cron, finishBy, followSun, rule, onReturn, or manual
	When        string       `json:"when"`
	Applied     bool         `json:"applied"` // by `cachemesh warm apply`, else it is in mesh.yaml
	Plan        mesh.Plan    `json:"plan"`
	Source      string       `json:"source"`
	Next        time.Time    `json:"next,omitzero"` // when it begins next, by the clock
	Running     string       `json:"running,omitempty"`
	Last        *RunStatus   `json:"last,omitempty"` // that was done
	Runs        int          `json:"runs"`           // that are kept
	Missed      uint64       `json:"missed"`         // times without a run, since this control plane leads
	Matched     uint64       `json:"matched"`        // events
	Failed      uint64       `json:"failed"`         // events on which its rule failed
	Totals      PlanTotals   `json:"totals"`
	Use         warming.Use  `json:"use"`          // of all runs that are kept
	UsefulRatio *float64     `json:"useful_ratio"` // null while nothing is known
	Spec        *warming.Run `json:"spec"`         // what a run that begins now would be
}

// RunStatus is a run and how far it is.
type RunStatus struct {
	warming.Record
	Remaining   *float64 `json:"remaining_seconds"` // null if it is not known, or nothing remains
	PerSecond   float64  `json:"keys_per_second"`
	UsefulRatio *float64 `json:"useful_ratio"` // null while nothing is known
	Saved       uint64   `json:"origin_reads_saved"`
}

// EventsStatus counts events of the application since the control plane runs.
type EventsStatus struct {
	Taken       uint64 `json:"taken"`
	Dropped     uint64 `json:"dropped"` // too many at once
	Bad         uint64 `json:"bad"`     // no JSON object
	KeysDropped uint64 `json:"keys_dropped"`
}

// WarmingRuns is the answer of GET /v1/warming/runs.
type WarmingRuns struct {
	Region string      `json:"region"`
	Runs   []RunStatus `json:"runs"` // newest first
}

// PlansApplied is the answer of POST /v1/warming/plans.
type PlansApplied struct {
	Region string   `json:"region"`
	Plans  []string `json:"plans"`
}

// show lets others see how things are.
func (w *warmer) show() {
	s := WarmingStatus{Region: w.region, Leading: w.leading, Plans: []PlanStatus{}, Problems: append([]mesh.Problem{}, w.problems...), Runs: []RunStatus{},
		Events: EventsStatus{w.counted.taken.Load(), w.counted.dropped.Load(), w.counted.bad.Load(), w.counted.keysDropped.Load()}}
	if w.problem != nil {
		s.Problem = w.problem.Error()
	}
	if w.leading {
		now := time.Now()
		for i := range slices.Backward(w.book.Runs) {
			s.Runs = append(s.Runs, runStatus(&w.book.Runs[i], now))
		}
		for _, name := range w.names() {
			s.Plans = append(s.Plans, w.planStatus(w.plans[name], now))
		}
	}
	w.shown.Store(&s)
}

func (w *warmer) planStatus(p *warming.Plan, now time.Time) PlanStatus {
	run := p.Run(w.region, now)
	s := PlanStatus{Name: p.Name, Trigger: p.Trigger(), When: p.When(), Plan: p.Plan, Source: sourceText(run.Source), Missed: w.missed[p.Name], Matched: w.matched[p.Name], Failed: w.failed[p.Name],
		Totals: w.totalsOf(p.Name).clone(), Use: w.book.UseOf(p.Name), Spec: &run}
	s.Applied = slices.ContainsFunc(w.book.Applied, func(a mesh.Plan) bool { return a.Name == p.Name })
	s.UsefulRatio = ratio(s.Use)
	if slot, ok := w.book.Slots[slotOf(p)]; ok {
		s.Next = p.Due(w.region, slot, w.now(), w.took(p.Name)).Next
	}
	for i := range w.book.Runs {
		if w.book.Runs[i].Plan == p.Name {
			s.Runs++
		}
	}
	if r := w.book.Active(p.Name); r != nil {
		s.Running = r.ID
	}
	if r := w.book.Last(p.Name); r != nil {
		last := runStatus(r, now)
		s.Last = &last
	}
	return s
}

// sourceText is a source, for people.
func sourceText(s mesh.Source) string {
	switch {
	case s.Region != "":
		return "region " + s.Region
	case s.Loader != nil:
		return "loader " + s.Loader.URL
	case s.SQL != nil:
		return string(s.SQL.Driver)
	}
	return "file " + s.File
}

func runStatus(r *warming.Record, now time.Time) RunStatus {
	s := RunStatus{Record: *r, UsefulRatio: ratio(r.Use), Saved: r.Saved()}
	until := now
	if r.State.Over() {
		until = r.Ended
	}
	if seconds := until.Sub(r.Begun).Seconds(); seconds > 0 {
		s.PerSecond = float64(r.Counts.Keys()) / seconds
	}
	if done := r.Counts.Keys(); r.State == warming.Running && done > 0 && r.Total > done && s.PerSecond > 0 {
		left := float64(r.Total-done) / s.PerSecond
		s.Remaining = &left
	}
	return s
}

func ratio(u warming.Use) *float64 {
	if u.Sampled == 0 {
		return nil
	}
	r := u.Ratio()
	return &r
}

const (
	// A run that has not gone on for stalledAfter is an alert, and a plan of which so many of uselessFrom keys or more were looked at and fewer than
	// useless were read.
	stalledAfter = time.Minute
	useless      = 0.2
	uselessFrom  = 200
	// failedShown is how long a run that failed stays an alert.
	failedShown = time.Hour
)

// alerts are what needs a person.
func (s *WarmingStatus) alerts(now time.Time) []Alert {
	var all []Alert
	add := func(subject, remedy, format string, args ...any) {
		all = append(all, Alert{Subject: subject, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	for _, p := range s.Problems {
		add("warming", "mend it; the other plans run", "a plan is not used: %s", p)
	}
	if s.Problem != "" {
		add("warming", "no plan begins until that is mended; the shards are not affected", "%s", s.Problem)
	}
	seen := map[string]bool{}
	for _, r := range s.Runs {
		newest := !seen[r.Plan+" "+r.Route]
		seen[r.Plan+" "+r.Route] = true
		switch {
		case r.State == warming.Failed && newest && now.Sub(r.Ended) < failedShown:
			add(r.ID, "mend that, and `cachemesh warm run "+r.Plan+"`", "the run failed: %s", r.Problem)
		case r.State != warming.Paused && !r.State.Over() && r.Problem != "" && now.Sub(r.Begun) > stalledAfter:
			add(r.ID, "it goes on by itself when that is mended; or `cachemesh warm cancel "+r.ID+"`", "the run does not go on: %s", r.Problem)
		case r.Full && newest && now.Sub(r.Ended) < failedShown:
			add(r.ID, "give the shards more memory, or the plan fewer keys", "the shards had no room for all of it: %d keys were loaded", r.Counts.Loaded)
		}
	}
	for _, p := range s.Plans {
		if p.Use.Sampled >= uselessFrom && p.Use.Ratio() < useless {
			add(p.Name, "load fewer keys, or later; see `cachemesh warm history`", "of the keys that the plan loaded, %.0f %% were read", 100*p.Use.Ratio())
		}
	}
	if s.Events.Dropped+s.Events.KeysDropped > 0 {
		add("events", "send only events that a rule may want", "the application has sent more events at once than can be looked at: %d events and %d keys were dropped", s.Events.Dropped, s.Events.KeysDropped)
	}
	return all
}
