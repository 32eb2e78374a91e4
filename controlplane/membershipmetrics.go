package controlplane

import "github.com/prometheus/client_golang/prometheus"

var (
	consulUpDesc           = prometheus.NewDesc("cachemesh_controlplane_consul_up", "1 if Consul's last answer can be used. Not there with static membership.", nil, nil)
	consulIndexDesc        = prometheus.NewDesc("cachemesh_controlplane_consul_index", "Consul's index of the registrations, of the last answer that can be used.", nil, nil)
	membershipProblemsDesc = prometheus.NewDesc("cachemesh_controlplane_membership_problems", "Registrations that are ignored because something is wrong with them.", nil, nil)
	membershipFrozenDesc   = prometheus.NewDesc("cachemesh_controlplane_membership_frozen", "1 if the catalogue has lost so much that it is not followed.", nil, nil)
)

func (m MembershipStatus) describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{consulUpDesc, consulIndexDesc, membershipProblemsDesc, membershipFrozenDesc} {
		ch <- d
	}
}

func (m MembershipStatus) collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	if m.Consul != nil {
		gauge(consulUpDesc, number(m.Consul.Up))
		gauge(consulIndexDesc, float64(m.Consul.Index))
	}
	gauge(membershipProblemsDesc, float64(len(m.Problems)))
	gauge(membershipFrozenDesc, number(m.Frozen != ""))
}
