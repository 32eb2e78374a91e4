package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"time"

	"github.com/google/renameio/v2"

	"github.com/cachemesh/cachemesh/bench/chart"
)

//go:embed day.html.tmpl
var dayPage string

// binOf is over which part of an hour the plots add up.
const binOf = 0.25

// writePage writes one page with what the day showed.
func (r *dayResult) writePage(file string) error {
	page, err := template.New("day").Funcs(template.FuncMap{
		"clock":   func(t time.Time) string { return t.UTC().Format("15:04") },
		"local":   func(t time.Time, region string) string { return t.In(zoneOf(region)).Format("15:04") },
		"percent": percentOf,
	}).Parse(dayPage)
	if err != nil {
		return err
	}
	plots, err := r.plots()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := page.Execute(&b, map[string]any{"Result": r, "Plots": plots, "Regions": dayRegionNames()}); err != nil {
		return err
	}
	return renameio.WriteFile(file, b.Bytes(), 0o644)
}

func percentOf(f *float64) string {
	if f == nil {
		return "–"
	}
	return fmt.Sprintf("%.0f %%", 100**f)
}

func dayRegionNames() (names []string) {
	for _, region := range dayRegions {
		names = append(names, region.name)
	}
	return names
}

func (r *dayResult) plots() (all []template.HTML, err error) {
	requests := chart.Lines{Title: "Requests a second", X: "hour, UTC", Y: "requests/s"}
	for _, region := range dayRegions {
		requests.Series = append(requests.Series, r.warmed.series(region.name, region.name, func(_, b daySample) float64 { return float64(b.Requests) }))
	}
	charts := []chart.Lines{requests}
	for _, region := range dayRegions {
		reads := func(a, b daySample) float64 { return float64(b.DBReads - a.DBReads) }
		l := chart.Lines{Title: "Database reads in " + region.name, X: "hour, UTC", Y: "reads/s", Series: []chart.Series{
			r.warmed.series(region.name, "with warming", reads), r.unwarmed.series(region.name, "without", reads)}}
		for _, run := range r.Runs {
			if run.Plan == trendingPlan && run.Region == region.name {
				l.Marks = append(l.Marks, chart.Mark{Name: run.Plan, X: run.Clock.Sub(daysStart).Hours()})
			}
		}
		charts = append(charts, l)
	}
	for _, region := range dayRegions {
		misses := func(a, b daySample) float64 { return float64(b.Misses - a.Misses) }
		charts = append(charts, chart.Lines{Title: "Cache misses in " + region.name, X: "hour, UTC", Y: "misses/s", Series: []chart.Series{
			r.warmed.series(region.name, "with warming", misses), r.unwarmed.series(region.name, "without", misses)}})
	}
	for _, c := range charts {
		svg, err := c.SVG()
		if err != nil {
			return nil, err
		}
		_, drawing, _ := bytes.Cut(svg, []byte("?>")) // no XML declaration within a page
		if drawing == nil {
			drawing = svg
		}
		all = append(all, template.HTML(drawing))
	}
	return all, nil
}

// series is a line over the hours of the day: the mean of value in each part of an hour.
func (d *dayRun) series(region, name string, value func(a, b daySample) float64) chart.Series {
	s := chart.Series{Name: name}
	samples := d.samples[region]
	sum, n, bin := 0.0, 0, 0
	flush := func() {
		if n > 0 {
			s.X, s.Y = append(s.X, (float64(bin)+0.5)*binOf), append(s.Y, sum/float64(n))
		}
		sum, n = 0, 0
	}
	for i := 1; i < len(samples); i++ {
		if samples[i].Hour < 0 {
			continue
		}
		if at := int(samples[i].Hour / binOf); at != bin {
			flush()
			bin = at
		}
		sum += value(samples[i-1], samples[i])
		n++
	}
	flush()
	return s
}
