package controlplane

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachemesh/cachemesh/regions/journal"
)

// linkCollector shows how far other regions are, as they are when Prometheus asks.
type linkCollector struct{ regions func() RegionsStatus }

var (
	linkLabels    = []string{"to", "pool"}
	journalLabels = []string{"to", "pool", "shard"}

	linkStateDesc = prometheus.NewDesc("cachemesh_link_state", "1 for how what the region's journals say gets to another region: up, down or paused.", append(linkLabels, "state"), nil)
	linkGapsDesc  = prometheus.NewDesc("cachemesh_link_gaps_total", "Times that a shard's journal lacked something that another region should know, by reason.", append(journalLabels, "reason"), nil)
	linkReadDesc  = journalDesc("cachemesh_link_read", "1 if an agent reads the shard's journal for the other region.")
	linkLagDesc   = journalDesc("cachemesh_link_lag_seconds", "Age of the oldest entry of the shard's journal that the other region lacks.")
	linkEntries   = journalDesc("cachemesh_link_backlog_entries", "Entries of the shard's journal that the other region lacks.")
	linkFences    = journalDesc("cachemesh_link_fences", "Fences that the other region has not carried out.")
	linkSentDesc  = journalDesc("cachemesh_link_removals_total", "Removals that the other region was told of.")

	// A counter that starts with its first event hides that event from rate().
	gapReasons = []journal.Reason{journal.Trimmed, journal.Lost, journal.Replaced, journal.Unreadable, journal.Forgotten, journal.Refused, journal.Tail}
)

func journalDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, journalLabels, nil)
}

// Describe sends all that there may be.
func (linkCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{linkStateDesc, linkGapsDesc, linkReadDesc, linkLagDesc, linkEntries, linkFences, linkSentDesc} {
		out <- d
	}
}

// Collect sends the values of this moment.
func (c linkCollector) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	for _, l := range c.regions().Links {
		for _, s := range []LinkState{LinkUp, LinkDown, LinkPaused} {
			send(linkStateDesc, prometheus.GaugeValue, number(l.State == s), l.To, l.Pool, string(s))
		}
		for _, j := range l.Journals {
			send(linkReadDesc, prometheus.GaugeValue, number(j.Agent != ""), l.To, l.Pool, j.Shard)
			if j.LagMS != nil {
				send(linkLagDesc, prometheus.GaugeValue, *j.LagMS/1000, l.To, l.Pool, j.Shard)
			}
			send(linkEntries, prometheus.GaugeValue, float64(j.Backlog), l.To, l.Pool, j.Shard)
			send(linkFences, prometheus.GaugeValue, float64(len(j.Fences)), l.To, l.Pool, j.Shard)
			send(linkSentDesc, prometheus.CounterValue, float64(j.Sent), l.To, l.Pool, j.Shard)
			for _, r := range gapReasons {
				send(linkGapsDesc, prometheus.CounterValue, float64(j.Gaps[string(r)]), l.To, l.Pool, j.Shard, string(r))
			}
		}
	}
}
