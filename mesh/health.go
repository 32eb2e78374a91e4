package mesh

import "time"

// Health says how soon a node counts as down, and how much may go down before a person is asked.
type Health struct {
	// How often control planes and sidecars ask a node (default 100ms).
	Interval time.Duration `yaml:"interval,omitempty" json:"interval_ns" jsonschema:"type=string,pattern=^[0-9]+(ms|s)$,example=100ms"`
	// A node that has given no good answer for so long is down (default 300ms). More than opTimeout lets requests to a primary that
	// hangs fail twice.
	DownAfter time.Duration `yaml:"downAfter,omitempty" json:"down_after_ns" jsonschema:"type=string,pattern=^[0-9]+(ms|s)$,example=300ms"`
	// Share of a pool's nodes, in percent: if more go at once, and at least three, nothing changes in that pool until somebody
	// accepts it (default 50).
	MaxLoss int `yaml:"maxLoss,omitempty" json:"max_loss" jsonschema:"minimum=1,maximum=100"`
	// A shard whose keys, bytes or operations are more than so many times its pool's mean is shown as an alert (default 1.5).
	MaxSpread float64 `yaml:"maxSpread,omitempty" json:"max_spread" jsonschema:"minimum=1,maximum=1000"`
}

// The defaults of Health.
const (
	DefaultInterval  = 100 * time.Millisecond
	DefaultDownAfter = 300 * time.Millisecond
	DefaultMaxLoss   = 50
	DefaultMaxSpread = 1.5
)

func (h *Health) setDefaults() {
	if h.Interval == 0 {
		h.Interval = DefaultInterval
	}
	if h.DownAfter == 0 {
		h.DownAfter = DefaultDownAfter
	}
	if h.MaxLoss == 0 {
		h.MaxLoss = DefaultMaxLoss
	}
	if h.MaxSpread == 0 {
		h.MaxSpread = DefaultMaxSpread
	}
}

func (v *validation) health(h Health) {
	if h.Interval < 10*time.Millisecond || h.Interval > 10*time.Second {
		v.add("health.interval", "choose from 10ms to 10s", "%s is out of range", h.Interval)
	}
	if h.DownAfter < 2*h.Interval || h.DownAfter > time.Minute {
		v.add("health.downAfter", "choose from twice the interval, so that one lost answer is no failover, to 60s", "%s is out of range", h.DownAfter)
	}
}

// Failover is who makes nodes primaries and replicas.
type Failover string

// Manage is cachemesh itself; Follow is another, whose choice is followed.
const (
	Manage    Failover = "manage"
	FollowIts Failover = "follow"
)

// StandIn is what answers for a shard at its sidecars' agents when no node may.
type StandIn string

// Null answers as an empty Redis that forgets what is written; Hold lets requests wait for the next primary.
const (
	Null StandIn = "null"
	Hold StandIn = "hold"
)

// Path is where a sidecar's agent answers for a shard, relative to the sidecar's folder, which is Envoy's working directory.
func (s StandIn) Path(shard string) string { return string(s) + "/" + shard + ".sock" }
