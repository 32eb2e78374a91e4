package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Endpoints is DIR/endpoints.json: where a demo's processes are. Scripts read it, so its names are a contract.
type Endpoints struct {
	Console    string            `json:"console"`
	Prometheus string            `json:"prometheus,omitempty"` // with --prometheus
	Nodes      string            `json:"nodes"`                // URL that starts nodes for a new shard: see NodesRequest
	CA         string            `json:"ca,omitempty"`         // file with the authority of all certificates, with --tls
	Regions    []RegionEndpoints `json:"regions"`
}

// RegionEndpoints is one region of Endpoints.
type RegionEndpoints struct {
	Name         string                `json:"name"`
	Controlplane ControlplaneEndpoints `json:"controlplane"`
	Consul       *ConsulEndpoints      `json:"consul,omitempty"` // with --membership consul
	Sidecars     []SidecarEndpoints    `json:"sidecars"`
	Shards       []ShardEndpoints      `json:"shards"`
}

// ControlplaneEndpoints is a region's control plane. Command starts it again.
type ControlplaneEndpoints struct {
	XDS     string   `json:"xds"`
	HTTP    string   `json:"http"`
	PID     int      `json:"pid"`
	Command []string `json:"command"`
}

// ConsulEndpoints is the Consul server of a region's datacenter. Command starts it again; all that it knows is in Data.
type ConsulEndpoints struct {
	Address string   `json:"address"`
	PID     int      `json:"pid"`
	Data    string   `json:"data"`
	Command []string `json:"command"`
}

// SidecarEndpoints is one sidecar. Command starts it again.
type SidecarEndpoints struct {
	Name        string   `json:"name"`
	PID         int      `json:"pid"`
	EnvoyPID    int      `json:"envoy_pid"`
	Redis       string   `json:"redis"`
	RedisRESP3  string   `json:"redis_resp3"`
	RedisSocket string   `json:"redis_socket"`
	EnvoyAdmin  string   `json:"envoy_admin"`
	Metrics     string   `json:"metrics"`
	App         string   `json:"app"`
	Command     []string `json:"command"`
}

// ShardEndpoints is a shard with its nodes.
type ShardEndpoints struct {
	Pool  string          `json:"pool"`
	Name  string          `json:"name"`
	Nodes []NodeEndpoints `json:"nodes"`
}

// NodeEndpoints is a Redis process. Role is what it says of itself, primary or replica, and down if it says nothing.
type NodeEndpoints struct {
	Address string `json:"address"`
	Role    string `json:"role"`
	PID     int    `json:"pid"`
}

func endpointsFile(dir string) string { return filepath.Join(dir, "endpoints.json") }

func (e Endpoints) write(dir string) error {
	data, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(endpointsFile(dir), append(data, '\n'), 0o644)
}

// ReadEndpoints finds the demo that runs from dir.
func ReadEndpoints(dir string) (Endpoints, error) {
	var e Endpoints
	data, err := os.ReadFile(endpointsFile(dir))
	if err != nil {
		return e, fmt.Errorf("no mesh runs from %s: %w", dir, err)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("%s: %w", endpointsFile(dir), err)
	}
	return e, nil
}
