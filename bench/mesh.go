package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cachemesh/cachemesh/process"
)

const region = "home"

// sidecar is a real one: an Envoy and its agent, with a control plane that serves one pool of the given shards.
type sidecar struct {
	target                // RESP2
	resp3        endpoint // TCP
	agent, proxy int      // pids
}

// build compiles a program of this module into dir, so that a benchmark never measures an old binary.
func build(ctx context.Context, dir, name, pkg string) (string, error) {
	path := filepath.Join(dir, name)
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/cachemesh/cachemesh/"+pkg).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// startMesh runs a control plane and a sidecar with their defaults, and waits until the sidecar serves the shards.
func startMesh(ctx context.Context, running *programs, dir string, shards []shard) (sidecar, error) {
	cachemesh, err := build(ctx, dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return sidecar{}, err
	}
	nodes := make([][]string, len(shards))
	for i, s := range shards {
		nodes[i] = []string{s.address}
	}
	c, err := startControlPlane(ctx, running, dir, cachemesh, meshFile(nodes))
	if err != nil {
		return sidecar{}, err
	}
	return startSidecar(ctx, running, dir, cachemesh, c.xds, "bench-0", servesKeys)
}

// controlPlane is where one listens.
type controlPlane struct{ xds, http string }

func startControlPlane(ctx context.Context, running *programs, dir, cachemesh, config string) (controlPlane, error) {
	ports, err := process.FreePorts(2)
	if err != nil {
		return controlPlane{}, err
	}
	c := controlPlane{xds: localAddress(ports[0]), http: localAddress(ports[1])}
	file := filepath.Join(dir, "mesh.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return controlPlane{}, err
	}
	_, err = running.start(ctx, process.Spec{
		Name: "control plane", Path: cachemesh, Log: filepath.Join(dir, "controlplane.log"),
		Args: []string{"controlplane", "--config", file, "--region", region, "--xds", c.xds, "--http", c.http, "--state", filepath.Join(dir, "state")},
	})
	return c, err
}

func localAddress(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// startSidecar waits until it is ready, as ready tells of the way through it.
func startSidecar(ctx context.Context, running *programs, dir, cachemesh, xds, name string, ready func(target) func(context.Context, int) error) (sidecar, error) {
	ports, err := process.FreePorts(4)
	if err != nil {
		return sidecar{}, err
	}
	redis, resp3, admin, metrics := localAddress(ports[0]), localAddress(ports[1]), localAddress(ports[2]), localAddress(ports[3])
	home := filepath.Join(dir, name)
	s := sidecar{
		target: target{name: "sidecar", tcp: []endpoint{{"tcp", redis}}, unix: []endpoint{{"unix", filepath.Join(home, "redis.sock")}}},
		resp3:  endpoint{"tcp", resp3},
	}
	agent, err := running.start(ctx, process.Spec{
		Name: name, Path: cachemesh, Log: filepath.Join(dir, name+".log"),
		Args: []string{"sidecar", "--region", region, "--name", name, "--controlplane", xds, "--dir", home,
			"--redis", redis, "--redis-resp3", resp3, "--admin", admin, "--metrics", metrics},
		Ready: ready(s.target),
	})
	if err != nil {
		return sidecar{}, err
	}
	s.agent = agent.PID()
	if s.proxy, err = envoyPID(filepath.Join(home, "envoy.json")); err != nil {
		return sidecar{}, err
	}
	s.pids = []int{s.agent, s.proxy}
	return s, nil
}

// meshFile has one pool of shards with these nodes.
func meshFile(nodes [][]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: cachemesh.dev/v1
kind: Mesh
pools:
  - name: cache
    routes:
      - prefix: ""
regions:
  - name: %s
    shards:
`, region)
	for i, addresses := range nodes {
		fmt.Fprintf(&b, "      - {pool: cache, name: %s, nodes: [\"%s\"]}\n", shardName(i), strings.Join(addresses, `", "`))
	}
	return b.String()
}

func shardName(i int) string { return fmt.Sprintf("cache-%d", i) }

// envoyPID reads the pid of the sidecar's Envoy from what its agent keeps beside it.
func envoyPID(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var kept struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(data, &kept); err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	if kept.PID <= 0 {
		return 0, fmt.Errorf("%s has no pid", file)
	}
	return kept.PID, nil
}
