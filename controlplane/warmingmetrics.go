package controlplane

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachemesh/cachemesh/warming"
)

// PlanTotals count what became of a plan's runs and of their keys since the control plane leads.
type PlanTotals struct {
	Runs map[string]uint64 `json:"runs"` // by how they ended: done, full, failed or cancelled
	Keys warming.Counts    `json:"keys"`
}

// The ways in which a run ends, for metrics: full is done, but for want of room.
const runFull = "full"

var runResults = []string{string(warming.Done), runFull, string(warming.Failed), string(warming.Cancelled)}

// totalsOf are a plan's.
func (w *warmer) totalsOf(plan string) *PlanTotals {
	t := w.totals[plan]
	if t == nil {
		t = &PlanTotals{Runs: map[string]uint64{}}
		w.totals[plan] = t
	}
	return t
}

// ended counts a run that is over.
func (w *warmer) ended(r *warming.Record) {
	result := string(r.State)
	if r.Full {
		result = runFull
	}
	w.totalsOf(r.Plan).Runs[result]++
}

func (t *PlanTotals) clone() PlanTotals { return PlanTotals{maps.Clone(t.Runs), t.Keys} }

// warmingCollector shows warming as it is when Prometheus asks. Only the control plane that leads has plans.
type warmingCollector struct{ status func() *WarmingStatus }

var (
	planLabels = []string{"plan"}

	warmingRunsDesc    = prometheus.NewDesc("cachemesh_warming_runs_total", "Runs of a plan that are over, by result: done, full (the shards had no room for the rest), failed or cancelled.", append(planLabels, "result"), nil)
	warmingKeysDesc    = prometheus.NewDesc("cachemesh_warming_keys_total", "Keys of a plan's runs, by what became of them: loaded, there (already), refused (in a hold-off), missing (at the source), failed or memory (no room).", append(planLabels, "result"), nil)
	warmingEventsDesc  = prometheus.NewDesc("cachemesh_warming_events_total", "Events of the application, by result: taken, dropped (too many at once) or bad.", []string{"result"}, nil)
	warmingRefusedDesc = prometheus.NewDesc("cachemesh_warming_plans_refused", "Plans that are not used because of a mistake in them.", nil, nil)
	warmingBytesDesc   = planDesc("cachemesh_warming_loaded_bytes_total", "Bytes of keys and values that a plan's runs have loaded.")
	warmingActiveDesc  = planDesc("cachemesh_warming_active", "1 if a run of the plan is not over.")
	warmingStalledDesc = planDesc("cachemesh_warming_stalled", "1 if a run of the plan does not go on.")
	warmingDoneDesc    = planDesc("cachemesh_warming_done_ratio", "Part of the run's keys that are done; 1 if no run is under way.")
	warmingSampledDesc = planDesc("cachemesh_warming_sampled_keys", "Keys that the plan's last runs have loaded and that were looked at since.")
	warmingReadDesc    = planDesc("cachemesh_warming_sampled_read_keys", "Of them, those that were read.")
	warmingEvictedDesc = planDesc("cachemesh_warming_sampled_evicted_keys", "Of them, those that were evicted and never read.")
	warmingSavedDesc   = planDesc("cachemesh_warming_origin_reads_saved", "About how many reads of the database the plan's last runs have saved.")
	warmingMatchedDesc = planDesc("cachemesh_warming_matched_events_total", "Events that the plan's rule wanted something of.")
	warmingErrorsDesc  = planDesc("cachemesh_warming_rule_errors_total", "Events on which the plan's rule failed.")
	warmingMissedDesc  = planDesc("cachemesh_warming_missed_total", "Times of the plan that went by without a run.")
)

func planDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, planLabels, nil)
}

// Describe sends all that there may be.
func (warmingCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{warmingRunsDesc, warmingKeysDesc, warmingEventsDesc, warmingRefusedDesc, warmingBytesDesc, warmingActiveDesc, warmingStalledDesc, warmingDoneDesc,
		warmingSampledDesc, warmingReadDesc, warmingEvictedDesc, warmingSavedDesc, warmingMatchedDesc, warmingErrorsDesc, warmingMissedDesc} {
		out <- d
	}
}

// Collect sends the values of this moment.
func (c warmingCollector) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	s := c.status()
	for result, n := range map[string]uint64{"taken": s.Events.Taken, "dropped": s.Events.Dropped, "bad": s.Events.Bad} {
		send(warmingEventsDesc, prometheus.CounterValue, float64(n), result)
	}
	if !s.Leading {
		return
	}
	send(warmingRefusedDesc, prometheus.GaugeValue, float64(len(s.Problems)))
	for _, p := range s.Plans {
		for _, result := range runResults {
			send(warmingRunsDesc, prometheus.CounterValue, float64(p.Totals.Runs[result]), p.Name, result)
		}
		k := p.Totals.Keys
		for result, n := range k.Results() {
			send(warmingKeysDesc, prometheus.CounterValue, float64(n), p.Name, result)
		}
		done, stalled := 1.0, false
		var saved uint64
		for _, r := range s.Runs {
			if r.Plan != p.Name {
				continue
			}
			saved += r.Saved
			if r.ID == p.Running {
				stalled = r.Problem != ""
				if done = 0; r.Total > 0 {
					done = float64(r.Counts.Keys()) / float64(r.Total)
				}
			}
		}
		send(warmingBytesDesc, prometheus.CounterValue, float64(k.Bytes), p.Name)
		send(warmingActiveDesc, prometheus.GaugeValue, number(p.Running != ""), p.Name)
		send(warmingStalledDesc, prometheus.GaugeValue, number(stalled), p.Name)
		send(warmingDoneDesc, prometheus.GaugeValue, done, p.Name)
		send(warmingSampledDesc, prometheus.GaugeValue, float64(p.Use.Sampled), p.Name)
		send(warmingReadDesc, prometheus.GaugeValue, float64(p.Use.Read), p.Name)
		send(warmingEvictedDesc, prometheus.GaugeValue, float64(p.Use.Evicted), p.Name)
		send(warmingSavedDesc, prometheus.GaugeValue, float64(saved), p.Name)
		send(warmingMatchedDesc, prometheus.CounterValue, float64(p.Matched), p.Name)
		send(warmingErrorsDesc, prometheus.CounterValue, float64(p.Failed), p.Name)
		send(warmingMissedDesc, prometheus.CounterValue, float64(p.Missed), p.Name)
	}
}
