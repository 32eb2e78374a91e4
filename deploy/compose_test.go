package deploy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"sigs.k8s.io/yaml"
)

// project loads docker-compose.yml, with every profile, as docker compose does.
func project(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")},
		cli.WithEnv([]string{"POSTGRES_PASSWORD=of-the-test"}), cli.WithProfiles([]string{"*"}), cli.WithConsistency(true))
	if err != nil {
		t.Fatal(err)
	}
	p, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestComposeNeedsAPassword(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := options.LoadProject(t.Context()); err == nil || !strings.Contains(err.Error(), ".env") {
		t.Errorf("error %v, want one that says what to write to .env", err)
	}
}

// program is what a service of our image runs.
func program(s types.ServiceConfig) (name string, args []string) {
	if len(s.Entrypoint) > 0 {
		return s.Entrypoint[0], slices.Concat(s.Entrypoint[1:], s.Command)
	}
	return "cachemesh", s.Command
}

func ours(s types.ServiceConfig) bool { return s.Image == "cachemesh:compose" }

// namespace is the service whose network a service is in: its own, or another's.
func namespace(s types.ServiceConfig) string {
	if other, ok := strings.CutPrefix(s.NetworkMode, "service:"); ok {
		return other
	}
	return s.Name
}

func TestComposeServices(t *testing.T) {
	p := project(t)
	if len(p.Services) < 20 {
		t.Errorf("only %d services", len(p.Services))
	}
	taken := map[string]string{}
	for name, s := range p.Services {
		checkImage(t, name, s.Image)
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes %s to everybody", name, port.Published)
			}
			if other := taken[port.Published]; other != "" {
				t.Errorf("%s and %s publish port %s", name, other, port.Published)
			}
			taken[port.Published] = name
		}
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				if _, there := p.Volumes[v.Source]; !there {
					t.Errorf("%s: no volume is named %s", name, v.Source)
				}
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !v.ReadOnly {
				t.Errorf("%s may write to %s", name, v.Source)
			}
		}
		if !ours(s) {
			continue
		}
		command, args := program(s)
		accepted(t, name, command, args)
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.User != "" || s.Privileged || s.Build == nil {
			t.Errorf("%s: want a read-only root, no capabilities, the image's user and a build", name)
		}
		if s.HealthCheck != nil {
			checkHealth(t, p, s)
		}
	}
}

// checkHealth holds a health check against the listener that it asks.
func checkHealth(t *testing.T, p *types.Project, s types.ServiceConfig) {
	t.Helper()
	test := s.HealthCheck.Test
	if len(test) != 4 || test[0] != "CMD" || test[1] != "cachemesh" || test[2] != "health" {
		t.Errorf("%s: the health check is %v", s.Name, test)
		return
	}
	accepted(t, s.Name+"'s health check", "cachemesh", test[2:])
	_, args := program(s)
	u, err := url.Parse(test[3])
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"controlplane": "http /readyz", "sidecar": "metrics /readyz", "serve": "listen /healthz"}[args[0]]
	flag, page, _ := strings.Cut(want, " ")
	if at, err := netip.ParseAddrPort(flagOf(args, flag)); err != nil || u.Path != page || u.Host != fmt.Sprintf("127.0.0.1:%d", at.Port()) {
		t.Errorf("%s: the health check asks %s, and --%s is %s", s.Name, u, flag, flagOf(args, flag))
	}
}

// listening says at which port of its network a service of ours is reached by others.
func listening(s types.ServiceConfig) (ports []string) {
	_, args := program(s)
	for _, flag := range []string{"xds", "http", "metrics", "listen"} {
		if at, err := netip.ParseAddrPort(flagOf(args, flag)); err == nil && at.Addr().IsUnspecified() {
			ports = append(ports, fmt.Sprint(at.Port()))
		}
	}
	return ports
}

// answers checks that something of ours listens at host:port, where host is a service's name.
func answers(t *testing.T, p *types.Project, who, address string) {
	t.Helper()
	host, port, _ := strings.Cut(address, ":")
	for _, s := range p.Services {
		if ours(s) && namespace(s) == host && slices.Contains(listening(s), port) {
			return
		}
	}
	t.Errorf("%s asks %s, where nothing listens", who, address)
}

// Everything that a service is told to connect to is there.
func TestComposeConnections(t *testing.T) {
	p := project(t)
	kinds := map[string]int{}
	for name, s := range p.Services {
		for _, port := range s.Ports {
			if strings.HasSuffix(name, "-sidecar") {
				answers(t, p, name+"'s published port", fmt.Sprintf("%s:%d", name, port.Target))
			}
		}
		if !ours(s) {
			continue
		}
		_, args := program(s)
		kinds[args[0]]++
		switch args[0] {
		case "controlplane":
			advertised, ok := strings.CutPrefix(flagOf(args, "advertise"), "http://")
			if host, _, _ := strings.Cut(advertised, ":"); !ok || host != name {
				t.Errorf("%s advertises %s", name, flagOf(args, "advertise"))
			}
			answers(t, p, name, advertised)
			u, err := url.Parse(*s.Environment["CONSUL_HTTP_ADDR"])
			if err != nil || u.Host != flagOf(args, "region")+"-consul:8500" {
				t.Errorf("%s: its Consul is %v (%v)", name, u, err)
			}
			for _, flag := range []string{"config", "state"} {
				if !inVolume(s, flagOf(args, flag)) {
					t.Errorf("%s: --%s is on no volume", name, flag)
				}
			}
		case "sidecar":
			answers(t, p, name, flagOf(args, "controlplane"))
			if !inVolume(s, flagOf(args, "dir")) {
				t.Errorf("%s: --dir is on no volume", name)
			}
		case "serve":
			if s.NetworkMode != "service:"+flagOf(args, "region")+"-sidecar" {
				t.Errorf("%s is in the network of %q", name, s.NetworkMode)
			}
			if flagOf(args, "redis") != "127.0.0.1:6379" {
				t.Errorf("%s looks for Redis at %s, and the sidecar's --redis is its default", name, flagOf(args, "redis"))
			}
			for _, peer := range strings.Split(flagOf(args, "peers"), ",") {
				_, peer, _ = strings.Cut(peer, "=http://")
				answers(t, p, name, peer)
			}
		case "load":
			answers(t, p, name, strings.TrimPrefix(flagOf(args, "targets"), "http://"))
			if !slices.Contains(s.Profiles, "load") {
				t.Errorf("%s starts without being asked for", name)
			}
		}
		if db := flagOf(args, "db"); db != "" {
			u, err := url.Parse(db)
			if err != nil || u.Host != "postgres" || u.User.Username() != *p.Services["postgres"].Environment["POSTGRES_USER"] || strings.Contains(u.User.String(), ":") {
				t.Errorf("%s: --db=%s (%v)", name, db, err)
			}
			if *s.Environment["PGPASSWORD"] != *p.Services["postgres"].Environment["POSTGRES_PASSWORD"] {
				t.Errorf("%s has another password than the database", name)
			}
		}
	}
	if want := map[string]int{"controlplane": 2, "sidecar": 2, "serve": 2, "load": 2, "seed": 1}; fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("commands %v, want %v", kinds, want)
	}
}

func inVolume(s types.ServiceConfig, path string) bool {
	return slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool {
		relative, err := filepath.Rel(v.Target, path)
		return path != "" && err == nil && !strings.HasPrefix(relative, "..")
	})
}

// shardsOf are the registrations that a region's Consul is started with.
func shardsOf(t *testing.T, region string) (list []struct {
	ID, Name, Address string
	Port              int
	Meta              map[string]string
	Check             struct{ TCP string }
}) {
	t.Helper()
	var file struct{ Services json.RawMessage }
	if err := json.Unmarshal(read(t, "compose/consul/"+region+"/shards.json"), &file); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(file.Services, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// The nodes that Consul is told of are the Redis services, at their addresses, for the shards of mesh.yaml.
func TestComposeShards(t *testing.T) {
	p := project(t)
	mesh(t, "compose/mesh/mesh.yaml")
	var m struct {
		Regions []struct {
			Name   string
			Shards []struct{ Pool, Name string }
		}
	}
	if err := yaml.Unmarshal(read(t, "compose/mesh/mesh.yaml"), &m); err != nil {
		t.Fatal(err)
	}
	consul, err := filepath.Abs(root + "/.tools/bin/consul")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "data.json") // the image's own
	if err := os.WriteFile(folder, []byte(`{"data_dir": "/consul/data"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, region := range m.Regions {
		if out, err := exec.CommandContext(t.Context(), consul, "validate", "compose/consul/"+region.Name, folder).CombinedOutput(); err != nil {
			t.Errorf("consul validate: %v: %s (`make consul` builds it)", err, out)
		}
		registered := map[string]int{}
		for _, r := range shardsOf(t, region.Name) {
			registered[r.Meta["pool"]+"/"+r.Meta["shard"]]++
			redis, there := p.Services[region.Name+"-"+r.ID]
			if r.ID != r.Meta["shard"]+"-"+r.Meta["zone"] {
				t.Errorf("region %s: the registration %s is of node %s of %s", region.Name, r.ID, r.Meta["zone"], r.Meta["shard"])
			}
			if !there || redis.Networks["mesh"].Ipv4Address != r.Address || r.Port != 6379 || r.Name != "cachemesh-shard" || r.Check.TCP != r.Address+":6379" {
				t.Errorf("region %s: the registration %+v is of no Redis service", region.Name, r)
			}
		}
		for _, s := range region.Shards {
			if n := registered[s.Pool+"/"+s.Name]; n != 2 {
				t.Errorf("region %s: %d nodes register for shard %s of %s, want two", region.Name, n, s.Name, s.Pool)
			}
		}
		if len(registered) != len(region.Shards) {
			t.Errorf("region %s: %d shards, registrations for %d", region.Name, len(region.Shards), len(registered))
		}
	}
}

// Redis nodes wait for their role, are healthy while they do, and are started again however they end.
func TestComposeRedis(t *testing.T) {
	nodes, started := 0, map[string]bool{}
	for name, s := range project(t).Services {
		if len(s.Command) == 0 || s.Command[0] != "redis-server" {
			continue
		}
		if nodes++; s.Restart != types.RestartPolicyAlways {
			t.Errorf("%s: restart %q", name, s.Restart)
		}
		if want := []string{"CMD", "redis-cli", "-e", "info", "server"}; !slices.Equal(s.HealthCheck.Test, want) {
			t.Errorf("%s: the health check is %v: only %v is answered by a node without a role", name, s.HealthCheck.Test, want)
		}
		if command := strings.Join(s.Command, " "); !started[command] {
			started[command] = true
			startsAsReplicaOfNobody(t, name, s.Command, "")
		}
	}
	if nodes != 16 {
		t.Errorf("%d Redis nodes", nodes)
	}
}

// Fixed addresses are in the network, outside of what Docker gives away, and no two are the same.
func TestComposeAddresses(t *testing.T) {
	p := project(t)
	config := p.Networks["mesh"].Ipam.Config[0]
	subnet, given := netip.MustParsePrefix(config.Subnet), netip.MustParsePrefix(config.IPRange)
	owner := map[netip.Addr]string{}
	for name, s := range p.Services {
		for _, n := range s.Networks {
			if n == nil || n.Ipv4Address == "" {
				continue
			}
			at := netip.MustParseAddr(n.Ipv4Address)
			if !subnet.Contains(at) || given.Contains(at) || owner[at] != "" {
				t.Errorf("%s has the address %s, which is not in %s, is given away from %s, or is %q's", name, at, subnet, given, owner[at])
			}
			owner[at] = name
			if bind := "-bind=" + at.String(); strings.HasSuffix(name, "-consul") && !slices.Contains(s.Command, bind) {
				t.Errorf("%s lacks %s", name, bind)
			}
		}
	}
	if len(owner) < 10 {
		t.Errorf("only %d fixed addresses", len(owner))
	}
}

// Prometheus finds its rules, and targets that are there; Grafana finds its data source and dashboards.
func TestComposeObservability(t *testing.T) {
	p := project(t)
	prometheus, grafana := p.Services["prometheus"], p.Services["grafana"]
	config := mountedFile(t, prometheus, flagOf(prometheus.Command, "config.file"))
	var c struct {
		RuleFiles     []string `json:"rule_files"`
		ScrapeConfigs []struct {
			FileSDConfigs []struct{ Files []string } `json:"file_sd_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal(read(t, config), &c); err != nil {
		t.Fatal(err)
	}
	for _, rules := range c.RuleFiles {
		mountedFile(t, prometheus, filepath.Join("/etc/prometheus", rules))
	}
	targets := 0
	for _, job := range c.ScrapeConfigs {
		for _, sd := range job.FileSDConfigs {
			for _, file := range sd.Files {
				var groups []struct{ Targets []string }
				if err := yaml.Unmarshal(read(t, mountedFile(t, prometheus, filepath.Join("/etc/prometheus", file))), &groups); err != nil {
					t.Fatal(err)
				}
				for _, g := range groups {
					for _, target := range g.Targets {
						answers(t, p, "Prometheus", target)
						targets++
					}
				}
			}
		}
	}
	if targets != 4 {
		t.Errorf("%d targets, want two control planes and two sidecars", targets)
	}
	var providers struct {
		Providers []struct{ Options struct{ Path string } }
	}
	if err := yaml.Unmarshal(read(t, mountedFile(t, grafana, "/etc/grafana/provisioning/dashboards/cachemesh.yml")), &providers); err != nil {
		t.Fatal(err)
	}
	dashboards, err := filepath.Glob(filepath.Join(mountedFile(t, grafana, providers.Providers[0].Options.Path), "*.json"))
	if err != nil || len(dashboards) == 0 {
		t.Errorf("Grafana has no dashboards (%v)", err)
	}
	source := string(read(t, mountedFile(t, grafana, "/etc/grafana/provisioning/datasources/prometheus.yml")))
	if !strings.Contains(source, "${PROMETHEUS_URL}") || *grafana.Environment["PROMETHEUS_URL"] != "http://prometheus:9090" {
		t.Errorf("Grafana does not find Prometheus:\n%s", source)
	}
}

// mountedFile is the file of this repository that a service sees at a path.
func mountedFile(t *testing.T, s types.ServiceConfig, path string) string {
	t.Helper()
	for _, v := range s.Volumes {
		relative, err := filepath.Rel(v.Target, path)
		if v.Type != types.VolumeTypeBind || err != nil || strings.HasPrefix(relative, "..") {
			continue
		}
		file := filepath.Join(v.Source, relative)
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		return file
	}
	t.Fatalf("%s sees nothing at %s", s.Name, path)
	return ""
}
