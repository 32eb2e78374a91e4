package xds

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cachemesh/cachemesh/envoy"
)

// stream is one Envoy's ADS stream: what it is to have, what it was sent and what it has acknowledged.
type stream struct {
	node        Node
	identified  bool
	certificate *x509.Certificate // of the client; nil is none
	addresses   *envoy.Addresses  // set for an Envoy without an agent
	connectedAt time.Time
	target      *envoy.Resources
	subscribed  map[string]bool
	watches     map[string]*watch                         // open, by type
	pending     map[string]sentSet                        // sent and neither acknowledged nor rejected, by nonce
	has         map[string]map[string]*discovery.Resource // acknowledged, by type and name; Resource is nil where only the version is known
	parked      map[string]string                         // rejected version of a state-of-the-world answer, by type
	rejections  map[string]*Rejection                     // last unrepaired one, by type
	settledAt   time.Time                                 // since when every listener it has is the target's; zero if one is not
	synced      bool
	lastRequest any
}

// watch is a request that waits for an answer, of one protocol or the other.
type watch struct {
	typeURL      string
	subscription cache.Subscription
	greet        bool // answer even with nothing

	delta          *cache.DeltaRequest
	deltaResponses chan cache.DeltaResponse

	request   *cache.Request
	responses chan cache.Response
}

// sentSet is an answer that was sent.
type sentSet struct {
	typeURL   string
	resources []*discovery.Resource
	removed   []string
	world     bool   // resources are all there are
	version   string // of a state-of-the-world answer
}

// request is what both protocols' requests have in common.
type request struct {
	node    *corev3.Node
	typeURL string
	nonce   string
	err     *rpc.Status
	initial map[string]string // name to version, what the Envoy had before it connected
}

func (s *Server) open(id streamID, typeURL string, certificate *x509.Certificate) error {
	if typeURL != "" {
		return status.Error(codes.Unimplemented, "only aggregated streams (ADS) are served")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	s.streams[id] = &stream{
		certificate: certificate,
		connectedAt: now,
		subscribed:  map[string]bool{},
		watches:     map[string]*watch{},
		pending:     map[string]sentSet{},
		has:         map[string]map[string]*discovery.Resource{},
		parked:      map[string]string{},
		rejections:  map[string]*Rejection{},
	}
	return nil
}

func (s *Server) closed(id streamID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	delete(s.streams, id)
	if st != nil {
		delete(s.requests, st.lastRequest)
	}
	if st == nil || !st.identified {
		return
	}
	for _, other := range s.streams {
		if other.node.Name == st.node.Name {
			return
		}
	}
	gone := st.status(s.config.Now())
	gone.State, gone.Reason, gone.Since, gone.Connected = Stale, "disconnected", s.config.Now(), false
	s.gone[gone.Name] = gone
}

// request takes note of a request before its watch is created: who sends it, and what it acknowledges or rejects.
func (s *Server) request(id streamID, key any, r request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil {
		return status.Error(codes.Internal, "request of a stream that is closed")
	}
	if !st.identified {
		if s.config.Authorise != nil {
			if err := s.config.Authorise(st.certificate, r.node.GetLocality().GetRegion(), r.node.GetId()); err != nil {
				return status.Error(codes.PermissionDenied, err.Error())
			}
		}
		if err := st.identify(r.node, s.config.Region); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		st.target = s.resourcesFor(st)
		delete(s.gone, st.node.Name)
	}
	if !slices.Contains(types, r.typeURL) {
		return status.Errorf(codes.InvalidArgument, "type %q is not served here", r.typeURL)
	}
	if !st.subscribed[r.typeURL] && len(r.initial) > 0 {
		had := make(map[string]*discovery.Resource, len(r.initial))
		for name, version := range r.initial {
			had[name] = &discovery.Resource{Name: name, Version: version}
		}
		st.has[r.typeURL] = had
	}
	// The library drops some requests (stale nonces) without asking for a watch.
	delete(s.requests, st.lastRequest)
	s.requests[key], st.lastRequest = st, key
	now := s.config.Now()
	if set, ok := st.pending[r.nonce]; ok {
		delete(st.pending, r.nonce)
		if r.err != nil {
			st.reject(set, r.err, now)
			if s.config.Observe != nil {
				s.config.Observe.Rejected(st.node.Name, set.typeURL, r.err.GetMessage())
			}
		} else {
			st.acknowledge(set, now)
		}
	}
	wasSynced := st.synced
	st.note(now)
	if st.synced && !wasSynced && s.config.Observe != nil {
		from := s.setAt
		if st.connectedAt.After(from) {
			from = st.connectedAt
		}
		s.config.Observe.Synced(st.node.Name, now.Sub(from))
	}
	s.push(st, r.typeURL)
	return nil
}

func (s *Server) sent(id streamID, nonce string, set sentSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[id]; st != nil {
		st.pending[nonce] = set
	}
}

// identify reads the node that a stream's first request carries.
func (st *stream) identify(n *corev3.Node, region string) error {
	if n.GetId() == "" {
		return fmt.Errorf("the node has no id: start Envoy with --service-node, or set node.id in its bootstrap")
	}
	if got := n.GetLocality().GetRegion(); got != region {
		return fmt.Errorf("node %q is of region %q, and this control plane serves %q: set node.locality.region, or connect it to its own region", n.GetId(), got, region)
	}
	meta := n.GetMetadata().GetFields()[envoy.MetadataKey].GetStructValue().GetFields()
	text := func(key string) string { return meta[key].GetStringValue() }
	v := n.GetUserAgentBuildVersion().GetVersion()
	st.node = Node{
		Name:          n.GetId(),
		Region:        region,
		Zone:          n.GetLocality().GetZone(),
		Agent:         text("agent"),
		Envoy:         fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch()),
		EnvoyRestarts: int(meta["envoy_restarts"].GetNumberValue()),
	}
	if st.node.Agent == "" {
		a := envoy.DefaultAddresses
		if redis, resp3 := text("redis"), text("redis_resp3"); redis != "" || resp3 != "" || text("redis_socket") != "" {
			a = envoy.Addresses{Redis: redis, RedisRESP3: resp3, Socket: text("redis_socket"), SocketRESP3: text("redis_resp3_socket")}
		}
		if err := a.Validate(); err != nil {
			return fmt.Errorf("node %q, metadata %q: %w", n.GetId(), envoy.MetadataKey, err)
		}
		st.addresses = &a
	}
	st.identified = true
	return nil
}

func (st *stream) acknowledge(set sentSet, now time.Time) {
	has := st.has[set.typeURL]
	if has == nil || set.world {
		has = make(map[string]*discovery.Resource, len(set.resources))
		st.has[set.typeURL] = has
	}
	for _, r := range set.resources {
		has[r.Name] = r
	}
	for _, name := range set.removed {
		delete(has, name)
	}
	delete(st.rejections, set.typeURL)
	delete(st.parked, set.typeURL)
	st.node.AckedAt = now
}

func (st *stream) reject(set sentSet, err *rpc.Status, now time.Time) {
	var names []string
	for _, r := range set.resources {
		names = append(names, r.Name)
	}
	st.rejections[set.typeURL] = &Rejection{Type: ShortType(set.typeURL), Resources: names, Reason: err.GetMessage(), At: now}
	if set.world {
		st.parked[set.typeURL] = set.version
	}
}

// note brings what follows from has and target up to date.
func (st *stream) note(now time.Time) {
	if st.target == nil {
		return
	}
	settled := true
	for name, r := range st.has[envoy.ListenerType] {
		if want := find(st.target.Listeners, name); want == nil || want.Version != r.Version {
			settled = false
		}
	}
	switch {
	case !settled:
		st.settledAt = time.Time{}
	case st.settledAt.IsZero():
		st.settledAt = now
	}
	synced := true
	for _, typeURL := range types {
		for _, want := range st.target.ByType(typeURL) {
			if got := st.has[typeURL][want.Name]; got == nil || got.Version != want.Version {
				synced = false
			}
		}
	}
	if synced != st.synced || st.node.Since.IsZero() {
		st.synced, st.node.Since = synced, now
	}
	if synced {
		st.node.Version = st.target.Version
	}
}

// ready says whether a listener may be sent: everything it routes to is acknowledged. A stream that never asks for
// clusters has nothing to wait for.
func (st *stream) ready(listener string) bool {
	if !st.subscribed[envoy.ClusterType] {
		return true
	}
	for _, cluster := range st.target.Names[listener] {
		want := find(st.target.Clusters, cluster)
		got := st.has[envoy.ClusterType][cluster]
		if want == nil || got == nil || got.Version != want.Version || st.has[envoy.EndpointType][cluster] == nil {
			return false
		}
		for _, secret := range st.target.SecretNames[cluster] {
			if st.has[envoy.SecretType][secret] == nil {
				return false
			}
		}
	}
	return true
}

// removable says whether clusters that the target lacks may go now.
func (st *stream) removable(now time.Time, after time.Duration) bool {
	return !st.settledAt.IsZero() && now.Sub(st.settledAt) >= after
}

func (st *stream) removalsDue(now time.Time, after time.Duration) bool {
	if st.target == nil || !st.removable(now, after) {
		return false
	}
	for name := range st.has[envoy.ClusterType] {
		if find(st.target.Clusters, name) == nil {
			return true
		}
	}
	return false
}

// due decides what an incremental stream is sent of a type now: what it wants, lacks and may have.
func (st *stream) due(typeURL string, sub cache.Subscription, now time.Time, removeAfter time.Duration) (send []*discovery.Resource, remove []string) {
	known := sub.ReturnedResources()
	for _, r := range st.target.ByType(typeURL) {
		if _, named := sub.SubscribedResources()[r.Name]; !named && !sub.IsWildcard() {
			continue
		}
		if version, ok := known[r.Name]; ok && version == r.Version {
			continue
		}
		if typeURL == envoy.ListenerType && !st.ready(r.Name) {
			continue
		}
		send = append(send, r)
	}
	// Endpoints and secrets go with their cluster: Envoy stops asking for them itself.
	if typeURL == envoy.EndpointType || typeURL == envoy.SecretType || typeURL == envoy.ClusterType && !st.removable(now, removeAfter) {
		return send, nil
	}
	for name := range known {
		if find(st.target.ByType(typeURL), name) == nil {
			remove = append(remove, name)
		}
	}
	slices.Sort(remove)
	return send, remove
}

func deltaResponse(w *watch, version string, send []*discovery.Resource, remove []string) cache.DeltaResponse {
	versions := make(map[string]string, len(w.subscription.ReturnedResources())+len(send))
	for name, v := range w.subscription.ReturnedResources() {
		versions[name] = v
	}
	for _, r := range send {
		versions[r.Name] = r.Version
	}
	for _, name := range remove {
		delete(versions, name)
	}
	return &cache.DeltaPassthroughResponse{
		DeltaRequest:   w.delta,
		NextVersionMap: versions,
		DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{
			SystemVersionInfo: version, TypeUrl: w.typeURL, Resources: send, RemovedResources: remove,
		},
	}
}

// worldKey carries the resources of a state-of-the-world answer to OnStreamResponse, which sees them without names.
type worldKey struct{}

// world is a state-of-the-world answer.
type world struct {
	cache.PassthroughResponse
	resources []*discovery.Resource
}

func (w *world) GetContext() context.Context {
	return context.WithValue(context.Background(), worldKey{}, w.resources)
}

// stateOfTheWorld decides what a stream that is always sent everything is sent of a type now; nil is nothing: it has
// just that, or has rejected it.
func (st *stream) stateOfTheWorld(w *watch, now time.Time, removeAfter time.Duration) *world {
	var all []*discovery.Resource
	for _, r := range st.target.ByType(w.typeURL) {
		if _, named := w.subscription.SubscribedResources()[r.Name]; !named && !w.subscription.IsWildcard() {
			continue
		}
		if w.typeURL == envoy.ListenerType && !st.ready(r.Name) {
			if r = st.has[w.typeURL][r.Name]; r == nil {
				continue
			}
		}
		all = append(all, r)
	}
	if w.typeURL == envoy.ClusterType && !st.removable(now, removeAfter) {
		for name, r := range st.has[w.typeURL] {
			if find(st.target.Clusters, name) == nil {
				all = append(all, r)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b *discovery.Resource) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	bodies := make([]*anypb.Any, len(all))
	versions := make(map[string]string, len(all))
	for i, r := range all {
		fmt.Fprintf(h, "%s\x00%s\x00", r.Name, r.Version)
		bodies[i], versions[r.Name] = r.Resource, r.Version
	}
	version := hex.EncodeToString(h.Sum(nil))[:12]
	if version == w.request.GetVersionInfo() || version == st.parked[w.typeURL] {
		return nil
	}
	return &world{resources: all, PassthroughResponse: cache.PassthroughResponse{
		Request: w.request, ReturnedResources: versions,
		DiscoveryResponse: &discovery.DiscoveryResponse{VersionInfo: version, TypeUrl: w.typeURL, Resources: bodies},
	}}
}

func find(resources []*discovery.Resource, name string) *discovery.Resource {
	i, ok := slices.BinarySearchFunc(resources, name, func(r *discovery.Resource, name string) int { return strings.Compare(r.Name, name) })
	if !ok {
		return nil
	}
	return resources[i]
}
