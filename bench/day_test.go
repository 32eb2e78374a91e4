package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/warming"
)

// aDay is one as it should be: with warming, a tenth of the database reads without.
func aDay(t *testing.T) *dayResult {
	t.Helper()
	since := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	day := func(readsASecond int64) *dayRun {
		d := &dayRun{samples: map[string][]daySample{}, totals: map[string]dayTotal{}, arrived: map[string]time.Time{}}
		for _, region := range dayRegions {
			d.totals[region.name] = dayTotal{Region: region.name, Requests: 10_000, Errors: 10, Checked: 100}
			for i := range int64(100) {
				d.samples[region.name] = append(d.samples[region.name], daySample{Region: region.name, Hour: -1 + float64(i)/4, Requests: 100,
					DBReads: i * readsASecond, Hits: i * 90, Misses: i * 10, LoaderReads: i})
			}
		}
		return d
	}
	r := &dayResult{Plan: map[string]any{"minutes": 6, "peak_requests_per_second": 200}, Peaks: map[string]*peakFigures{}, warmed: day(1), unwarmed: day(10)}
	d := r.warmed
	d.posted = []dayPosted{{Happening: "match", Tweet: 1, Home: "us-east", Real: since}, {Happening: "celebrity", Tweet: 2, Home: "us-east", Followers: 900, Real: since.Add(time.Minute)}}
	d.read = dayRead{Tweet: 2, Regions: map[string]int{"us-east": 80, "eu-west": 90}, Hundredth: since.Add(63 * time.Second)}
	for _, region := range dayRegions {
		d.arrived[region.name] = since.Add(61 * time.Second)
		morning := time.Date(2026, 1, 12, 6, 31, 0, 0, zoneOf(region.name))
		d.runs = append(d.runs, aRun(trendingPlan, "cron", region.name, since, morning), aRun(celebrityPlan, "rule", region.name, since.Add(time.Minute), morning))
	}
	d.runs = append(d.runs, aRun(localEventPlan, "rule", "eu-west", since, time.Date(2026, 1, 12, 16, 30, 0, 0, time.UTC)))
	return r
}

func aRun(plan, trigger, region string, begun, clock time.Time) warmRun {
	useful := 0.8
	r := warmRun{Useful: &useful, Record: warming.Record{Trigger: trigger, Clock: clock, Counts: warming.Counts{Loaded: 100}, Use: warming.Use{Sampled: 50, Read: 40}}}
	r.Plan, r.Region, r.Begun, r.State = plan, region, begun, warming.Done
	return r
}

func TestDayIsJudged(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*dayResult)
		fails string
	}{
		"as it should be":                {func(*dayResult) {}, ""},
		"no morning in a region":         {func(r *dayResult) { r.warmed.runs[0].Plan = "other" }, "the time of day"},
		"a morning at noon":              {func(r *dayResult) { r.warmed.runs[0].Clock = r.warmed.runs[0].Clock.Add(5 * time.Hour) }, "the time of day"},
		"the celebrity in one region":    {func(r *dayResult) { r.warmed.runs[1].State = warming.Failed }, "a pattern"},
		"the match everywhere":           {func(r *dayResult) { r.warmed.runs[4].Region = "us-east" }, "a place"},
		"nobody reads what is loaded":    {func(r *dayResult) { r.warmed.runs[0].Use.Read = 0 }, "of what"},
		"the tweet comes too late":       {func(r *dayResult) { r.warmed.read.Hundredth = r.warmed.posted[1].Real }, "hundredth"},
		"the tweet never comes":          {func(r *dayResult) { delete(r.warmed.arrived, "eu-west") }, "hundredth"},
		"the database is read as before": {func(r *dayResult) { r.warmed.samples = r.unwarmed.samples }, "the database"},
		"an answer is wrong":             {func(r *dayResult) { r.unwarmed.totals["us-east"] = dayTotal{Requests: 100, Wrong: 1} }, "no answer is wrong"},
	} {
		r := aDay(t)
		c.spoil(r)
		r.judge()
		switch err := r.err(); {
		case c.fails == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails) || strings.Contains(err.Error(), "\n")):
			t.Errorf("%s: %v, want a failure of %q alone", name, err, c.fails)
		}
	}
}

func TestDayPage(t *testing.T) {
	r := aDay(t)
	r.judge()
	file := filepath.Join(t.TempDir(), "day.html")
	if err := r.writePage(file); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Database reads in eu-west", "morning-trending", "80 %", "05:31", "06:31", "<svg"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Contains(string(page), "failed</span>") || strings.Contains(string(page), "<?xml") {
		t.Error("the page tells of a failure, or has an XML declaration inside")
	}
}
