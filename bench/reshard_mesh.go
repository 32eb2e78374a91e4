package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"
)

// reshardSidecars is how many the application's requests are spread over, so that a change does not reach all at the same moment.
const reshardSidecars = 2

// startReshardMesh is a mesh with its defaults, whose shards are added and removed by an operator's command.
func startReshardMesh(ctx context.Context, running *programs, dir string, shards []shard) (*reshardable, error) {
	cachemesh, err := build(ctx, dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return nil, err
	}
	var nodes [][]string
	for _, s := range shards[:shardCount] {
		nodes = append(nodes, []string{s.address})
	}
	control, err := startControlPlane(ctx, running, dir, cachemesh, meshFile(nodes))
	if err != nil {
		return nil, err
	}
	plane := (*running)[len(*running)-1].PID()
	var addresses []string
	for i := range reshardSidecars {
		s, err := startSidecar(ctx, running, dir, cachemesh, control.xds, fmt.Sprintf("bench-%d", i), servesMisses)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, s.tcp[0].address)
	}
	r := &reshardable{name: "cachemesh", change: func(ctx context.Context, direction string) (moved, error) {
		args := []string{"shard", "add", "--pool", "cache", "--node", shards[shardCount].address}
		if direction == "remove" {
			args = []string{"shard", "remove", shardName(shardCount)}
		}
		before, err := cpuTime(plane)
		if err != nil {
			return moved{}, err
		}
		command := exec.CommandContext(ctx, cachemesh, append(args, "--yes", "-o", "json", "--controlplane", "http://"+control.http)...)
		var stdout, stderr bytes.Buffer
		command.Stdout, command.Stderr = &stdout, &stderr
		if err := command.Run(); err != nil {
			return moved{}, fmt.Errorf("%v: %w\n%s", args, err, stderr.Bytes())
		}
		after, err := cpuTime(plane)
		if err != nil {
			return moved{}, err
		}
		m, err := readMoved(stdout.Bytes())
		m.cpu = after - before
		return m, err
	}}
	for _, address := range addresses {
		careful, plain := applications(address, nil)
		r.careful, r.plain = append(r.careful, careful...), append(r.plain, plain...)
	}
	return r, nil
}

// readMoved reads what the command says of a handoff that has ended.
func readMoved(out []byte) (m moved, err error) {
	var r struct {
		Undone bool           `json:"undone"`
		Reason string         `json:"reason"`
		Keys   int            `json:"keys"`
		Steps  []failoverStep `json:"steps"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return m, fmt.Errorf("the handoff's result %.200q: %w", out, err)
	}
	if r.Undone {
		return m, fmt.Errorf("the handoff was given up: %s", r.Reason)
	}
	m.keys = r.Keys
	for _, s := range r.Steps {
		if s.Name == "copying" {
			m.took = time.Duration(s.MS * float64(time.Millisecond))
		}
	}
	if m.took == 0 {
		return m, fmt.Errorf("the handoff does not say how long it copied: %s", out)
	}
	return m, nil
}
