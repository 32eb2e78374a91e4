package envoy

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cachemesh/cachemesh/mesh"
)

// writes ends the name of the cluster that takes a pool's writes where another program carries them.
const writes = "/writes"

// connectTimeout bounds a connection to a shard. It only bounds how late a dead host is noticed: commands have
// the op timeout of their own.
const connectTimeout = 500 * time.Millisecond

// ClusterNames are those of a pool's clusters.
func ClusterNames(p mesh.Pool) []string { return []string{p.Name, p.Name + writes} }

// clusters are a pool's two: one straight to the shards, and one for writes with the same hash keys. Both
// names and all their settings stay as they are for as long as the pool exists, since Envoy fails the requests
// in flight of a cluster that is edited; whatever changes is in the endpoints.
func clusters(p mesh.Pool) []*clusterv3.Cluster {
	return []*clusterv3.Cluster{
		cluster(p, p.Name, p.Name+".direct"),
		cluster(p, p.Name+writes, p.Name+".writes"),
	}
}

func cluster(p mesh.Pool, name, statName string) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          statName,
		ConnectTimeout:       durationpb.New(connectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource()},
		TrackClusterStats:    &clusterv3.TrackClusterStats{PerEndpointStats: true},
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{
			TcpKeepalive: &corev3.TcpKeepalive{
				KeepaliveProbes:   wrapperspb.UInt32(3),
				KeepaliveTime:     wrapperspb.UInt32(10),
				KeepaliveInterval: wrapperspb.UInt32(5),
			},
		},
	}
	switch p.Hashing.Algorithm {
	case mesh.Maglev:
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{
			TableSize: wrapperspb.UInt64(p.Hashing.Size),
		}}
	default:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
			MinimumRingSize: wrapperspb.UInt64(p.Hashing.Size),
			HashFunction:    clusterv3.Cluster_RingHashLbConfig_XX_HASH,
		}}
	}
	logIn(c, p)
	return c
}

func adsSource() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}
