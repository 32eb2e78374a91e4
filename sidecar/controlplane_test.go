package sidecar

import (
	"context"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/reports"
)

// controlPlane serves one snapshot to every node, by go-control-plane's own cache and server.
type controlPlane struct {
	address string
	server  *grpc.Server
	served  chan struct{}
	cache   cache.SnapshotCache
	heard   *heard

	mu       sync.Mutex
	rejected []*discovery.DeltaDiscoveryRequest
	nodes    []*core.Node
}

type everyNode struct{}

func (everyNode) ID(*core.Node) string { return "all" }

// freeAddresses returns n loopback addresses that nobody listens on.
func freeAddresses(t testing.TB, n int) []string {
	t.Helper()
	ports, err := process.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	addresses := make([]string, n)
	for i, port := range ports {
		addresses[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	return addresses
}

// newControlPlane makes a control plane that serves nothing yet and does not run.
func newControlPlane(t testing.TB) *controlPlane {
	p := &controlPlane{address: freeAddresses(t, 1)[0], cache: cache.NewSnapshotCache(true, everyNode{}, nil), heard: newHeard()}
	t.Cleanup(p.stop)
	return p
}

func (p *controlPlane) start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	callbacks := server.CallbackFuncs{StreamDeltaRequestFunc: func(_ int64, req *discovery.DeltaDiscoveryRequest) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if req.ErrorDetail != nil {
			p.rejected = append(p.rejected, req)
		}
		if req.Node.GetId() != "" {
			p.nodes = append(p.nodes, req.Node)
		}
		return nil
	}}
	p.server = grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	discovery.RegisterAggregatedDiscoveryServiceServer(p.server, server.NewServer(context.Background(), p.cache, callbacks))
	reports.RegisterReportsServer(p.server, p.heard)
	p.served = make(chan struct{})
	go func(s *grpc.Server, served chan struct{}) {
		defer close(served)
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	}(p.server, p.served)
}

func (p *controlPlane) stop() {
	if p.server != nil {
		p.server.Stop()
		<-p.served
		p.server = nil
	}
}

// rejections are the requests with which Envoy rejected something.
func (p *controlPlane) rejections() []*discovery.DeltaDiscoveryRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rejected
}

// lastNode is the node of the newest request.
func (p *controlPlane) lastNode() *core.Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.nodes) == 0 {
		return nil
	}
	return p.nodes[len(p.nodes)-1]
}

// serve makes the resources the snapshot.
func (p *controlPlane) serve(t testing.TB, version string, r *envoy.Resources) {
	t.Helper()
	snapshot, err := cache.NewSnapshot(version, map[string][]types.Resource{
		envoy.ClusterType: unpack(t, r.Clusters), envoy.EndpointType: unpack(t, r.Endpoints), envoy.ListenerType: unpack(t, r.Listeners),
		envoy.SecretType: unpack(t, r.Secrets),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cache.SetSnapshot(context.Background(), "all", snapshot); err != nil {
		t.Fatal(err)
	}
}

func unpack(t testing.TB, packed []*discovery.Resource) []types.Resource {
	t.Helper()
	var all []types.Resource
	for _, r := range packed {
		m, err := r.Resource.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// topology is one pool whose shards are the given addresses.
func topology(addresses ...string) mesh.Topology {
	pool := mesh.Pool{
		Name: "all", Hashing: mesh.Hashing{Algorithm: mesh.RingHash, Size: 1024}, Routes: []mesh.Route{{Prefix: "", Coherence: mesh.Local}},
	}
	for i, address := range addresses {
		pool.Shards = append(pool.Shards, mesh.Shard{
			Name: "all-" + strconv.Itoa(i), Weight: 1, Nodes: []mesh.Node{{Address: address, Role: mesh.Primary}},
		})
	}
	return mesh.Topology{Region: "here", OpTimeout: 2 * time.Second, Pools: []mesh.Pool{pool}}
}

func build(t testing.TB, topology mesh.Topology) *envoy.Resources {
	t.Helper()
	r, err := envoy.Build(topology)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// withBrokenListeners returns the resources with listeners that Envoy rejects: it has no such filter.
func withBrokenListeners(t testing.TB, r *envoy.Resources) *envoy.Resources {
	t.Helper()
	broken := *r
	broken.Listeners = nil
	for _, packed := range r.Listeners {
		l := new(listenerv3.Listener)
		if err := packed.Resource.UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		l.FilterChains[0].Filters = append([]*listenerv3.Filter{{
			Name: "no such filter", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustPack(t, &core.Node{})},
		}}, l.FilterChains[0].Filters...)
		broken.Listeners = append(broken.Listeners, &discovery.Resource{Name: packed.Name, Resource: mustPack(t, l)})
	}
	return &broken
}

func mustPack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	packed, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}
