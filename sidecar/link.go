package sidecar

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/lane"
	"github.com/cachemesh/cachemesh/regions"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/reports"
)

// link is this agent's part in what regions tell each other: it follows the journals that control planes have it follow, and takes in what
// other regions say.
type link struct {
	config  Config
	certs   *certs.Source // nil is plaintext
	applier *regions.Applier
	links   *regions.Links
	teller  *regions.Teller
	heard   func(events [][]byte) // is called with events that other regions tell; set before run

	mu sync.Mutex
	// follows is what each control plane has this agent follow. Journals are followed that any of them names: two agents that follow one do no
	// harm. What the last one said stays when none is left.
	follows map[any]map[string]bool
}

func newLink(c Config, writer string, source *certs.Source) *link {
	l := &link{config: c, applier: regions.NewApplier(writer+":link", c.Logger), follows: map[any]map[string]bool{}}
	if c.TLS.Cert != "" {
		l.certs = source
	}
	of := regions.Config{Region: c.Region, Agent: c.Name, Version: c.Version, Dial: l.dial, Applier: l.applier, Log: c.Logger}
	l.links, l.teller = regions.NewLinks(of), regions.NewTeller(of)
	return l
}

// dial connects to an agent of another region, with what the certificates' files hold now.
func (l *link) dial(region, address string) (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if l.certs != nil {
		transport = credentials.NewTLS(l.certs.ClientOfPeer(func(c *x509.Certificate) error { return l.config.Identity.CheckRegion(c, region) }))
	} else if at, err := netip.ParseAddrPort(address); (err != nil || !at.Addr().IsLoopback()) && !l.config.Insecure {
		return nil, fmt.Errorf("region %q is told nothing over plaintext: start this sidecar with --tls-ca, --tls-cert and --tls-key, or with --insecure on a network that you trust", region)
	}
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(transport), grpc.WithNoProxy(),
		grpc.WithInitialWindowSize(1<<20), grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 2 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}))
}

// listen is nil if other regions are not to connect here.
func (l *link) listen() (net.Listener, error) {
	if l.config.Link == "" {
		return nil, nil
	}
	listener, err := net.Listen("tcp", l.config.Link)
	if err != nil {
		return nil, fmt.Errorf("link: %w: choose another address", err)
	}
	return listener, nil
}

// run follows journals, and serves what listen returned, until ctx ends.
func (l *link) run(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel()
	telling.Go(func() { l.teller.Run(ctx) })
	if listener == nil {
		return l.links.Run(ctx)
	}
	var transport credentials.TransportCredentials
	var authorise func(*x509.Certificate, string, string) error
	if l.certs != nil {
		transport, authorise = credentials.NewTLS(l.certs.Server(true)), l.config.Identity.Check
	}
	receiver := regions.NewReceiver(l.config.Region, authorise, l.applier, l.config.Logger)
	defer receiver.Close()
	receiver.Hear(l.heard)
	server := receiver.Server(transport)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	err := l.links.Run(ctx)
	server.Stop()
	if failed := <-served; !errors.Is(failed, grpc.ErrServerStopped) {
		err = errors.Join(err, failed)
	}
	return err
}

func (l *link) close() {
	l.links.Close()
	l.applier.Close()
}

// follow takes in which journals a control plane has this agent follow.
func (l *link) follow(from any, shards []*reports.Followed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	follows := map[string]bool{}
	for _, s := range shards {
		follows[s.GetShard()] = s.GetKnown()
	}
	delete(l.follows, nil)
	l.follows[from] = follows
	l.settle()
}

// forget forgets what a control plane said that is gone, unless it is the last.
func (l *link) forget(from any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last, ok := l.follows[from]
	if !ok {
		return
	}
	delete(l.follows, from)
	if len(l.follows) == 0 {
		l.follows[nil] = last
	}
	l.settle()
}

// settle has journals followed. The caller holds the lock.
func (l *link) settle() {
	all := map[string]bool{}
	for _, follows := range l.follows {
		for shard, known := range follows {
			all[shard] = all[shard] || known
		}
	}
	l.links.Follow(maps.Clone(all))
}

// gap makes good what a lane could not write into a journal.
func (l *link) gap(shard string, g lane.Gap) {
	reason := journal.Refused
	if g.Reason == lane.GapTail {
		reason = journal.Tail
	}
	l.links.Gap(shard, g.Epoch, reason, g.Removed)
}

// maxFencesTold is how many pending fences of a pair are told.
const maxFencesTold = 20

// pairs are those of the journals that are followed, for a report.
func (l *link) pairs() []*reports.Pair {
	var all []*reports.Pair
	for _, p := range l.links.Pairs() {
		if len(all) == reports.Max {
			break
		}
		told := &reports.Pair{Shard: p.Shard, Region: p.Region, Epoch: p.Epoch, To: p.To, Paused: p.Paused, Problem: reports.Shorten(p.Problem),
			LagUs: uint64(max(0, p.Lag).Microseconds()), Backlog: p.Backlog, Keys: p.Keys}
		if p.Cursor != (journal.Cursor{}) {
			told.Cursor = p.Cursor.String()
		}
		for _, f := range p.Pending[:min(len(p.Pending), maxFencesTold)] {
			told.Fences = append(told.Fences, &reports.Fence{Id: f.ID, Reason: string(f.Reason), Prefix: f.Prefix, SinceMs: f.Since.UnixMilli()})
		}
		all = append(all, told)
	}
	return all
}

// notices are those after one, for a report, and the last of them.
func (l *link) notices(after uint64) ([]*reports.Notice, uint64) {
	var all []*reports.Notice
	for _, n := range l.links.Notices(after) {
		all = append(all, &reports.Notice{Id: n.ID, Fence: n.Fence, TimeMs: n.Time.UnixMilli(), Shard: n.Shard, Region: n.Region, Epoch: n.Epoch,
			Reason: string(n.Reason), Keys: n.Keys, AfterMs: uint64(n.After.Milliseconds())})
		after = n.ID
	}
	return all, after
}
