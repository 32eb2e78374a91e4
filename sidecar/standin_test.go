package sidecar

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// startStandIns stands in beneath a path that no socket address has room for.
func startStandIns(t *testing.T) (*standIns, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := newStandIns(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s, dir
}

// endpointsOf are those of one shard in both clusters.
func endpointsOf(t *testing.T, kind mesh.StandIn, address string) []*discovery.Resource {
	t.Helper()
	return build(t, standing(kind, address)).Endpoints
}

// reach connects to the socket of the shard.
func (s *standIns) reach(t *testing.T, kind mesh.StandIn) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", s.socketPath(kind.Path("all-0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn
}

// ask sends a command in one line, which Redis takes and null does not.
func ask(t *testing.T, conn net.Conn, command string) (answer string) {
	t.Helper()
	if _, err := fmt.Fprint(conn, command+"\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func (s *standIns) waitHeld(t *testing.T, want int) {
	t.Helper()
	eventually(t, func() error {
		if n, _, _ := s.counts(); n != want {
			return fmt.Errorf("%d connections are held, want %d", n, want)
		}
		return nil
	})
}

func (s *standIns) wantEnds(t *testing.T, released, expired, failed int) {
	t.Helper()
	eventually(t, func() error {
		_, ends, _ := s.counts()
		if ends[holdReleased] != released || ends[holdExpired] != expired || ends[holdFailed] != failed {
			return fmt.Errorf("%v, want %d released, %d expired, %d failed", ends, released, expired, failed)
		}
		return nil
	})
}

func TestSocketsAreForThisUserAlone(t *testing.T) {
	s, dir := startStandIns(t)
	s.apply(endpointsOf(t, mesh.Null, shards[0]))
	s.apply(endpointsOf(t, mesh.Hold, shards[0]))
	for path, want := range map[string]os.FileMode{"null": 0o700, "hold": 0o700, "null/all-0.sock": 0o600, "hold/all-0.sock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

func TestHeldConnectionGoesToTheNextAddress(t *testing.T) {
	s, _ := startStandIns(t)
	s.apply(endpointsOf(t, mesh.Hold, shards[0]))
	conn := s.reach(t, mesh.Hold)
	s.waitHeld(t, 1)
	s.apply(endpointsOf(t, mesh.Hold, shards[0])) // says nothing new
	s.apply(endpointsOf(t, "", shards[1]))
	for want := range 3 {
		if got := ask(t, conn, "incr "+t.Name()); got != fmt.Sprintf(":%d", want+1) {
			t.Errorf("%q", got)
		}
	}
	if got := newClient(t, &redis.Options{Addr: shards[1]}).Del(t.Context(), t.Name()).Val(); got != 1 {
		t.Error("the next address has not got it")
	}
	s.wantEnds(t, 1, 0, 0)
	// The next hold holds again.
	s.apply(endpointsOf(t, mesh.Hold, shards[1]))
	s.reach(t, mesh.Hold)
	s.waitHeld(t, 1)
}

func TestHoldEndsWithoutAnAddress(t *testing.T) {
	s, _ := startStandIns(t)
	s.apply(endpointsOf(t, mesh.Hold, shards[0])) // as after a restart: no address was ever told
	conn := s.reach(t, mesh.Hold)
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	s.wantEnds(t, 0, 0, 1)
}

func TestHoldEndsAtANodeThatIsGone(t *testing.T) {
	s, _ := startStandIns(t)
	gone := freeAddresses(t, 1)[0]
	s.apply(endpointsOf(t, "", gone))
	s.apply(endpointsOf(t, mesh.Hold, gone))
	conn := s.reach(t, mesh.Hold)
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	s.wantEnds(t, 0, 0, 1)
}

// When both nodes of a switch die, what is held is answered as by a shard without nodes.
func TestHeldConnectionGoesToNull(t *testing.T) {
	s, _ := startStandIns(t)
	s.apply(endpointsOf(t, "", shards[0]))
	s.apply(endpointsOf(t, mesh.Hold, shards[0]))
	conn := s.reach(t, mesh.Hold)
	s.waitHeld(t, 1)
	s.apply(endpointsOf(t, mesh.Null, shards[0]))
	if got := ask(t, conn, "*2\r\n$3\r\nget\r\n$1\r\na"); got != "$-1" {
		t.Errorf("%q", got)
	}
	if _, _, answered := s.counts(); answered["all-0"] != 1 {
		t.Errorf("answered by null: %v", answered)
	}
}

// An agent that was killed leaves its sockets, and the next one takes their place.
func TestSocketsThatAreLeftAreReplaced(t *testing.T) {
	dir := t.TempDir()
	s, err := newStandIns(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	old, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: s.socketPath("null/all-0.sock")})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	s.apply(endpointsOf(t, mesh.Null, shards[0]))
	if got := ask(t, s.reach(t, mesh.Null), "*1\r\n$4\r\nping"); got != "+PONG" {
		t.Errorf("%q", got)
	}
	s.close()
	if left, err := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestSweepClosesWhatNobodyNames(t *testing.T) {
	s, _ := startStandIns(t)
	null, none := endpointsOf(t, mesh.Null, shards[0]), endpointsOf(t, "", shards[0])
	s.apply(null)
	conn := s.reach(t, mesh.Null)
	if got := ask(t, conn, "*1\r\n$4\r\nping"); got != "+PONG" { // so that it is not one that nobody has accepted
		t.Fatalf("%q", got)
	}
	for _, named := range [][]*discovery.Resource{none, null, none} {
		s.sweep(named)
		if !s.any() {
			t.Fatal("the socket is closed while Envoy may know it")
		}
	}
	s.sweep(none)
	if s.any() {
		t.Error("the socket is still there")
	}
	if got := ask(t, conn, "*1\r\n$4\r\nping"); got != "+PONG" {
		t.Errorf("a connection that is open: %q", got)
	}
	s.apply(null)
	if got := ask(t, s.reach(t, mesh.Null), "*1\r\n$4\r\nping"); got != "+PONG" {
		t.Errorf("the socket named again: %q", got)
	}
}

// What Envoy has, what is on its way and what is saved may all bring Envoy to a socket.
func TestEndpointsThatEnvoyMayHave(t *testing.T) {
	saved, held, sent := endpointsOf(t, mesh.Null, shards[0])[0], endpointsOf(t, mesh.Hold, shards[0])[0], endpointsOf(t, "", shards[0])[0]
	before := resources{}
	before.set(envoy.EndpointType, saved)
	h := newHoldings(before)
	h.begin()
	count := func() int { return len(h.mayHave(envoy.EndpointType)) }
	if n := count(); n != 1 {
		t.Errorf("%d before a stream, want what is saved", n)
	}
	h.request(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.EndpointType, ResourceNamesSubscribe: []string{"all"}})
	h.response(&discovery.DeltaDiscoveryResponse{TypeUrl: envoy.EndpointType, Nonce: "1", Resources: []*discovery.Resource{held}})
	if n := count(); n != 2 {
		t.Errorf("%d with one on its way", n)
	}
	h.request(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.EndpointType, ResponseNonce: "1"})
	h.response(&discovery.DeltaDiscoveryResponse{TypeUrl: envoy.EndpointType, Nonce: "2", Resources: []*discovery.Resource{sent}})
	if n := count(); n != 3 {
		t.Errorf("%d with one saved, one held and one on its way", n)
	}
}

// A node that hangs keeps neither Envoy's connection nor the agent.
func TestSpliceEndsWithEnvoy(t *testing.T) {
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close() // accepts nothing and answers nothing
	s, _ := startStandIns(t)
	s.apply(endpointsOf(t, mesh.Hold, shards[0]))
	conn := s.reach(t, mesh.Hold)
	s.waitHeld(t, 1)
	s.apply(endpointsOf(t, "", hung.Addr().String()))
	s.wantEnds(t, 1, 0, 0)
	conn.Close()
	eventually(t, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.connections); n > 0 {
			return fmt.Errorf("%d connections are open", n)
		}
		return nil
	})
}
