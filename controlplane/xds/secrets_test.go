package xds

import (
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// secured are the resources of one pool with TLS.
func secured(t *testing.T, ca string) *envoy.Resources {
	t.Helper()
	r, err := envoy.Build(mesh.Topology{Region: "home", OpTimeout: time.Second, Pools: []mesh.Pool{{
		Name: "one", Hashing: mesh.Hashing{Algorithm: mesh.RingHash, Size: 1024}, Routes: []mesh.Route{{Prefix: "one:"}},
		Redis:  &mesh.RedisAccess{TLS: &mesh.TLSFiles{CAFile: ca, CertFile: "/c.pem", KeyFile: "/k.pem"}},
		Shards: []mesh.Shard{{Name: "one-0", Weight: 1, Nodes: []mesh.Node{{Address: "127.0.0.1:7001", Role: mesh.Primary}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestListenersWaitForTheSecretsOfTheirClusters(t *testing.T) {
	s, _, client := serve(t)
	s.Set(secured(t, "/ca.pem"))
	e := connectDelta(t, client, node("a", nil))
	e.subscribe(envoy.ClusterType)
	e.ack(e.receive("cluster one,one/writes"))
	e.subscribe(envoy.ListenerType)
	e.subscribe(envoy.EndpointType, "one", "one/writes")
	e.ack(e.receive("endpoints one,one/writes"))
	e.quiet(s) // the secrets are not even asked for
	e.subscribe(envoy.SecretType, "one/ca", "one/certificate")
	secrets := e.receive("secret one/ca,one/certificate")
	e.quiet(s) // nor acknowledged
	e.ack(secrets)
	e.ack(e.receive("listener redis,redis-resp3"))
	waitState(t, s, "a", Synced)
	s.Set(secured(t, "/other.pem"))
	other := e.receive("secret one/ca") // the cluster is not touched
	waitState(t, s, "a", Stale)
	e.nack(other, "no such file")
	if n := waitState(t, s, "a", Rejected); n.Rejections[0].Type != "secret" {
		t.Errorf("node %+v, want a secret rejected", n)
	}
}

func TestSecretsAreServedAsStateOfTheWorld(t *testing.T) {
	s, _, client := serve(t)
	s.Set(secured(t, "/ca.pem"))
	e := connectWorld(t, client, node("old", nil))
	e.send(envoy.ClusterType, "", nil)
	e.ack(e.receive(envoy.ClusterType, 2))
	e.send(envoy.EndpointType, "", nil, "one", "one/writes")
	e.ack(e.receive(envoy.EndpointType, 2), "one", "one/writes")
	e.send(envoy.ListenerType, "", nil)
	e.send(envoy.SecretType, "", nil, "one/ca", "one/certificate")
	e.ack(e.receive(envoy.SecretType, 2), "one/ca", "one/certificate")
	e.ack(e.receive(envoy.ListenerType, 2))
	waitState(t, s, "old", Synced)
}
