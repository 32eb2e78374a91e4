package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/certs"
	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// question is a query that a dashboard or a rule asks.
type question struct{ kind, name, query string }

// questions are all that observability/ asks, as it may be asked of any Prometheus: without Grafana's variables, and
// without the comparisons of alerts, which are false while all is well.
func questions(t *testing.T) []question {
	t.Helper()
	var all []question
	variables := strings.NewReplacer("$__rate_interval", "1m", "$region", ".*", "$pool", ".*", "$plan", ".*")
	add := func(kind, name, query string) {
		query = variables.Replace(query)
		if query == "" || strings.Contains(query, "$") && !strings.Contains(query, `"$1"`) {
			t.Errorf("%s %s asks %q", kind, name, query)
		}
		all = append(all, question{kind, name, query})
	}
	pages, err := filepath.Glob("../observability/grafana/dashboards/*.json")
	if err != nil || len(pages) != 5 {
		t.Fatalf("the dashboards are %q, %v", pages, err)
	}
	for _, path := range pages {
		var page struct {
			Title  string `json:"title"`
			Panels []struct {
				Type    string `json:"type"`
				Title   string `json:"title"`
				Targets []struct {
					Expr string `json:"expr"`
				} `json:"targets"`
			} `json:"panels"`
			Annotations struct {
				List []struct{ Name, Expr string } `json:"list"`
			} `json:"annotations"`
			Templating struct {
				List []struct {
					Type  string `json:"type"`
					Name  string `json:"name"`
					Query any    `json:"query"`
				} `json:"list"`
			} `json:"templating"`
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &page)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.Panels {
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: the panel %q asks nothing", page.Title, p.Title)
			}
			for _, target := range p.Targets {
				add("panel", page.Title+": "+p.Title, target.Expr)
			}
		}
		if len(page.Annotations.List) != 2 {
			t.Errorf("%s has the annotations %+v, want 2", page.Title, page.Annotations.List)
		}
		for _, a := range page.Annotations.List {
			expr, always := strings.CutSuffix(a.Expr, " > 0")
			if !always {
				t.Errorf("%s: the annotation %s asks %q", page.Title, a.Name, a.Expr)
			}
			add("annotation", page.Title+": "+a.Name, expr)
		}
		for _, v := range page.Templating.List {
			if v.Type != "query" {
				continue
			}
			found := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`).FindStringSubmatch(fmt.Sprint(v.Query))
			if found == nil {
				t.Fatalf("%s: the variable %s asks %v", page.Title, v.Name, v.Query)
			}
			add("variable", page.Title+": "+v.Name, fmt.Sprintf("count by (%s) (%s)", found[2], found[1]))
		}
	}
	for _, file := range []string{"recording.yml", "alerts.yml"} {
		var rules struct {
			Groups []struct {
				Rules []struct{ Record, Alert, Expr string } `yaml:"rules"`
			} `yaml:"groups"`
		}
		data, err := os.ReadFile("../observability/prometheus/" + file)
		if err == nil {
			err = yaml.Unmarshal(data, &rules)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if r.Record != "" {
					add("recording rule", r.Record, r.Expr)
					add("recorded series", r.Record, r.Record)
					continue
				}
				for line := range strings.Lines(r.Expr) {
					compared := regexp.MustCompile(`^(?:(?:and|or) )?(.+) (?:==|>|<) [0-9.]+$`).FindStringSubmatch(strings.TrimSpace(line))
					if compared == nil {
						t.Fatalf("%s: no comparison ends the line %q", r.Alert, line)
					}
					add("alert without its comparison", r.Alert, compared[1])
				}
			}
		}
	}
	return all
}

// prometheus is a Prometheus that watches a demo.
type prometheus struct{ url string }

// startPrometheus starts one with the configuration that the demo has written, only faster.
func startPrometheus(t *testing.T, demoDir string) prometheus {
	t.Helper()
	path, err := process.Find("prometheus")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(demoDir, "prometheus")
	data, err := os.ReadFile(filepath.Join(dir, "prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	fast := strings.NewReplacer("scrape_interval: 15s", "scrape_interval: 1s", "evaluation_interval: 15s", "evaluation_interval: 1s").Replace(string(data))
	file := filepath.Join(dir, "fast.yml")
	if err := os.WriteFile(file, []byte(fast), 0o644); err != nil {
		t.Fatal(err)
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	p, err := process.Start(ctx, process.Spec{Name: "prometheus", Path: path, Log: filepath.Join(dir, "log"),
		Args:  []string{"--config.file", file, "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", address},
		Ready: func(ctx context.Context, _ int) error { return answers(ctx, "http://"+address+"/-/ready") }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(10 * time.Second) })
	return prometheus{"http://" + address}
}

// series is one of the results of a query, at one time.
type series struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"` // time, and the value as text
}

func (p prometheus) query(ctx context.Context, query string) ([]series, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/v1/query?query="+url.QueryEscape(query), nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer struct {
		Error string `json:"error"`
		Data  struct {
			Result []series `json:"result"`
		} `json:"data"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		return nil, errors.New(answer.Error)
	}
	return answer.Data.Result, nil
}

// hasData says what a query lacks: a number, in each region if the answer tells regions apart.
func (p prometheus) hasData(ctx context.Context, query string) error {
	found, err := p.query(ctx, query)
	if err != nil {
		return err
	}
	regions := map[string]bool{}
	for _, s := range found {
		value, err := strconv.ParseFloat(fmt.Sprint(s.Value[1]), 64)
		if err != nil {
			return err
		}
		if !math.IsNaN(value) {
			regions[s.Metric["region"]] = true
		}
	}
	if !regions[""] && !(regions["us-east"] && regions["eu-west"]) {
		return fmt.Errorf("%d series, with numbers of the regions %q", len(found), slices.Collect(maps.Keys(regions)))
	}
	return nil
}

// change edits the demo's mesh.yaml.
func (d *demoRun) change(t *testing.T, edit func(*mesh.Mesh)) {
	t.Helper()
	path := filepath.Join(d.dir, "mesh.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := mesh.Load(path, data)
	if err != nil {
		t.Fatal(err)
	}
	edit(spec)
	if data, err = yaml.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEveryQueryOfDashboardsAndAlertsReturnsData(t *testing.T) {
	all := questions(t)
	d := startDemo(t, "--rate", "100", "--membership", "consul", "--tls", "--warming")
	p := startPrometheus(t, d.dir)
	// A change shows in rates only if it comes after the first scrape.
	eventually(t, 30*time.Second, func() error {
		seen, err := p.query(t.Context(), "up == 1")
		if err == nil && len(seen) != 6 {
			err = fmt.Errorf("%d of 6 targets are up", len(seen))
		}
		return err
	})
	d.change(t, func(m *mesh.Mesh) { m.Pools[0].Routes = append(m.Pools[0].Routes, mesh.Route{Prefix: "more:"}) })
	for i := range d.endpoints.Regions {
		d.killPrimary(t, i, 0)
	}
	p.waitAlert(t, "CachemeshFailover")

	answered := map[string]int{}
	asked := map[string]int{}
	for _, q := range all {
		asked[q.kind]++
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		for {
			err := p.hasData(ctx, q.query)
			if err == nil {
				answered[q.kind]++
				break
			}
			select {
			case <-time.After(500 * time.Millisecond):
				continue
			case <-ctx.Done():
			}
			t.Errorf("%s %q has no data: %v: %s", q.kind, q.name, err, q.query)
			break
		}
		cancel()
	}
	total := 0
	for _, kind := range slices.Sorted(maps.Keys(asked)) {
		t.Logf("%s: %d of %d", kind, answered[kind], asked[kind])
		total += answered[kind]
	}
	t.Logf("queries with data: %d of %d", total, len(all))

	d.checkMetrics(t)

	// A sidecar that is given a change while its Envoy stands still, and a registration for no shard.
	first := d.endpoints.Regions[0]
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(first.Sidecars[1].EnvoyPID, s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	d.change(t, func(m *mesh.Mesh) { m.Pools[0].Routes = append(m.Pools[0].Routes, mesh.Route{Prefix: "most:"}) })
	p.waitAlert(t, "CachemeshSidecarStale")
	signal(syscall.SIGCONT)
	cachemesh(t, "shard", "register", "--consul", first.Consul.Address, "--pool", "timelines", "--shard", "timelines-9", "--address", "127.0.0.1:9").want(t, 0)
	p.waitAlert(t, "CachemeshRegistrationsIgnored")

	// A region that is paused, and a journal that is gone.
	cachemesh(t, "region", "pause", "eu-west", "--dir", d.dir).want(t, 0)
	p.waitAlert(t, "CachemeshLinkPaused")
	if alerts := cachemesh(t, "status", "--dir", d.dir).want(t, 0).stdout; !strings.Contains(alerts, "region resume eu-west") {
		t.Errorf("status does not tell of the pause: %s", alerts)
	}
	cachemesh(t, "region", "resume", "eu-west", "--dir", d.dir).want(t, 0)
	eventually(t, 10*time.Second, func() error {
		s := decode[struct{ Links []control.LinkStatus }](t, cachemesh(t, "region", "status", "-o", "json", "--dir", d.dir).want(t, 0))
		for _, l := range s.Links {
			if l.State != control.LinkUp || l.LagMS == nil || *l.LagMS > 1000 {
				return fmt.Errorf("from %s to %s, %s: %+v", l.From, l.To, l.Pool, l)
			}
		}
		if len(s.Links) != 4 {
			return fmt.Errorf("%d links, want those of 2 pools in both directions", len(s.Links))
		}
		return nil
	})
	d.loseJournal(t, 0, 4)
	p.waitAlert(t, "CachemeshJournalGap")

	// Agents that say nothing for a moment, and a shard that loses its other node, too.
	second := d.endpoints.Regions[1]
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
		for _, s := range second.Sidecars {
			if err := syscall.Kill(s.PID, sig); err != nil {
				t.Fatal(err)
			}
		}
		if sig == syscall.SIGSTOP {
			p.waitAlert(t, "CachemeshShardUnwitnessed")
		}
	}
	d.killPrimary(t, 1, 0)
	p.waitAlert(t, "CachemeshShardStandIn")

	d.breakThings(t)
	for _, alert := range []string{
		"CachemeshConfigNotInEffect", "CachemeshControlplaneDown", "CachemeshEnvoyCrashed", "CachemeshErrorsHigh", "CachemeshEvictionsHigh",
		"CachemeshLaneErrors", "CachemeshLinkDown", "CachemeshPoolFrozen", "CachemeshShardPrimaryDown", "CachemeshShardReplicaDown",
		"CachemeshSidecarDown", "CachemeshSidecarWithoutControlplane",
	} {
		p.waitAlert(t, alert)
	}
	if err := syscall.Kill(first.Consul.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.waitAlert(t, "CachemeshConsulDown")
	p.waitAlert(t, "CachemeshNoLeader")
	d.wipeConsul(t)
	p.waitAlert(t, "CachemeshMembershipFrozen")
	// The others want an Envoy that rejects or cannot start, a cold cache, or what a control plane mends at once: promtool shows those.
}

// checkMetrics holds the names of our metrics to Prometheus' conventions, and their labels to what is never a key.
func (d *demoRun) checkMetrics(t *testing.T) {
	t.Helper()
	promtool, err := process.Find("promtool")
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := certs.Open(certs.Files{CA: d.endpoints.CA}, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: trusted.Client(""), DisableKeepAlives: true}}
	r := d.endpoints.Regions[0]
	for _, url := range []string{r.Controlplane.HTTP + "/metrics", r.Sidecars[0].Metrics} {
		response, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		page, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		ours := regexp.MustCompile(`(?m)^(# \w+ )?cachemesh_.*\n`).FindAllString(string(page), -1)
		if len(ours) < 20 {
			t.Errorf("%s has only %d lines of ours", url, len(ours))
		}
		command := exec.CommandContext(t.Context(), promtool, "check", "metrics")
		command.Stdin = strings.NewReader(strings.Join(ours, ""))
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("promtool check metrics of %s: %v: %s", url, err, out)
		}
		known := []string{"component", "control_plane", "end", "kind", "le", "node", "of", "plan", "pool", "reason", "region", "result", "role", "shard", "sidecar", "source", "state", "step", "to", "type", "version"}
		for _, line := range ours {
			for _, label := range regexp.MustCompile(`[{,](\w+)="`).FindAllStringSubmatch(line, -1) {
				if !slices.Contains(known, label[1]) {
					t.Errorf("label %s in %s: think about what it may hold, and list it here", label[1], line)
				}
			}
		}
	}
}

// waitAlert waits until what an alert is about is seen, whether it has lasted for long enough to fire or not.
func (p prometheus) waitAlert(t *testing.T, name string) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		found, err := p.query(t.Context(), fmt.Sprintf("ALERTS{alertname=%q}", name))
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("%s is neither pending nor firing", name)
		}
		return err
	})
}

// primary is a shard's, by the numbers of its region and of it.
func (d *demoRun) primary(t *testing.T, region, shard int) redisNode {
	t.Helper()
	if err := d.read(); err != nil {
		t.Fatal(err)
	}
	for _, n := range d.endpoints.Regions[region].Shards[shard].Nodes {
		if n.Role == "primary" {
			return n
		}
	}
	t.Fatalf("the endpoints name no primary of %+v", d.endpoints.Regions[region].Shards[shard])
	return redisNode{}
}

// killPrimary kills a shard's, and waits until that is seen.
func (d *demoRun) killPrimary(t *testing.T, region, shard int) {
	t.Helper()
	n := d.primary(t, region, shard)
	if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, func() error {
		if err := d.read(); err != nil {
			return err
		}
		for _, now := range d.endpoints.Regions[region].Shards[shard].Nodes {
			if now.Address == n.Address && now.Role == "primary" {
				return fmt.Errorf("%s is still called the primary", n.Address)
			}
		}
		return nil
	})
}

// breakThings does what alerts are there to tell.
func (d *demoRun) breakThings(t *testing.T) {
	t.Helper()
	kill := func(pid int) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	first, second := d.endpoints.Regions[0], d.endpoints.Regions[1]
	kill(first.Sidecars[0].EnvoyPID)
	for _, shard := range first.Shards { // the whole pool of the first, at once
		for _, n := range shard.Nodes {
			if shard.Pool == first.Shards[0].Pool && n.Role != "down" {
				kill(n.PID)
			}
		}
	}
	for setting, value := range map[string]string{"maxmemory-policy": "allkeys-lru", "maxmemory": "1"} {
		if err := d.node(t, d.primary(t, 0, 3).Address).ConfigSet(t.Context(), setting, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.dir, "mesh.yaml"), []byte("pools: 7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kill(second.Sidecars[0].PID)
	kill(second.Controlplane.PID)
}

// node is a client of a Redis of the demo with TLS.
func (d *demoRun) node(t *testing.T, address string) *redis.Client {
	t.Helper()
	file := func(name string) string { return filepath.Join(d.dir, "certs", name) }
	options, err := process.Redis{User: "app", PasswordFile: file("redis-password"),
		TLS: &process.RedisTLS{CA: file("ca.pem"), Cert: file("redis.pem"), Key: file("redis-key.pem")}}.Options()
	if err != nil {
		t.Fatal(err)
	}
	options.Addr = address
	return newClient(t, options)
}

// loseJournal deletes the journal of a shard's primary.
func (d *demoRun) loseJournal(t *testing.T, region, shard int) {
	t.Helper()
	node := d.node(t, d.primary(t, region, shard).Address)
	keys, err := node.Keys(t.Context(), mesh.ReservedPrefix+"journal:*[0-9]").Result()
	if err == nil && len(keys) == 0 {
		err = errors.New("there is no journal")
	}
	if err == nil {
		err = node.Unlink(t.Context(), keys...).Err()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wipeConsul brings back the Consul that was killed, without what it knew.
func (d *demoRun) wipeConsul(t *testing.T) {
	t.Helper()
	c := d.endpoints.Regions[0].Consul
	if err := os.RemoveAll(c.Data); err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(t.Context(), process.Spec{Name: "consul", Path: c.Command[0], Args: c.Command[1:], Log: filepath.Join(d.dir, "consul.log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(10 * time.Second) })
}
