package sidecar

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachemesh/cachemesh/lane"
)

// laneMetrics are a lane's, by shard. They are there while a route is on lanes.
var laneMetrics = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(lane.Stats) float64
}{
	{desc("lane_commands_total", "Commands that the lane has carried to the shard.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Commands) }},
	{desc("lane_batches_total", "Batches in which they went.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Batches) }},
	{desc("lane_entries_total", "Entries that the lane has written into the shard's journal.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Entries) }},
	{desc("lane_errors_total", "Batches that the lane answered with an error of its own.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Failed) }},
	{desc("lane_unknown_total", "Batches that were answered with an error and may have taken effect.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Unknown) }},
	{desc("lane_unreplicated_total", "Writes of routes with durability: replica that no replica confirmed in time. They stand.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Unreplicated) }},
	{desc("lane_gaps_total", "Times that the shard's journal did not take what the lane wrote. Other regions are told otherwise.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Gaps) }},
	{desc("lane_suspect_total", "Writes of keys that were invalidated a moment ago: they keep the rest of the hold-off only.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Suspect) }},
	{desc("lane_again_total", "Keys that were invalidated once more at the end of their hold-off.", "shard"), prometheus.CounterValue, func(s lane.Stats) float64 { return float64(s.Again) }},
	{desc("lane_connections", "Connections of Envoy to the lane.", "shard"), prometheus.GaugeValue, func(s lane.Stats) float64 { return float64(s.Connections) }},
	{desc("lane_tail_bytes", "Keys that were written and that no replica of the shard has confirmed.", "shard"), prometheus.GaugeValue, func(s lane.Stats) float64 { return float64(s.Tail) }},
}

// collect sends what the lanes have counted.
func (c *carrier) collect(out chan<- prometheus.Metric) {
	for shard, s := range c.stats() {
		for _, m := range laneMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s), shard)
		}
	}
}
