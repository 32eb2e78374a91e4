package controlplane

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

var (
	shardLabels   = []string{"pool", "shard"}
	epochDesc     = prometheus.NewDesc("cachemesh_shard_epoch", "Version of the shard's primary: it grows with each change of it.", shardLabels, nil)
	standInDesc   = prometheus.NewDesc("cachemesh_shard_stand_in", "1 if a stand-in answers instead of the shard's primary: null forgets what is written, hold lets requests wait for a moment.", append(shardLabels, "kind"), nil)
	witnessesDesc = prometheus.NewDesc("cachemesh_shard_witnesses", "Agents that witness the shard's primary, by what they say of it: up, down, or silent.", append(shardLabels, "state"), nil)
	spreadDesc    = prometheus.NewDesc("cachemesh_pool_spread", "The most keys, bytes or operations that a shard of the pool has, over its share by weight. 1 is even.", []string{"pool", "of"}, nil)
	frozenDesc    = prometheus.NewDesc("cachemesh_pool_frozen", "1 if the pool lost so many nodes at once that nothing changes in it until that is accepted.", []string{"pool"}, nil)
	leadingDesc   = prometheus.NewDesc("cachemesh_controlplane_leading", "1 if this control plane decides for its region.", nil, nil)
)

// history counts what has happened to the shards.
type history struct {
	since     time.Time // what happened before was counted by the program before
	events    *prometheus.CounterVec
	failovers prometheus.Histogram
}

func newHistory(since time.Time) *history {
	h := &history{since: since,
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cachemesh_controlplane_events_total", Help: "What has happened to the region's shards since this control plane runs, by kind."}, []string{"kind"}),
		failovers: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cachemesh_failover_seconds", Help: "Time from a primary's last good answer until its sidecars had acknowledged another one.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12)}),
	}
	for _, k := range shards.Kinds {
		h.events.WithLabelValues(string(k)) // a counter that starts with its first event hides that event from rate()
	}
	return h
}

func (h *history) happened(e shards.Event) {
	if e.Time.Before(h.since) {
		return
	}
	h.events.WithLabelValues(string(e.Kind)).Inc()
	if n := len(e.Steps); n > 0 && e.Kind == shards.Failover {
		h.failovers.Observe(e.Steps[n-1].MS / 1000)
	}
}

func describeShards(ch chan<- *prometheus.Desc) {
	for _, d := range append([]*prometheus.Desc{epochDesc, standInDesc, witnessesDesc, spreadDesc, frozenDesc, leadingDesc}, handoffDescs...) {
		ch <- d
	}
}

// collectShards shows who is primary, and how that is known.
func (c *ControlPlane) collectShards(v *view, ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(leadingDesc, number(c.manager.leader().Leading))
	pools, all := c.shards(v)
	for _, s := range all {
		gauge(epochDesc, float64(s.Epoch), s.Pool, s.Name)
		for _, kind := range []mesh.StandIn{mesh.Null, mesh.Hold} {
			gauge(standInDesc, number(s.StandIn == kind), s.Pool, s.Name, string(kind))
		}
		up, down, silent := c.manager.witnesses(s.Name)
		gauge(witnessesDesc, float64(up), s.Pool, s.Name, "up")
		gauge(witnessesDesc, float64(down), s.Pool, s.Name, "down")
		gauge(witnessesDesc, float64(silent), s.Pool, s.Name, "silent")
	}
	for _, p := range pools {
		gauge(frozenDesc, number(p.Frozen != nil), p.Pool)
		p.collect(time.Now(), gauge)
		for of, value := range map[string]*float64{"keys": p.Spread.Keys, "bytes": p.Spread.Bytes, "operations": p.Spread.Operations} {
			if value != nil {
				gauge(spreadDesc, *value, p.Pool, of)
			}
		}
	}
}

// witnesses counts what they say of a shard's primary.
func (m *manager) witnesses(shard string) (up, down, silent int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.machine.Counted(time.Now(), shard)
}
