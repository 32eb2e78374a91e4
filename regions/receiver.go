package regions

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/regions/journal"
)

const (
	// maxPending is how many batches of a stream may wait for shards.
	maxPending = 256
	maxFences  = 64
	maxName    = 253 // bytes of a region's, agent's, pool's or shard's name
	maxIDs     = 100_000
)

// Receiver takes in what agents of other regions say.
type Receiver struct {
	UnimplementedLinkServer
	region    string
	authorise func(certificate *x509.Certificate, region, agent string) error // nil lets everybody in
	applier   *Applier
	log       *slog.Logger
	fencing   chan struct{} // a token for each fence that may be carried out now
	values    *values
	hear      func(events [][]byte) // nil takes none
}

// NewReceiver has the applier do what other regions want. authorise may be nil.
func NewReceiver(region string, authorise func(*x509.Certificate, string, string) error, a *Applier, log *slog.Logger) *Receiver {
	return &Receiver{region: region, authorise: authorise, applier: a, log: log, fencing: make(chan struct{}, 2), values: newValues(a)}
}

// Server serves the link; nil credentials are plaintext.
func (r *Receiver) Server(c credentials.TransportCredentials) *grpc.Server {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.InitialWindowSize(4 << 20), grpc.InitialConnWindowSize(8 << 20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	}
	if c != nil {
		options = append(options, grpc.Creds(c))
	}
	g := grpc.NewServer(options...)
	RegisterLinkServer(g, r)
	return g
}

// pending is a batch that is not applied yet.
type pending struct {
	sequence uint64
	done     chan struct{}
}

// fenced is a fence that was carried out.
type fenced struct {
	ids  []string
	keys int
}

// Deliver serves one stream.
func (r *Receiver) Deliver(stream Link_DeliverServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if err := r.greet(stream.Context(), hello); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	batches, fences, done := make(chan pending, maxPending), make(chan *Fence, maxFences), make(chan fenced, maxFences)
	work.Go(func() { acknowledge(ctx, stream, batches, done) })
	work.Go(func() { r.fence(ctx, hello, fences, done) })
	for b := first; ; {
		removals, err := keys(b)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "batch %d: %v", b.GetSequence(), err)
		}
		for _, f := range b.GetFences() {
			if err := check(f); err != nil {
				return status.Errorf(codes.InvalidArgument, "batch %d: %v", b.GetSequence(), err)
			}
			select {
			case fences <- f:
			default:
				return status.Errorf(codes.ResourceExhausted, "more than %d fences at once", maxFences)
			}
		}
		p := pending{b.GetSequence(), make(chan struct{})}
		if p.sequence > 0 {
			select {
			case batches <- p:
			case <-ctx.Done():
				return ctx.Err()
			}
			r.applier.Remove(removals, func() { close(p.done) })
		}
		if b, err = stream.Recv(); err != nil {
			return err
		}
	}
}

// greet refuses who may not speak, or means another region.
func (r *Receiver) greet(ctx context.Context, hello *Hello) error {
	if hello == nil {
		return status.Error(codes.InvalidArgument, "hello is missing: the first batch of a stream says who speaks")
	}
	for _, name := range []string{hello.GetRegion(), hello.GetAgent(), hello.GetVersion(), hello.GetTo(), hello.GetPool(), hello.GetShard()} {
		if len(name) > maxName {
			return status.Errorf(codes.InvalidArgument, "hello: a name has %d bytes and may have %d", len(name), maxName)
		}
	}
	if r.authorise != nil {
		if err := r.authorise(certificate(ctx), hello.GetRegion(), hello.GetAgent()); err != nil {
			r.log.Warn("refused an agent of another region", "region", hello.GetRegion(), "agent", hello.GetAgent(), "reason", err)
			return status.Error(codes.PermissionDenied, err.Error())
		}
	}
	switch {
	case hello.GetTo() != r.region:
		return status.Errorf(codes.FailedPrecondition, "this agent is of region %q, and %q is meant: see the links of mesh.yaml, or who is registered as cachemesh-link", r.region, hello.GetTo())
	case hello.GetRegion() == r.region:
		return status.Errorf(codes.FailedPrecondition, "region %q needs no link to itself", r.region)
	case !r.applier.Ready():
		return status.Error(codes.Unavailable, "this agent does not know its region's shards yet")
	}
	return nil
}

func certificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil
	}
	return info.State.PeerCertificates[0]
}

// keys are those that a batch removes.
func keys(b *Batch) ([][]byte, error) {
	if len(b.GetRemovals()) == 0 {
		return nil, nil
	}
	entry, err := unpack(b.GetRemovals(), b.GetUncompressed())
	if err != nil {
		return nil, fmt.Errorf("its removals cannot be uncompressed: %w", err)
	}
	removals, err := journal.Decode(nil, entry)
	if err != nil {
		return nil, err
	}
	all := make([][]byte, len(removals))
	for i, rem := range removals {
		if rem.Op != journal.RemoveKey {
			return nil, fmt.Errorf("it has a removal of kind %d, which is to be a fence", rem.Op)
		}
		all[i] = rem.Key
	}
	return all, nil
}

func check(f *Fence) error {
	switch {
	case len(f.GetIds()) == 0 || len(f.GetIds()) > maxIDs:
		return fmt.Errorf("a fence has %d IDs", len(f.GetIds()))
	case f.Prefix == nil && !f.GetRing().valid():
		return fmt.Errorf("a fence has neither a prefix nor a ring")
	case len(f.GetPrefix()) > journal.MaxKey:
		return fmt.Errorf("a fence's prefix has %d bytes", len(f.GetPrefix()))
	}
	return nil
}

// acknowledge says what is applied, in order, and which fences were carried out.
func acknowledge(ctx context.Context, stream Link_DeliverServer, batches <-chan pending, done <-chan fenced) {
	var head chan struct{}
	var sequence uint64
	next := batches
	for {
		ack := &Ack{}
		select {
		case <-ctx.Done():
			return
		case p := <-next:
			head, sequence, next = p.done, p.sequence, nil
			continue
		case <-head:
			ack.Applied = sequence
			head, next = nil, batches
		coalesce:
			for {
				select {
				case p := <-batches:
					select {
					case <-p.done:
						ack.Applied = p.sequence
					default:
						head, sequence, next = p.done, p.sequence, nil
						break coalesce
					}
				default:
					break coalesce
				}
			}
		case f := <-done:
			ack.Fenced, ack.Keys = f.ids, uint64(f.keys)
		}
		if stream.Send(ack) != nil {
			return // Recv says why
		}
	}
}

// fence carries fences out, one after the other.
func (r *Receiver) fence(ctx context.Context, hello *Hello, fences <-chan *Fence, done chan<- fenced) {
	for {
		var f *Fence
		select {
		case f = <-fences:
		case <-ctx.Done():
			return
		}
		select {
		case r.fencing <- struct{}{}:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		n, err := r.applier.Fence(ctx, hello.GetPool(), f.Prefix, f.GetRing())
		<-r.fencing
		if err != nil {
			if ctx.Err() == nil {
				r.log.Error("a fence of another region cannot be carried out", "region", hello.GetRegion(), "shard", hello.GetShard(), "error", err)
			}
			continue // it is asked for again
		}
		r.log.Info("removed what another region may have changed", "region", hello.GetRegion(), "shard", hello.GetShard(), "reason", f.GetReason(), "keys", n, "after", time.Since(began))
		select {
		case done <- fenced{f.GetIds(), n}:
		case <-ctx.Done():
			return
		}
	}
}
