package regions

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/mesh"
)

// hearing is a region that takes events in.
type hearing struct {
	mu     sync.Mutex
	events []string
	server *grpc.Server
}

func (h *hearing) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string{}, h.events...)
}

// hear serves a region at an address until it is stopped.
func hear(t *testing.T, name, address string) (*hearing, string) {
	t.Helper()
	h := &hearing{}
	applier := NewApplier("", slog.New(slog.DiscardHandler))
	applier.Update(&mesh.Topology{Region: name})
	r := NewReceiver(name, nil, applier, slog.New(slog.DiscardHandler))
	r.Hear(func(events [][]byte) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, e := range events {
			h.events = append(h.events, string(e))
		}
	})
	var l net.Listener
	eventually(t, "the address is not free", func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", address)
		return err == nil
	})
	h.server = r.Server(nil)
	go h.server.Serve(l)
	t.Cleanup(func() {
		h.server.Stop()
		r.Close()
		applier.Close()
	})
	return h, l.Addr().String()
}

func teller(t *testing.T, links map[string][]string) *Teller {
	t.Helper()
	teller := NewTeller(Config{Region: "us", Agent: "a", Log: slog.New(slog.DiscardHandler), Dial: func(_, address string) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}})
	teller.Update(&mesh.Topology{Region: "us", Links: links})
	done := make(chan struct{})
	go func() {
		teller.Run(t.Context())
		close(done)
	}()
	t.Cleanup(func() { <-done })
	return teller
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestEventsReachEveryOtherRegionInOrder(t *testing.T) {
	eu, euAt := hear(t, "eu", "127.0.0.1:0")
	asia, asiaAt := hear(t, "asia", "127.0.0.1:0")
	us := teller(t, map[string][]string{"eu": {euAt}, "asia": {"127.0.0.1:1", asiaAt}}) // nobody is at port 1
	var want []string
	for i := range 200 {
		want = append(want, fmt.Sprint(i))
		us.Tell([]byte(want[i]))
	}
	for name, h := range map[string]*hearing{"eu": eu, "asia": asia} {
		eventually(t, name+" was not told all", func() bool { return len(h.all()) == len(want) })
		if got := h.all(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s was told %v", name, got)
		}
	}
	if us.Dropped() != 0 {
		t.Errorf("%d were dropped", us.Dropped())
	}
}

func TestARegionThatIsAwayKeepsNobodyAndIsToldAgain(t *testing.T) {
	eu, euAt := hear(t, "eu", "127.0.0.1:0")
	eu.server.Stop()
	us := teller(t, map[string][]string{"eu": {euAt}})
	const flood = 5 * maxUntold
	began := time.Now()
	for range flood {
		us.Tell([]byte("lost"))
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if us.Dropped() < flood-maxUntold-2*MaxEvents {
		t.Errorf("%d of %d were dropped", us.Dropped(), flood)
	}
	back, _ := hear(t, "eu", euAt)
	eventually(t, "the region was not told again", func() bool {
		us.Tell([]byte("new"))
		return bytes.Contains([]byte(fmt.Sprint(back.all())), []byte("new"))
	})
}

func TestEventsAreBounded(t *testing.T) {
	_, at := hear(t, "eu", "127.0.0.1:0")
	conn, err := grpc.NewClient("passthrough:///"+at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := &Hello{Region: "us", Agent: "a", To: "eu"}
	for name, c := range map[string]struct {
		in   *Events
		want codes.Code
	}{
		"fine":           {&Events{Hello: from, Events: [][]byte{make([]byte, MaxEvent)}}, codes.OK},
		"too many":       {&Events{Hello: from, Events: make([][]byte, MaxEvents+1)}, codes.InvalidArgument},
		"too long":       {&Events{Hello: from, Events: [][]byte{make([]byte, MaxEvent+1)}}, codes.InvalidArgument},
		"nobody":         {&Events{}, codes.InvalidArgument},
		"another region": {&Events{Hello: &Hello{Region: "us", To: "asia"}}, codes.FailedPrecondition},
	} {
		if _, err := NewLinkClient(conn).Tell(t.Context(), c.in); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}
