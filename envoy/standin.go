package envoy

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cachemesh/cachemesh/mesh"
)

// plaintext marks an endpoint that speaks no TLS though its pool does.
const plaintext = "plaintext"

// plaintextMatch lets a cluster with TLS reach the null stand-in, which has no certificate. A hold needs none: behind it is
// a node, with which Envoy's handshake is.
func plaintextMatch() *clusterv3.Cluster_TransportSocketMatch {
	return &clusterv3.Cluster_TransportSocketMatch{
		Name:  plaintext,
		Match: &structpb.Struct{Fields: map[string]*structpb.Value{plaintext: structpb.NewBoolValue(true)}},
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.raw_buffer",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(new(rawbufferv3.RawBuffer))},
		},
	}
}

// standIn is a shard's place on the ring with the agent's socket in place of a node.
func standIn(s mesh.Shard) *endpointv3.LbEndpoint {
	h := host(s, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: s.StandIn.Path(s.Name)}}})
	if s.StandIn == mesh.Null {
		h.Metadata.FilterMetadata["envoy.transport_socket_match"] = plaintextMatch().Match
	}
	return h
}

// Address is that of a shard's Endpoint in the cluster that reads: of its primary, or its StandIn's path; "" if it has neither.
func Address(s mesh.Shard) string {
	if s.StandIn != "" {
		return s.StandIn.Path(s.Name)
	}
	primary, _ := s.Primary()
	return primary.Address
}

// Endpoint is what an Envoy knows of a shard.
type Endpoint struct {
	Shard string
	// Address is IP:port of the primary, the StandIn's path, or the LanePath.
	Address string
	StandIn mesh.StandIn // "" if Address is the primary's or the lane's
	Lane    bool
	Weight  uint32
}

// Endpoints lists those of a resource of EndpointType in their order. It fails on what Build does not make.
func Endpoints(r *discovery.Resource) ([]Endpoint, error) {
	var assigned endpointv3.ClusterLoadAssignment
	if err := r.GetResource().UnmarshalTo(&assigned); err != nil {
		return nil, fmt.Errorf("endpoints %q: %w", r.GetName(), err)
	}
	var all []Endpoint
	for _, locality := range assigned.Endpoints {
		for _, h := range locality.LbEndpoints {
			e := Endpoint{Shard: h.GetEndpoint().GetHostname(), Weight: h.GetLoadBalancingWeight().GetValue()}
			switch at := h.GetEndpoint().GetAddress().GetAddress().(type) {
			case *corev3.Address_SocketAddress:
				e.Address = net.JoinHostPort(at.SocketAddress.GetAddress(), strconv.Itoa(int(at.SocketAddress.GetPortValue())))
			case *corev3.Address_Pipe:
				e.Address = at.Pipe.GetPath()
				if !e.ofSocket() {
					return nil, fmt.Errorf("endpoints %q: shard %q has the socket %q, which is no stand-in of it and no lane", r.GetName(), e.Shard, e.Address)
				}
			default:
				return nil, fmt.Errorf("endpoints %q: shard %q has no address", r.GetName(), e.Shard)
			}
			all = append(all, e)
		}
	}
	return all, nil
}

// ofSocket says which of the agent's sockets the endpoint's address is, and whether it is the shard's.
func (e *Endpoint) ofSocket() bool {
	if e.Shard == "" || strings.ContainsAny(e.Shard, "/\x00") {
		return false
	}
	for _, kind := range []mesh.StandIn{mesh.Null, mesh.Hold} {
		if e.Address == kind.Path(e.Shard) {
			e.StandIn = kind
			return true
		}
	}
	e.Lane = e.Address == LanePath(e.Shard)
	return e.Lane
}
