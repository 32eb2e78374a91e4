package controlplane

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// Status is a region as its control plane sees it: the answer of /v1/status.
type Status struct {
	Region     string           `json:"region"`
	Version    string           `json:"version"` // of this program
	Config     ConfigStatus     `json:"config"`
	Membership MembershipStatus `json:"membership"`
	Leader     LeaderStatus     `json:"leader"`
	Sidecars   []xds.Node       `json:"sidecars"`
	Pools      []PoolStatus     `json:"pools"`
	Shards     []ShardStatus    `json:"shards"`
	Alerts     []Alert          `json:"alerts"`
}

// ConfigStatus says which configuration is in effect.
type ConfigStatus struct {
	File     string    `json:"file"`
	Version  string    `json:"version"` // of the resources that sidecars are to have
	LoadedAt time.Time `json:"loaded_at"`
	Problems []string  `json:"problems,omitempty"` // why the newest input is not in effect
}

// ShardStatus is a shard with what the last probe saw of its nodes.
type ShardStatus struct {
	Region    string         `json:"region"`
	Pool      string         `json:"pool"`
	Name      string         `json:"name"`
	Weight    uint32         `json:"weight"`
	Epoch     uint64         `json:"epoch"`
	StandIn   mesh.StandIn   `json:"stand_in,omitempty"` // answers instead of the primary
	Change    *shards.Change `json:"change,omitempty"`   // under way
	Witnesses []string       `json:"witnesses"`          // the agents that are asked about the primary
	Nodes     []NodeStatus   `json:"nodes"`
}

// Alert is something that a person should look at.
type Alert = shards.Alert

const (
	// staleAfter is how long a sidecar may lack what it is to have before that is an alert.
	staleAfter = 30 * time.Second
	// crashShown is how long a crash of Envoy stays an alert.
	crashShown = 10 * time.Minute
)

func (c *ControlPlane) status() Status {
	v := c.view.Load()
	s := Status{
		Region:  c.config.Region,
		Version: c.config.Version,
		Config: ConfigStatus{
			File: c.config.File, Version: v.version, LoadedAt: v.loadedAt, Problems: problemsOf(v.problem),
		},
		Membership: v.membership,
		Leader:     c.manager.leader(),
		Sidecars:   c.xds.Nodes(),
	}
	s.Pools, s.Shards = c.shards(v)
	s.Membership = s.Membership.without(s.Shards)
	s.Alerts = append(alerts(s, time.Now(), time.Since(c.started) > 2*probeEvery), c.manager.alerts()...)
	s.Alerts = append(s.Alerts, c.links.status().alerts(time.Now())...)
	s.Alerts = append(s.Alerts, c.warmer.shown.Load().alerts(time.Now())...)
	for _, p := range s.Pools {
		s.Alerts = append(s.Alerts, p.Spread.alerts(p.Pool, v.topology.Health.MaxSpread)...)
		s.Alerts = append(s.Alerts, p.alerts(time.Now())...)
	}
	if c.certs == nil {
		return s
	}
	if at, soon := c.certs.Expires(time.Now()); soon {
		s.Alerts = append(s.Alerts, Alert{Subject: c.config.TLS.Cert, Remedy: "put a new certificate and its key there: they are taken at once",
			Message: "the certificate of this control plane ends at " + at.Format(time.DateTime)})
	}
	return s
}

// shards are the pools and shards that are served.
func (c *ControlPlane) shards(v *view) (pools []PoolStatus, all []ShardStatus) {
	pools, all = []PoolStatus{}, []ShardStatus{}
	state, _ := c.manager.state()
	for _, pool := range v.topology.Pools {
		from := len(all)
		for _, shard := range pool.Members() {
			row := ShardStatus{Region: c.config.Region, Pool: pool.Name, Name: shard.Name, Weight: shard.Weight, Epoch: shard.Epoch, StandIn: shard.StandIn,
				Change: state.Shards[shard.Name].Change, Witnesses: state.Shards[shard.Name].Witnesses}
			if row.Witnesses == nil {
				row.Witnesses = []string{}
			}
			for _, node := range shard.Nodes {
				status := c.prober.status(node)
				status.Check = v.checks[node.Address]
				row.Nodes = append(row.Nodes, status)
			}
			lags(row.Nodes)
			all = append(all, row)
		}
		status := PoolStatus{Pool: pool.Name, Generation: pool.Generation, Spread: spreadOf(all[from:]), Late: state.Rings[pool.Name].Late}
		if h, ok := state.Handoffs[pool.Name]; ok {
			status.Handoff = c.manager.handoffStatus(pool.Name, h)
		}
		if f, ok := state.Frozen[pool.Name]; ok && !f.Accepted {
			status.Frozen = &f
		}
		pools = append(pools, status)
	}
	return pools, all
}

// lags says how far replicas are behind the shard's primary.
func lags(nodes []NodeStatus) {
	i := slices.IndexFunc(nodes, func(n NodeStatus) bool { return n.Role == string(mesh.Primary) && n.Up && n.Replication == nil })
	if i < 0 {
		return
	}
	for j := range nodes {
		if r := nodes[j].Replication; r != nil && r.Of == nodes[i].Address {
			with := *r // the probe's own is shared
			lag := max(nodes[i].offset-r.Offset, 0)
			with.LagBytes = &lag
			nodes[j].Replication = &with
		}
	}
}

func problemsOf(err error) []string {
	if err == nil {
		return nil
	}
	var problems mesh.Problems
	if !errors.As(err, &problems) {
		return []string{err.Error()}
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.String()
	}
	return lines
}

// alerts derives from a status what needs a person. probed says that every node has had time to answer.
func alerts(s Status, now time.Time, probed bool) []Alert {
	found := []Alert{}
	add := func(subject, remedy, format string, args ...any) {
		found = append(found, Alert{Subject: subject, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	for _, p := range s.Config.Problems {
		add(s.Config.File, "mend it; the last good configuration stays in effect", "%s", p)
	}
	found = append(found, s.Membership.Alerts...)
	for _, n := range s.Sidecars {
		switch {
		case n.State == xds.Rejected:
			add(n.Name, "what it had before still serves; see the sidecar's log, and restore the last change if its reason is there", "Envoy rejects %s: %s", n.Rejections[0].Type, n.Reason)
		case n.State == xds.Stale && now.Sub(n.Since) > staleAfter:
			add(n.Name, "see whether it runs and reaches this control plane; it serves what it had", "stale for %s: %s", now.Sub(n.Since).Round(time.Second), n.Reason)
		}
		if n.EnvoyRestarts > 0 && now.Sub(n.ConnectedAt) < crashShown {
			add(n.Name, "it is serving again; see its log for the cause, and who may reach its Redis port", "Envoy has crashed, %s since the agent started", times(n.EnvoyRestarts))
		}
	}
	if !probed {
		return found
	}
	for _, shard := range s.Shards {
		for _, n := range shard.Nodes {
			subject := shard.Name + " " + n.Address
			switch {
			case !n.Up && n.Role == string(mesh.Primary):
				add(subject, "a replica that is in sync takes over if most of the sidecars agree, else start it; the other shards are not affected", "the primary does not answer: %s", n.Error)
			case !n.Up:
				add(subject, "start it", "the replica does not answer: %s", n.Error)
			case n.ReportedRole != n.Role:
				add(subject, "it is put right within seconds by the control plane that leads; if it is not, see the other alerts", "is a %s, and the mesh says %s", n.ReportedRole, n.Role)
			}
		}
	}
	return found
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
