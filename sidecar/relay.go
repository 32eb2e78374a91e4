package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/envoy"
)

// The sources of an Envoy's resources.
const (
	fromControlPlane = "control_plane"
	fromDisk         = "disk"
)

// relay is the xDS server of one Envoy. It passes each stream on to a control plane, and where none answers it serves
// the last resources of which Envoy acknowledged all.
type relay struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	planes    *controlPlanes
	addresses envoy.Addresses
	lanes     string         // folder of this agent's lanes, in place of that of envoy.LanePath
	version   string         // of the agent
	restarts  func() int     // of Envoy
	saves     chan resources // holds the newest set that is not yet on disk
	log       *slog.Logger

	mu       sync.Mutex
	holdings *holdings
	current  *session
	source   string // of the current session; "" while it has none
	before   string // the source before
	plane    string // address of the control plane that the current session is relayed to
	nacks    map[string]int
	has      map[string]string // the endpoints that Envoy acknowledged, see holdings.endpoints; replaced, never changed
	laned    map[string]bool   // the shards that have lanes, likewise
	ordered  map[string]string // the rings that Envoy acknowledged, see holdings.orders; likewise
	changed  func()            // called when either is another
	sourced  func()            // called when another control plane serves Envoy

	// settled is closed once Envoy has all that it asked for, with lanes of this agent.
	settled chan struct{}

	// prepare is called with endpoints before Envoy gets them.
	prepare func(endpoints []*discovery.Resource)
}

type envoyStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// session is one stream of Envoy. A newer one takes its place.
type session struct {
	stream  envoyStream
	end     context.CancelCauseFunc
	sending sync.Mutex
}

func (s *session) send(resp *discovery.DeltaDiscoveryResponse) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.Send(resp)
}

var (
	errReplaced = errors.New("another stream of Envoy took its place")
	errReturned = errors.New("a control plane answers again")
	errBehind   = errors.New("another control plane knows the region's state, and this one does not now")
)

func newRelay(c Config, saved resources, lanes string, restarts func() int, source *certs.Source) *relay {
	return &relay{
		planes: newControlPlanes(c, source), addresses: c.Addresses, lanes: lanes, version: c.Version, restarts: restarts,
		saves: make(chan resources, 1), log: c.Logger, holdings: newHoldings(saved),
		changed: func() {}, sourced: func() {}, settled: make(chan struct{}), prepare: func([]*discovery.Resource) {},
		nacks: map[string]int{envoy.ClusterType: 0, envoy.EndpointType: 0, envoy.SecretType: 0, envoy.ListenerType: 0},
	}
}

// server returns the gRPC server that Envoy connects to.
func (r *relay) server() *grpc.Server {
	s := grpc.NewServer(
		// Envoy pings idle connections more often than gRPC's default tolerates.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(maxMessage),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(s, r)
	return s
}

// StreamAggregatedResources refuses the state-of-the-world protocol.
func (r *relay) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "the sidecar's agent serves delta xDS only: use api_type DELTA_GRPC in the bootstrap")
}

// DeltaAggregatedResources serves one stream of Envoy until either side ends it or its source must change.
func (r *relay) DeltaAggregatedResources(stream envoyStream) error {
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s := &session{stream: stream, end: end}
	r.begin(s)
	defer r.finish(s)
	if _, err := r.request(s, first); err != nil {
		return err
	}
	saved := r.savedResources()
	patience := answerTimeout
	if saved != nil && len(first.InitialResourceVersions) == 0 {
		patience = emptyAnswerTimeout
	}
	up, err := r.planes.open(ctx, first, patience)
	if err != nil {
		if saved != nil {
			r.log.Warn("serving saved resources: no control plane answers", "error", err)
			return r.serveSaved(ctx, s, saved, first)
		}
		r.log.Warn("waiting for a control plane: none answers, and no resources are saved", "error", err)
		if up = r.await(ctx, first); up == nil {
			return unavailable(context.Cause(ctx))
		}
	}
	defer up.close()
	return r.pass(ctx, s, up)
}

// pass relays in both directions until one ends. Each direction waits for its receiver, so nothing piles up here.
func (r *relay) pass(ctx context.Context, s *session, up *upstream) error {
	r.log.Info("relaying xDS", "control_plane", up.address)
	r.serving(s, fromControlPlane, up.address)
	ended := make(chan error, 2)
	go func() {
		for {
			req, err := s.stream.Recv()
			if err == nil {
				err = r.up(s, up, req)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		resp, err := up.first, error(nil)
		for {
			if err == nil {
				err = r.down(s, up, resp)
			}
			if err != nil {
				ended <- err
				return
			}
			resp, err = up.stream.Recv()
		}
	}()
	select {
	case err := <-ended:
		if s.stream.Context().Err() == nil {
			r.log.Warn("the control plane's stream ended", "control_plane", up.address, "error", err)
		}
		return unavailable(err)
	case <-ctx.Done():
		return unavailable(context.Cause(ctx))
	}
}

// up passes a request on to the control plane, except for what answers the agent itself.
func (r *relay) up(s *session, up *upstream, req *discovery.DeltaDiscoveryRequest) error {
	restored, err := r.request(s, req)
	if err != nil {
		return err
	}
	if strings.HasPrefix(req.ResponseNonce, savedNonce) {
		req.ResponseNonce, req.ErrorDetail = "", nil
		if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) == 0 {
			return nil
		}
	}
	if err := up.send(req); err != nil || restored == nil {
		return err
	}
	r.log.Warn("Envoy has nothing older than what it rejected: it gets what is saved", "type", restored.TypeUrl)
	return r.respond(s, restored)
}

// down passes a response on to Envoy.
func (r *relay) down(s *session, up *upstream, resp *discovery.DeltaDiscoveryResponse) error {
	err := r.respond(s, resp)
	var unplaced *placeError
	if !errors.As(err, &unplaced) {
		return err
	}
	// Envoy never sees it, so it is rejected here as Envoy would.
	r.countRejection(resp, err.Error())
	return up.send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce,
		ErrorDetail: &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()},
	})
}

// respond sends Envoy a response with listeners at this sidecar's addresses, and lanes in this agent's folder.
func (r *relay) respond(s *session, resp *discovery.DeltaDiscoveryResponse) error {
	placed, err := r.place(resp)
	if err != nil {
		return &placeError{err}
	}
	r.mu.Lock()
	if r.current != s {
		r.mu.Unlock()
		return errReplaced
	}
	r.holdings.response(resp)
	r.mu.Unlock()
	if resp.TypeUrl == envoy.EndpointType {
		r.prepare(resp.Resources)
	}
	return s.send(placed)
}

// placeError says that a listener cannot be put at the sidecar's addresses, or a lane into the agent's folder.
type placeError struct{ error }

func (r *relay) place(resp *discovery.DeltaDiscoveryResponse) (*discovery.DeltaDiscoveryResponse, error) {
	var resources []*discovery.Resource
	var err error
	switch {
	case resp.TypeUrl == envoy.ListenerType:
		resources, err = envoy.PlaceListeners(resp.Resources, r.addresses)
	case resp.TypeUrl == envoy.EndpointType && slices.ContainsFunc(resp.Resources, envoy.HasLanes):
		resources, err = placeLanes(resp.Resources, r.lanes)
	default:
		return resp, nil
	}
	if err != nil {
		return nil, err
	}
	placed := proto.CloneOf(resp)
	placed.Resources = resources
	return placed, nil
}

// serveSaved answers from the saved resources until a control plane does.
func (r *relay) serveSaved(ctx context.Context, s *session, saved resources, first *discovery.DeltaDiscoveryRequest) error {
	r.serving(s, fromDisk, "")
	go func() {
		if up := r.await(ctx, proto.CloneOf(first)); up != nil {
			up.close()
			s.end(errReturned)
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- r.answer(s, saved, first) }()
	select {
	case err := <-ended:
		return unavailable(err)
	case <-ctx.Done():
		return unavailable(context.Cause(ctx))
	}
}

// answer serves one request after the other. Saved resources do not change, so there is nothing to send unasked.
func (r *relay) answer(s *session, saved resources, req *discovery.DeltaDiscoveryRequest) error {
	seen := map[string]bool{}
	for nonce := 1; ; nonce++ {
		resp := saved.answer(req, !seen[req.TypeUrl])
		seen[req.TypeUrl] = true
		if resp != nil {
			resp.Nonce = strconv.Itoa(nonce)
			if err := r.respond(s, resp); err != nil {
				return err
			}
		}
		var err error
		if req, err = s.stream.Recv(); err != nil {
			return err
		}
		if _, err := r.request(s, req); err != nil {
			return err
		}
	}
}

// await tries the control planes until one answers; nil when ctx ends first.
func (r *relay) await(ctx context.Context, first *discovery.DeltaDiscoveryRequest) *upstream {
	b := retry()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(b.NextBackOff()):
		}
		if up, err := r.planes.open(ctx, first, answerTimeout); err == nil {
			return up
		}
	}
}

// retry is how long to wait before each try to reach a control plane.
func retry() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 100 * time.Millisecond
	b.Multiplier = 1.5
	b.MaxInterval = 2 * time.Second
	b.RandomizationFactor = 0.5
	b.Reset()
	return b
}

func unavailable(err error) error { return status.Error(codes.Unavailable, err.Error()) }

func (r *relay) begin(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		r.current.end(errReplaced)
	}
	r.current = s
	r.source, r.plane = "", ""
	r.holdings.begin()
}

func (r *relay) finish(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == s {
		r.current = nil
		r.source, r.plane = "", ""
	}
}

func (r *relay) serving(s *session, source, plane string) {
	r.mu.Lock()
	if r.current == s {
		r.source, r.plane, r.before = source, plane, source
	}
	r.mu.Unlock()
	r.sourced()
}

// reconsider has Envoy come back, to be served by another, if the control plane that serves it is behind.
func (r *relay) reconsider() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil && r.plane != "" && r.planes.behind(r.plane) {
		r.current.end(errBehind)
	}
}

// endpoints are those that Envoy has acknowledged, and the shards that have lanes. They do not change.
func (r *relay) endpoints() (has map[string]string, lanes map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.has, r.laned
}

// orders are the rings of Envoy's clusters that it has acknowledged. They do not change.
func (r *relay) orders() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ordered
}

// servedBy is the control plane to which Envoy's stream is relayed, "" if there is none.
func (r *relay) servedBy() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.plane
}

// mayHave are the endpoints that Envoy has or may get without another's doing.
func (r *relay) mayHave() []*discovery.Resource {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holdings.mayHave(envoy.EndpointType)
}

func (r *relay) savedResources() resources {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holdings.saved
}

// request notes a request of Envoy and adds to it what the control plane wants to know of the sidecar. If it rejects
// what must be replaced, the replacement is returned.
func (r *relay) request(s *session, req *discovery.DeltaDiscoveryRequest) (restored *discovery.DeltaDiscoveryResponse, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != s {
		return nil, errReplaced
	}
	if req.TypeUrl == envoy.EndpointType {
		cutLaneVersions(req.InitialResourceVersions, r.lanes)
	}
	if rejected := r.holdings.request(req); rejected != nil {
		r.reject(rejected, req.ErrorDetail.GetMessage())
		restored = r.holdings.restore(rejected)
	}
	if req.TypeUrl == envoy.EndpointType {
		has, laned := r.holdings.endpoints()
		ordered := r.holdings.orders()
		if !maps.Equal(has, r.has) || !maps.Equal(laned, r.laned) || !maps.Equal(ordered, r.ordered) {
			r.has, r.laned, r.ordered = has, laned, ordered
			r.changed()
		}
	}
	if r.holdings.complete() {
		r.settle()
	}
	if set := r.holdings.save(); set != nil {
		select {
		case <-r.saves: // a newer set replaces one that still waits
		default:
		}
		r.saves <- set
	}
	if req.Node != nil {
		r.describe(req.Node)
	}
	return restored, nil
}

// settle closes settled. The caller holds the lock.
func (r *relay) settle() {
	select {
	case <-r.settled:
	default:
		close(r.settled)
	}
}

// describe adds the agent to a node's metadata.
func (r *relay) describe(node *core.Node) {
	if node.Metadata == nil {
		node.Metadata = &structpb.Struct{}
	}
	if node.Metadata.Fields == nil {
		node.Metadata.Fields = map[string]*structpb.Value{}
	}
	about := node.Metadata.Fields[envoy.MetadataKey].GetStructValue()
	if about == nil {
		about = &structpb.Struct{}
	}
	if about.Fields == nil {
		about.Fields = map[string]*structpb.Value{}
	}
	about.Fields["agent"] = structpb.NewStringValue(r.version)
	about.Fields["source"] = structpb.NewStringValue(r.before)
	about.Fields["envoy_restarts"] = structpb.NewNumberValue(float64(r.restarts()))
	node.Metadata.Fields[envoy.MetadataKey] = structpb.NewStructValue(about)
}

func (r *relay) countRejection(resp *discovery.DeltaDiscoveryResponse, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reject(resp, reason)
}

// reject counts a rejected response and logs its resources, those that the reason names if it names any.
// The caller holds the lock.
func (r *relay) reject(resp *discovery.DeltaDiscoveryResponse, reason string) {
	r.nacks[resp.TypeUrl]++
	guilty := slices.DeleteFunc(slices.Clone(resp.Resources), func(resource *discovery.Resource) bool {
		return !strings.Contains(reason, resource.Name)
	})
	if len(guilty) == 0 {
		guilty = resp.Resources
	}
	const most = 10
	for _, resource := range guilty[:min(len(guilty), most)] {
		r.log.Error("a resource was rejected, what it replaces stays", "type", resp.TypeUrl, "name", resource.Name,
			"version", resource.Version, "reason", reason, "resource", text(resource))
	}
}

// text is a resource as text, cut off where it becomes too long to read.
func text(resource *discovery.Resource) string {
	const most = 8 << 10
	s := prototext.Format(resource)
	if len(s) > most {
		s = fmt.Sprintf("%s… (%d bytes in all)", s[:most], len(s))
	}
	return s
}

// save writes each new complete set to path until ctx ends, the last one included.
func (r *relay) save(ctx context.Context, path string) error {
	write := func(set resources) {
		if err := saveResources(path, set); err != nil {
			r.log.Error("the resources are not saved: a restart without control plane would bring up older ones", "error", err)
		}
	}
	for {
		select {
		case set := <-r.saves:
			write(set)
		case <-ctx.Done():
			select {
			case set := <-r.saves:
				write(set)
			default:
			}
			return nil
		}
	}
}

func (r *relay) status() XDSStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := XDSStatus{
		Source: r.source, ControlPlane: r.plane, Version: r.holdings.held.version(), Resources: map[string]int{},
		Nacks: maps.Clone(r.nacks), Changed: r.holdings.changed,
	}
	for typeURL, named := range r.holdings.held {
		s.Resources[typeURL] = len(named)
	}
	return s
}
