package controlplane

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
)

// membership says which nodes a region's shards have.
type membership interface {
	// first is what is known at the start. It fails when the control plane cannot start.
	first() (update, error)
	// watch sends an update whenever something changes, until ctx ends.
	watch(ctx context.Context, updates chan<- update) error
	// accept follows a catalogue that is frozen; it does not block.
	accept()
}

// update is the whole of what a membership says.
type update struct {
	mesh       *mesh.Mesh     // of topology
	topology   *mesh.Topology // nil: there is none that could be served. Who is primary is not said in it
	err        error          // why the newest input is not in effect
	membership MembershipStatus
	checks     map[string]string // what Consul's checks say, by address
}

// MembershipStatus says where nodes are known from, and what is wrong there.
type MembershipStatus struct {
	Source   string                 `json:"source"` // file or consul
	Consul   *ConsulStatus          `json:"consul,omitempty"`
	Frozen   string                 `json:"frozen,omitempty"` // why the catalogue is not followed
	Problems []mesh.BadRegistration `json:"problems"`         // registrations that are ignored
	Alerts   []Alert                `json:"-"`                // they are among the status's
}

// without is the status without registrations that are ignored only because their shard was added by a handoff: its nodes are known already.
func (m MembershipStatus) without(added []ShardStatus) MembershipStatus {
	known := map[string]bool{} // ids
	problems := []mesh.BadRegistration{}
	for _, b := range m.Problems {
		if slices.ContainsFunc(added, func(s ShardStatus) bool {
			return s.Name == b.Shard && slices.ContainsFunc(s.Nodes, func(n NodeStatus) bool { return n.Address == b.Address })
		}) {
			known[b.ID] = true
			continue
		}
		problems = append(problems, b)
	}
	m.Problems = problems
	m.Alerts = slices.DeleteFunc(slices.Clone(m.Alerts), func(a Alert) bool { return known[a.Subject] })
	return m
}

// ConsulStatus is how the watch of Consul fares.
type ConsulStatus struct {
	Address    string `json:"address"`
	Datacenter string `json:"datacenter"`
	Up         bool   `json:"up"` // the last answer can be used
	Index      uint64 `json:"index"`
	Nodes      int    `json:"nodes"` // in the last answer that can be used
	Error      string `json:"error,omitempty"`
}

// newMembership chooses by what the mesh says.
func newMembership(source *fileSource, r reading, config Config) membership {
	m := fileMembership{source: source, region: config.Region, reading: r}
	if r.mesh.Membership.Consul == nil {
		return &m
	}
	return &consulMembership{fileMembership: m, mesh: r.mesh, spec: *r.mesh.Membership.Consul, address: config.Consul, log: config.Logger, links: map[string][]string{}, accepted: make(chan struct{}, 1)}
}

// fileMembership is static: all nodes are in mesh.yaml.
type fileMembership struct {
	source  *fileSource
	region  string
	reading reading
}

var errMembershipMoved = errors.New("membership.consul or the region's datacenter is another now: restart the control plane for that; until then what was in effect stays")

func (f *fileMembership) first() (update, error) {
	u := f.update(f.reading)
	if u.topology == nil {
		return u, u.err
	}
	return u, nil
}

func (f *fileMembership) update(r reading) update {
	u := update{err: r.err, membership: MembershipStatus{Source: "file", Problems: []mesh.BadRegistration{}}}
	if r.mesh == nil {
		return u
	}
	if r.mesh.Membership.Consul != nil {
		u.err = errors.Join(r.err, errMembershipMoved)
		return u
	}
	topology, err := r.mesh.Topology(f.region)
	if err != nil {
		u.err = errors.Join(r.err, err)
		return u
	}
	u.topology, u.mesh = &topology, r.mesh
	return u
}

func (f *fileMembership) accept() {} // a file is never frozen

func (f *fileMembership) watch(ctx context.Context, updates chan<- update) error {
	readings := make(chan reading)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.source.watch(ctx, readings) })
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case r := <-readings:
				if err := send(ctx, updates, f.update(r)); err != nil {
					return err
				}
			}
		}
	})
	return group.Wait()
}

func send[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// consulMembership has pools and routes from mesh.yaml and nodes from Consul. Its loop owns all of its state.
type consulMembership struct {
	fileMembership
	spec    mesh.ConsulSpec // as the file has it
	address string          // instead of the file's
	log     *slog.Logger

	mesh       *mesh.Mesh // the last good one
	fileErr    error
	members    members
	catalogue  []mesh.Registration // nil until one was seen
	status     ConsulStatus
	sent       update
	datacenter string
	links      map[string][]string // of other regions, as they were seen last
	accepted   chan struct{}       // holds a token when an operator has accepted what the catalogue lost
}

// server is how to reach this region's Consul.
func (c *consulMembership) server() mesh.ConsulSpec {
	spec := c.spec
	spec.Address = cmp.Or(c.address, spec.Address)
	return spec
}

func (c *consulMembership) stateFile() string { return filepath.Join(c.source.state, "members.json") }

func (c *consulMembership) first() (update, error) {
	region, ok := c.mesh.Region(c.region)
	if !ok {
		_, err := c.mesh.Topology(c.region)
		return update{}, err
	}
	c.datacenter, c.fileErr = region.Datacenter, c.reading.err
	client, err := consul.New(c.server())
	if err != nil {
		return update{}, err
	}
	client.Close()
	c.status = ConsulStatus{Address: client.Address(), Datacenter: c.datacenter}
	if c.source.state != "" {
		data, err := os.ReadFile(c.stateFile())
		if err == nil {
			err = json.Unmarshal(data, &c.members)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return update{}, fmt.Errorf("--state: %s: %w: remove it to take the nodes that Consul has", c.stateFile(), err)
		}
	}
	c.sent = c.settle(false)
	return c.sent, nil
}

func (c *consulMembership) watch(ctx context.Context, updates chan<- update) error {
	readings := make(chan reading)
	catalogues := make(chan consul.Catalogue)
	found := make(chan foundLinks)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.source.watch(ctx, readings) })
	group.Go(func() error {
		return consul.Watch(ctx, c.server(), c.datacenter, func(seen consul.Catalogue) { send(ctx, catalogues, seen) })
	})
	for _, r := range c.mesh.Regions {
		if r.Name == c.region {
			continue
		}
		group.Go(func() error {
			return consul.WatchLinks(ctx, c.server(), r.Datacenter, r.Name, func(seen consul.Links) { send(ctx, found, foundLinks{r.Name, seen}) })
		})
	}
	group.Go(func() error {
		for {
			accepted := false
			select {
			case <-ctx.Done():
				return ctx.Err()
			case r := <-readings:
				c.read(r)
			case seen := <-catalogues:
				c.see(seen)
			case seen := <-found:
				// A region without any has lost its Consul, or all of its control planes: its agents may be there.
				if seen.Err != nil || len(seen.Addresses) == 0 {
					continue
				}
				c.links[seen.region] = seen.Addresses
			case <-c.accepted:
				accepted = true
			}
			u := c.settle(accepted)
			if reflect.DeepEqual(u, c.sent) {
				continue
			}
			c.sent = u
			if err := send(ctx, updates, u); err != nil {
				return err
			}
		}
	})
	return group.Wait()
}

// foundLinks are those of another region.
type foundLinks struct {
	region string
	consul.Links
}

// read takes in the file.
func (c *consulMembership) read(r reading) {
	c.fileErr = r.err
	if r.mesh == nil {
		return
	}
	region, ok := r.mesh.Region(c.region)
	switch {
	case !ok:
		_, c.fileErr = r.mesh.Topology(c.region)
	case r.mesh.Membership.Consul == nil || *r.mesh.Membership.Consul != c.spec || region.Datacenter != c.datacenter:
		c.fileErr = errMembershipMoved
	default:
		c.mesh = r.mesh
	}
}

// see takes in what the watch reports.
func (c *consulMembership) see(seen consul.Catalogue) {
	if seen.Err != nil {
		if c.status.Up || c.status.Error == "" {
			c.log.Error("Consul cannot be used, the nodes stay as they are", "error", seen.Err)
		}
		c.status.Up, c.status.Error = false, seen.Err.Error()
		return
	}
	if !c.status.Up {
		c.log.Info("Consul answers", "address", c.status.Address, "datacenter", c.datacenter, "nodes", len(seen.Registrations))
	}
	c.catalogue = seen.Registrations
	c.status.Up, c.status.Error, c.status.Index, c.status.Nodes = true, "", seen.Index, len(seen.Registrations)
}

func (c *consulMembership) accept() { signal(c.accepted) }

// settle decides on all that is known, and keeps the decision over restarts.
func (c *consulMembership) settle(accepted bool) update {
	s := settle(c.mesh, c.region, c.members, c.catalogue, accepted)
	c.keep(s.members)
	if s.topology != nil {
		for region := range s.topology.Links {
			s.topology.Links[region] = append([]string{}, c.links[region]...)
		}
	}
	status := c.status
	u := update{
		mesh: c.mesh, topology: s.topology, err: errors.Join(c.fileErr, s.err), checks: map[string]string{},
		membership: MembershipStatus{Source: "consul", Consul: &status, Frozen: s.frozen, Problems: s.bad, Alerts: s.alerts},
	}
	if u.membership.Problems == nil {
		u.membership.Problems = []mesh.BadRegistration{}
	}
	if status.Error != "" {
		u.membership.Alerts = append(u.membership.Alerts, Alert{Subject: "Consul", Message: status.Error,
			Remedy: "the last nodes stay; see whether Consul runs at " + status.Address + " and has a leader"})
	}
	for _, r := range c.catalogue {
		u.checks[r.Address] = r.Check
	}
	return u
}

// keep writes the members down when they have changed.
func (c *consulMembership) keep(m members) {
	if reflect.DeepEqual(m, c.members) {
		return
	}
	c.members = m
	if c.source.state == "" {
		return
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = renameio.WriteFile(c.stateFile(), append(data, '\n'), 0o600)
	}
	if err != nil {
		c.log.Error("cannot keep the nodes over a restart", "error", err)
	}
}
