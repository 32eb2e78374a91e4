package envoy

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cachemesh/cachemesh/mesh"
)

// endpoints are those of a pool's two clusters. The order of the shards is part of the ring: Envoy sums the
// entries of weighted hosts in the order in which they come. Both have the same hosts, under the same hash keys, but with a
// route on lanes, writes reach each shard through its lane, whatever answers for the shard.
func endpoints(t mesh.Topology, p mesh.Pool) []*endpointv3.ClusterLoadAssignment {
	var direct, lanes []*endpointv3.LbEndpoint
	for _, s := range p.Shards {
		if s.StandIn != "" {
			direct = append(direct, standIn(s))
		} else if primary, ok := s.Primary(); ok {
			direct = append(direct, host(s, socketAddress(netip.MustParseAddrPort(primary.Address))))
		} else {
			continue
		}
		lanes = append(lanes, lane(s))
	}
	assign := func(cluster string, hosts []*endpointv3.LbEndpoint) *endpointv3.ClusterLoadAssignment {
		return &endpointv3.ClusterLoadAssignment{
			ClusterName: cluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{
				Locality:    &corev3.Locality{Region: t.Region},
				LbEndpoints: hosts,
			}},
		}
	}
	if !t.PoolOnLanes(p) {
		lanes = direct
	}
	return []*endpointv3.ClusterLoadAssignment{assign(p.Name, direct), assign(p.Name+writes, lanes)}
}

// host is a shard's place on the ring, which its name decides, and the address that answers there now.
func host(s mesh.Shard, at *corev3.Address) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address:  at,
			Hostname: s.Name,
		}},
		LoadBalancingWeight: wrapperspb.UInt32(s.Weight),
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"envoy.lb": {Fields: map[string]*structpb.Value{"hash_key": structpb.NewStringValue(s.Name)}},
		}},
	}
}

func socketAddress(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       a.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

func pipeAddress(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: 0o660}}}
}
