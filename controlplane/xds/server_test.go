package xds

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// resources builds those of a mesh whose pools are named, each with a shard at the port.
func resources(t *testing.T, port int, pools ...string) *envoy.Resources {
	t.Helper()
	topology := mesh.Topology{Region: "home", OpTimeout: time.Second}
	for _, name := range pools {
		topology.Pools = append(topology.Pools, mesh.Pool{
			Name: name, Hashing: mesh.Hashing{Algorithm: mesh.RingHash, Size: 1024},
			Routes: []mesh.Route{{Prefix: name + ":"}},
			Shards: []mesh.Shard{{Name: name + "-0", Weight: 1, Nodes: []mesh.Node{{Address: fmt.Sprintf("127.0.0.1:%d", port), Role: mesh.Primary}}}},
		})
	}
	r, err := envoy.Build(topology)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// clock is moved by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func serve(t *testing.T) (*Server, *clock, discovery.AggregatedDiscoveryServiceClient) {
	t.Helper()
	c := &clock{now: time.Unix(1_000_000, 0)}
	s := NewServer(Config{Region: "home", RemoveAfter: 15 * time.Second, KeepGone: time.Minute, Now: c.Now})
	listener := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	s.Register(t.Context(), g)
	go g.Serve(listener)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return s, c, discovery.NewAggregatedDiscoveryServiceClient(conn)
}

func node(name string, metadata map[string]any) *corev3.Node {
	if metadata == nil {
		metadata = map[string]any{"agent": "test", "envoy_restarts": 2}
	}
	meta, err := structpb.NewStruct(map[string]any{envoy.MetadataKey: metadata})
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: name, Locality: &corev3.Locality{Region: "home"}, Metadata: meta}
}

// deltaEnvoy plays an Envoy that speaks the incremental protocol, one step at a time.
type deltaEnvoy struct {
	t      *testing.T
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node   *corev3.Node
	came   chan *discovery.DeltaDiscoveryResponse
	err    chan error
}

func connectDelta(t *testing.T, client discovery.AggregatedDiscoveryServiceClient, n *corev3.Node) *deltaEnvoy {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e := &deltaEnvoy{t: t, stream: stream, node: n, came: make(chan *discovery.DeltaDiscoveryResponse, 10000), err: make(chan error, 1)}
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				e.err <- err
				return
			}
			e.came <- r
		}
	}()
	return e
}

func (e *deltaEnvoy) send(r *discovery.DeltaDiscoveryRequest) {
	e.t.Helper()
	r.Node, e.node = e.node, nil
	if err := e.stream.Send(r); err != nil {
		e.t.Fatal(err)
	}
}

func (e *deltaEnvoy) subscribe(typeURL string, names ...string) {
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

func (e *deltaEnvoy) ack(r *discovery.DeltaDiscoveryResponse) {
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

func (e *deltaEnvoy) nack(r *discovery.DeltaDiscoveryResponse, reason string) {
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: &rpc.Status{Message: reason}})
}

// receive waits for the next answer and checks what it holds: "cluster a,b -c".
func (e *deltaEnvoy) receive(want string) *discovery.DeltaDiscoveryResponse {
	e.t.Helper()
	select {
	case r := <-e.came:
		var names []string
		for _, resource := range r.Resources {
			names = append(names, resource.Name)
		}
		got := ShortType(r.TypeUrl) + " " + strings.Join(names, ",")
		for _, name := range r.RemovedResources {
			got += " -" + name
		}
		if got != want {
			e.t.Fatalf("came %q, want %q", got, want)
		}
		return r
	case err := <-e.err:
		e.t.Fatalf("stream ended: %v, want %q", err, want)
	case <-time.After(5 * time.Second):
		e.t.Fatalf("nothing came, want %q", want)
	}
	return nil
}

// quiet makes sure that nothing is on its way: what follows a request that is surely answered comes after it.
func (e *deltaEnvoy) quiet(s *Server) {
	e.t.Helper()
	const probe = "no-such-endpoints"
	e.subscribe(envoy.EndpointType, probe)
	waitFor(e.t, "the probe is seen", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, st := range s.streams {
			if w := st.watches[envoy.EndpointType]; w != nil {
				if _, ok := w.subscription.SubscribedResources()[probe]; ok {
					return true
				}
			}
		}
		return false
	})
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.EndpointType, ResourceNamesUnsubscribe: []string{probe}})
	select {
	case r := <-e.came:
		e.t.Fatalf("came %v, want nothing", r)
	default:
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 5 s: %s", what)
		}
	}
}

func waitState(t *testing.T, s *Server, name string, want State) Node {
	t.Helper()
	var n Node
	waitFor(t, fmt.Sprintf("%s is %s", name, want), func() bool {
		i := slices.IndexFunc(s.Nodes(), func(n Node) bool { return n.Name == name })
		if i < 0 {
			return false
		}
		n = s.Nodes()[i]
		return n.State == want
	})
	return n
}

// start brings a new Envoy to where it has everything.
func (e *deltaEnvoy) start(pools ...string) {
	e.t.Helper()
	var clusters []string
	for _, p := range pools {
		clusters = append(clusters, p, p+"/writes")
	}
	all := strings.Join(clusters, ",")
	e.subscribe(envoy.ClusterType)
	c := e.receive("cluster " + all)
	e.subscribe(envoy.EndpointType, clusters...)
	ends := e.receive("endpoints " + all)
	e.ack(c)
	e.ack(ends)
	e.subscribe(envoy.ListenerType)
	e.ack(e.receive("listener redis,redis-resp3"))
}

func TestListenersWaitForTheirClusters(t *testing.T) {
	s, _, client := serve(t)
	e := connectDelta(t, client, node("a", nil))
	e.subscribe(envoy.ClusterType)
	e.subscribe(envoy.ListenerType)
	e.subscribe(envoy.EndpointType, "one", "one/writes")
	e.quiet(s) // no resources yet
	s.Set(resources(t, 7001, "one"))
	clusters := e.receive("cluster one,one/writes")
	endpoints := e.receive("endpoints one,one/writes")
	e.quiet(s) // nothing is acknowledged
	e.ack(clusters)
	e.quiet(s) // the endpoints are not
	e.ack(endpoints)
	e.ack(e.receive("listener redis,redis-resp3"))
	if n := waitState(t, s, "a", Synced); n.Version != s.Version() || n.Agent != "test" || n.EnvoyRestarts != 2 {
		t.Errorf("node %+v, want version %s", n, s.Version())
	}
}

func TestAnAddressChangeIsEndpointsAlone(t *testing.T) {
	s, _, client := serve(t)
	s.Set(resources(t, 7001, "one", "two"))
	e := connectDelta(t, client, node("a", nil))
	e.start("one", "two")
	waitState(t, s, "a", Synced)
	s.Set(resources(t, 7002, "one", "two"))
	waitState(t, s, "a", Stale)
	e.ack(e.receive("endpoints one,one/writes,two,two/writes"))
	waitState(t, s, "a", Synced)
	e.quiet(s)
}

func TestAClusterGoesAfterTheLastListenerThatNamesIt(t *testing.T) {
	s, c, client := serve(t)
	s.Set(resources(t, 7001, "one", "two"))
	e := connectDelta(t, client, node("a", nil))
	e.start("one", "two")
	waitState(t, s, "a", Synced)
	s.Set(resources(t, 7001, "one"))
	listeners := e.receive("listener redis,redis-resp3")
	c.advance(time.Hour)
	s.Tick()
	e.quiet(s) // the listeners are not acknowledged
	e.ack(listeners)
	waitState(t, s, "a", Synced)
	c.advance(14 * time.Second)
	s.Tick()
	e.quiet(s) // their predecessors still drain
	c.advance(time.Second)
	s.Tick()
	e.ack(e.receive("cluster  -two -two/writes"))
	e.quiet(s)
}

func TestANewPoolIsThereBeforeItsRoute(t *testing.T) {
	s, _, client := serve(t)
	s.Set(resources(t, 7001, "one"))
	e := connectDelta(t, client, node("a", nil))
	e.start("one")
	waitState(t, s, "a", Synced)
	s.Set(resources(t, 7001, "one", "two"))
	clusters := e.receive("cluster two,two/writes")
	e.subscribe(envoy.EndpointType, "two", "two/writes")
	endpoints := e.receive("endpoints two,two/writes")
	e.ack(endpoints)
	e.quiet(s)
	e.ack(clusters)
	e.ack(e.receive("listener redis,redis-resp3"))
	waitState(t, s, "a", Synced)
}

func TestARejectedResourceIsShownAndNotSentAgain(t *testing.T) {
	s, _, client := serve(t)
	s.Set(resources(t, 7001, "one"))
	e := connectDelta(t, client, node("a", nil))
	e.start("one")
	waitState(t, s, "a", Synced)
	good := s.Version()
	s.Set(resources(t, 7002, "one"))
	e.nack(e.receive("endpoints one,one/writes"), "I do not like one")
	n := waitState(t, s, "a", Rejected)
	if n.Reason != "I do not like one" || n.Version != good || !slices.Equal(n.Rejections[0].Resources, []string{"one", "one/writes"}) {
		t.Errorf("node %+v", n)
	}
	e.quiet(s)
	s.Set(resources(t, 7003, "one"))
	e.ack(e.receive("endpoints one,one/writes"))
	if n := waitState(t, s, "a", Synced); len(n.Rejections) != 0 {
		t.Errorf("node %+v, want no rejection left", n)
	}
}

func TestAReturningEnvoyGetsOnlyWhatDiffers(t *testing.T) {
	s, _, client := serve(t)
	r := resources(t, 7002, "one")
	s.Set(r)
	e := connectDelta(t, client, node("a", nil))
	versions := func(typeURL string) map[string]string {
		m := map[string]string{}
		for _, resource := range r.ByType(typeURL) {
			m[resource.Name] = resource.Version
		}
		return m
	}
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.ClusterType, InitialResourceVersions: versions(envoy.ClusterType)})
	had := versions(envoy.EndpointType)
	had["one"] = "older"
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.EndpointType, ResourceNamesSubscribe: []string{"one", "one/writes"}, InitialResourceVersions: had})
	e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.ListenerType, InitialResourceVersions: versions(envoy.ListenerType)})
	e.ack(e.receive("cluster "))
	e.ack(e.receive("endpoints one"))
	waitState(t, s, "a", Synced)
	e.quiet(s)
}

func TestNodesThatNeedTheSameShareIt(t *testing.T) {
	s, _, client := serve(t)
	r := resources(t, 7001, "one")
	s.Set(r)
	alone := map[string]any{"redis": "127.0.0.1:7777", "redis_resp3": "127.0.0.1:7778"}
	for _, name := range []string{"a", "b"} {
		connectDelta(t, client, node(name, nil)).start("one")
		connectDelta(t, client, node("alone-"+name, alone)).start("one")
	}
	for _, name := range []string{"a", "b", "alone-a", "alone-b"} {
		waitState(t, s, name, Synced)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.placed) != 1 {
		t.Errorf("%d copies for Envoys at the same addresses, want 1", len(s.placed))
	}
	for _, st := range s.streams {
		if st.addresses == nil && st.target != r {
			t.Error("an Envoy with an agent has resources of its own")
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	_, _, client := serve(t)
	elsewhere := node("a", nil)
	elsewhere.Locality.Region = "mars"
	for want, e := range map[string]*deltaEnvoy{
		`of region "mars"`:   connectDelta(t, client, elsewhere),
		"the node has no id": connectDelta(t, client, node("", nil)),
		"is not on loopback": connectDelta(t, client, node("a", map[string]any{"redis": "10.0.0.1:6379", "redis_resp3": "127.0.0.1:6380"})),
		"is not served here": connectDelta(t, client, node("a", nil)),
	} {
		typeURL := envoy.ClusterType
		if want == "is not served here" {
			typeURL = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
		}
		e.subscribe(typeURL)
		err := <-e.err
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want InvalidArgument with %q", err, want)
		}
	}
}

func TestANodeThatLeavesIsShownForAWhile(t *testing.T) {
	s, c, client := serve(t)
	s.Set(resources(t, 7001, "one"))
	e := connectDelta(t, client, node("a", nil))
	e.start("one")
	waitState(t, s, "a", Synced)
	e.stream.CloseSend()
	if n := waitState(t, s, "a", Stale); n.Reason != "disconnected" || n.Connected {
		t.Errorf("node %+v, want disconnected", n)
	}
	c.advance(2 * time.Minute)
	s.Tick()
	if nodes := s.Nodes(); len(nodes) != 0 {
		t.Errorf("nodes %+v, want none", nodes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) != 0 || len(s.requests) != 0 {
		t.Errorf("%d streams and %d requests are kept", len(s.streams), len(s.requests))
	}
}
