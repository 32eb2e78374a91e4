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
	ports, err := process.FreePorts(6)
	if err != nil {
		return sidecar{}, err
	}
	local := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	xds, http, redis, resp3, admin, metrics := local(0), local(1), local(2), local(3), local(4), local(5)

	config := filepath.Join(dir, "mesh.yaml")
	if err := os.WriteFile(config, []byte(meshFile(shards)), 0o600); err != nil {
		return sidecar{}, err
	}
	if _, err := running.start(ctx, process.Spec{
		Name: "control plane", Path: cachemesh, Log: filepath.Join(dir, "controlplane.log"),
		Args: []string{"controlplane", "--config", config, "--region", region, "--xds", xds, "--http", http, "--state", filepath.Join(dir, "state")},
	}); err != nil {
		return sidecar{}, err
	}

	home := filepath.Join(dir, "sidecar")
	s := sidecar{
		target: target{name: "sidecar", tcp: []endpoint{{"tcp", redis}}, unix: []endpoint{{"unix", filepath.Join(home, "redis.sock")}}},
		resp3:  endpoint{"tcp", resp3},
	}
	agent, err := running.start(ctx, process.Spec{
		Name: "sidecar", Path: cachemesh, Log: filepath.Join(dir, "sidecar.log"),
		Args: []string{"sidecar", "--region", region, "--name", "bench-0", "--controlplane", xds, "--dir", home,
			"--redis", redis, "--redis-resp3", resp3, "--admin", admin, "--metrics", metrics},
		Ready: servesKeys(s.target),
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

func meshFile(shards []shard) string {
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
	for i, s := range shards {
		fmt.Fprintf(&b, "      - {pool: cache, name: cache-%d, nodes: [%q]}\n", i, s.address)
	}
	return b.String()
}

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
