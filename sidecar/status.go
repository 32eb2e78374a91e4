package sidecar

import (
	"os"
	"time"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// Status is what the agent's /status shows, as JSON.
type Status struct {
	Name    string `json:"name"`
	Region  string `json:"region"`
	Zone    string `json:"zone"`
	Version string `json:"version"` // of the agent
	PID     int    `json:"pid"`     // of the agent
	// Addresses are where applications reach Redis; socket paths are relative to the sidecar's folder.
	Addresses envoy.Addresses `json:"addresses"`
	Envoy     EnvoyStatus     `json:"envoy"`
	XDS       XDSStatus       `json:"xds"`
	// Reporting has each control plane that this sidecar knows of.
	Reporting []ReportingStatus `json:"reporting"`
	// StandIns are the shards for which the agent answers, or did a moment ago.
	StandIns []StandInStatus `json:"standins"`
	// Lanes are where Envoy sends writes; nil while no route is on lanes.
	Lanes *LanesStatus `json:"lanes,omitempty"`
}

// EnvoyStatus is the state of Envoy's process.
type EnvoyStatus struct {
	PID      int            `json:"pid"`      // 0 while there is none
	Adopted  bool           `json:"adopted"`  // an earlier agent started it
	Up       bool           `json:"up"`       // its admin interface answers
	Restarts map[string]int `json:"restarts"` // by the signal or exit code that ended the Envoy before
}

// XDSStatus is what the agent knows of Envoy's resources.
type XDSStatus struct {
	Source       string         `json:"source"`        // "control_plane", "disk", or "" while Envoy has no stream that is served
	ControlPlane string         `json:"control_plane"` // the one that Envoy's stream is relayed to
	Version      string         `json:"version"`       // hash of the resources that Envoy acknowledged
	Resources    map[string]int `json:"resources"`     // how many those are, by type URL
	Nacks        map[string]int `json:"nacks"`         // responses that Envoy rejected, by type URL
	Changed      time.Time      `json:"changed"`       // when Envoy last acknowledged a change, or the agent started
}

// ReportingStatus is how the agent reports to one control plane, and what it probes for that one.
type ReportingStatus struct {
	ControlPlane string `json:"control_plane"`     // IP:port
	Connected    bool   `json:"connected"`         // it takes this agent's reports
	Problem      string `json:"problem,omitempty"` // why it does not, or why its instructions are not followed
	Targets      int    `json:"targets"`           // primaries that it asks about
	Down         int    `json:"down"`              // those that are down, as seen from here
}

// StandInStatus is one socket of the agent that stands in for a shard.
type StandInStatus struct {
	Shard string       `json:"shard"`
	Kind  mesh.StandIn `json:"kind"`
}

// LanesStatus is what the agent has of lanes.
type LanesStatus struct {
	Folder   string   `json:"folder"`   // of their sockets, in the sidecar's
	Shards   []string `json:"shards"`   // those that have one
	Topology string   `json:"topology"` // hash of the topology that they follow; "" is none yet
}

func (a *agent) status() Status {
	var lanes *LanesStatus
	if shards := a.lanes.shards(); len(shards) > 0 {
		lanes = &LanesStatus{Folder: a.lanes.folder, Shards: shards, Topology: a.topologies.version()}
	}
	return Status{
		Name: a.config.Name, Region: a.config.Region, Zone: a.config.Zone, Version: a.config.Version, PID: os.Getpid(),
		Addresses: a.config.Addresses, Envoy: a.supervisor.status(), XDS: a.relay.status(), Reporting: a.reporting.status(),
		StandIns: a.standIns.status(), Lanes: lanes,
	}
}
