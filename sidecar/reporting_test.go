package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/reports"
)

// heard takes one agent's reports, as a control plane does, and instructs it.
type heard struct {
	reports.UnimplementedReportsServer

	mu       sync.Mutex
	agent    *reports.Agent
	streams  int // so far
	open     int
	left     int
	verdicts map[string]*reports.Verdict
	has      map[string]string // as the stream that began last told
	count    int               // reports
	instruct *reports.Instructions
	wake     chan struct{}
}

func newHeard() *heard { return &heard{wake: make(chan struct{}, 1)} }

func (h *heard) ask(interval, downAfter time.Duration, targets ...*reports.Target) {
	h.tell(&reports.Instructions{IntervalMs: uint32(interval.Milliseconds()), DownAfterMs: uint32(downAfter.Milliseconds()), Targets: targets})
}

// publish instructs the agent to follow a topology.
func (h *heard) publish(t testing.TB, topology mesh.Topology) {
	t.Helper()
	text, err := json.Marshal(topology)
	if err != nil {
		t.Fatal(err)
	}
	h.tell(&reports.Instructions{IntervalMs: 100, DownAfterMs: 300, Topology: text})
}

func (h *heard) tell(instructions *reports.Instructions) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.instruct = instructions
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *heard) Connect(stream reports.Reports_ConnectServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.Agent == nil {
		return status.Error(codes.InvalidArgument, "the first report names no agent")
	}
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	h.mu.Lock()
	h.agent, h.has = first.Agent, map[string]string{}
	h.streams++
	h.open++
	instructions := h.instruct
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.open--
	}()
	if instructions != nil {
		if err := stream.Send(instructions); err != nil {
			return err
		}
	}
	received := make(chan error, 1)
	go func() {
		for report := first; ; {
			if err := h.take(report); err != nil {
				received <- err
				return
			}
			var err error
			if report, err = stream.Recv(); err != nil {
				received <- err
				return
			}
		}
	}()
	for {
		select {
		case err := <-received:
			if err == io.EOF {
				err = nil
			}
			return err
		case <-h.wake:
			h.mu.Lock()
			instructions := h.instruct
			h.mu.Unlock()
			if err := stream.Send(instructions); err != nil {
				return err
			}
		}
	}
}

func (h *heard) take(r *reports.Report) error {
	if err := r.Check(); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	if r.Leaving {
		h.left++
		return io.EOF
	}
	h.verdicts = map[string]*reports.Verdict{}
	for _, v := range r.Verdicts {
		h.verdicts[v.Shard] = v
	}
	for _, e := range r.Endpoints {
		h.has[e.Shard] = e.Address
	}
	return nil
}

// wait waits until what was heard is as ok says; ok returns what is missing.
func (h *heard) wait(t testing.TB, ok func(h *heard) string) {
	t.Helper()
	eventually(t, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if missing := ok(h); missing != "" {
			return fmt.Errorf("%s: heard %v, %v of %v in %d streams, %d open", missing, h.verdicts, h.has, h.agent, h.streams, h.open)
		}
		return nil
	})
}

// waitVerdict waits for a verdict with such an error.
func (h *heard) waitVerdict(t testing.TB, shard string, down bool, reason string) (v *reports.Verdict) {
	t.Helper()
	h.wait(t, func(h *heard) string {
		v = h.verdicts[shard]
		if v == nil || v.Down != down || !strings.Contains(v.Error, reason) || (reason == "" && v.Error != "") {
			return fmt.Sprintf("want %s down=%v %q", shard, down, reason)
		}
		return ""
	})
	return v
}

// waitHas waits until the Envoy is known to have these endpoints.
func (h *heard) waitHas(t testing.TB, want map[string]string) {
	t.Helper()
	h.wait(t, func(h *heard) string {
		if h.open == 0 || !maps.Equal(h.has, want) {
			return fmt.Sprintf("want the endpoints %v", want)
		}
		return ""
	})
}

// startReporting runs an agent that only reports, until stop is called or the test ends.
func startReporting(t testing.TB, endpoints map[string]string, planes ...*controlPlane) (r *reporting, stop func()) {
	t.Helper()
	c := Config{Name: "here-0", Region: "here", Version: "test", Logger: slog.New(slog.DiscardHandler)}
	for _, p := range planes {
		c.ControlPlanes = append(c.ControlPlanes, p.address)
	}
	return runReporting(t, c, nil, endpoints)
}

func runReporting(t testing.TB, c Config, source *certs.Source, endpoints map[string]string) (r *reporting, stop func()) {
	t.Helper()
	topologies := newTopologies(c.Region, func() string { return "" }, nil, c.Logger)
	r = newReporting(c, newControlPlanes(c, source), func() map[string]string { return endpoints }, topologies, newLink(c, "", source))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return r, stop
}

func startedPlane(t testing.TB) *controlPlane {
	t.Helper()
	p := newControlPlane(t)
	p.start(t)
	return p
}

func TestEveryControlPlaneGetsReportsAndOutlivedOnesGetThemAgain(t *testing.T) {
	first, second, late := startedPlane(t), startedPlane(t), newControlPlane(t)
	first.heard.ask(20*time.Millisecond, 200*time.Millisecond, &reports.Target{Shard: "all-0", Epoch: 3, Address: shards[0]})
	second.heard.ask(20*time.Millisecond, 200*time.Millisecond, &reports.Target{Shard: "all-1", Epoch: 4, Address: shards[1]})
	has := map[string]string{"all-0": shards[0], "all-1": "hold/all-1.sock"}
	r, stop := startReporting(t, has, first, second, late)
	for shard, p := range map[string]*controlPlane{"all-0": first, "all-1": second} {
		p.heard.waitHas(t, has)
		v := p.heard.waitVerdict(t, shard, false, "")
		p.heard.wait(t, func(h *heard) string {
			if len(h.verdicts) != 1 || v.Epoch == 0 || v.Address == "" || h.agent.Name != "here-0" || h.agent.Region != "here" || h.agent.Version != "test" {
				return "want its own target of this agent only"
			}
			return ""
		})
	}
	late.start(t)
	late.heard.waitHas(t, has)
	if s := r.status(); len(s) != 3 || !slices.ContainsFunc(s, func(s ReportingStatus) bool {
		return s == ReportingStatus{ControlPlane: first.address, Connected: true, Targets: 1}
	}) {
		t.Errorf("status %+v", s)
	}

	// A control plane that comes back is told all, and finds verdicts before it asks again.
	first.stop()
	eventually(t, func() error {
		if s := r.status(); slices.IndexFunc(s, func(s ReportingStatus) bool { return !s.Connected && s.Problem != "" && s.Targets == 1 }) < 0 {
			return fmt.Errorf("status %+v, want one that is not connected and whose target is still probed", s)
		}
		return nil
	})
	first.heard.mu.Lock()
	first.heard.instruct, first.heard.has, first.heard.verdicts = nil, nil, nil
	first.heard.mu.Unlock()
	first.start(t)
	first.heard.waitHas(t, has)
	first.heard.waitVerdict(t, "all-0", false, "")

	stop()
	for _, p := range []*controlPlane{first, second, late} {
		p.heard.wait(t, func(h *heard) string {
			if h.left != 1 || h.open != 0 {
				return "want that the agent has left"
			}
			return ""
		})
	}
	if n := len(r.witness.probes); n != 0 {
		t.Errorf("%d probes are left", n)
	}
}

func TestAFrozenControlPlaneDelaysNoOther(t *testing.T) {
	frozen, good := startedPlane(t), startedPlane(t)
	f := newFreezer(t, frozen.address)
	c := Config{Name: "here-0", Region: "here", ControlPlanes: []string{f.Addr().String(), good.address}, Logger: slog.New(slog.DiscardHandler)}
	for _, p := range []*controlPlane{frozen, good} {
		p.heard.ask(10*time.Millisecond, 100*time.Millisecond, &reports.Target{Shard: "all-0", Epoch: 1, Address: shards[0]})
	}
	_, stop := runReporting(t, c, nil, nil)
	frozen.heard.waitVerdict(t, "all-0", false, "")
	close(f.frozen)
	good.heard.ask(10*time.Millisecond, 100*time.Millisecond, &reports.Target{Shard: "all-0", Epoch: 2, Address: freeAddresses(t, 1)[0]})
	good.heard.waitVerdict(t, "all-0", true, "refused")
	begun := time.Now()
	stop()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the goodbye took %v", took)
	}
}

func TestEveryAddressOfANameGetsReports(t *testing.T) {
	port := freeAddresses(t, 1)[0]
	_, port, _ = net.SplitHostPort(port)
	ips, err := net.LookupHost("localhost")
	if err != nil {
		t.Fatal(err)
	}
	var planes []*controlPlane
	for _, ip := range ips {
		p := newControlPlane(t)
		p.address = net.JoinHostPort(ip, port)
		p.start(t)
		planes = append(planes, p)
	}
	c := Config{Name: "here-0", Region: "here", ControlPlanes: []string{"localhost:" + port, "127.0.0.1:" + port}, Logger: slog.New(slog.DiscardHandler)}
	r, _ := runReporting(t, c, nil, map[string]string{"all-0": "127.0.0.1:1"})
	for _, p := range planes {
		p.heard.waitHas(t, map[string]string{"all-0": "127.0.0.1:1"})
		p.heard.wait(t, func(h *heard) string {
			if h.streams != 1 {
				return "want one stream of the two names"
			}
			return ""
		})
	}
	if got := len(r.status()); got != len(planes) {
		t.Errorf("%d control planes, want %d", got, len(planes))
	}
}

func TestAControlPlaneThatNoNameResolvesToIsDroppedWhenItBreaks(t *testing.T) {
	plane := startedPlane(t)
	r, _ := startReporting(t, nil, plane)
	plane.heard.wait(t, func(h *heard) string {
		if h.open != 1 {
			return "want a stream"
		}
		return ""
	})
	if begun := r.resolved(map[string]string{}, map[string]bool{plane.address: true}); len(begun) != 0 || !r.streams[plane.address].current {
		t.Error("a name that does not resolve now loses its control plane")
	}
	r.resolved(map[string]string{}, nil)
	if len(r.status()) != 1 {
		t.Error("a stream that works ended")
	}
	plane.stop()
	eventually(t, func() error {
		if s := r.status(); len(s) != 0 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
}

func TestReportsOverTLS(t *testing.T) {
	a, err := certs.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := func(name string, l certs.Leaf) certs.Files {
		pair, err := a.Issue(l)
		if err != nil {
			t.Fatal(err)
		}
		base := filepath.Join(dir, name)
		if err := errors.Join(pair.Write(base), certs.Pair{Cert: a.PEM(), Key: a.PEM()}.Write(base+"-ca")); err != nil {
			t.Fatal(err)
		}
		return certs.Files{CA: base + "-ca.pem", Cert: base + ".pem", Key: base + "-key.pem"}
	}
	open := func(f certs.Files) *certs.Source {
		source, err := certs.Open(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		return source
	}
	server := open(files("server", certs.Leaf{Name: "control-plane", Hosts: []string{"control-plane"}, Server: true}))
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(server.Server(true))))
	h := newHeard()
	reports.RegisterReportsServer(g, h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	client := open(files("client", certs.Leaf{Name: "here-0"}))
	c := Config{Name: "here-0", Region: "here", ControlPlanes: []string{l.Addr().String()}, TLSServerName: "control-plane", Logger: slog.New(slog.DiscardHandler)}
	runReporting(t, c, client, map[string]string{"all-0": "127.0.0.1:1"})
	h.waitHas(t, map[string]string{"all-0": "127.0.0.1:1"})

	// One whose certificate is for another name gets nothing.
	c.TLSServerName = "other"
	r, _ := runReporting(t, c, client, nil)
	eventually(t, func() error {
		if s := r.status(); len(s) != 1 || s[0].Connected || !strings.Contains(s[0].Problem, "control-plane") {
			return fmt.Errorf("status %+v, want a problem that names the certificate's host", s)
		}
		return nil
	})
	h.wait(t, func(h *heard) string {
		if h.streams != 1 {
			return "want one stream"
		}
		return ""
	})
}

func TestTargetsOfAControlPlaneThatStaysAwayAreForgotten(t *testing.T) {
	plane := startedPlane(t)
	plane.heard.ask(20*time.Millisecond, 200*time.Millisecond, &reports.Target{Shard: "all-0", Epoch: 1, Address: shards[0]})
	c := Config{Name: "here-0", Region: "here", ControlPlanes: []string{plane.address}, Logger: slog.New(slog.DiscardHandler)}
	r := newReporting(c, newControlPlanes(c, nil), func() map[string]string { return nil }, newTopologies("here", func() string { return "" }, nil, slog.New(slog.DiscardHandler)), newLink(c, "", nil))
	r.keep = 300 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	plane.heard.waitVerdict(t, "all-0", false, "")
	plane.stop()
	eventually(t, func() error {
		if s := r.status(); len(s) != 1 || s[0].Connected || s[0].Targets != 0 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	plane.start(t)
	plane.heard.waitVerdict(t, "all-0", false, "")
}

func TestAnOlderControlPlaneIsNoTrouble(t *testing.T) {
	g := grpc.NewServer() // without the service
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	c := Config{Name: "here-0", Region: "here", ControlPlanes: []string{l.Addr().String()}, Logger: slog.New(slog.DiscardHandler)}
	r, _ := runReporting(t, c, nil, nil)
	eventually(t, func() error {
		if s := r.status(); len(s) != 1 || s[0].Connected || !strings.Contains(s[0].Problem, "unknown service") {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
}

func TestEndpointsAreReportedOnceEnvoyAcknowledgedThem(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.start(t)
	s.waitServing(t)
	plane.heard.waitHas(t, map[string]string{"all-0": shards[0], "all-1": shards[1]})

	// The shards change places, and one of them is a socket.
	swapped := topology(shards[1], shards[0])
	swapped.Pools[0].Shards[1].StandIn = mesh.Null
	plane.serve(t, "2", build(t, swapped))
	after := map[string]string{"all-0": shards[1], "all-1": mesh.Null.Path("all-1")}
	plane.heard.waitHas(t, after)

	// An Envoy that starts with nothing has nothing until it acknowledges again.
	pid := s.status(t).Envoy.PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := s.status(t).Envoy.PID; got == pid || got == 0 {
			return errors.New("Envoy has not started again")
		}
		return nil
	})
	plane.heard.waitHas(t, after)
	if got := s.status(t).Reporting; len(got) != 1 || !got[0].Connected {
		t.Errorf("status %+v", got)
	}
	_, metrics, err := s.get("/metrics")
	if err != nil || !strings.Contains(metrics, `cachemesh_sidecar_reporting_to{region="here",sidecar="here-0"} 1`) {
		t.Errorf("/metrics lacks reporting_to: %v", err)
	}
	s.stop(t)
	plane.heard.wait(t, func(h *heard) string {
		if h.left != 1 {
			return "want that the agent has left"
		}
		return ""
	})
}

func TestAKilledAgentIsLostAndTheNextTellsAll(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, plane.address)
	has := map[string]string{"all-0": shards[0], "all-1": shards[1]}
	first := s.startChild(t)
	plane.heard.waitHas(t, has)
	first.Kill()
	plane.heard.wait(t, func(h *heard) string {
		if h.open != 0 || h.left != 0 {
			return "want that the agent is lost"
		}
		return ""
	})
	// It adopts an Envoy that needs nothing new, and so acknowledges nothing.
	s.start(t)
	plane.heard.waitHas(t, has)
}

func TestHoldingsKnowWhatIsAcknowledged(t *testing.T) {
	d := newDialog(nil)
	pack := func(pool mesh.Topology) []*discovery.Resource { return build(t, pool).Endpoints }
	before, after := pack(topology("127.0.0.1:1", "127.0.0.1:2")), pack(topology("127.0.0.1:3", "127.0.0.1:2"))
	d.subscribe(envoy.EndpointType, nil, before[0].Name, before[1].Name)
	ack := func(nonce string) {
		d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.EndpointType, ResponseNonce: nonce})
	}
	want := func(all0 string) {
		t.Helper()
		if got, _ := d.endpoints(); !maps.Equal(got, map[string]string{"all-0": all0, "all-1": "127.0.0.1:2"}) {
			t.Errorf("endpoints %v, want all-0 at %q", got, all0)
		}
	}
	ack(d.respond(envoy.EndpointType, nil, before...))
	want("127.0.0.1:1")
	nonce := d.respond(envoy.EndpointType, nil, after...)
	want("127.0.0.1:1") // sent is not acknowledged
	d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.EndpointType, ResponseNonce: nonce, ErrorDetail: &rpcstatus.Status{Message: "no"}})
	want("127.0.0.1:1")
	ack(d.respond(envoy.EndpointType, nil, after[0]))
	want("") // reads and writes would go to different nodes
	ack(d.respond(envoy.EndpointType, nil, after[1]))
	want("127.0.0.1:3")
	ack(d.respond(envoy.EndpointType, nil, res(envoy.EndpointType, before[0].Name, "of another kind"), res(envoy.EndpointType, before[1].Name, "of another kind")))
	if got, _ := d.endpoints(); len(got) != 0 {
		t.Errorf("endpoints %v, want none", got)
	}
}

func TestManyChangesAreToldInParts(t *testing.T) {
	now := map[string]string{}
	for i := range 2*reports.Max + 5 {
		now[fmt.Sprint("s", i)] = "127.0.0.1:1"
	}
	told, seen := map[string]string{}, map[string]string{}
	for _, wantLeft := range []int{reports.Max + 5, 5, 0} {
		all, left := changes(told, now)
		if left != wantLeft {
			t.Fatalf("%d are left, want %d", left, wantLeft)
		}
		for _, e := range all {
			seen[e.Shard] = e.Address
		}
	}
	if !maps.Equal(seen, now) {
		t.Error("not all was told")
	}
	now = map[string]string{"s0": "", "s1": "127.0.0.1:1"}
	told = map[string]string{"s1": "127.0.0.1:1", "s2": "127.0.0.1:1"}
	all, left := changes(told, now)
	want := []*reports.Endpoint{{Shard: "s0"}, {Shard: "s2"}}
	if left != 0 || !slices.EqualFunc(all, want, func(a, b *reports.Endpoint) bool { return proto.Equal(a, b) }) || !maps.Equal(told, now) {
		t.Errorf("%v with %d left, %v is told", all, left, told)
	}
}
