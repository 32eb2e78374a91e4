package sidecar

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
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
	options   []grpc.DialOption

	mu   sync.Mutex
	good int // index of the one that answered last
}

func newControlPlanes(addresses []string, options ...grpc.DialOption) *controlPlanes {
	return &controlPlanes{addresses: addresses, options: append([]grpc.DialOption{
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	}, options...)}
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

// open tries the control planes in turn, the last good one first, and returns the first that answers within patience.
func (c *controlPlanes) open(ctx context.Context, first *discovery.DeltaDiscoveryRequest, patience time.Duration) (*upstream, error) {
	c.mu.Lock()
	start := c.good
	c.mu.Unlock()
	var errs []error
	for i := range c.addresses {
		n := (start + i) % len(c.addresses)
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

// dial opens a stream on a connection of its own, so that a control plane that has stopped working is found out
// now and not by a keepalive on an old connection. Envoy's first request asks for all clusters, which every
// control plane that works answers, be it with nothing.
func (c *controlPlanes) dial(ctx context.Context, address string, first *discovery.DeltaDiscoveryRequest, patience time.Duration) (*upstream, error) {
	conn, err := grpc.NewClient(address, c.options...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	u := &upstream{address: address, close: func() {
		cancel(context.Canceled)
		conn.Close()
	}}
	if err := connect(ctx, conn); err != nil {
		u.close()
		return nil, err
	}
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

func connect(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn.Connect()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure:
			return errors.New("it refuses the connection")
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("no connection within %v", connectTimeout)
		}
	}
}
