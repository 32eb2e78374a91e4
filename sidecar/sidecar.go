// Package sidecar runs one Envoy beside an application. Its agent starts Envoy, starts it again when it crashes, takes
// over a living one after its own restart, and drains it at the end. It relays Envoy's xDS stream to a control plane,
// keeps the last resources of which Envoy acknowledged all on disk, and serves those when no control plane answers. It probes
// the primaries that control planes ask about, and reports to each of them what it sees and what Envoy has acknowledged.
//
// It is on the way of a request only while it stands in for a shard's primary, and of writes where routes are on lanes, never ends a process that it cannot prove to be its own, and never listens
// beyond loopback but for its metrics. cmd/cachemesh calls it.
//
// Config.Dir holds
//
//	lock              held by the agent, with its pid
//	xds.sock          where Envoy finds its resources
//	agent.sock        where another agent asks to take this one's place, see handover.go
//	bootstrap.json    what Envoy starts with
//	envoy.json        which process Envoy is
//	envoy.log[.1]     what Envoy logs
//	resources.pb      the acknowledged resources, see resources.go
//	topology.json     the region's topology, as the agent follows it, see topology.go
//	hold/SHARD.sock   what Envoy reaches in place of a shard whose primary is being switched, see hold.go
//	null/SHARD.sock   what it reaches in place of a shard without any node, see null
//	lanes-N/SHARD.sock  where it sends a shard's writes, of the Nth agent beside this Envoy, see lanes.go
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/regions/writers"
)

const (
	resourcesFile = "resources.pb"
	topologyFile  = "topology.json"
)

// agent is all of a sidecar but Envoy.
type agent struct {
	config     Config
	supervisor *supervisor
	relay      *relay
	reporting  *reporting
	topologies *topologies
	standIns   *standIns
	lanes      *laneSockets
	carrier    *carrier
	link       *link
}

// Run is a sidecar: it returns nil when ctx has ended and Envoy is drained and gone, and an error if the
// configuration is wrong, another agent runs in its directory, or something it listens on is taken.
func Run(ctx context.Context, c Config) error {
	c, err := c.complete()
	if err != nil {
		return fmt.Errorf("sidecar: %w", err)
	}
	if err := run(ctx, c); err != nil {
		return fmt.Errorf("sidecar %s: %w", c.Name, err)
	}
	return nil
}

func run(ctx context.Context, c Config) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	held, before, err := enter(ctx, c)
	if err != nil {
		return err
	}
	defer held.Close()
	a, err := newAgent(c, before != nil)
	if err != nil {
		return err
	}
	return a.serve(ctx, held, before)
}

// serve is all of an agent's life, until ctx ends or another has taken its place.
func (a *agent) serve(ctx context.Context, held *os.File, before *net.UnixConn) error {
	defer a.lanes.close()
	defer a.link.close() // lanes may need it until they end
	defer a.carrier.close()
	defer a.standIns.close()
	// An Envoy that outlived the agent before may need what is saved already.
	a.relay.prepare(a.relay.mayHave())
	metrics, err := net.Listen("tcp", a.config.Metrics)
	if err != nil {
		return fmt.Errorf("metrics: %w: choose another address", err)
	}
	defer metrics.Close()
	links, err := a.link.listen()
	if err != nil {
		return err
	}
	xds, err := listenXDS(filepath.Join(a.config.Dir, xdsSocket))
	if err != nil {
		return err
	}
	defer xds.Close()
	handover, err := listenHandover(a.config.Dir)
	if err != nil {
		return err
	}
	defer handover.Close()
	running, supersede := context.WithCancelCause(ctx)
	defer supersede(nil)
	var next *net.UnixConn
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if next = successor(handover); next != nil {
			supersede(errSuperseded)
		}
	}()
	go a.succeed(running, before)
	err = a.run(running, metrics, links, xds)
	handover.Close()
	if <-asked; next == nil {
		return err
	}
	held.Close()
	a.config.Logger.Info("another agent takes this one's place")
	a.leave(ctx, next)
	return err
}

// newAgent makes an agent, beside another of which it takes the place, or alone.
func newAgent(c Config, beside bool) (*agent, error) {
	saved, err := loadResources(filepath.Join(c.Dir, resourcesFile))
	if err != nil {
		c.Logger.Error("saved resources are ignored: Envoy waits for a control plane", "error", err)
	}
	s, err := newSupervisor(c)
	if err != nil {
		return nil, err
	}
	var source *certs.Source
	if c.TLS != (certs.Files{}) {
		if source, err = certs.Open(c.TLS, c.Logger); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
	}
	lanes, err := newLaneSockets(c.Dir, beside, c.Logger)
	if err != nil {
		return nil, fmt.Errorf("lanes: %w", err)
	}
	writer := writers.Name(c.Name)
	carrier := newCarrier(writer, c.Logger)
	lanes.bind, lanes.unbind, lanes.drain = carrier.bind, carrier.unbind, carrier.drain
	r := newRelay(c, saved, lanes.folder, s.restartCount, source)
	topology, err := loadTopology(c.Region, filepath.Join(c.Dir, topologyFile))
	if err != nil {
		c.Logger.Error("the saved topology is ignored: lanes wait for a control plane", "error", err)
	}
	topologies := newTopologies(c.Region, r.servedBy, topology, c.Logger)
	topologies.subscribe(carrier.follow)
	link := newLink(c, writer, source)
	topologies.subscribe(link.applier.Update)
	topologies.subscribe(link.links.Update)
	topologies.subscribe(link.teller.Update)
	carrier.gap = link.gap
	r.sourced = topologies.choose
	reporting := newReporting(c, r.planes, func() map[string]string { return topologies.agreed(r.endpoints()) }, topologies, link)
	topologies.subscribe(reporting.warmth.update)
	reporting.rings = (&rings{topology: topologies.current, orders: r.orders,
		settled: func(pool string) bool { return carrier.settled(pool) && link.applier.Settled() },
		kept:    func(pool string) uint64 { return uint64(carrier.both.Kept(pool)) }}).report
	r.changed, topologies.changed = reporting.acknowledged, reporting.acknowledged
	r.planes.behind, reporting.behind = reporting.isBehind, r.reconsider
	link.links.OnNotice(reporting.acknowledged)
	reporting.warmth.events.wake = reporting.acknowledged
	standIns, err := newStandIns(c.Dir, c.Logger)
	if err != nil {
		return nil, fmt.Errorf("stand-ins: %w", err)
	}
	r.prepare = func(endpoints []*discovery.Resource) {
		standIns.apply(endpoints)
		lanes.apply(endpoints)
	}
	return &agent{config: c, supervisor: s, relay: r, reporting: reporting, topologies: topologies, standIns: standIns, lanes: lanes, carrier: carrier, link: link}, nil
}

// listenXDS listens on a socket that may still be there from an agent that was killed.
func listenXDS(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// run ends when ctx does, or when a part fails. Envoy keeps its xDS until it is gone, so everything else ends after it.
func (a *agent) run(ctx context.Context, metrics, links, xds net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	serving, done := context.WithCancelCause(context.WithoutCancel(ctx))
	defer done(nil)
	grpcServer := a.relay.server()
	httpServer := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second}

	var parts errgroup.Group
	part := func(f func() error) {
		parts.Go(func() error {
			defer stop()
			return f()
		})
	}
	part(func() error {
		if err := grpcServer.Serve(xds); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	part(func() error {
		if err := httpServer.Serve(metrics); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	part(func() error { return a.relay.save(serving, filepath.Join(a.config.Dir, resourcesFile)) })
	part(func() error { return a.topologies.save(serving, filepath.Join(a.config.Dir, topologyFile)) })
	part(func() error { return a.link.run(serving, links) })
	part(func() error { return a.reporting.warmth.run(serving) })
	part(func() error { return a.reporting.run(serving) })
	part(func() error { return a.sweep(serving) })
	part(func() error { return a.supervisor.watch(serving) })
	part(func() error {
		err := a.supervisor.run(ctx)
		grpcServer.Stop()
		httpServer.Close()
		done(context.Cause(ctx))
		return err
	})
	return parts.Wait()
}

// sweepEvery is how often sockets that nobody names are looked for. Two times in a row makes sure that what is on its way
// to Envoy is not overlooked.
const sweepEvery = 3 * time.Second

// sweep removes sockets that no endpoint names, which Envoy has or may get, until ctx ends.
func (a *agent) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if endpoints := a.relay.mayHave(); a.standIns.any() || len(a.lanes.shards()) > 0 {
				a.standIns.sweep(endpoints)
				a.lanes.sweep(endpoints)
			}
		}
	}
}
