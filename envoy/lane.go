package envoy

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cachemesh/cachemesh/mesh"
)

// lanesFolder begins the path of every lane.
const lanesFolder = "lanes"

// LanePath is where the agent carries a shard's writes, relative to the sidecar's folder. It is the same for every sidecar; each agent
// has a folder of its own in its place: see PlaceLanes.
func LanePath(shard string) string { return lanesFolder + "/" + shard + ".sock" }

// lane is a shard's place on the ring of writes. It speaks plaintext though the pool may have TLS: the lane's connections to the shard do.
func lane(s mesh.Shard) *endpointv3.LbEndpoint {
	h := host(s, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: LanePath(s.Name)}}})
	h.Metadata.FilterMetadata["envoy.transport_socket_match"] = plaintextMatch().Match
	return h
}

// HasLanes says whether a resource of EndpointType names lanes.
func HasLanes(r *discovery.Resource) bool {
	endpoints, err := Endpoints(r)
	for _, e := range endpoints {
		if e.Lane {
			return err == nil
		}
	}
	return false
}

// PlaceLanes returns a resource of EndpointType with every lane in a folder of the sidecar's, instead of that of LanePath. What it is
// given stays as it is. The version is another where a lane is: an Envoy that comes with it has its lanes in that folder.
func PlaceLanes(r *discovery.Resource, folder string) (*discovery.Resource, error) {
	if !HasLanes(r) {
		return r, nil
	}
	var assigned endpointv3.ClusterLoadAssignment
	if err := r.Resource.UnmarshalTo(&assigned); err != nil {
		return nil, fmt.Errorf("endpoints %q: %w", r.Name, err)
	}
	for _, locality := range assigned.Endpoints {
		for _, h := range locality.LbEndpoints {
			if pipe := h.GetEndpoint().GetAddress().GetPipe(); pipe != nil {
				if name, ok := strings.CutPrefix(pipe.Path, lanesFolder+"/"); ok {
					pipe.Path = folder + "/" + name
				}
			}
		}
	}
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, &assigned, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("endpoints %q: %w", r.Name, err)
	}
	return &discovery.Resource{Name: r.Name, Version: LaneVersion(r.Version, folder), Resource: packed}, nil
}

// LaneVersion is the version of placed lanes.
func LaneVersion(version, folder string) string { return version + "@" + folder }

// CutLaneVersion returns the version that LaneVersion was given, and the folder; "" for a resource without lanes.
func CutLaneVersion(placed string) (version, folder string) {
	version, folder, _ = strings.Cut(placed, "@")
	return version, folder
}
