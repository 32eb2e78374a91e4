package controlplane

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/envoy"
)

// metrics are the control plane's own, in base units, each with its region.
type metrics struct {
	registry *prometheus.Registry
	valid    prometheus.Gauge
	applied  *prometheus.CounterVec
	push     prometheus.Histogram
	nacks    *prometheus.CounterVec
	count    *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	history  *history
}

func newMetrics(c *ControlPlane) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		history:  newHistory(c.started),
		valid: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cachemesh_controlplane_config_valid", Help: "1 if the newest configuration is in effect, 0 if an older one had to stay."}),
		applied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cachemesh_controlplane_config_updates_total", Help: "Configurations read, by result: applied or refused."}, []string{"result"}),
		push: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cachemesh_controlplane_push_seconds", Help: "Time from a new configuration, or a connection, until a sidecar has acknowledged all of it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cachemesh_controlplane_xds_nacks_total", Help: "Answers that an Envoy rejected, by resource type."}, []string{"type"}),
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cachemesh_controlplane_xds_resources_sent_total", Help: "Resources sent to Envoys, by type."}, []string{"type"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cachemesh_controlplane_xds_sent_bytes_total", Help: "Bytes of resources sent to Envoys, by type."}, []string{"type"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "cachemesh_build_info", Help: "Always 1.",
		ConstLabels: prometheus.Labels{"version": c.config.Version, "component": "controlplane"}})
	info.Set(1)
	// A counter that starts with its first event hides that event from rate().
	for _, result := range []string{"applied", "refused"} {
		m.applied.WithLabelValues(result)
	}
	for _, t := range []string{envoy.ClusterType, envoy.EndpointType, envoy.SecretType, envoy.ListenerType} {
		m.nacks.WithLabelValues(xds.ShortType(t))
		m.count.WithLabelValues(xds.ShortType(t))
		m.bytes.WithLabelValues(xds.ShortType(t))
	}
	prometheus.WrapRegistererWith(prometheus.Labels{"region": c.config.Region}, m.registry).MustRegister(
		m.valid, m.applied, m.push, m.nacks, m.count, m.bytes, m.history.events, m.history.failovers, info, &meshCollector{c}, linkCollector{func() RegionsStatus { return c.links.status() }},
		warmingCollector{func() *WarmingStatus { return c.warmer.shown.Load() }})
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) configured(valid bool) {
	if valid {
		m.valid.Set(1)
		m.applied.WithLabelValues("applied").Inc()
		return
	}
	m.valid.Set(0)
	m.applied.WithLabelValues("refused").Inc()
}

func (m *metrics) rejected(typeURL string) { m.nacks.WithLabelValues(xds.ShortType(typeURL)).Inc() }

func (m *metrics) sent(typeURL string, resources, bytes int) {
	m.count.WithLabelValues(xds.ShortType(typeURL)).Add(float64(resources))
	m.bytes.WithLabelValues(xds.ShortType(typeURL)).Add(float64(bytes))
}

// meshCollector shows the sidecars and the nodes as they are when Prometheus asks.
type meshCollector struct{ c *ControlPlane }

var (
	nodeLabels  = []string{"pool", "shard", "node", "role"}
	expiryDesc  = prometheus.NewDesc("cachemesh_controlplane_certificate_expiry_timestamp_seconds", "When the control plane's certificate ends, in seconds since 1970; with TLS only.", nil, nil)
	expiresDesc = prometheus.NewDesc("cachemesh_controlplane_certificate_expires_soon", "1 if less than a fifth of the life of the control plane's certificate is left; with TLS only.", nil, nil)
	sidecarDesc = prometheus.NewDesc("cachemesh_controlplane_sidecars", "Sidecars by state; GONE is one that was connected in the last ten minutes.", []string{"state"}, nil)
	nodeDescs   = []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value func(NodeStatus) float64
	}{
		{nodeDesc("cachemesh_shard_up", "1 if the node answered the last probe."), prometheus.GaugeValue, func(s NodeStatus) float64 { return number(s.Up) }},
		{nodeDesc("cachemesh_shard_role_mismatch", "1 if the node says that it is a primary where the mesh has a replica, or the other way round."), prometheus.GaugeValue, func(s NodeStatus) float64 { return number(s.ReportedRole != s.Role) }},
		{nodeDesc("cachemesh_shard_keys", "Keys on the node."), prometheus.GaugeValue, func(s NodeStatus) float64 { return float64(s.Keys) }},
		{nodeDesc("cachemesh_shard_memory_bytes", "Memory that the node's data takes."), prometheus.GaugeValue, func(s NodeStatus) float64 { return float64(s.MemoryBytes) }},
		{nodeDesc("cachemesh_shard_memory_limit_bytes", "Memory at which the node evicts or refuses; 0 is no limit."), prometheus.GaugeValue, func(s NodeStatus) float64 { return float64(s.MemoryLimitBytes) }},
		{nodeDesc("cachemesh_shard_clients", "Connections to the node."), prometheus.GaugeValue, func(s NodeStatus) float64 { return float64(s.Clients) }},
		{nodeDesc("cachemesh_shard_commands_total", "Commands that the node has run."), prometheus.CounterValue, func(s NodeStatus) float64 { return float64(s.Commands) }},
		{nodeDesc("cachemesh_shard_hits_total", "Look-ups by applications that found their key."), prometheus.CounterValue, func(s NodeStatus) float64 { return float64(s.Hits) }},
		{nodeDesc("cachemesh_shard_misses_total", "Look-ups by applications that did not find their key."), prometheus.CounterValue, func(s NodeStatus) float64 { return float64(s.Misses) }},
		{nodeDesc("cachemesh_shard_evictions_total", "Keys that the node evicted for want of memory."), prometheus.CounterValue, func(s NodeStatus) float64 { return float64(s.Evictions) }},
		{nodeDesc("cachemesh_shard_expirations_total", "Keys whose time to live ended."), prometheus.CounterValue, func(s NodeStatus) float64 { return float64(s.Expirations) }},
	}
)

func nodeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, nodeLabels, nil)
}

func (m *meshCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- expiryDesc
	ch <- expiresDesc
	ch <- sidecarDesc
	MembershipStatus{}.describe(ch)
	describeShards(ch)
	for _, d := range nodeDescs {
		ch <- d.desc
	}
}

func (m *meshCollector) Collect(ch chan<- prometheus.Metric) {
	if m.c.certs != nil {
		at, soon := m.c.certs.Expires(time.Now())
		ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(at.Unix()))
		ch <- prometheus.MustNewConstMetric(expiresDesc, prometheus.GaugeValue, number(soon))
	}
	const gone xds.State = "GONE"
	states := map[xds.State]int{xds.Synced: 0, xds.Stale: 0, xds.Rejected: 0, gone: 0}
	for _, n := range m.c.xds.Nodes() {
		if !n.Connected {
			n.State = gone // it may be at another control plane by now
		}
		states[n.State]++
	}
	for state, count := range states {
		ch <- prometheus.MustNewConstMetric(sidecarDesc, prometheus.GaugeValue, float64(count), string(state))
	}
	v := m.c.view.Load()
	if v == nil {
		return
	}
	v.membership.collect(ch)
	m.c.collectShards(v, ch)
	for _, pool := range v.topology.Pools {
		for _, shard := range pool.Members() {
			for _, node := range shard.Nodes {
				s := m.c.prober.status(node)
				for i, d := range nodeDescs {
					if !s.Up && i > 0 {
						break // a node that does not answer has no figures
					}
					ch <- prometheus.MustNewConstMetric(d.desc, d.kind, d.value(s), pool.Name, shard.Name, node.Address, string(node.Role))
				}
			}
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
