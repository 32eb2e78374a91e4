// Package xds serves one region's resources to its Envoys over ADS, incremental and state of the world.
//
// Pushes are staged for each stream by what it has acknowledged: a listener is sent once all clusters that it
// routes to are acknowledged with their endpoints and secrets, and a cluster is removed only when no listener that the
// stream has can name it any more. What a stream rejects is kept for status and not sent again unchanged.
// Streams that need the same resources share them, marshalled once.
//
// It decides nothing about content: resources come whole and consistent from package envoy.
package xds

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/cachemesh/cachemesh/envoy"
)

// types are served in this order whenever a stream could be sent several.
var types = []string{envoy.ClusterType, envoy.EndpointType, envoy.SecretType, envoy.ListenerType}

// Config is what a Server needs to know.
type Config struct {
	Region string // nodes of another region are refused
	// Authorise, if set, says whether the certificate that a stream came with may speak for the node of its first request.
	// The certificate is verified already; nil is none.
	Authorise func(certificate *x509.Certificate, region, node string) error
	// RemoveAfter is how long a cluster stays after the last listener that names it was replaced: longer than
	// Envoy drains the connections of a replaced listener.
	RemoveAfter time.Duration
	// KeepGone is how long a node that has disconnected stays in Nodes.
	KeepGone time.Duration
	Now      func() time.Time // nil is time.Now
	// Observe, if set, is called after each acknowledgement, rejection and synchronisation.
	Observe Observer
}

// Observer is told what happens on streams, for logs and metrics. Its methods must return at once.
type Observer interface {
	Rejected(node, typeURL, reason string)
	// Synced says that a node has all of a set, so long after it was set or the node connected.
	Synced(node string, after time.Duration)
	Sent(typeURL string, resources, bytes int)
}

// Server holds a region's resources and the streams that are served them. One lock guards all of it: what is
// done under it is small.
type Server struct {
	config Config

	mu        sync.Mutex
	resources *envoy.Resources // nil until the first Set
	setAt     time.Time
	placed    map[envoy.Addresses]*envoy.Resources // for Envoys without an agent, by their addresses
	streams   map[streamID]*stream
	requests  map[any]*stream // the stream of a request that a watch is about to be created for
	gone      map[string]Node // by node id
}

// streamID tells streams apart: the library numbers those of each protocol from 1.
type streamID struct {
	delta bool
	id    int64
}

// NewServer returns a server without resources: streams wait until Set.
func NewServer(c Config) *Server {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Server{
		config:   c,
		placed:   map[envoy.Addresses]*envoy.Resources{},
		streams:  map[streamID]*stream{},
		requests: map[any]*stream{},
		gone:     map[string]Node{},
	}
}

// Register offers the server's ADS on g; streams end with ctx.
func (s *Server) Register(ctx context.Context, g *grpc.Server) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(ctx, (*watcher)(s), (*callbacks)(s), sotw.WithOrderedADS()))
}

// Set replaces the resources and pushes to every stream what it may have of them now.
func (s *Server) Set(r *envoy.Resources) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resources != nil && s.resources.Version == r.Version {
		return
	}
	s.resources, s.setAt = r, s.config.Now()
	clear(s.placed)
	for _, st := range s.streams {
		st.target = s.resourcesFor(st)
		st.note(s.config.Now())
		s.push(st, "")
	}
}

// Version is that of the resources, "" before the first Set.
func (s *Server) Version() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resources == nil {
		return ""
	}
	return s.resources.Version
}

// Tick removes clusters whose time has come and forgets nodes that have been gone for long. Call it about once a second.
func (s *Server) Tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	for _, st := range s.streams {
		if st.removalsDue(now, s.config.RemoveAfter) {
			s.push(st, "")
		}
	}
	for id, n := range s.gone {
		if now.Sub(n.Since) > s.config.KeepGone {
			delete(s.gone, id)
		}
	}
}

// resourcesFor returns what a stream is to have in the end: the shared resources or, for an Envoy without an agent to
// place them, a copy with listeners at its addresses, shared with all that have the same.
func (s *Server) resourcesFor(st *stream) *envoy.Resources {
	if s.resources == nil || st.addresses == nil {
		return s.resources
	}
	if r, ok := s.placed[*st.addresses]; ok {
		return r
	}
	r := *s.resources
	listeners, err := envoy.PlaceListeners(r.Listeners, *st.addresses)
	if err != nil {
		// The addresses were validated when the stream named them.
		panic(err)
	}
	r.Listeners = listeners
	s.placed[*st.addresses] = &r
	return &r
}

// push answers each open watch of a stream that something is due on, except that of a type whose watch the
// library is about to replace.
func (s *Server) push(st *stream, except string) {
	for _, typeURL := range types {
		if typeURL == except {
			continue
		}
		if w := st.watches[typeURL]; w != nil && s.answer(st, w) {
			delete(st.watches, typeURL)
		}
	}
}

// answer sends what is due on a watch and says whether it sent anything. The library gives its channels room for
// an answer to each watch, so sending never blocks.
func (s *Server) answer(st *stream, w *watch) bool {
	if st.target == nil {
		return false
	}
	now := s.config.Now()
	if w.delta != nil {
		send, remove := st.due(w.typeURL, w.subscription, now, s.config.RemoveAfter)
		if len(send) == 0 && len(remove) == 0 && !w.greet {
			return false
		}
		w.deltaResponses <- deltaResponse(w, st.target.Version, send, remove)
		s.observeSent(w.typeURL, send)
		return true
	}
	response := st.stateOfTheWorld(w, now, s.config.RemoveAfter)
	if response == nil {
		return false
	}
	w.responses <- response
	s.observeSent(w.typeURL, response.resources)
	return true
}

func (s *Server) observeSent(typeURL string, resources []*discovery.Resource) {
	if s.config.Observe == nil {
		return
	}
	bytes := 0
	for _, r := range resources {
		bytes += len(r.Resource.Value)
	}
	s.config.Observe.Sent(typeURL, len(resources), bytes)
}

// watcher is the Server as the library's server sees it.
type watcher Server

func (w *watcher) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, responses chan cache.DeltaResponse) (func(), error) {
	return (*Server)(w).watch(req, &watch{typeURL: req.GetTypeUrl(), subscription: sub, delta: req, deltaResponses: responses})
}

func (w *watcher) CreateWatch(req *cache.Request, sub cache.Subscription, responses chan cache.Response) (func(), error) {
	return (*Server)(w).watch(req, &watch{typeURL: req.GetTypeUrl(), subscription: sub, request: req, responses: responses})
}

func (w *watcher) Fetch(context.Context, *cache.Request) (cache.Response, error) {
	return nil, errors.New("only streams are served")
}

func (s *Server) watch(req any, w *watch) (cancel func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.requests[req]
	delete(s.requests, req)
	if st == nil {
		return nil, errors.New("request of an unknown stream")
	}
	// A stream's first request for clusters is always answered, if only with nothing: whoever relays the stream knows by
	// it that this control plane works.
	w.greet = w.typeURL == envoy.ClusterType && !st.subscribed[w.typeURL]
	st.subscribed[w.typeURL] = true
	if s.answer(st, w) {
		return func() {}, nil
	}
	st.watches[w.typeURL] = w
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if st.watches[w.typeURL] == w {
			delete(st.watches, w.typeURL)
		}
	}, nil
}

// Certificate is what the client of a stream has proved to own, nil for none.
func Certificate(ctx context.Context) *x509.Certificate {
	client, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := client.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// callbacks is the Server as the library reports streams to it.
type callbacks Server

func (c *callbacks) OnStreamOpen(ctx context.Context, id int64, typeURL string) error {
	return (*Server)(c).open(streamID{id: id}, typeURL, Certificate(ctx))
}

func (c *callbacks) OnDeltaStreamOpen(ctx context.Context, id int64, typeURL string) error {
	return (*Server)(c).open(streamID{delta: true, id: id}, typeURL, Certificate(ctx))
}

func (c *callbacks) OnStreamClosed(id int64, _ *corev3.Node) {
	(*Server)(c).closed(streamID{id: id})
}

func (c *callbacks) OnDeltaStreamClosed(id int64, _ *corev3.Node) {
	(*Server)(c).closed(streamID{delta: true, id: id})
}

func (c *callbacks) OnStreamDeltaRequest(id int64, req *discovery.DeltaDiscoveryRequest) error {
	return (*Server)(c).request(streamID{delta: true, id: id}, req, request{
		node: req.GetNode(), typeURL: req.GetTypeUrl(), nonce: req.GetResponseNonce(), err: req.GetErrorDetail(),
		initial: req.GetInitialResourceVersions(),
	})
}

func (c *callbacks) OnStreamRequest(id int64, req *discovery.DiscoveryRequest) error {
	return (*Server)(c).request(streamID{id: id}, req, request{
		node: req.GetNode(), typeURL: req.GetTypeUrl(), nonce: req.GetResponseNonce(), err: req.GetErrorDetail(),
	})
}

func (c *callbacks) OnStreamDeltaResponse(id int64, _ *discovery.DeltaDiscoveryRequest, resp *discovery.DeltaDiscoveryResponse) {
	(*Server)(c).sent(streamID{delta: true, id: id}, resp.GetNonce(), sentSet{
		typeURL: resp.GetTypeUrl(), resources: resp.GetResources(), removed: resp.GetRemovedResources(),
	})
}

func (c *callbacks) OnStreamResponse(ctx context.Context, id int64, _ *discovery.DiscoveryRequest, resp *discovery.DiscoveryResponse) {
	all, _ := ctx.Value(worldKey{}).([]*discovery.Resource)
	(*Server)(c).sent(streamID{id: id}, resp.GetNonce(), sentSet{
		typeURL: resp.GetTypeUrl(), resources: all, world: true, version: resp.GetVersionInfo(),
	})
}

func (c *callbacks) OnFetchRequest(context.Context, *discovery.DiscoveryRequest) error {
	return errors.New("only streams are served")
}

func (c *callbacks) OnFetchResponse(*discovery.DiscoveryRequest, *discovery.DiscoveryResponse) {}
