package sidecar

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the sidecar's metrics at each scrape from where the values live.
type collector struct{ agent *agent }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("cachemesh_sidecar_"+name, help, labels, nil)
}

var (
	buildInfo     = prometheus.NewDesc("cachemesh_build_info", "Always 1.", []string{"version", "component"}, nil)
	envoyUp       = desc("envoy_up", "1 while Envoy runs and its admin interface answers.")
	envoyRestarts = desc("envoy_restarts_total", "Starts of Envoy after it ended, by the signal or exit code that ended it.", "reason")
	xdsConnected  = desc("xds_connected", "1 for the control plane that Envoy's xDS is relayed to.", "control_plane")
	xdsSource     = desc("xds_source", "1 for where Envoy's resources come from now.", "source")
	xdsNacks      = desc("xds_nacks_total", "Responses that Envoy rejected.", "type")
	xdsAge        = desc("xds_age_seconds", "Time since Envoy last acknowledged a change, or since the agent started.")
	xdsResources  = desc("xds_resources", "Resources that Envoy has acknowledged.", "type")
	certExpiry    = desc("certificate_expiry_timestamp_seconds", "When the sidecar's certificate ends, in seconds since 1970; with TLS only.")
	certExpires   = desc("certificate_expires_soon", "1 if less than a fifth of the life of the sidecar's certificate is left; with TLS only.")
	reportingTo   = desc("reporting_to", "Control planes that take this agent's reports.")
	targets       = desc("witness_targets", "Primaries that a control plane asks this agent about: the most of any.")
	targetsDown   = desc("witness_down", "Those of them that are down, as seen from here.")
	standingIn    = desc("stand_in", "1 while the agent listens in place of a shard.", "shard", "kind")
	nullCommands  = desc("null_commands_total", "Commands that the agent answered as an empty Redis, for want of any node of the shard.", "shard")
	heldNow       = desc("held_connections", "Connections of Envoy that wait for a shard's next primary.")
	holds         = desc("holds_total", "Connections of Envoy that waited for a shard's next primary, by how that ended.", "end")
	xdsVersion    = desc("xds_version_info", "Hash of the resources that Envoy has acknowledged.", "version")
)

// usualReasons are shown before they happen first: a counter that starts with its first event hides that event from
// Prometheus.
var usualReasons = []string{"SIGABRT", "SIGKILL", "SIGSEGV"}

// Describe sends nothing: which labels there are is known at the scrape.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the values of this moment.
func (c collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	s := c.agent.status()
	gauge(buildInfo, 1, s.Version, "sidecar")
	gauge(envoyUp, number(s.Envoy.Up))
	if source := c.agent.relay.planes.tls; source != nil {
		if at, soon := source.Expires(time.Now()); !at.IsZero() {
			gauge(certExpiry, float64(at.Unix()))
			gauge(certExpires, number(soon))
		}
	}
	for reason, n := range s.Envoy.Restarts {
		counter(envoyRestarts, n, reason)
	}
	for _, reason := range usualReasons {
		if s.Envoy.Restarts[reason] == 0 {
			counter(envoyRestarts, 0, reason)
		}
	}
	for _, address := range c.agent.config.ControlPlanes {
		gauge(xdsConnected, number(address == s.XDS.ControlPlane), address)
	}
	for _, source := range []string{fromControlPlane, fromDisk} {
		gauge(xdsSource, number(source == s.XDS.Source), source)
	}
	for typeURL, n := range s.XDS.Nacks {
		counter(xdsNacks, n, shortType(typeURL))
	}
	for typeURL, n := range s.XDS.Resources {
		gauge(xdsResources, float64(n), shortType(typeURL))
	}
	connected, asked, down := 0, 0, 0
	for _, r := range s.Reporting {
		connected += int(number(r.Connected))
		asked, down = max(asked, r.Targets), max(down, r.Down)
	}
	gauge(reportingTo, float64(connected))
	gauge(targets, float64(asked))
	gauge(targetsDown, float64(down))
	for _, in := range s.StandIns {
		gauge(standingIn, 1, in.Shard, string(in.Kind))
	}
	waiting, ends, answered := c.agent.standIns.counts()
	gauge(heldNow, float64(waiting))
	for end, n := range ends {
		counter(holds, n, end)
	}
	for shard, n := range answered {
		counter(nullCommands, n, shard)
	}
	c.agent.carrier.collect(out)
	c.agent.reporting.warmth.collect(out)
	gauge(xdsAge, time.Since(s.XDS.Changed).Seconds())
	gauge(xdsVersion, 1, s.XDS.Version)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// shortType is a type URL's last word, such as Listener.
func shortType(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }
