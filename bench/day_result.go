package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// What a day must show.
const (
	leastUseful    = 0.6
	mostPeakReads  = 0.5
	mostErrors     = 0.01 // of the requests: more, and the machine stood still
	peakFrom       = 7    // o'clock of the region's own time
	peakUntil      = 10
	trendingPlan   = "morning-trending"
	celebrityPlan  = "celebrity"
	localEventPlan = "local-event"
)

// dayResult is what `bench day` prints.
type dayResult struct {
	header
	Plan   map[string]any `json:"plan"`
	Checks []dayCheck     `json:"checks"`
	// Of what the morning's plan loaded and was looked at, the part that was read.
	Useful float64 `json:"trending_useful_ratio"`
	// Database reads for users at the regions' morning peaks, with warming over without.
	PeakRatio float64                 `json:"morning_peak_db_reads_ratio"`
	Peaks     map[string]*peakFigures `json:"morning_peaks"` // by region
	Celebrity celebrityFigures        `json:"celebrity"`
	Runs      []dayRunFigures         `json:"runs"`

	warmed, unwarmed *dayRun
}

// dayCheck is one of the things that the day must show.
type dayCheck struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Found string `json:"found"`
}

func (c dayCheck) String() string {
	verdict := "ok    "
	if !c.OK {
		verdict = "FAILED"
	}
	return fmt.Sprintf("%s %s: %s", verdict, c.Name, c.Found)
}

// peakFigures are of one region's morning.
type peakFigures struct {
	Reads         int64   `json:"db_reads"`
	Unwarmed      int64   `json:"db_reads_without_warming"`
	LoaderReads   int64   `json:"loader_reads_of_the_day"` // of the database, for warming; some at once
	HitRate       float64 `json:"hit_rate"`
	HitRateBefore float64 `json:"hit_rate_without_warming"`
}

type celebrityFigures struct {
	Followers int `json:"followers"`
	// Seconds after the tweet until a region's cache had it, and until it had been read a hundred times.
	Arrived   map[string]float64 `json:"arrived_seconds"`
	Hundredth float64            `json:"hundredth_read_seconds"`
	Reads     map[string]int     `json:"reads_in_an_hour"`
}

// dayRunFigures is a run of a plan.
type dayRunFigures struct {
	Plan    string    `json:"plan"`
	Region  string    `json:"region"`
	Trigger string    `json:"trigger"`
	State   string    `json:"state"`
	Clock   time.Time `json:"clock"` // when it began, by the day's clock
	Loaded  uint64    `json:"loaded"`
	There   uint64    `json:"there"`
	Other   uint64    `json:"refused_or_failed"`
	Useful  *float64  `json:"useful_ratio"`
	Saved   uint64    `json:"origin_reads_saved"`
}

// judge compares the two days.
func (r *dayResult) judge() {
	for _, run := range r.warmed.runs {
		c := run.Counts
		r.Runs = append(r.Runs, dayRunFigures{Plan: run.Plan, Region: run.Region, Trigger: run.Trigger, State: string(run.State), Clock: run.Clock, Loaded: c.Loaded, There: c.There,
			Other: c.Refused + c.Failed + c.Missing + c.Memory, Useful: run.Useful, Saved: run.Saved})
	}
	slices.SortFunc(r.Runs, func(a, b dayRunFigures) int { return a.Clock.Compare(b.Clock) })
	r.judgeTriggers()
	r.judgeUse()
	r.judgeCelebrity()
	r.judgePeaks()
	for i, d := range []*dayRun{r.warmed, r.unwarmed} {
		name := []string{"with warming", "without"}[i]
		var t dayTotal
		for _, of := range d.totals {
			t.Requests, t.Errors, t.Wrong, t.Checked = t.Requests+of.Requests, t.Errors+of.Errors, t.Wrong+of.Wrong, t.Checked+of.Checked
		}
		r.check("no answer is wrong, "+name, t.Requests > 0 && t.Wrong == 0 && float64(t.Errors) <= mostErrors*float64(t.Requests),
			"%d of %d that were held against the database were wrong; %d of %d requests failed", t.Wrong, t.Checked, t.Errors, t.Requests)
	}
}

func (r *dayResult) check(name string, ok bool, found string, args ...any) {
	r.Checks = append(r.Checks, dayCheck{name, ok, fmt.Sprintf(found, args...)})
}

// judgeTriggers looks whether each kind of plan ran when and where it was to run.
func (r *dayResult) judgeTriggers() {
	done := func(plan, trigger string, from, until time.Time) map[string]int {
		regions := map[string]int{}
		for _, run := range r.warmed.runs {
			if run.Plan == plan && run.Trigger == trigger && run.State == "done" && !run.Begun.Before(from) && run.Begun.Before(until) {
				regions[run.Region]++
			}
		}
		return regions
	}
	ever := time.Now().Add(time.Hour)
	trending := done(trendingPlan, "cron", time.Time{}, ever)
	r.check("the time of day: "+trendingPlan+" ran in each region in its own morning", len(trending) == len(dayRegions) && r.inTheMorning(), "runs: %s", byRegion(trending))
	celebrity, match := r.warmed.first("celebrity"), r.warmed.first("match")
	rule := done(celebrityPlan, "rule", celebrity.Real.Add(-time.Second), celebrity.Real.Add(20*time.Second))
	r.check("a pattern: "+celebrityPlan+" ran in all regions when the celebrity had posted", len(rule) == len(dayRegions), "runs: %s", byRegion(rule))
	place := done(localEventPlan, "rule", match.Real.Add(-time.Second), ever)
	r.check("a place: "+localEventPlan+" ran where the match was, and nowhere else", place["eu-west"] > 0 && len(place) == 1, "runs: %s", byRegion(place))
}

// inTheMorning says whether the runs of the morning's plan began at half past six of their region.
func (r *dayResult) inTheMorning() bool {
	for _, run := range r.warmed.runs {
		if run.Plan != trendingPlan {
			continue
		}
		at := run.Clock.In(zoneOf(run.Region))
		if late := at.Hour()*60 + at.Minute() - (6*60 + 30); late < 0 || late > 15 {
			return false
		}
	}
	return true
}

func (d *dayRun) first(happening string) dayPosted {
	for _, p := range d.posted {
		if p.Happening == happening {
			return p
		}
	}
	return dayPosted{}
}

func (r *dayResult) judgeUse() {
	var sampled, read uint64
	for _, run := range r.warmed.runs {
		if run.Plan == trendingPlan {
			sampled += run.Use.Sampled
			read += run.Use.Read
		}
	}
	if sampled > 0 {
		r.Useful = rounded(float64(read) / float64(sampled))
	}
	r.check(fmt.Sprintf("of what %s loaded, %.1f or more was read", trendingPlan, leastUseful), r.Useful >= leastUseful, "%.2f of %d keys that were looked at", r.Useful, sampled)
}

func (r *dayResult) judgeCelebrity() {
	p, d := r.warmed.first("celebrity"), r.warmed
	c := celebrityFigures{Followers: p.Followers, Arrived: map[string]float64{}, Reads: d.read.Regions}
	before := !d.read.Hundredth.IsZero()
	if before {
		c.Hundredth = rounded(d.read.Hundredth.Sub(p.Real).Seconds())
	}
	for _, region := range dayRegions {
		at, came := d.arrived[region.name]
		before = before && came && at.Before(d.read.Hundredth)
		if came {
			c.Arrived[region.name] = rounded(at.Sub(p.Real).Seconds())
		}
	}
	r.Celebrity = c
	r.check("the celebrity's tweet was in both regions before its hundredth read", before, "in the caches after, in seconds: %s; read for the hundredth time after %.2f", byRegion(c.Arrived), c.Hundredth)
}

func (r *dayResult) judgePeaks() {
	var warmed, unwarmed int64
	for _, region := range dayRegions {
		with, without := r.warmed.morning(region.name), r.unwarmed.morning(region.name)
		f := &peakFigures{Reads: with.reads, Unwarmed: without.reads, HitRate: with.hitRate(), HitRateBefore: without.hitRate()}
		if samples := r.warmed.samples[region.name]; len(samples) > 0 {
			f.LoaderReads = samples[len(samples)-1].LoaderReads
		}
		r.Peaks[region.name] = f
		warmed, unwarmed = warmed+f.Reads, unwarmed+f.Unwarmed
	}
	if unwarmed > 0 {
		r.PeakRatio = rounded(float64(warmed) / float64(unwarmed))
	}
	r.check(fmt.Sprintf("at the morning peak the database is read %.1f times as often as without warming, or less", mostPeakReads), unwarmed > 0 && r.PeakRatio <= mostPeakReads,
		"%.2f: %d and %d reads", r.PeakRatio, warmed, unwarmed)
}

// stretch is what happened in a part of the day.
type stretch struct{ reads, hits, misses int64 }

func (s stretch) hitRate() float64 {
	return rounded(float64(s.hits) / float64(max(1, s.hits+s.misses)))
}

// morning is a region's morning peak.
func (d *dayRun) morning(region string) stretch {
	zone := zoneOf(region)
	return d.during(region, func(hour float64) bool {
		at := daysStart.Add(time.Duration(hour * float64(time.Hour))).In(zone)
		return hour >= 0 && at.Hour() >= peakFrom && at.Hour() < peakUntil
	})
}

// during adds up the seconds of which within says that they count.
func (d *dayRun) during(region string, within func(hour float64) bool) (s stretch) {
	samples := d.samples[region]
	for i := 1; i < len(samples); i++ {
		if a, b := samples[i-1], samples[i]; within(b.Hour) {
			s.reads += b.DBReads - a.DBReads
			s.hits += b.Hits - a.Hits
			s.misses += b.Misses - a.Misses
		}
	}
	return s
}

func zoneOf(region string) *time.Location {
	for _, r := range dayRegions {
		if r.name == region {
			if zone, err := time.LoadLocation(r.zone); err == nil {
				return zone
			}
		}
	}
	return time.UTC
}

// err names what the day failed to show.
func (r *dayResult) err() error {
	if r.Quick {
		return nil
	}
	var errs []error
	for _, c := range r.Checks {
		if !c.OK {
			errs = append(errs, fmt.Errorf("%s: %s", c.Name, c.Found))
		}
	}
	return errors.Join(errs...)
}

func (r *dayResult) markdown(w io.Writer) {
	r.header.markdown(w, "a day whose hours pass in seconds")
	fmt.Fprintf(w, "At the morning peaks the database is read %.2f times as often as on the same day without warming; of what the morning's plan loaded, %.2f was read.\n\n", r.PeakRatio, r.Useful)
	fmt.Fprintln(w, "| region | database reads at the morning peak | without warming | hit rate | without |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|")
	for _, region := range dayRegions {
		p := r.Peaks[region.name]
		fmt.Fprintf(w, "| %s | %d | %d | %.3f | %.3f |\n", region.name, p.Reads, p.Unwarmed, p.HitRate, p.HitRateBefore)
	}
}

// byRegion prints a figure of each region.
func byRegion[V any](figures map[string]V) string {
	var all []string
	for _, region := range slices.Sorted(maps.Keys(figures)) {
		all = append(all, fmt.Sprintf("%s %v", region, figures[region]))
	}
	return strings.Join(all, ", ")
}
