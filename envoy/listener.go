package envoy

import (
	"fmt"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	redisv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/redis_proxy/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cachemesh/cachemesh/commands"
	"github.com/cachemesh/cachemesh/mesh"
)

// The listeners' names. RESP2 and RESP3 exclude each other on one listener.
const (
	RedisListener      = "redis"
	RedisRESP3Listener = "redis-resp3"
)

// NowhereCluster is named by the route of reserved keys and never exists, so Envoy refuses them.
const NowhereCluster = "cachemesh/nowhere"

// Addresses are where one sidecar's Envoy listens: "IP:port" on loopback, and paths of Unix sockets, which may be
// relative to Envoy's working directory. An empty one is left out; each listener needs one of its two.
type Addresses struct {
	Redis       string `json:"redis"`
	RedisRESP3  string `json:"redis_resp3"`
	Socket      string `json:"redis_socket"`
	SocketRESP3 string `json:"redis_resp3_socket"`
}

// DefaultAddresses are those of a sidecar, or an Envoy without an agent, that states none.
var DefaultAddresses = Addresses{Redis: "127.0.0.1:6379", RedisRESP3: "127.0.0.1:6380"}

func (a Addresses) of(listener string) (tcp, socket string) {
	if listener == RedisRESP3Listener {
		return a.RedisRESP3, a.SocketRESP3
	}
	return a.Redis, a.Socket
}

// Validate refuses an address that is not on loopback, a listener that has none, and an address that both listeners have.
func (a Addresses) Validate() error {
	for _, name := range []string{RedisListener, RedisRESP3Listener} {
		tcp, socket := a.of(name)
		if tcp == "" && socket == "" {
			return fmt.Errorf("listener %s has no address: give it a loopback port or a Unix socket", name)
		}
		if tcp == "" {
			continue
		}
		at, err := netip.ParseAddrPort(tcp)
		if err != nil || at.Port() == 0 {
			return fmt.Errorf("listener %s: %q is not IP:port", name, tcp)
		}
		if !at.Addr().IsLoopback() {
			return fmt.Errorf("listener %s: %q is not on loopback: whoever reaches a sidecar's Redis port owns its keys, so use 127.0.0.1, ::1 or a Unix socket", name, tcp)
		}
	}
	for _, pair := range [][2]string{{a.Redis, a.RedisRESP3}, {a.Socket, a.SocketRESP3}} {
		if pair[0] != "" && pair[0] == pair[1] {
			return fmt.Errorf("the listeners %s and %s are both at %s: RESP2 and RESP3 exclude each other, so give each its own", RedisListener, RedisRESP3Listener, pair[0])
		}
	}
	return nil
}

// listeners are the two of a topology, the same for every sidecar of the region, without addresses.
func listeners(t mesh.Topology) []*listenerv3.Listener {
	return []*listenerv3.Listener{
		listener(RedisListener, redisv3.RedisProxy_RESP2, t),
		listener(RedisRESP3Listener, redisv3.RedisProxy_RESP3, t),
	}
}

func listener(name string, protocol redisv3.RedisProxy_ProtocolVersion, t mesh.Topology) *listenerv3.Listener {
	proxy := &redisv3.RedisProxy{
		StatPrefix:      name,
		LatencyInMicros: true, // in milliseconds, most would be in the first bucket
		ProtocolVersion: protocol,
		Settings: &redisv3.RedisProxy_ConnPoolSettings{
			OpTimeout:         durationpb.New(t.OpTimeout),
			EnableHashtagging: true,
		},
		PrefixRoutes: prefixRoutes(t),
		Faults: []*redisv3.RedisProxy_RedisFault{{
			FaultType: redisv3.RedisProxy_RedisFault_ERROR,
			FaultEnabled: &corev3.RuntimeFractionalPercent{
				DefaultValue: &typev3.FractionalPercent{Numerator: 100, Denominator: typev3.FractionalPercent_HUNDRED},
			},
			Commands: refused(protocol, t),
		}},
	}
	config, err := anypb.New(proxy)
	if err != nil {
		panic(err) // a message of ours always marshals
	}
	return &listenerv3.Listener{
		Name: name,
		// Replaced by each sidecar: see PlaceListeners. Port 0 would listen anywhere, but only on loopback.
		Address: socketAddress(netip.MustParseAddrPort("127.0.0.1:0")),
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{{
				Name:       "envoy.filters.network.redis_proxy",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config},
			}},
		}},
	}
}

func refused(protocol redisv3.RedisProxy_ProtocolVersion, t mesh.Topology) []string {
	return commands.Listener{
		RESP3:        protocol == redisv3.RedisProxy_RESP3,
		Lanes:        t.HasLanes(),
		Transactions: t.Transactions == mesh.TransactionsLanes,
	}.Refused()
}

func prefixRoutes(t mesh.Topology) *redisv3.RedisProxy_PrefixRoutes {
	routes := &redisv3.RedisProxy_PrefixRoutes{Routes: []*redisv3.RedisProxy_PrefixRoutes_Route{reserved(t)}}
	for _, p := range t.Pools {
		for _, r := range p.Routes {
			route := route(t, p, r)
			if r.Prefix == "" {
				routes.CatchAllRoute = route
				continue
			}
			routes.Routes = append(routes.Routes, route)
		}
	}
	return routes
}

// reserved refuses the keys that are cachemesh's own. Envoy crashes over a transaction that begins with a key whose cluster has no host, so
// where there are transactions the writes go to lanes, which refuse them.
func reserved(t mesh.Topology) *redisv3.RedisProxy_PrefixRoutes_Route {
	r := &redisv3.RedisProxy_PrefixRoutes_Route{Prefix: mesh.ReservedPrefix, Cluster: NowhereCluster}
	if t.Transactions == mesh.TransactionsLanes && len(t.Pools) > 0 {
		r.Cluster = t.Pools[0].Name + writes
		r.ReadCommandPolicy = &redisv3.RedisProxy_PrefixRoutes_Route_ReadCommandPolicy{Cluster: NowhereCluster}
	}
	return r
}

// route sends everything straight to the shards, but for writes where they go through lanes.
func route(t mesh.Topology, p mesh.Pool, r mesh.Route) *redisv3.RedisProxy_PrefixRoutes_Route {
	if !t.OnLanes(r) {
		return &redisv3.RedisProxy_PrefixRoutes_Route{Prefix: r.Prefix, Cluster: p.Name}
	}
	return &redisv3.RedisProxy_PrefixRoutes_Route{
		Prefix: r.Prefix, Cluster: p.Name + writes,
		ReadCommandPolicy: &redisv3.RedisProxy_PrefixRoutes_Route_ReadCommandPolicy{Cluster: p.Name},
	}
}

// clusterNames are the clusters that the routes of a topology name.
func clusterNames(t mesh.Topology) []string {
	var names []string
	for _, p := range t.Pools {
		if len(p.Routes) > 0 {
			names = append(names, p.Name)
		}
		if t.PoolOnLanes(p) {
			names = append(names, p.Name+writes)
		}
	}
	slices.Sort(names)
	return names
}

// PlaceListeners returns the resources with every listener at one sidecar's addresses; what it is given stays as
// it is, and a version stays too, since the content that the control plane decides is the same.
func PlaceListeners(resources []*discovery.Resource, a Addresses) ([]*discovery.Resource, error) {
	placed := make([]*discovery.Resource, len(resources))
	for i, r := range resources {
		l := new(listenerv3.Listener)
		if err := r.Resource.UnmarshalTo(l); err != nil {
			return nil, fmt.Errorf("listener %q: %w", r.Name, err)
		}
		tcp, socket := a.of(l.Name)
		if err := place(l, tcp, socket); err != nil {
			return nil, err
		}
		packed := new(anypb.Any)
		if err := anypb.MarshalFrom(packed, l, proto.MarshalOptions{Deterministic: true}); err != nil {
			return nil, fmt.Errorf("listener %q: %w", r.Name, err)
		}
		placed[i] = &discovery.Resource{Name: r.Name, Version: r.Version, Resource: packed}
	}
	return placed, nil
}

func place(l *listenerv3.Listener, tcp, socket string) error {
	var at []*corev3.Address
	if tcp != "" {
		a, err := netip.ParseAddrPort(tcp)
		if err != nil {
			return fmt.Errorf("listener %q: %w", l.Name, err)
		}
		at = append(at, socketAddress(a))
	}
	if socket != "" {
		at = append(at, pipeAddress(socket))
	}
	if len(at) == 0 {
		return fmt.Errorf("listener %q has no address", l.Name)
	}
	l.Address = at[0]
	l.AdditionalAddresses = nil
	for _, a := range at[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: a})
	}
	return nil
}
