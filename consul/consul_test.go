package consul_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// servers are Consul servers of these datacenters, joined over WAN, not started yet.
func servers(t *testing.T, datacenters ...string) []process.Consul {
	t.Helper()
	dir := t.TempDir()
	ports, err := process.FreePorts(4 * len(datacenters))
	if err != nil {
		t.Fatal(err)
	}
	all := make([]process.Consul, len(datacenters))
	for i, name := range datacenters {
		p := ports[4*i:]
		all[i] = process.Consul{Datacenter: name, HTTP: p[0], RPC: p[1], LAN: p[2], WAN: p[3], Dir: dir}
		if i > 0 {
			all[i].JoinWAN = []int{all[0].WAN}
		}
	}
	return all
}

func start(t *testing.T, s process.Consul) *process.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	p, err := s.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func client(t *testing.T, spec mesh.ConsulSpec) *consul.Client {
	t.Helper()
	c, err := consul.New(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// watch collects what a watch reports.
func watch(t *testing.T, s process.Consul, datacenter string) <-chan consul.Catalogue {
	t.Helper()
	seen := make(chan consul.Catalogue, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		consul.Watch(ctx, mesh.ConsulSpec{Address: s.Address()}, datacenter, func(c consul.Catalogue) { seen <- c })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return seen
}

// until reads reports up to the first that is as wanted.
func until(t *testing.T, seen <-chan consul.Catalogue, what string, ok func(consul.Catalogue) bool) consul.Catalogue {
	t.Helper()
	timeout := time.After(40 * time.Second)
	var last consul.Catalogue
	for {
		select {
		case last = <-seen:
			if ok(last) {
				return last
			}
		case <-timeout:
			t.Fatalf("waited 40 s: %s; the last report was %+v", what, last)
		}
	}
}

func lists(ids ...string) func(consul.Catalogue) bool {
	return func(c consul.Catalogue) bool { return c.Err == nil && slices.Equal(idsOf(c.Registrations), ids) }
}

func idsOf(registrations []mesh.Registration) []string {
	var ids []string
	for _, r := range registrations {
		ids = append(ids, r.ID)
	}
	return ids
}

func node(id, address string) mesh.Registration {
	return mesh.Registration{ID: id, Pool: "cache", Shard: "cache-0", Zone: "a", Address: address}
}

func TestRegistrationsOfTwoDatacentersAreSeen(t *testing.T) {
	t.Parallel()
	both := servers(t, "east", "west")
	start(t, both[0])
	start(t, both[1])
	east, west := client(t, mesh.ConsulSpec{Address: both[0].Address()}), client(t, mesh.ConsulSpec{Address: both[1].Address()})
	seen, across := watch(t, both[0], "east"), watch(t, both[0], "west")
	until(t, seen, "an empty catalogue", lists())
	until(t, across, "the other datacenter's empty catalogue", lists())

	register := func(c *consul.Client, r mesh.Registration) {
		t.Helper()
		if err := c.Register(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	register(east, node("z", "127.0.0.1:7001"))
	began := time.Now()
	got := until(t, seen, "the first registration", lists("z")).Registrations[0]
	t.Logf("seen %s after it was registered", time.Since(began))
	want := node("z", "127.0.0.1:7001")
	want.Agent, want.Check = got.Agent, got.Check
	if got != want || got.Check != "critical" {
		t.Errorf("registration %+v, want %+v with a critical check: nobody listens there", got, want)
	}
	register(east, node("a", "[::1]:7002"))
	until(t, seen, "the older registration first", lists("z", "a"))
	register(west, node("w", "127.0.0.1:7003"))
	until(t, across, "a registration in the other datacenter", lists("w"))

	if err := east.Deregister(t.Context(), "z"); err != nil {
		t.Fatal(err)
	}
	until(t, seen, "the registration is gone", lists("a"))
	if err := east.Deregister(t.Context(), "w"); err == nil || !strings.Contains(err.Error(), `"w" is not registered with the Consul agent at `+both[0].Address()) {
		t.Errorf("deregister with the wrong agent: error %v", err)
	}
	all, err := east.Datacenters(t.Context())
	if slices.Sort(all); err != nil || !slices.Equal(all, []string{"east", "west"}) {
		t.Errorf("datacenters %v, %v", all, err)
	}
	if there, err := east.List(t.Context(), "west"); err != nil || !slices.Equal(idsOf(there), []string{"w"}) {
		t.Errorf("list of the other datacenter: %v, %v", there, err)
	}
	if _, err := east.List(t.Context(), "north"); err == nil || !strings.Contains(err.Error(), "north") && !strings.Contains(err.Error(), "datacenter") {
		t.Errorf("list of a datacenter that does not exist: error %v", err)
	}
}

// A blocking query that ends because nothing happened says that all is well.
func TestAQuietCatalogueStaysKnown(t *testing.T) {
	t.Parallel()
	s := servers(t, "east")[0]
	start(t, s)
	c := client(t, mesh.ConsulSpec{Address: s.Address()})
	if err := c.Register(t.Context(), node("a", "127.0.0.1:7001")); err != nil {
		t.Fatal(err)
	}
	// Its check's output, connection refused, is the last thing that happens.
	seen := watch(t, s, "east")
	until(t, seen, "the registration", lists("a"))
	for quiet := 0; quiet < 2; {
		last := until(t, seen, "any report", func(consul.Catalogue) bool { return true })
		if !lists("a")(last) {
			t.Fatalf("report %+v, want the registration", last)
		}
		quiet++
	}
}

func TestAWatchSurvivesARestartAndAWipedConsul(t *testing.T) {
	t.Parallel()
	s := servers(t, "east")[0]
	p := start(t, s)
	c := client(t, mesh.ConsulSpec{Address: s.Address()})
	if err := c.Register(t.Context(), node("a", "127.0.0.1:7001")); err != nil {
		t.Fatal(err)
	}
	seen := watch(t, s, "east")
	until(t, seen, "the registration", lists("a"))
	p.Kill()
	until(t, seen, "an error while no Consul runs", func(c consul.Catalogue) bool {
		return c.Err != nil && strings.Contains(c.Err.Error(), s.Address())
	})
	p = start(t, s)
	until(t, seen, "the registration after a restart", lists("a"))

	p.Kill()
	if err := os.RemoveAll(s.Data()); err != nil {
		t.Fatal(err)
	}
	start(t, s)
	until(t, seen, "the wiped catalogue", lists())
	if err := c.Register(t.Context(), node("b", "127.0.0.1:7002")); err != nil {
		t.Fatal(err)
	}
	until(t, seen, "a registration with the wiped Consul", lists("b"))
}

func TestAConsulWithoutALeaderIsNotBelieved(t *testing.T) {
	t.Parallel()
	two := servers(t, "east", "east")
	for i := range two {
		two[i].JoinWAN = nil
		two[i].Args = []string{"-bootstrap-expect=2", "-retry-join=127.0.0.1:" + portOf(two[1-i].LAN)}
	}
	var group errgroup.Group
	running := make([]*process.Process, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for i, s := range two {
		group.Go(func() (err error) {
			running[i], err = s.Start(ctx)
			return err
		})
	}
	err := group.Wait()
	for _, p := range running {
		if p != nil {
			t.Cleanup(p.Kill)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, mesh.ConsulSpec{Address: two[0].Address()})
	if err := c.Register(t.Context(), node("a", "127.0.0.1:7001")); err != nil {
		t.Fatal(err)
	}
	seen := watch(t, two[0], "east")
	until(t, seen, "the registration", lists("a"))
	running[1].Kill()
	until(t, seen, "that there is no leader", func(c consul.Catalogue) bool {
		return c.Err != nil && strings.Contains(c.Err.Error(), "no leader")
	})
}

func TestTheTokenIsReadAnewAndOneThatSeesTooLittleIsNotBelieved(t *testing.T) {
	t.Parallel()
	s := servers(t, "east")[0]
	s.Args = []string{`-hcl=acl { enabled = true default_policy = "deny" tokens { initial_management = "` + management + `" agent = "` + management + `" } }`}
	start(t, s)
	file := filepath.Join(t.TempDir(), "token")
	token := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := client(t, mesh.ConsulSpec{Address: s.Address(), TokenFile: file})
	if err := c.Register(t.Context(), node("a", "127.0.0.1:7001")); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("without a token file: error %v", err)
	}
	token(management)
	// A new leader makes the tokens a moment after its election.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for err := c.Register(ctx, node("a", "127.0.0.1:7001")); err != nil; err = c.Register(ctx, node("a", "127.0.0.1:7001")) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	token(newToken(t, s, policy(t, "controlplane-policy.hcl")))
	if all, err := c.List(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("with the control planes' token: %v, %v", all, err)
	}
	if err := c.Register(t.Context(), node("b", "127.0.0.1:7002")); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("register with the control planes' token: error %v", err)
	}
	token(newToken(t, s, policy(t, "register-policy.hcl")))
	if err := c.Register(t.Context(), node("b", "127.0.0.1:7002")); err != nil {
		t.Errorf("register: %v", err)
	}
	if err := c.Deregister(t.Context(), "b"); err != nil {
		t.Errorf("deregister: %v", err)
	}
	if all, err := c.List(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "the token may not see all of it") {
		t.Errorf("list with a token that may not see nodes: %v, error %v", all, err)
	}
}

func policy(t *testing.T, name string) string {
	t.Helper()
	rules, err := os.ReadFile(filepath.Join("examples", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(rules)
}

func TestExampleDefinitionsAreRegistrationsThatConsulChecks(t *testing.T) {
	t.Parallel()
	s := servers(t, "east")[0]
	s.Args = []string{"-hcl=enable_local_script_checks = true"}
	for _, name := range []string{"primary.hcl", "replica.hcl"} {
		s.Args = append(s.Args, "-config-file="+filepath.Join("examples", name))
	}
	start(t, s)
	all := until(t, watch(t, s, ""), "both examples", func(c consul.Catalogue) bool {
		return len(c.Registrations) == 2
	}).Registrations
	for _, r := range all {
		if err := r.Validate(); err != nil || r.Pool != "timelines" || r.Shard != "timelines-0" || r.Zone == "" || r.Check == "" {
			t.Errorf("registration %+v: %v", r, err)
		}
	}
}
