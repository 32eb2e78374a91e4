package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// Options are what a user may choose.
type Options struct {
	Dir        string        // where everything lives; made if missing
	For        time.Duration // how long it runs once ready; 0 is until it is stopped
	NoLoad     bool
	Rate       int // requests a second in each region
	PortOffset int // added to every port
	DBLatency  time.Duration
	Membership string // static or consul
	Coherent   bool   // regions tell each other what applications change
	Warming    bool   // caches are filled ahead; wants Coherent
	NoPlans    bool   // with Warming: all of it but the plans
	Clock      string // by which plans run, START@SINCE*SPEED; "" is everybody's
	TLS        bool   // everywhere but between an application and its sidecar
	Prometheus bool   // start one that watches
	Cachemesh  string // the program to start control planes and sidecars with
	Twitter    string // the example application
	Notes      func(format string, args ...any)
}

// The demo's size. The pools are those of the example application.
const (
	shardsPerPool     = 3
	nodesPerShard     = 2
	sidecarsPerRegion = 2
)

var (
	regions = []string{"us-east", "eu-west"}
	pools   = []mesh.PoolSpec{
		{Name: "timelines", Routes: []mesh.Route{coherent("timeline:"), coherent("user:")}},
		{Name: "content", Routes: []mesh.Route{coherent("tweet:"), local("trend:"), local("")}},
	}
)

// coherent is a route whose keys the other region removes when the application does.
func coherent(prefix string) mesh.Route {
	return mesh.Route{Prefix: prefix, Coherence: mesh.Invalidate, Writes: mesh.Refill}
}

// local is a route that other regions hear nothing of.
func local(prefix string) mesh.Route { return mesh.Route{Prefix: prefix} }

// layout says where each process listens and keeps its files. It is computed, not discovered, so that the ports are
// those that the documentation names.
type layout struct {
	options Options
	mesh    mesh.Mesh
	regions []regionLayout
	// nodesAPI is where nodes for new shards are asked for.
	nodesAPI string
}

type regionLayout struct {
	name      string
	xds, http string
	sidecars  []sidecarLayout
	nodes     []nodeLayout
	consul    process.Consul
}

type sidecarLayout struct {
	name, dir                         string
	redis, resp3, admin, metrics, app string
	link                              string
}

type nodeLayout struct {
	pool, shard string
	port        int
}

func newLayout(o Options) layout {
	l := layout{options: o, mesh: mesh.Mesh{APIVersion: mesh.APIVersion, Kind: mesh.Kind, Pools: poolsWith(o)}}
	if o.Coherent {
		l.mesh.Transactions = mesh.TransactionsLanes
	}
	address := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port+o.PortOffset) }
	l.nodesAPI = address(18070)
	node := 7001 + o.PortOffset
	sidecar := 0
	for i, name := range regions {
		r := regionLayout{name: name, xds: address(18000 + i), http: address(18080 + i)}
		for j := range sidecarsPerRegion {
			s := sidecarLayout{name: fmt.Sprintf("%s-%d", name, j)}
			s.dir = filepath.Join(o.Dir, s.name)
			s.redis, s.resp3 = address(6380+2*sidecar), address(6381+2*sidecar)
			s.admin, s.metrics = address(9901+2*sidecar), address(9902+2*sidecar)
			s.app, s.link = address(8081+sidecar), address(7946+sidecar)
			r.sidecars = append(r.sidecars, s)
			sidecar++
		}
		spec := mesh.RegionSpec{Name: name}
		for _, s := range r.sidecars {
			if o.Coherent {
				spec.Links = append(spec.Links, s.link)
			}
		}
		for _, p := range pools {
			for j := range shardsPerPool {
				shard := mesh.ShardSpec{Pool: p.Name, Name: fmt.Sprintf("%s-%d", p.Name, j)}
				for range nodesPerShard {
					n := nodeLayout{pool: p.Name, shard: shard.Name, port: node}
					r.nodes = append(r.nodes, n)
					shard.Nodes = append(shard.Nodes, n.address())
					node++
				}
				spec.Shards = append(spec.Shards, shard)
			}
		}
		if o.consul() {
			r.consul = o.consulServer(i)
			spec.Links = nil // agents register themselves
			for j := range spec.Shards {
				spec.Shards[j].Nodes = nil
			}
			l.mesh.Membership.Consul = &mesh.ConsulSpec{}
		}
		l.mesh.Regions = append(l.mesh.Regions, spec)
		l.regions = append(l.regions, r)
	}
	if o.Warming {
		l.place()
	}
	if o.Warming && !o.NoPlans {
		l.mesh.Warming = l.plans()
	}
	return l
}

func (n nodeLayout) address() string { return fmt.Sprintf("127.0.0.1:%d", n.port) }

func (l layout) meshFile() string { return filepath.Join(l.options.Dir, "mesh.yaml") }
func (l layout) log(name string) string {
	return filepath.Join(l.options.Dir, "logs", name+".log")
}
func (l layout) database() string { return "sqlite:" + filepath.Join(l.options.Dir, "twitter.db") }

// addresses lists everything that the demo listens on, with the name of who does.
func (l layout) addresses() map[string]string {
	all := map[string]string{l.nodesAPI: "the demo's own API"}
	if l.options.Prometheus {
		all[l.options.prometheusAddress()] = "Prometheus"
	}
	for _, r := range l.regions {
		all[r.xds], all[r.http] = r.name+"'s control plane", r.name+"'s control plane"
		for _, s := range r.sidecars {
			for _, a := range []string{s.redis, s.resp3, s.admin, s.metrics, s.link} {
				all[a] = "sidecar " + s.name
			}
			all[s.app] = "the application beside " + s.name
		}
		for _, a := range l.options.consulAddresses(r) {
			all[a] = "the Consul server of " + r.name
		}
		for _, n := range r.nodes {
			all[n.address()] = "a Redis of shard " + n.shard
		}
	}
	return all
}

// writeMesh writes the mesh.yaml that both control planes read.
func (l layout) writeMesh() error {
	data, err := yaml.MarshalWithOptions(l.mesh, yaml.IndentSequence(true))
	if err != nil {
		return err
	}
	header := "# Written by `cachemesh demo`. Edit it while the demo runs: the control planes watch it.\n"
	return os.WriteFile(l.meshFile(), append([]byte(header), data...), 0o644)
}

func (l layout) controlplaneCommand(r regionLayout) []string {
	command := append([]string{l.options.Cachemesh, "controlplane", "--config", l.meshFile(), "--region", r.name, "--xds", r.xds, "--http", r.http,
		"--state", filepath.Join(l.options.Dir, r.name)}, l.options.controlplaneTLS()...)
	if l.options.consul() {
		command = append(command, "--consul", r.consul.Address())
	}
	if l.options.Clock != "" {
		command = append(command, "--warming-clock", l.options.Clock)
	}
	return command
}

func (l layout) sidecarCommand(r regionLayout, s sidecarLayout) []string {
	command := []string{l.options.Cachemesh, "sidecar", "--region", r.name, "--name", s.name, "--controlplane", r.xds, "--dir", s.dir,
		"--redis", s.redis, "--redis-resp3", s.resp3, "--admin", s.admin, "--metrics", s.metrics}
	if l.options.Coherent {
		command = append(command, "--link", s.link)
	}
	return append(command, l.options.sidecarTLS(r.name, s.name)...)
}

// peers tells each application where those of the other regions are.
func (l layout) peers() string {
	var all []string
	for _, r := range l.regions {
		all = append(all, r.name+"=http://"+r.sidecars[0].app)
	}
	return strings.Join(all, ",")
}

func (l layout) appCommand(r regionLayout, s sidecarLayout) []string {
	command := []string{l.options.Twitter, "serve", "--listen", s.app, "--region", r.name, "--redis", "unix:" + filepath.Join(s.dir, "redis.sock"),
		"--db", l.database(), "--peers", l.peers(), "--db-latency", l.options.DBLatency.String()}
	if l.options.Coherent {
		command = append(command, "--coherent")
	}
	if l.options.Warming {
		command = append(command, "--events", "http://"+s.metrics+"/v1/events", "--loader-token-file", l.options.loaderToken())
	}
	return command
}

func (l layout) loadCommand(r regionLayout) []string {
	var targets []string
	for _, s := range r.sidecars {
		targets = append(targets, "http://"+s.app)
	}
	return []string{l.options.Twitter, "load", "--targets", strings.Join(targets, ","), "--region", r.name, "--db", l.database(),
		"--rate", fmt.Sprint(l.options.Rate), "--for", l.options.For.String(), "-o", "json"}
}
