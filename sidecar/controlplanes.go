package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/certs"
)

const (
	connectTimeout = 300 * time.Millisecond
	// The wait for the first response is bounded. A control plane may well be slow when thousands of sidecars return
	// at once, but an Envoy that has nothing yet is better served from disk than late.
	answerTimeout      = 2 * time.Second
	emptyAnswerTimeout = 500 * time.Millisecond
	// maxMessage is what one response may have in bytes: a mesh's clusters all come in one.
	maxMessage = 64 << 20
)

// controlPlanes are those of the region. Any one of them has everything.
type controlPlanes struct {
	addresses []string
	tls       *certs.Source // nil is plaintext
	name      string        // in the certificate of each; "" is the host of its address
	options   []grpc.DialOption

	// behind says whether a control plane, by name, does not know the region's state now. It is tried after the others.
	behind func(name string) bool

	mu   sync.Mutex
	good int // index of the one that answered last
}

func newControlPlanes(c Config, source *certs.Source) *controlPlanes {
	return &controlPlanes{addresses: c.ControlPlanes, tls: source, name: c.TLSServerName, behind: func(string) bool { return false }, options: []grpc.DialOption{
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	}}
}

// credentials are made for each connection, of what the certificates' files hold then.
func (c *controlPlanes) credentials(name string) credentials.TransportCredentials {
	if c.tls == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(c.tls.Client(c.serverName(name)))
}

// serverName is what the certificate of the control plane called name must hold.
func (c *controlPlanes) serverName(name string) string {
	if c.name != "" {
		return c.name
	}
	host, _, _ := net.SplitHostPort(name)
	return host
}

// upstream is a stream to a control plane that has answered.
type upstream struct {
	address string
	stream  discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	first   *discovery.DeltaDiscoveryResponse
	close   func()
	sending sync.Mutex
}

func (u *upstream) send(req *discovery.DeltaDiscoveryRequest) error {
	u.sending.Lock()
	defer u.sending.Unlock()
	return u.stream.Send(req)
}

// open tries the control planes in turn, the last good one first and those that are behind last, and returns the first that answers
// within patience.
func (c *controlPlanes) open(ctx context.Context, first *discovery.DeltaDiscoveryRequest, patience time.Duration) (*upstream, error) {
	c.mu.Lock()
	start := c.good
	c.mu.Unlock()
	var turn, behind []int
	for i := range c.addresses {
		n := (start + i) % len(c.addresses)
		if c.behind(c.addresses[n]) {
			behind = append(behind, n)
		} else {
			turn = append(turn, n)
		}
	}
	var errs []error
	for _, n := range append(turn, behind...) {
		u, err := c.dial(ctx, c.addresses[n], first, patience)
		if err == nil {
			c.mu.Lock()
			c.good = n
			c.mu.Unlock()
			return u, nil
		}
		errs = append(errs, fmt.Errorf("control plane %s: %w", c.addresses[n], err))
	}
	return nil, errors.Join(errs...)
}

// connect opens a connection to address, where the control plane called name is: host:port, or IP:port of it. Patience is for TLS handshakes.
func (c *controlPlanes) connect(ctx context.Context, name, address string, patience time.Duration) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(address, append(c.options[:len(c.options):len(c.options)], grpc.WithTransportCredentials(c.credentials(name)))...)
	if err != nil {
		return nil, err
	}
	timeout := connectTimeout
	if c.tls != nil {
		timeout = patience // thousands that return at once make a control plane slow at handshakes, too
	}
	if err := connect(ctx, conn, timeout); err != nil {
		conn.Close()
		if refusal := c.refusal(ctx, name, address); refusal != nil {
			err = refusal
		}
		return nil, err
	}
	return conn, nil
}

// dial opens a stream on a connection of its own, so that a control plane that has stopped working is found out
// now and not by a keepalive on an old connection. Envoy's first request asks for all clusters, which every
// control plane that works answers, be it with nothing.
func (c *controlPlanes) dial(ctx context.Context, address string, first *discovery.DeltaDiscoveryRequest, patience time.Duration) (*upstream, error) {
	conn, err := c.connect(ctx, address, address, patience)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	u := &upstream{address: address, close: func() {
		cancel(context.Canceled)
		conn.Close()
	}}
	late := errors.New("it accepts the stream and does not answer")
	timer := time.AfterFunc(patience, func() { cancel(late) })
	if u.stream, err = discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx); err == nil {
		if err = u.stream.Send(first); err == nil {
			u.first, err = u.stream.Recv()
		}
	}
	if !timer.Stop() && err == nil || context.Cause(ctx) == late {
		err = late
	}
	if err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

// refusal is why TLS fails, nil if it does not: gRPC often writes into a closed connection before it reads the reason.
func (c *controlPlanes) refusal(ctx context.Context, name, address string) error {
	if c.tls == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config := c.tls.Client(c.serverName(name))
	config.NextProtos = []string{"h2"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("no connection: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetReadDeadline(deadline)
	// With TLS 1.3, the server's verdict on the certificate comes when the client is done; else it speaks first.
	if _, err = conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the control plane refuses this sidecar's certificate: %w", err)
	}
	return nil
}

func connect(ctx context.Context, conn *grpc.ClientConn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn.Connect()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure:
			// Only a call tells why.
			_, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
			return fmt.Errorf("no connection: %s", status.Convert(err).Message())
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("no connection within %v", timeout)
		}
	}
}
