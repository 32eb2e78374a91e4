package envoy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cachemesh/cachemesh/mesh"
)

// MetadataKey is where a node's metadata says what cachemesh needs to know of it.
const MetadataKey = "cachemesh"

// maxConnections bounds an Envoy's clients. Beyond it, new connections are closed at once.
const maxConnections = 20000

// BootstrapConfig is what tells one Envoy from another.
type BootstrapConfig struct {
	ID       string            // the sidecar's name
	Region   string            // must be the control plane's
	Zone     string            // may be empty
	XDS      string            // "unix:PATH", relative to Envoy's working directory or absolute, or "host:port"
	Admin    string            // IP:port, on loopback
	Metadata map[string]string // under MetadataKey of the node's metadata
	// TLS of the connection to host:port; nil is plaintext. ServerName is the host of XDS unless it is set.
	TLS *mesh.TLSFiles
	// Secrets is the folder where Envoy finds the files of BootstrapSecrets; needed with TLS.
	Secrets string
}

func (c BootstrapConfig) tlsFiles() mesh.TLSFiles {
	t := *c.TLS
	if t.ServerName == "" {
		t.ServerName, _, _ = net.SplitHostPort(c.XDS)
	}
	return t
}

// Bootstrap is the configuration, as JSON, with which an Envoy starts: who it is and where its xDS comes from.
func Bootstrap(c BootstrapConfig) ([]byte, error) {
	admin, err := netip.ParseAddrPort(c.Admin)
	if err != nil {
		return nil, fmt.Errorf("admin address %q: want IP:port", c.Admin)
	}
	if !admin.Addr().IsLoopback() {
		return nil, fmt.Errorf("admin address %q is not on loopback: whoever reaches Envoy's admin controls it, so use 127.0.0.1", c.Admin)
	}
	xds, err := xdsCluster(c.XDS)
	if err != nil {
		return nil, err
	}
	if c.TLS != nil {
		xds.TransportSocket = clientTLS(bootstrapSecrets, c.tlsFiles(), fileSource(c.Secrets))
	}
	overload, err := overloadManager()
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{
			Id:       c.ID,
			Cluster:  "cachemesh",
			Locality: &corev3.Locality{Region: c.Region, Zone: c.Zone},
			Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
				MetadataKey: structpb.NewStructValue(stringStruct(c.Metadata)),
			}},
		},
		Admin:           &bootstrapv3.Admin{Address: socketAddress(admin)},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{xds}},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			CdsConfig: adsSource(),
			LdsConfig: adsSource(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
						ClusterName: xds.Name,
						RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
							BaseInterval: durationpb.New(50 * time.Millisecond),
							MaxInterval:  durationpb.New(2 * time.Second),
						}},
					}},
				}},
			},
		},
		StatsConfig:     statsConfig(c),
		OverloadManager: overload,
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return deterministicJSON(b)
}

// xdsCluster is where the resources come from.
func xdsCluster(target string) (*clusterv3.Cluster, error) {
	var address *corev3.Address
	discovery := clusterv3.Cluster_STATIC
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		address = pipeAddress(path)
		address.GetPipe().Mode = 0
	} else {
		host, portText, err := net.SplitHostPort(target)
		port, portErr := strconv.ParseUint(portText, 10, 16)
		if err != nil || portErr != nil || host == "" || port == 0 {
			return nil, fmt.Errorf("xDS address %q: want unix:PATH or host:port", target)
		}
		if _, err := netip.ParseAddr(host); err != nil {
			discovery = clusterv3.Cluster_STRICT_DNS
		}
		address = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
		}}}
	}
	http2, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						// A control plane that is gone without a word is noticed within 15 s.
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Interval: durationpb.New(10 * time.Second),
							Timeout:  durationpb.New(5 * time.Second),
						},
					},
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	const name = "cachemesh.xds" // with a dot, so that no pool can have it: Envoy would ignore the pool's cluster
	return &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discovery},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
			}}}},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
		},
	}, nil
}

// statsConfig says of every statistic which sidecar it is of, and makes pool, use and command labels where they are part
// of a name. The shard is the label endpoint_hostname of the statistics of each endpoint.
func statsConfig(c BootstrapConfig) *metricsv3.StatsConfig {
	tag := func(name, regex string) *metricsv3.TagSpecifier {
		return &metricsv3.TagSpecifier{TagName: name, TagValue: &metricsv3.TagSpecifier_Regex{Regex: regex}}
	}
	fixed := func(name, value string) *metricsv3.TagSpecifier {
		return &metricsv3.TagSpecifier{TagName: name, TagValue: &metricsv3.TagSpecifier_FixedValue{FixedValue: value}}
	}
	return &metricsv3.StatsConfig{StatsTags: []*metricsv3.TagSpecifier{
		fixed("region", c.Region),
		fixed("sidecar", c.ID),
		tag("pool", `^cluster\.(([a-z0-9-]+)\.)(?:direct|writes|redis_cluster)\.`),
		tag("use", `^cluster\.[a-z0-9-]+\.((direct|writes)\.)`),
		tag("command", `^redis\.[a-z0-9-]+\.command\.((\w+)\.)`),
	}}
}

func overloadManager() (*overloadv3.OverloadManager, error) {
	connections, err := anypb.New(&downstreamv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: maxConnections})
	if err != nil {
		return nil, err
	}
	return &overloadv3.OverloadManager{
		RefreshInterval: durationpb.New(250 * time.Millisecond),
		ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name:       "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: connections},
		}},
	}, nil
}

func stringStruct(m map[string]string) *structpb.Struct {
	fields := make(map[string]*structpb.Value, len(m))
	for k, v := range m {
		fields[k] = structpb.NewStringValue(v)
	}
	return &structpb.Struct{Fields: fields}
}

// deterministicJSON is protojson without its random spaces.
func deterministicJSON(b *bootstrapv3.Bootstrap) ([]byte, error) {
	return indent(protojson.Marshal(b))
}

func indent(data []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
