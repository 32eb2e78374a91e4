package controlplane

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/reports"
	"github.com/cachemesh/cachemesh/shards"
)

// heard is a listener that writes down what it is told.
type heard struct {
	mu  sync.Mutex
	all []string
}

func (h *heard) add(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, fmt.Sprintf(format, args...))
}

func (h *heard) AgentSeen(agent string) { h.add("%s seen", agent) }
func (h *heard) AgentLeft(agent string) { h.add("%s left", agent) }
func (h *heard) AgentLost(agent string) { h.add("%s lost", agent) }
func (h *heard) Verdicts(agent string, verdicts []shards.Verdict) {
	h.add("%s says %v", agent, verdicts)
}
func (h *heard) Follows(agent string, all []shards.Following) {
	if len(all) > 0 {
		h.add("%s follows %v", agent, all)
	}
}
func (h *heard) Acknowledged(agent string, endpoints []Endpoint) {
	h.add("%s has %v", agent, endpoints)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.all, "\n")
}

// expect waits for exactly this, one line for each call.
func (h *heard) expect(t *testing.T, want ...string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Fatalf("heard\n%s\nwant\n%s", h, strings.Join(want, "\n"))
		}
	}()
	deadline := time.Now().Add(10 * time.Second)
	for h.String() != strings.Join(want, "\n") {
		if time.Now().After(deadline) {
			t.Fail()
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// serveAgents serves agents of the region "home" on loopback.
func serveAgents(t *testing.T, creds credentials.TransportCredentials, authorise func(*x509.Certificate, string, string) error, l listener, log *slog.Logger) (*agents, string) {
	t.Helper()
	a := newAgents("home", authorise, l, log)
	g := grpc.NewServer(grpc.Creds(creds))
	a.register(g)
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- g.Serve(socket) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a, socket.Addr().String()
}

// connectAgent opens a stream and says who speaks.
func connectAgent(t *testing.T, address string, creds credentials.TransportCredentials, first *reports.Report) reports.Reports_ConnectClient {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	stream, err := reports.NewReportsClient(conn).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sendReport(t, stream, first)
	return stream
}

func sendReport(t *testing.T, stream reports.Reports_ConnectClient, r *reports.Report) {
	t.Helper()
	if err := stream.Send(r); err != nil {
		t.Fatal(err)
	}
}

func from(name string) *reports.Agent {
	return &reports.Agent{Name: name, Region: "home", Version: "test"}
}

func receiveInstructions(t *testing.T, stream reports.Reports_ConnectClient) *reports.Instructions {
	t.Helper()
	instructions, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return instructions
}

func TestAgentsAreHeard(t *testing.T) {
	h := new(heard)
	_, address := serveAgents(t, insecure.NewCredentials(), nil, h, quiet)
	stream := connectAgent(t, address, insecure.NewCredentials(), &reports.Report{
		Agent: from("web"), Endpoints: []*reports.Endpoint{{Shard: "cache-0", Address: "127.0.0.1:7001"}},
	})
	if headers, err := stream.Header(); err != nil || headers == nil {
		t.Errorf("headers %v, %v: the agent cannot know that it is heard", headers, err)
	}
	sendReport(t, stream, &reports.Report{
		Verdicts: []*reports.Verdict{{Shard: "cache-0", Epoch: 7, Address: "127.0.0.1:7001", Down: true, SilentMs: 300, Error: "refused"}},
	})
	sendReport(t, stream, &reports.Report{Endpoints: []*reports.Endpoint{{Shard: "cache-0"}}})
	want := []string{"web seen", "web says []", "web has [{cache-0 127.0.0.1:7001}]",
		"web says [{cache-0 7 127.0.0.1:7001 true}]", "web says []", "web has [{cache-0 }]"}
	h.expect(t, want...)
	sendReport(t, stream, &reports.Report{Leaving: true})
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("%v, want the stream's end", err)
	}
	h.expect(t, append(want, "web left")...)
}

func TestAnAgentIsLostOnceWithItsLastStream(t *testing.T) {
	h := new(heard)
	_, address := serveAgents(t, insecure.NewCredentials(), nil, h, quiet)
	first := connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from("web")})
	h.expect(t, "web seen", "web says []")
	second := connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from("web")})
	if _, err := first.Recv(); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("the stream before ended with %v, want Aborted that names the agent", err)
	}
	h.expect(t, "web seen", "web says []", "web seen", "web says []")
	if err := second.CloseSend(); err != nil {
		t.Fatal(err)
	}
	h.expect(t, "web seen", "web says []", "web seen", "web says []", "web lost")
}

func TestManyStreamsOfOneAgentEndInOrder(t *testing.T) {
	h := new(heard)
	a, address := serveAgents(t, insecure.NewCredentials(), nil, h, quiet)
	var streams sync.WaitGroup
	for range 50 {
		streams.Go(func() {
			stream := connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from("web")})
			a.Instruct(100*time.Millisecond, 300*time.Millisecond, nil)
			_, _ = stream.Recv()
			_ = stream.CloseSend()
		})
	}
	streams.Wait()
	waitFor(t, "the last stream is gone", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.streams) == 0
	})
	alive := false
	for _, line := range strings.Split(h.String(), "\n") {
		switch line {
		case "web seen":
			alive = true
		case "web lost":
			if !alive {
				t.Fatalf("lost twice in a row:\n%s", h)
			}
			alive = false
		default:
			if !alive {
				t.Fatalf("spoke after it was lost:\n%s", h)
			}
		}
	}
	if alive {
		t.Errorf("never lost:\n%s", h)
	}
}

func TestAgentsAreSentWhatIsNewToThem(t *testing.T) {
	a, address := serveAgents(t, insecure.NewCredentials(), nil, new(heard), quiet)
	connect := func(name string) reports.Reports_ConnectClient {
		stream := connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from(name)})
		waitFor(t, name+" is connected", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.streams[name] != nil
		})
		return stream
	}
	web, other := connect("web"), connect("other")
	target := func(epoch uint64) Target {
		return Target{Shard: "cache-0", Epoch: epoch, Address: "127.0.0.1:7001", RunID: "abc",
			Access: &mesh.RedisAccess{Username: "app", PasswordFile: "/etc/password"}}
	}
	instruct := func(targets map[string][]Target) { a.Instruct(100*time.Millisecond, 300*time.Millisecond, targets) }
	instruct(map[string][]Target{"web": {target(1)}, "late": {target(5)}})
	got := receiveInstructions(t, web)
	if got.IntervalMs != 100 || got.DownAfterMs != 300 || len(got.Targets) != 1 || got.Check() != nil {
		t.Fatalf("instructions %v", got)
	}
	if x := got.Targets[0]; x.Shard != "cache-0" || x.Epoch != 1 || x.Address != "127.0.0.1:7001" || x.RunId != "abc" || x.Access != `{"username":"app","password_file":"/etc/password"}` {
		t.Errorf("target %v", x)
	}
	if got := receiveInstructions(t, other); len(got.Targets) != 0 {
		t.Errorf("the other agent probes %v, want nothing", got.Targets)
	}
	for range 20 {
		instruct(map[string][]Target{"web": {target(1)}, "late": {target(5)}}) // another pointer to the same
	}
	instruct(map[string][]Target{"web": {target(2)}, "late": {target(5)}})
	if got := receiveInstructions(t, web); got.Targets[0].Epoch != 2 {
		t.Errorf("%v was sent again", got)
	}
	if got := receiveInstructions(t, connect("late")); len(got.Targets) != 1 || got.Targets[0].Epoch != 5 {
		t.Errorf("the late agent got %v", got)
	}
	instruct(nil)
	if got := receiveInstructions(t, web); len(got.Targets) != 0 {
		t.Errorf("%v, want no target any more", got)
	}
	a.Instruct(200*time.Millisecond, 600*time.Millisecond, map[string][]Target{"other": {target(3)}})
	if got := receiveInstructions(t, other); got.IntervalMs != 200 || len(got.Targets) != 1 {
		t.Errorf("%v: something came between", got)
	}
}

func TestAgentsAreToldTheTopologyFromTheFirstWithLanesOn(t *testing.T) {
	a, address := serveAgents(t, insecure.NewCredentials(), nil, new(heard), quiet)
	topology := func(coherence mesh.Coherence, epoch uint64) mesh.Topology {
		return mesh.Topology{Region: "home", Pools: []mesh.Pool{{
			Name: "cache", Routes: []mesh.Route{{Prefix: "user:", Coherence: coherence}}, Shards: []mesh.Shard{{Name: "cache-0", Epoch: epoch}},
		}}}
	}
	instruct := func(interval time.Duration) { a.Instruct(interval, 3*interval, nil) }
	a.Publish(topology(mesh.Local, 1))
	instruct(100 * time.Millisecond)
	stream := connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from("web")})
	expect := func(stream reports.Reports_ConnectClient, want *mesh.Topology) {
		t.Helper()
		got := receiveInstructions(t, stream)
		if want == nil {
			if len(got.Topology) > 0 {
				t.Errorf("told %s, which is nothing new", got.Topology)
			}
			return
		}
		var topology mesh.Topology
		if err := json.Unmarshal(got.Topology, &topology); err != nil || !reflect.DeepEqual(topology, *want) || got.IntervalMs == 0 {
			t.Errorf("%v: told %s, want %+v", err, got, want)
		}
	}
	expect(stream, nil)
	for _, next := range []mesh.Topology{topology(mesh.Invalidate, 1), topology(mesh.Invalidate, 2), topology(mesh.Local, 2)} {
		a.Publish(next)
		a.Publish(next)
		expect(stream, &next)
		expect(connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from("late")}), &next)
	}
	instruct(200 * time.Millisecond)
	expect(stream, nil)
}

func TestBadReportsAreRefusedAndChangeNothing(t *testing.T) {
	long := strings.Repeat("x", 1000)
	verdicts := make([]*reports.Verdict, reports.Max+1)
	for i := range verdicts {
		verdicts[i] = &reports.Verdict{Shard: "s"}
	}
	for name, c := range map[string]struct {
		report *reports.Report
		want   string
	}{
		"no agent":      {&reports.Report{}, "agent is missing"},
		"no name":       {&reports.Report{Agent: &reports.Agent{Region: "home"}}, "agent.name is empty"},
		"long name":     {&reports.Report{Agent: from(long)}, "agent.name has 1000 bytes"},
		"long version":  {&reports.Report{Agent: &reports.Agent{Name: "web", Region: "home", Version: long}}, "agent.version has 1000 bytes"},
		"other region":  {&reports.Report{Agent: &reports.Agent{Name: "web", Region: "away"}}, `of region "away", and this control plane serves "home"`},
		"no shard":      {&reports.Report{Agent: from("web"), Verdicts: []*reports.Verdict{{Shard: "s"}, {}}}, "verdicts[1].shard is empty"},
		"long shard":    {&reports.Report{Agent: from("web"), Verdicts: []*reports.Verdict{{Shard: long}}}, "verdicts[0].shard has 1000 bytes"},
		"long error":    {&reports.Report{Agent: from("web"), Verdicts: []*reports.Verdict{{Shard: "s", Error: long}}}, "verdicts[0].error has 1000 bytes"},
		"many verdicts": {&reports.Report{Agent: from("web"), Verdicts: verdicts}, "verdicts has 10001 entries and may have 10000"},
		"long endpoint": {&reports.Report{Agent: from("web"), Endpoints: []*reports.Endpoint{{Shard: "s", Address: long}}}, "endpoints[0].address has 1000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			h := new(heard)
			_, address := serveAgents(t, insecure.NewCredentials(), nil, h, quiet)
			stream := connectAgent(t, address, insecure.NewCredentials(), c.report)
			if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
				t.Errorf("as the first report: %v, want InvalidArgument with %q", err, c.want)
			}
			if h.String() != "" {
				t.Errorf("heard %s", h)
			}
			if c.report.GetAgent().GetRegion() != "home" {
				return
			}
			stream = connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from("web")})
			sendReport(t, stream, c.report)
			if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
				t.Errorf("as the second report: %v, want InvalidArgument with %q", err, c.want)
			}
			h.expect(t, "web seen", "web says []", "web lost")
		})
	}
}

func TestReportsOfANewerVersionAreUnderstood(t *testing.T) {
	h := new(heard)
	_, address := serveAgents(t, insecure.NewCredentials(), nil, h, quiet)
	v := &reports.Verdict{Shard: "cache-0", Epoch: 1, Address: "127.0.0.1:7001"}
	v.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1))
	r := &reports.Report{Agent: from("web"), Verdicts: []*reports.Verdict{v}}
	r.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "new"))
	connectAgent(t, address, insecure.NewCredentials(), r)
	h.expect(t, "web seen", "web says [{cache-0 1 127.0.0.1:7001 false}]")
}

func TestOnlyASidecarsOwnCertificateReports(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := authority(t), authority(t)
	server := issue(t, dir, "server", ours, certs.Leaf{Name: "server", Hosts: []string{"127.0.0.1"}, Server: true})
	c := &ControlPlane{config: Config{TLS: TLS{Files: server}}, certs: source(t, server), log: quiet}
	h := new(heard)
	_, address := serveAgents(t, c.xdsCredentials(), c.authorise(), h, quiet)
	leaf := certs.Leaf{Name: "web", SPIFFE: []string{"home", "web"}}
	web := issue(t, dir, "web", ours, leaf)
	mine := credentials.NewTLS(source(t, web).Client("127.0.0.1"))

	spoofed := connectAgent(t, address, mine, &reports.Report{Agent: from("other"), Verdicts: []*reports.Verdict{{Shard: "cache-0", Down: true}}})
	if _, err := spoofed.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `"other"`) || !strings.Contains(err.Error(), "spiffe://cachemesh/home/web") {
		t.Errorf("a spoofed name: %v, want PermissionDenied that names both", err)
	}
	foreign := issue(t, dir, "foreign", theirs, leaf)
	for name, creds := range map[string]credentials.TransportCredentials{
		"plaintext":       insecure.NewCredentials(),
		"no certificate":  credentials.NewTLS(source(t, certs.Files{CA: web.CA}).Client("127.0.0.1")),
		"other authority": credentials.NewTLS(source(t, certs.Files{CA: web.CA, Cert: foreign.Cert, Key: foreign.Key}).Client("127.0.0.1")),
	} {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
		if err != nil {
			t.Fatal(err)
		}
		stream, err := reports.NewReportsClient(conn).Connect(t.Context())
		if err == nil {
			_ = stream.Send(&reports.Report{Agent: from("web")})
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v, want no connection", name, err)
		}
		conn.Close()
	}
	if h.String() != "" {
		t.Errorf("heard %s", h)
	}
	connectAgent(t, address, mine, &reports.Report{Agent: from("web")})
	h.expect(t, "web seen", "web says []")
}

func TestAWitnessThatChangesItsMindIsInTheLog(t *testing.T) {
	h := new(heard)
	var log lockedLog
	_, address := serveAgents(t, insecure.NewCredentials(), nil, h, slog.New(slog.NewTextHandler(&log, nil)))
	v := func(down bool, address string) *reports.Report {
		return &reports.Report{Verdicts: []*reports.Verdict{{Shard: "cache-0", Epoch: 7, Address: address, Down: down, Error: "refused"}}}
	}
	stream := connectAgent(t, address, insecure.NewCredentials(), &reports.Report{Agent: from("web")})
	for _, down := range []bool{false, true, true, false} {
		sendReport(t, stream, v(down, "127.0.0.1:7001"))
	}
	sendReport(t, stream, v(true, "127.0.0.1:7002"))
	sendReport(t, stream, v(false, "127.0.0.1:7003"))
	sendReport(t, stream, &reports.Report{Leaving: true})
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if text := log.String(); strings.Count(text, "is down") != 2 || strings.Count(text, "is up again") != 1 || !strings.Contains(text, "error=refused") {
		t.Errorf("the log is\n%s", text)
	}
}

type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
