// Package demo runs a whole mesh on this machine, out of real processes: Redis nodes, control planes, sidecars with their
// Envoys, and the example application under load in two regions.
//
// It starts and stops processes of its own and touches no other, and it restarts none that dies: what the mesh
// does then is what it is there to show. Only a Redis that was asked to end (SHUTDOWN, SIGTERM) is started again, as a rolling restart
// expects of whoever runs it.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/process"
)

// startTimeout bounds how long the demo may take to get ready.
const startTimeout = 60 * time.Second

// Demo is a running mesh.
type Demo struct {
	layout    layout
	lock      *os.File
	client    *http.Client // for the programs' pages
	mu        sync.Mutex
	processes []*process.Process // in the order in which they started
	pids      map[string]int     // of the nodes, by address
	started   []startedNode      // nodes that are not of the layout
	endpoints Endpoints
	ready     time.Time
	running   context.Context // until Stop
	end       context.CancelFunc
	tended    sync.WaitGroup // who starts nodes again
}

// Start brings everything up. On an error, and when ctx ends, what was started is stopped again.
func Start(ctx context.Context, o Options) (*Demo, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	d := &Demo{layout: newLayout(o), pids: map[string]int{}}
	if err := d.prepare(); err != nil {
		return nil, err
	}
	d.running, d.end = context.WithCancel(context.Background())
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %s", startTimeout))
	defer cancel()
	if err := d.start(ctx); err != nil {
		d.Stop()
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return nil, err
	}
	return d, nil
}

// prepare makes the folder and checks that nobody else uses it or the ports.
func (d *Demo) prepare() error {
	dir := d.layout.options.Dir
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return fmt.Errorf("another demo runs from %s: stop it, or choose another --dir", dir)
	}
	d.lock = lock
	if err := checkPorts(d.layout.addresses()); err != nil {
		lock.Close()
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
	if err != nil {
		return err
	}
	old = append(old, endpointsFile(dir))
	for _, r := range d.layout.regions {
		// What control planes and sidecars knew of another run's processes is not so any more.
		for _, name := range []string{"mesh.yaml", "members.json", "state.json", "events.jsonl"} {
			old = append(old, filepath.Join(dir, r.name, name))
		}
		for _, s := range r.sidecars {
			old = append(old, filepath.Join(s.dir, "resources.pb"))
		}
	}
	for _, name := range old {
		os.Remove(name)
	}
	if d.layout.options.TLS {
		if err := d.layout.writeCertificates(); err != nil {
			lock.Close()
			return err
		}
	}
	if d.client, err = d.layout.client(); err != nil {
		lock.Close()
		return err
	}
	if err := d.layout.writePrometheus(); err != nil {
		lock.Close()
		return err
	}
	if d.layout.options.Warming {
		if err := d.layout.options.writeLoaderToken(); err != nil {
			lock.Close()
			return err
		}
	}
	return d.layout.writeMesh()
}

// checkPorts names the first address that somebody listens on, or one that nobody can listen on.
func checkPorts(addresses map[string]string) error {
	var taken []string
	for address, who := range addresses {
		l, err := net.Listen("tcp", address)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			taken = append(taken, fmt.Sprintf("%s (for %s)", address, who))
		case err != nil:
			return fmt.Errorf("%s (for %s): %w: choose another --port-offset", address, who, err)
		default:
			l.Close()
		}
	}
	if len(taken) == 0 {
		return nil
	}
	slices.Sort(taken)
	more := ""
	if len(taken) > 1 {
		more = fmt.Sprintf(" and %d more", len(taken)-1)
	}
	return fmt.Errorf("port in use: %s%s: stop who listens there (`ss -ltnp`), or choose other ports with --port-offset", taken[0], more)
}

func (d *Demo) start(ctx context.Context) error {
	l := d.layout
	note := l.options.Notes
	servers, err := d.startConsul(ctx)
	if err != nil {
		return err
	}
	note("starting %d Redis nodes", len(l.regions)*len(pools)*shardsPerPool*nodesPerShard)
	if err := d.startNodes(ctx); err != nil {
		return err
	}
	if err := d.register(ctx); err != nil {
		return err
	}
	note("starting control planes and sidecars")
	group, gctx := errgroup.WithContext(ctx)
	endpoints := make([]RegionEndpoints, len(l.regions))
	for i, r := range l.regions {
		endpoints[i] = RegionEndpoints{Name: r.name, Consul: servers[r.name], Sidecars: make([]SidecarEndpoints, len(r.sidecars))}
		command := l.controlplaneCommand(r)
		group.Go(func() error {
			p, err := d.run(gctx, r.name+"-controlplane", command, l.url(r)+"/readyz")
			if err == nil {
				endpoints[i].Controlplane = ControlplaneEndpoints{XDS: r.xds, HTTP: l.url(r), PID: p.PID(), Command: command}
			}
			return err
		})
		for j, s := range r.sidecars {
			command := l.sidecarCommand(r, s)
			group.Go(func() error {
				p, err := d.run(gctx, s.name, command, "http://"+s.metrics+"/readyz")
				if err == nil {
					endpoints[i].Sidecars[j] = SidecarEndpoints{
						Name: s.name, PID: p.PID(), Redis: s.redis, RedisRESP3: s.resp3, RedisSocket: filepath.Join(s.dir, "redis.sock"),
						EnvoyAdmin: "http://" + s.admin, Metrics: "http://" + s.metrics + "/metrics", App: "http://" + s.app, Command: command,
					}
				}
				return err
			})
		}
	}
	group.Go(func() error { return d.seed(gctx) })
	if err := group.Wait(); err != nil {
		return err
	}
	roles, err := d.settle(ctx)
	if err != nil {
		return err
	}
	for i, r := range l.regions {
		endpoints[i].Shards = d.shardEndpoints(r, roles)
	}
	note("starting the application")
	group, gctx = errgroup.WithContext(ctx)
	group.Go(func() error { return d.linked(gctx) })
	for _, r := range l.regions {
		for _, s := range r.sidecars {
			group.Go(func() error {
				_, err := d.run(gctx, s.name+"-app", l.appCommand(r, s), "http://"+s.app+"/healthz")
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	d.endpoints = Endpoints{Regions: endpoints}
	if d.endpoints.Prometheus, err = d.startPrometheus(ctx); err != nil {
		return err
	}
	if l.options.TLS {
		d.endpoints.CA = l.options.certificates("ca.pem")
	}
	if err := d.serveNodes(); err != nil {
		return err
	}
	d.readEnvoyPIDs()
	d.ready = time.Now()
	return d.endpoints.write(l.options.Dir)
}

// run starts a program that is ready when a page of it answers 200.
func (d *Demo) run(ctx context.Context, name string, command []string, page string) (*process.Process, error) {
	p, err := process.Start(ctx, process.Spec{Name: name, Path: command[0], Args: command[1:], Log: d.layout.log(name),
		Ready: func(ctx context.Context, _ int) error { return d.answers(ctx, page) }})
	if err != nil {
		return nil, err
	}
	d.keep(p)
	return p, nil
}

func (d *Demo) seed(ctx context.Context) error {
	p, err := process.Start(ctx, process.Spec{Name: "twitter seed", Path: d.layout.options.Twitter,
		Args: []string{"seed", "--db", d.layout.database()}, Log: d.layout.log("seed")})
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Stop(time.Second)
		return ctx.Err()
	}
	if p.Err() != nil {
		return fmt.Errorf("the example's database could not be filled: %w: see %s", p.Err(), d.layout.log("seed"))
	}
	return nil
}

func (d *Demo) keep(p *process.Process) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.processes = append(d.processes, p)
}

// Stop ends everything that Start started, the last first, and returns the names of those that had died before.
func (d *Demo) Stop() (died []string) {
	os.Remove(endpointsFile(d.layout.options.Dir))
	d.end()
	d.tended.Wait()
	d.mu.Lock()
	processes := slices.Clone(d.processes)
	d.processes = nil
	d.mu.Unlock()
	slices.Reverse(processes)
	var wait sync.WaitGroup
	for _, p := range processes {
		select {
		case <-p.Done():
			died = append(died, fmt.Sprintf("%s ended by itself: %v", p.Name(), p.Err()))
			continue
		default:
		}
		wait.Go(func() { p.Stop(8 * time.Second) })
	}
	wait.Wait()
	for _, r := range d.layout.regions {
		for _, s := range r.sidecars {
			stopOrphan(s.dir)
		}
	}
	d.lock.Close()
	return died
}

// envoyState is what a sidecar keeps of its Envoy.
type envoyState struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
}

func readEnvoyState(dir string) (envoyState, error) {
	var s envoyState
	data, err := os.ReadFile(filepath.Join(dir, "envoy.json"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// stopOrphan ends the Envoy of a sidecar that was killed: it outlives its agent by design.
func stopOrphan(dir string) {
	s, err := readEnvoyState(dir)
	if err != nil || s.PID <= 0 {
		return
	}
	if started, err := process.StartTime(s.PID); err == nil && started == s.StartTime {
		syscall.Kill(s.PID, syscall.SIGTERM)
	}
}

// readEnvoyPIDs brings the endpoints' Envoy pids up to date and says whether one changed.
func (d *Demo) readEnvoyPIDs() (changed bool) {
	for i, r := range d.layout.regions {
		for j, s := range r.sidecars {
			if state, err := readEnvoyState(s.dir); err == nil && state.PID != 0 && state.PID != d.endpoints.Regions[i].Sidecars[j].EnvoyPID {
				d.endpoints.Regions[i].Sidecars[j].EnvoyPID = state.PID
				changed = true
			}
		}
	}
	return changed
}

func (d *Demo) answers(ctx context.Context, page string) error {
	return d.read(ctx, page, func(io.Reader) error { return nil })
}

// read reads a page that answers within a second.
func (d *Demo) read(ctx context.Context, page string, body func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", page, resp.Status)
	}
	return body(resp.Body)
}
