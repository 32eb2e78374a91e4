package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/bench/delay"
	"github.com/cachemesh/cachemesh/process"
)

// regionsPlan is a mesh with coherent routes.
type regionsPlan struct {
	names                   []string // of the regions that run
	absent                  []string // of regions that the mesh has and nobody runs
	routes                  string   // of the one pool, a line each, as in mesh.yaml
	probe                   string   // prefix of a route whose writes must be answered before a sidecar counts as ready
	shards, nodes, sidecars int      // in each region; nodes are of a shard
	link                    bool     // sidecars listen for other regions
	near                    bool     // nothing is in the way between regions
	lanes                   bool     // transactions go through lanes, and so do all writes
	warming                 string   // mesh.yaml's plans, from "warming:" on
	oneWay                  time.Duration
}

// meshRegions are the regions of one mesh, as far apart as the plan says.
type meshRegions struct {
	regions []*meshRegion
	links   []*delay.Proxy // all ways into any region
}

// meshRegion is a control plane, sidecars that link to other regions, and shards.
type meshRegion struct {
	name     string
	control  *unit
	http     string
	sidecars []*linkedSidecar
	sets     []replicaSet
}

// linkedSidecar is an agent and its Envoy.
type linkedSidecar struct {
	agent *unit
	redis string // where its Envoy listens
	home  string
}

func (s *linkedSidecar) envoy() (pid int, err error) {
	return envoyPID(filepath.Join(s.home, "envoy.json"))
}

// unit is a program that can be started again as it was.
type unit struct {
	spec    process.Spec
	running *process.Process
}

func startUnit(ctx context.Context, spec process.Spec) (*unit, error) {
	u := &unit{spec: spec}
	return u, u.start(ctx)
}

func (u *unit) start(ctx context.Context) (err error) {
	u.running, err = process.Start(ctx, u.spec)
	return err
}

func (u *unit) stop() {
	if u != nil && u.running != nil {
		u.running.Stop(15 * time.Second)
	}
}

// regionAddresses are a region's, which its mesh.yaml names before anything runs.
type regionAddresses struct {
	xds, http string
	nodes     [][]int    // ports, by shard
	sidecars  [][]string // redis, redis-resp3, admin, metrics and link, by sidecar
	links     []string   // the ways to its sidecars' links
}

// startRegions runs the mesh of plan and waits until every sidecar's writes are answered.
func startRegions(ctx context.Context, dir, cachemesh string, plan regionsPlan) (_ *meshRegions, err error) {
	redis.SetLogger(silence{})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := &meshRegions{}
	defer func() {
		if err != nil {
			m.stop()
		}
	}()
	addresses, err := m.addresses(plan)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "regions.yaml")
	if err := os.WriteFile(file, []byte(plan.meshFile(addresses)), 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*settleTimeout)
	defer cancel()
	var starting sync.WaitGroup
	errs := make([]error, len(plan.names))
	for i, name := range plan.names {
		r := &meshRegion{name: name, http: addresses[i].http}
		m.regions = append(m.regions, r)
		starting.Go(func() { errs[i] = r.start(ctx, filepath.Join(dir, name), cachemesh, file, plan, addresses[i]) })
	}
	starting.Wait()
	return m, errors.Join(errs...)
}

// addresses finds ports for all regions and opens the ways between them.
func (m *meshRegions) addresses(plan regionsPlan) ([]regionAddresses, error) {
	const own = 5 // ports of a sidecar
	each := 2 + plan.shards*plan.nodes + own*plan.sidecars
	ports, err := process.FreePorts(each * len(plan.names))
	if err != nil {
		return nil, err
	}
	next := func() int {
		port := ports[0]
		ports = ports[1:]
		return port
	}
	var all []regionAddresses
	for range plan.names {
		a := regionAddresses{xds: localAddress(next()), http: localAddress(next())}
		for range plan.shards {
			var nodes []int
			for range plan.nodes {
				nodes = append(nodes, next())
			}
			a.nodes = append(a.nodes, nodes)
		}
		for range plan.sidecars {
			var listens []string
			for range own {
				listens = append(listens, localAddress(next()))
			}
			a.sidecars = append(a.sidecars, listens)
			if plan.near {
				a.links = append(a.links, listens[own-1])
				continue
			}
			way, err := delay.Listen(listens[own-1], plan.oneWay)
			if err != nil {
				return nil, err
			}
			m.links = append(m.links, way)
			a.links = append(a.links, way.Address())
		}
		all = append(all, a)
	}
	return all, nil
}

// meshFile is the mesh of all regions.
func (p regionsPlan) meshFile(addresses []regionAddresses) string {
	var b strings.Builder
	b.WriteString("apiVersion: cachemesh.dev/v1\nkind: Mesh\n")
	if p.lanes {
		b.WriteString("transactions: lanes\n")
	}
	b.WriteString("pools:\n  - name: cache\n    routes:\n")
	for line := range strings.Lines(p.routes) {
		fmt.Fprintf(&b, "      - {%s}\n", strings.TrimSpace(line))
	}
	b.WriteString("regions:\n")
	for i, name := range p.names {
		fmt.Fprintf(&b, "  - name: %s\n    links: [\"%s\"]\n    shards:\n", name, strings.Join(addresses[i].links, `", "`))
		for s, nodes := range addresses[i].nodes {
			var listens []string
			for _, port := range nodes {
				listens = append(listens, localAddress(port))
			}
			fmt.Fprintf(&b, "      - {pool: cache, name: %s, nodes: [\"%s\"]}\n", shardName(s), strings.Join(listens, `", "`))
		}
	}
	for i, name := range p.absent {
		// A port that nobody listens on.
		fmt.Fprintf(&b, "  - name: %[1]s\n    links: [\"127.0.0.1:%[2]d\"]\n    shards:\n      - {pool: cache, name: %[3]s, nodes: [\"127.0.0.1:%[4]d\"]}\n", name, 1+2*i, shardName(0), 2+2*i)
	}
	b.WriteString(p.warming)
	return b.String()
}

func (r *meshRegion) start(ctx context.Context, dir, cachemesh, file string, plan regionsPlan, a regionAddresses) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for s, ports := range a.nodes {
		set := replicaSet{name: shardName(s)}
		for _, port := range ports {
			n, err := startNode(ctx, process.Redis{Port: port, Dir: dir, Managed: true})
			if err != nil {
				return err
			}
			set.nodes = append(set.nodes, n)
		}
		r.sets = append(r.sets, set)
	}
	var err error
	if r.control, err = startUnit(ctx, process.Spec{
		Name: "control plane of " + r.name, Path: cachemesh, Log: filepath.Join(dir, "controlplane.log"),
		Args: []string{"controlplane", "--config", file, "--region", r.name, "--xds", a.xds, "--http", a.http, "--state", filepath.Join(dir, "state")},
	}); err != nil {
		return err
	}
	for i, listens := range a.sidecars {
		name := fmt.Sprintf("%s-%d", r.name, i)
		s := &linkedSidecar{redis: listens[0], home: filepath.Join(dir, name)}
		r.sidecars = append(r.sidecars, s)
		args := []string{"sidecar", "--region", r.name, "--name", name, "--controlplane", a.xds, "--dir", s.home,
			"--redis", listens[0], "--redis-resp3", listens[1], "--admin", listens[2], "--metrics", listens[3]}
		if plan.link {
			args = append(args, "--link", listens[4])
		}
		if s.agent, err = startUnit(ctx, process.Spec{
			Name: "sidecar " + name, Path: cachemesh, Log: filepath.Join(dir, name+".log"), Args: args,
			Ready: answersWrites(s.redis, plan.probe),
		}); err != nil {
			return err
		}
	}
	for _, set := range r.sets {
		if len(set.nodes) == 1 {
			continue
		}
		if err := eventually(ctx, r.name, func(ctx context.Context) error { _, _, _, err := set.synced(ctx); return err }); err != nil {
			return err
		}
	}
	return nil
}

// answersWrites is ready when writes of keys enough to meet every shard are answered.
func answersWrites(address, prefix string) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		client := failoverClient(address)
		defer client.Close()
		for i := range 50 {
			if err := client.Del(ctx, fmt.Sprintf("%sprobe:%d", prefix, i)).Err(); err != nil {
				return err
			}
		}
		return nil
	}
}

func (m *meshRegions) stop() {
	var stopping sync.WaitGroup
	for _, r := range m.regions {
		stopping.Go(func() {
			for _, s := range r.sidecars {
				s.agent.stop()
			}
			r.control.stop()
			for _, set := range r.sets {
				for _, n := range set.nodes {
					n.stop()
				}
			}
		})
	}
	stopping.Wait()
	for _, way := range m.links {
		way.Close()
	}
}
