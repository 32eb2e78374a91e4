// Package controlplane is one region's control plane: one loop turns what the membership says, and who is primary, into a
// topology, the topology into Envoy resources, and hands those to the xDS server. Beside it, the manager has shards.Manager decide
// who is primary, from what health probes and agents say, keeps that in the store and makes it so on the nodes. Nodes are probed
// for what status and metrics show, and an HTTP API answers the commands.
//
// It never acts on a request's way: when it is gone, every sidecar keeps serving.
package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
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
	"github.com/cachemesh/cachemesh/shards"
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
	File      string // mesh.yaml
	Region    string // "" is the file's only region
	XDS       string // IP:port of the gRPC server
	HTTP      string // IP:port of the API
	Advertise string // URL of the API for others; "" is of HTTP
	Consul    string // address of the region's Consul; "" is the one in File
	// State is the folder for what must survive a restart; "" keeps nothing, and without Consul manages no node.
	State    string
	TLS      TLS  // of both
	Insecure bool // allow plaintext listeners beyond loopback
	Version  string
	Logger   *slog.Logger
	// Now is the clock that warming plans' times go by; nil is the machine's.
	Now func() time.Time
}

// ControlPlane serves one region.
type ControlPlane struct {
	config  Config
	certs   *certs.Source // nil is plaintext
	log     *slog.Logger
	xds     *xds.Server
	metrics *metrics
	prober  *prober
	manager *manager
	agents  *agents
	links   *links
	health  *health
	events  *eventLog
	warmer  *warmer
	base    *mesh.Topology // the membership's last; loop's own
	changed chan struct{}  // holds a token when who is primary may be another
	view    atomic.Pointer[view]
	served  chan struct{} // closed when there is something to serve
	started time.Time
}

// view is what publish has decided last. It is replaced, never changed.
type view struct {
	topology mesh.Topology
	version  string    // of the resources
	loadedAt time.Time // when topology came into effect
	input    error     // what is wrong with the newest input
	problem  error     // why the newest input, or who is primary, is not in effect; nil if it is
	broken   bool      // Envoy could not be given it

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
	c := &ControlPlane{config: config, certs: certificates, log: config.Logger, served: make(chan struct{}), changed: make(chan struct{}, 1), started: time.Now()}
	if c.events, err = openEvents(config.State, config.Logger); err != nil {
		return err
	}
	nodes := newMembership(source, read, config)
	keeps, err := newStore(config, read.mesh)
	if err != nil {
		return err
	}
	c.prober, c.health = newProber(), newHealth()
	c.metrics = newMetrics(c)
	c.events.observe = c.metrics.history.happened
	c.xds = xds.NewServer(xds.Config{Region: config.Region, RemoveAfter: removeAfter, KeepGone: keepGone, Authorise: c.authorise(), Observe: c})
	observe := config.State == "" && read.mesh.Membership.Consul == nil
	c.manager = newManager(config, keeps, observe)
	c.agents = newAgents(config.Region, c.authorise(), c.manager, config.Logger)
	c.links = c.agents.links
	c.links.follow, c.links.note = c.agents.Follow, c.manager.note
	c.links.unread = c.manager.unread
	c.manager.agents, c.manager.health = c.agents, c.health
	c.warmer = newWarmer(config, keeps.shelf("warming"), c.manager.leads, c.agents.Warm)
	c.agents.warmer, c.manager.recovered = c.warmer, c.warmer.recovered
	c.manager.changed = func() { signal(c.changed) }
	c.manager.record = func(all []shards.Event) { c.events.append(all) }
	c.manager.accepted = nodes.accept
	if observe {
		config.Logger.Warn("nodes are only looked at, and there is no failover: name a folder with --state, or use membership.consul")
	}
	first, err := nodes.first()
	if err != nil {
		return err
	}
	c.manager.load()
	c.apply(first)
	if first.topology != nil && c.view.Load().broken {
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
	group.Go(func() error { return loop(ctx, updates, c.changed, c.apply, c.publish, c.xds.Tick) })
	group.Go(func() error { return c.links.run(ctx) })
	group.Go(func() error { return c.warmer.run(ctx) })
	if spec := read.mesh.Membership.Consul; spec != nil {
		at := *spec
		at.Address = cmp.Or(config.Consul, at.Address)
		group.Go(func() error { return c.links.register(ctx, at) })
	}
	group.Go(func() error { return c.prober.run(ctx) })
	group.Go(func() error { return c.health.run(ctx, c.probed) })
	// Nobody else may lead before the last action has ended.
	keeping, release := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return keeps.run(keeping, func() { signal(c.manager.wake) }) })
	group.Go(func() error {
		defer release()
		return c.manager.run(ctx)
	})
	c.log.Info("serving", "region", config.Region, "xds", config.XDS, "http", config.HTTP, "resources", c.xds.Version())
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	c.log.Info("stopped")
	return nil
}

// probed takes in what a health probe saw.
func (c *ControlPlane) probed(n shards.Node, err error) {
	c.manager.probed(n, err)
	c.prober.heard(n, err)
	c.warmer.probed(n, err)
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

// loop collects updates for a moment and applies the last. What changes who is primary is published at once. It is the only caller of
// apply, publish and tick.
func loop(ctx context.Context, updates <-chan update, changed <-chan struct{}, apply func(update), publish, tick func()) error {
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
		case <-changed:
			publish()
		case <-ticker.C:
			tick()
		}
	}
}

// apply takes in what the membership says and publishes what comes of it.
func (c *ControlPlane) apply(u update) {
	next := view{}
	if v := c.view.Load(); v != nil {
		next = *v
	}
	next.input, next.membership, next.checks = u.err, u.membership, u.checks
	c.view.Store(&next)
	if u.topology != nil {
		c.base = u.topology
		c.warmer.configure(u.mesh)
		c.manager.members(*u.topology, u.membership.Frozen != "")
	}
	c.publish()
}

// publish makes what the membership and the manager say take effect, or keeps what is and says why.
func (c *ControlPlane) publish() {
	previous := c.view.Load()
	next := *previous
	next.problem, next.broken = next.input, false
	if c.base != nil {
		c.prober.want(c.manager.offer(*c.base))
		topology, waits := c.manager.topology(*c.base)
		topology = complete(topology, previous.topology, waits)
		switch missing := unserved(waits, topology); {
		case len(missing) > 0 && (previous.version == "" || emptied(topology)):
			next.problem = errors.Join(next.problem, fmt.Errorf("not served yet: the nodes of %s are being asked who is primary", strings.Join(missing, ", ")))
		case previous.version == "" || !reflect.DeepEqual(previous.topology, topology):
			resources, err := envoy.Build(topology)
			if err == nil {
				next.topology, next.version, next.loadedAt = topology, resources.Version, time.Now()
				c.links.update(topology)
				c.warmer.update(topology)
				c.agents.Publish(topology)
				c.xds.Set(resources)
				signal(c.prober.wake) // what status shows of the nodes is old now
			} else {
				next.problem, next.broken = errors.Join(next.problem, err), true
			}
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

// complete keeps shards on their ring that the state knows no more: a state that was lost empties no ring.
func complete(next, last mesh.Topology, waits []string) mesh.Topology {
	for i := range next.Pools {
		pool := &next.Pools[i]
		for _, old := range last.Pools {
			if old.Name != pool.Name {
				continue
			}
			for at, s := range old.Shards {
				if slices.Contains(waits, s.Name) {
					pool.Shards = slices.Insert(pool.Shards, min(at, len(pool.Shards)), s)
				}
			}
		}
	}
	return next
}

// unserved are the shards that wait for a primary and that a topology lacks.
func unserved(waits []string, topology mesh.Topology) []string {
	return slices.DeleteFunc(waits, func(name string) bool {
		return slices.ContainsFunc(topology.Pools, func(p mesh.Pool) bool { return inMesh(p.Shards, name) })
	})
}

func emptied(t mesh.Topology) bool {
	return slices.ContainsFunc(t.Pools, func(p mesh.Pool) bool { return len(p.Shards) == 0 })
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
	c.agents.register(g)
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
