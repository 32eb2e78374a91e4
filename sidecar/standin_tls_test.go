package sidecar

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// secured starts two Redis servers with TLS and a password.
func secured(t *testing.T) (nodes []process.Redis, access *mesh.RedisAccess) {
	t.Helper()
	dir := t.TempDir()
	if _, err := certs.WriteDevelopment(dir, certs.Development{}); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(file("password"), []byte("correct horse"), 0o600); err != nil {
		t.Fatal(err)
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, port := range ports {
		node := process.Redis{Port: port, Dir: dir, User: "app", PasswordFile: file("password"),
			TLS: &process.RedisTLS{CA: file("ca.pem"), Cert: file("redis.pem"), Key: file("redis-key.pem"), Clients: true}}
		p, err := node.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop(time.Second) })
		nodes = append(nodes, node)
	}
	return nodes, &mesh.RedisAccess{Username: "app", PasswordFile: file("password"), TLS: &mesh.TLSFiles{
		CAFile: file("ca.pem"), CertFile: file("redis.pem"), KeyFile: file("redis-key.pem"), ServerName: "redis",
	}}
}

// Envoy's login and its TLS handshake pass through a hold to the node; null needs neither.
func TestStandInsOfAPoolWithTLSAndPassword(t *testing.T) {
	nodes, access := secured(t)
	at := func(node int, kind mesh.StandIn) mesh.Topology {
		topology := standing(kind, nodes[node].Address())
		topology.Pools[0].Redis = access
		return topology
	}
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, at(0, "")))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.start(t)
	s.waitServing(t)
	requests := s.startLoad(t)
	for range 5 {
		for node := range nodes {
			s.move(t, plane, at(node, mesh.Hold))
			eventually(t, func() error {
				if n := s.metric(t, `held_connections{region="here",sidecar="here-0"}`); n == "0" {
					return errors.New("no connection is held")
				}
				return nil
			})
			s.move(t, plane, at(1-node, ""))
			requests.waitMore(t, 100)
		}
	}
	client := s.client(t)
	s.move(t, plane, at(0, mesh.Null))
	requests.waitMore(t, 100)
	if err := client.Get(t.Context(), t.Name()).Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("with null, GET: %v", err)
	}
	s.move(t, plane, at(0, ""))
	requests.waitMore(t, 100)
	if got, err := client.Get(t.Context(), t.Name()).Result(); got != "value" || err != nil {
		t.Errorf("back again, GET: %q, %v", got, err)
	}
	requests.finish(t)
}
