package xds

import (
	"context"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/cachemesh/cachemesh/envoy"
)

// worldEnvoy plays an Envoy that speaks state of the world.
type worldEnvoy struct {
	t      *testing.T
	stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node   *corev3.Node
	came   chan *discovery.DiscoveryResponse
	last   map[string]string // accepted version by type
}

func connectWorld(t *testing.T, client discovery.AggregatedDiscoveryServiceClient, n *corev3.Node) *worldEnvoy {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := client.StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e := &worldEnvoy{t: t, stream: stream, node: n, came: make(chan *discovery.DiscoveryResponse, 10000), last: map[string]string{}}
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			e.came <- r
		}
	}()
	return e
}

func (e *worldEnvoy) send(typeURL, nonce string, reason *rpc.Status, names ...string) {
	e.t.Helper()
	r := &discovery.DiscoveryRequest{Node: e.node, TypeUrl: typeURL, VersionInfo: e.last[typeURL], ResponseNonce: nonce, ResourceNames: names, ErrorDetail: reason}
	e.node = nil
	if err := e.stream.Send(r); err != nil {
		e.t.Fatal(err)
	}
}

func (e *worldEnvoy) ack(r *discovery.DiscoveryResponse, names ...string) {
	e.last[r.TypeUrl] = r.VersionInfo
	e.send(r.TypeUrl, r.Nonce, nil, names...)
}

func (e *worldEnvoy) receive(typeURL string, count int) *discovery.DiscoveryResponse {
	e.t.Helper()
	select {
	case r := <-e.came:
		if r.TypeUrl != typeURL || len(r.Resources) != count {
			e.t.Fatalf("came %d of %s, want %d of %s", len(r.Resources), ShortType(r.TypeUrl), count, ShortType(typeURL))
		}
		return r
	case <-time.After(5 * time.Second):
		e.t.Fatalf("no %s came", ShortType(typeURL))
	}
	return nil
}

func (e *worldEnvoy) start() {
	e.send(envoy.ClusterType, "", nil)
	e.ack(e.receive(envoy.ClusterType, 2))
	e.send(envoy.EndpointType, "", nil, "one", "one/writes")
	e.ack(e.receive(envoy.EndpointType, 2), "one", "one/writes")
	e.send(envoy.ListenerType, "", nil)
	e.ack(e.receive(envoy.ListenerType, 2))
}

func TestStateOfTheWorldIsStagedToo(t *testing.T) {
	s, c, client := serve(t)
	s.Set(resources(t, 7001, "one"))
	e := connectWorld(t, client, node("old", nil))
	e.start()
	waitState(t, s, "old", Synced)

	s.Set(resources(t, 7001, "one", "two"))
	clusters := e.receive(envoy.ClusterType, 4)
	e.ack(clusters)
	both := []string{"one", "one/writes", "two", "two/writes"}
	e.send(envoy.EndpointType, "2", nil, both...)
	e.ack(e.receive(envoy.EndpointType, 4), both...)
	e.ack(e.receive(envoy.ListenerType, 2))
	waitState(t, s, "old", Synced)

	s.Set(resources(t, 7001, "one"))
	e.ack(e.receive(envoy.EndpointType, 2), both...)
	e.ack(e.receive(envoy.ListenerType, 2))
	waitState(t, s, "old", Synced)
	c.advance(15 * time.Second)
	s.Tick()
	e.ack(e.receive(envoy.ClusterType, 2))
}

// A state-of-the-world client that rejects is answered with the same again, as fast as it can reject, by a server
// that does not remember.
func TestARejectingStateOfTheWorldClientIsNotFlooded(t *testing.T) {
	s, _, client := serve(t)
	s.Set(resources(t, 7001, "one"))
	e := connectWorld(t, client, node("old", nil))
	e.start()
	waitState(t, s, "old", Synced)
	s.Set(resources(t, 7002, "one"))
	rejected := e.receive(envoy.EndpointType, 2)
	e.send(envoy.EndpointType, rejected.Nonce, &rpc.Status{Message: "no"}, "one", "one/writes")
	waitState(t, s, "old", Rejected)
	s.Set(resources(t, 7003, "one"))
	next := e.receive(envoy.EndpointType, 2)
	if next.VersionInfo == rejected.VersionInfo {
		t.Error("the rejected version was sent again")
	}
	e.ack(next, "one", "one/writes")
	waitState(t, s, "old", Synced)
	if len(e.came) != 0 {
		t.Errorf("%d more answers came", len(e.came))
	}
}
