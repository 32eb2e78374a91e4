// Package controlplane is one region's control plane: one loop turns what the membership says into a
// topology, the topology into Envoy resources, and hands those to the xDS server. Beside it, nodes are probed for
// what status and metrics show, and an HTTP API answers the commands.
//
// It never acts on a request's way: when it is gone, every sidecar keeps serving.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// A burst of changes is built once it has been quiet for holdOff, but no later than maxHoldOff after its first.
	holdOff    = 50 * time.Millisecond
	maxHoldOff = 500 * time.Millisecond
	// Sidecars drain the connections of a replaced listener for 2 s; an Envoy without an agent should too.
	removeAfter = 15 * time.Second
	keepGone    = 10 * time.Minute
)

// Config is what a control plane needs to know.
type Config struct {
	File     string // mesh.yaml
	Region   string // "" is the file's only region
	XDS      string // IP:port of the gRPC server
	HTTP     string // IP:port of the API
	Consul   string // address of the region's Consul; "" is the one in File
	State    string // folder for what must survive a restart; "" keeps nothing
	TLS      TLS    // of both
	Insecure bool   // allow plaintext listeners beyond loopback
	Version  string
	Logger   *slog.Logger
}

// ControlPlane serves one region.
type ControlPlane struct {
	config  Config
	certs   *certs.Source // nil is plaintext
	log     *slog.Logger
	xds     *xds.Server
	metrics *metrics
	prober  *prober
	events  *eventLog
	view    atomic.Pointer[view]
	served  chan struct{} // closed when there is something to serve
	started time.Time
}

// view is what apply has decided last. It is replaced, never changed.
type view struct {
	topology mesh.Topology
	version  string    // of the resources
	loadedAt time.Time // when topology came into effect
	problem  error     // why the newest input is not in effect; nil if it is

	membership MembershipStatus
	checks     map[string]string // what Consul's checks say, by address
}

// Run serves until ctx ends and then stops cleanly.
func Run(ctx context.Context, config Config) error {
	for flag, address := range map[string]string{"--xds": config.XDS, "--http": config.HTTP} {
		if err := checkListener(flag, address, config.Insecure || config.TLS.Cert != ""); err != nil {
			return err
		}
	}
	logging.Disable() // the Redis client would write to standard error what status shows
	certificates, err := config.TLS.open(config.Logger)
	if err != nil {
		return err
	}
	source := &fileSource{path: config.File, state: config.State, log: config.Logger}
	read, err := source.first()
	if err != nil {
		return err
	}
	if config.Region == "" {
		if len(read.mesh.Regions) != 1 {
			return fmt.Errorf("%s has several regions: choose one with --region: %v", config.File, read.mesh.RegionNames())
		}
		config.Region = read.mesh.Regions[0].Name
	}
	c := &ControlPlane{config: config, certs: certificates, log: config.Logger, served: make(chan struct{}), started: time.Now()}
	if c.events, err = openEvents(config.State, config.Logger); err != nil {
		return err
	}
	c.prober = newProber()
	c.metrics = newMetrics(c)
	c.xds = xds.NewServer(xds.Config{Region: config.Region, RemoveAfter: removeAfter, KeepGone: keepGone, Authorise: c.authorise(), Observe: c})
	nodes := newMembership(source, read, config, c.prober)
	first, err := nodes.first()
	if err != nil {
		return err
	}
	c.apply(first)
	if first.topology != nil && c.xds.Version() == "" {
		return c.view.Load().problem
	}

	httpListener, err := net.Listen("tcp", config.HTTP)
	if err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.serveXDS(ctx) })
	group.Go(func() error { return c.serveHTTP(ctx, httpListener) })
	updates := make(chan update)
	group.Go(func() error { return nodes.watch(ctx, updates) })
	group.Go(func() error { return loop(ctx, updates, c.apply, c.xds.Tick) })
	group.Go(func() error { return c.prober.run(ctx) })
	c.log.Info("serving", "region", config.Region, "xds", config.XDS, "http", config.HTTP, "resources", c.xds.Version())
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	c.log.Info("stopped")
	return nil
}

// checkListener refuses a plaintext port that others than this host can reach.
func checkListener(flag, address string, allowed bool) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%s %q: want IP:port", flag, address)
	}
	if !a.Addr().IsLoopback() && !allowed {
		return fmt.Errorf("%s %q is reachable from other hosts without TLS: add --tls-cert and --tls-key, listen on 127.0.0.1, or add --insecure on a network that you trust", flag, address)
	}
	return nil
}

// loop collects updates for a moment and applies the last; it is the only caller of apply and tick.
func loop(ctx context.Context, updates <-chan update, apply func(update), tick func()) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var pending *update
	var due <-chan time.Time
	var latest time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u := <-updates:
			if pending == nil {
				latest = time.Now().Add(maxHoldOff)
			}
			pending = &u
			due = time.After(min(holdOff, time.Until(latest)))
		case <-due:
			apply(*pending)
			pending, due = nil, nil
		case <-ticker.C:
			tick()
		}
	}
}

// apply makes an update take effect, or keeps what is and says why.
func (c *ControlPlane) apply(u update) {
	previous := c.view.Load()
	if previous == nil {
		previous = &view{}
	}
	next := *previous
	next.problem, next.membership, next.checks = u.err, u.membership, u.checks
	if u.topology != nil && (previous.version == "" || !reflect.DeepEqual(previous.topology, *u.topology)) {
		resources, err := envoy.Build(*u.topology)
		if err == nil {
			next.topology, next.version, next.loadedAt = *u.topology, resources.Version, time.Now()
			c.xds.Set(resources)
		} else {
			next.problem = errors.Join(next.problem, err)
		}
	}
	c.view.Store(&next)
	if previous.version == "" && next.version != "" {
		close(c.served)
	}
	if !next.loadedAt.After(previous.loadedAt) && fmt.Sprint(next.problem) == fmt.Sprint(previous.problem) {
		return
	}
	c.metrics.configured(next.problem == nil)
	switch {
	case next.problem == nil:
		c.log.Info("configuration in effect", "resources", next.version)
	case next.version == "":
		c.log.Warn("there is nothing to serve yet", "problem", next.problem)
	default:
		c.log.Error("not all of the configuration is in effect, the last good one stays", "problem", next.problem)
	}
}

// serveXDS listens once there is something to serve: until then sidecars are better off elsewhere, or with what they have.
func (c *ControlPlane) serveXDS(ctx context.Context) error {
	select {
	case <-c.served:
	case <-ctx.Done():
		return ctx.Err()
	}
	l, err := net.Listen("tcp", c.config.XDS)
	if err != nil {
		return fmt.Errorf("--xds: %w", err)
	}
	g := grpc.NewServer(
		grpc.Creds(c.xdsCredentials()),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}),
	)
	c.xds.Register(ctx, g)
	stopped := context.AfterFunc(ctx, g.Stop) // sidecars come back elsewhere, or serve what they have
	defer stopped()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve xDS: %w", err)
	}
	return ctx.Err()
}

func (c *ControlPlane) serveHTTP(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: c.handler(), BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug)}
	stopped := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	})
	defer stopped()
	serve := server.Serve
	if c.certs != nil {
		server.TLSConfig = c.certs.Server(c.config.TLS.HTTPClients)
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if err := serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return ctx.Err()
}

// Rejected, Synced and Sent make the control plane the xDS server's observer.
func (c *ControlPlane) Rejected(node, typeURL, reason string) {
	c.log.Warn("rejected by Envoy, what it had stays", "node", node, "type", typeURL, "reason", reason)
	c.metrics.rejected(typeURL)
}

func (c *ControlPlane) Synced(node string, after time.Duration) {
	c.log.Debug("synchronised", "node", node, "after", after)
	c.metrics.push.Observe(after.Seconds())
}

func (c *ControlPlane) Sent(typeURL string, resources, bytes int) {
	c.metrics.sent(typeURL, resources, bytes)
}
