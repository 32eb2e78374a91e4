package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
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

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// endpoints is what is documented of endpoints.json.
type endpoints struct {
	Console *string `json:"console"`
	CA      string  `json:"ca"`
	Regions []struct {
		Name         string `json:"name"`
		Controlplane struct {
			XDS  string `json:"xds"`
			HTTP string `json:"http"`
			PID  int    `json:"pid"`
		} `json:"controlplane"`
		Consul struct {
			Address string   `json:"address"`
			PID     int      `json:"pid"`
			Data    string   `json:"data"`
			Command []string `json:"command"`
		} `json:"consul"`
		Sidecars []struct {
			Name        string `json:"name"`
			PID         int    `json:"pid"`
			EnvoyPID    int    `json:"envoy_pid"`
			Redis       string `json:"redis"`
			RedisRESP3  string `json:"redis_resp3"`
			RedisSocket string `json:"redis_socket"`
			EnvoyAdmin  string `json:"envoy_admin"`
			Metrics     string `json:"metrics"`
			App         string `json:"app"`
		} `json:"sidecars"`
		Shards []struct {
			Pool  string      `json:"pool"`
			Name  string      `json:"name"`
			Nodes []redisNode `json:"nodes"`
		} `json:"shards"`
	} `json:"regions"`
}

type redisNode struct {
	Address string `json:"address"`
	Role    string `json:"role"`
	PID     int    `json:"pid"`
}

func (e endpoints) pids() []int {
	var all []int
	for _, r := range e.Regions {
		all = append(all, r.Controlplane.PID)
		for _, s := range r.Sidecars {
			all = append(all, s.PID, s.EnvoyPID)
		}
		for _, s := range r.Shards {
			for _, n := range s.Nodes {
				all = append(all, n.PID)
			}
		}
	}
	return all
}

// summary is what the demo ends with.
type summary struct {
	Regions []struct {
		Region   string `json:"region"`
		Requests int64  `json:"requests"`
		Errors   int64  `json:"errors"`
		Checked  int64  `json:"checked"`
		Wrong    int64  `json:"wrong"`
		// As the applications and as the shards count.
		HitRate      float64 `json:"hit_rate"`
		RedisHitRate float64 `json:"redis_hit_rate"`
	} `json:"regions"`
	Failed []string `json:"failed"`
}

// demoPorts are those that the demo listens on without an offset.
func demoPorts() []int {
	ports := []int{18000, 18001, 18080, 18081}
	for _, between := range [][2]int{{6380, 6387}, {7001, 7024}, {7946, 7949}, {8081, 8084}, {9901, 9908}} {
		for port := between[0]; port <= between[1]; port++ {
			ports = append(ports, port)
		}
	}
	return ports
}

func listen(port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}

func allFree(offset int) error {
	for _, port := range demoPorts() {
		if err := listen(port + offset); err != nil {
			return err
		}
	}
	return nil
}

// demoRun is a demo that runs from a folder.
type demoRun struct {
	dir            string
	offset         int
	command        *exec.Cmd
	stdout, stderr bytes.Buffer
	endpoints      endpoints
	started        map[int]uint64 // start time of each process that it lists, by pid
	ended          chan struct{}
}

// newDemo starts a demo on free ports.
func newDemo(t *testing.T, flags ...string) *demoRun {
	t.Helper()
	d := &demoRun{dir: filepath.Join(shortDir(t), "d"), ended: make(chan struct{})}
	for tries := 0; ; tries++ {
		// Few of these ports are such as process.FreePorts gives to others.
		d.offset = 100 + rand.IntN(200)
		err := allFree(d.offset)
		if err == nil {
			break
		}
		if tries == 1000 {
			t.Fatal(err)
		}
	}
	d.command = exec.Command(program(t), append([]string{"demo", "--dir", d.dir, "--port-offset", strconv.Itoa(d.offset), "-o", "json"}, flags...)...)
	d.command.Stdout, d.command.Stderr = &d.stdout, &d.stderr
	d.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.command.Wait()
		close(d.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-d.ended:
		default:
			d.command.Process.Signal(syscall.SIGTERM)
			<-d.ended
		}
	})
	return d
}

// startDemo starts a demo and waits until it is ready.
func startDemo(t *testing.T, flags ...string) *demoRun {
	t.Helper()
	d := newDemo(t, flags...)
	eventually(t, 60*time.Second, func() error {
		select {
		case <-d.ended:
			t.Fatalf("the demo ended before it was ready: %s", d.stderr.String())
		default:
		}
		return d.read()
	})
	d.started = map[int]uint64{}
	for _, pid := range d.endpoints.pids() {
		started, err := process.StartTime(pid)
		if err != nil {
			t.Errorf("endpoints.json lists pid %d: %v", pid, err)
		}
		d.started[pid] = started
	}
	return d
}

func (d *demoRun) file() string { return filepath.Join(d.dir, "endpoints.json") }

func (d *demoRun) read() error {
	data, err := os.ReadFile(d.file())
	if err != nil {
		return err
	}
	d.endpoints = endpoints{}
	return json.Unmarshal(data, &d.endpoints)
}

// stop signals the demo and returns its exit status and its summary.
func (d *demoRun) stop(t *testing.T, signal os.Signal) (int, summary) {
	t.Helper()
	if err := d.command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return d.wait(t)
}

func (d *demoRun) wait(t *testing.T) (int, summary) {
	t.Helper()
	select {
	case <-d.ended:
	case <-time.After(60 * time.Second):
		d.command.Process.Kill()
		t.Fatalf("the demo does not end: %s", d.stderr.String())
	}
	var s summary
	lines := strings.Split(strings.TrimSpace(d.stdout.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		t.Errorf("the last line is no summary: %v: %q", err, d.stdout.String())
	}
	if t.Failed() {
		t.Logf("the demo says: %s", d.stderr.String())
	}
	return d.command.ProcessState.ExitCode(), s
}

// checkGone checks that the demo has left nothing behind.
func (d *demoRun) checkGone(t *testing.T) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		for pid, started := range d.started {
			if now, err := process.StartTime(pid); err == nil && now == started {
				return fmt.Errorf("pid %d runs on", pid)
			}
		}
		return allFree(d.offset)
	})
	if _, err := os.Stat(d.file()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("endpoints.json is still there: %v", err)
	}
}

func TestDemoRunsForAWhile(t *testing.T) {
	d := startDemo(t, "--for", "8s", "--rate", "200")
	code, s := d.wait(t)
	if code != 0 || len(s.Failed) != 0 || len(s.Regions) != 2 {
		t.Errorf("exit status %d, failed %q: %s", code, s.Failed, d.stdout.String())
	}
	for _, r := range s.Regions {
		if r.Requests < 200 || r.Errors != 0 || r.Checked == 0 || r.Wrong != 0 {
			t.Errorf("region %s: %+v", r.Region, r)
		}
		if math.Abs(r.HitRate-r.RedisHitRate) > 0.01 {
			t.Errorf("region %s: applications see a hit rate of %.4f, shards %.4f", r.Region, r.HitRate, r.RedisHitRate)
		}
	}
	if !strings.Contains(d.stdout.String(), `"failed":[]`) {
		t.Error("failed is not an empty list")
	}
	d.checkGone(t)
}

func TestDemoIsInterrupted(t *testing.T) {
	d := startDemo(t, "--rate", "100")
	d.checkEndpoints(t)
	d.checkCommands(t)
	d.checkClusters(t)

	// Who wants the same ports or the same folder is told.
	r := cachemesh(t, "demo", "--no-load", "--dir", filepath.Join(shortDir(t), "d"), "--port-offset", strconv.Itoa(d.offset)).want(t, 1)
	if named := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(r.stderr); named == nil || !strings.Contains(r.stderr, "in use") || r.stdout != "" {
		t.Errorf("a second demo on the ports says %q, want the port named", r.stderr)
	} else if port, _ := strconv.Atoi(named[1]); !slices.Contains(demoPorts(), port-d.offset) {
		t.Errorf("a second demo names port %d, which is none of them", port)
	}
	if r := cachemesh(t, "demo", "--no-load", "--dir", d.dir, "--port-offset", strconv.Itoa(d.offset)).want(t, 1); !strings.Contains(r.stderr, d.dir) {
		t.Errorf("a second demo in the folder says %q, want the folder named", r.stderr)
	}
	if err := d.read(); err != nil {
		t.Errorf("after a second demo: %v", err)
	}

	// Roles that change are rewritten, and so is the pid of a node that was asked to end.
	shard := d.endpoints.Regions[1].Shards[2]
	cachemesh(t, "shard", "switch", shard.Name, "--region", d.endpoints.Regions[1].Name, "--dir", d.dir).want(t, 0)
	d.becomes(t, 1, 2, func(nodes []redisNode) bool { return nodes[0].Role == "replica" && nodes[1].Role == "primary" })
	newClient(t, &redis.Options{Addr: shard.Nodes[0].Address}).ShutdownNoSave(t.Context())
	d.becomes(t, 1, 2, func(nodes []redisNode) bool { return nodes[0].Role == "replica" && nodes[0].PID != shard.Nodes[0].PID })

	code, s := d.stop(t, os.Interrupt)
	if code != 0 || len(s.Failed) != 0 || len(s.Regions) != 2 || s.Regions[0].Requests == 0 || s.Regions[1].Requests == 0 {
		t.Errorf("exit status %d, summary %+v", code, s)
	}
	d.checkGone(t)
}

func TestDemoLosesProcesses(t *testing.T) {
	d := startDemo(t, "--no-load")
	sidecars := d.endpoints.Regions[0].Sidecars
	if err := syscall.Kill(sidecars[0].EnvoyPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, func() error {
		if err := d.read(); err != nil {
			return err
		}
		pid := d.endpoints.Regions[0].Sidecars[0].EnvoyPID
		if pid == sidecars[0].EnvoyPID {
			return errors.New("the killed Envoy is still listed")
		}
		var err error
		d.started[pid], err = process.StartTime(pid)
		return err
	})
	// A Redis that is killed stays away, and another takes over.
	killed := d.endpoints.Regions[1].Shards[0].Nodes[0]
	if err := syscall.Kill(killed.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.becomes(t, 1, 0, func(nodes []redisNode) bool { return nodes[0].Role == "down" && nodes[1].Role == "primary" })
	// An agent that is killed leaves its Envoy, and the demo stops that, too.
	if err := syscall.Kill(sidecars[1].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		if now, err := process.StartTime(sidecars[1].PID); err == nil && now == d.started[sidecars[1].PID] {
			return errors.New("the demo has not noticed yet")
		}
		return nil
	})
	code, s := d.stop(t, syscall.SIGTERM)
	_, port, _ := net.SplitHostPort(killed.Address)
	if code != 1 || len(s.Failed) != 2 || !strings.Contains(s.Failed[0], sidecars[1].Name) || !strings.Contains(s.Failed[1], "redis-"+port) {
		t.Errorf("exit status %d, failed %q: want 1, %s and redis-%s", code, s.Failed, sidecars[1].Name, port)
	}
	d.checkGone(t)
}

// becomes waits until a shard's nodes in endpoints.json are as wanted, and takes note of their processes.
func (d *demoRun) becomes(t *testing.T, region, shard int, is func([]redisNode) bool) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		if err := d.read(); err != nil {
			return err
		}
		if nodes := d.endpoints.Regions[region].Shards[shard].Nodes; !is(nodes) {
			return fmt.Errorf("the nodes are listed as %+v", nodes)
		}
		return nil
	})
	for _, n := range d.endpoints.Regions[region].Shards[shard].Nodes {
		if started, err := process.StartTime(n.PID); err == nil {
			d.started[n.PID] = started
		}
	}
}

func (d *demoRun) checkEndpoints(t *testing.T) {
	t.Helper()
	info, err := os.Stat(d.file())
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o644 {
		t.Errorf("endpoints.json has mode %s", info.Mode())
	}
	if len(d.endpoints.Regions) != 2 || d.endpoints.Console == nil {
		t.Fatalf("endpoints.json lists %d regions and console %v", len(d.endpoints.Regions), d.endpoints.Console)
	}
	for i, name := range []string{"us-east", "eu-west"} {
		r := d.endpoints.Regions[i]
		if r.Name != name || len(r.Sidecars) != 2 || len(r.Shards) != 6 {
			t.Fatalf("region %d is %+v", i, r)
		}
		if err := answers(t.Context(), r.Controlplane.HTTP+"/readyz"); err != nil {
			t.Error(err)
		}
		if conn, err := net.DialTimeout("tcp", r.Controlplane.XDS, time.Second); err != nil {
			t.Error(err)
		} else {
			conn.Close()
		}
		for j, s := range r.Sidecars {
			if s.Name != fmt.Sprintf("%s-%d", name, j) {
				t.Errorf("sidecar %d of %s is called %s", j, name, s.Name)
			}
			for _, options := range []*redis.Options{{Addr: s.Redis, Protocol: 2}, {Addr: s.RedisRESP3, Protocol: 3}, {Network: "unix", Addr: s.RedisSocket, Protocol: 2}} {
				if err := newClient(t, options).Set(t.Context(), "test:1", "v", time.Minute).Err(); err != nil {
					t.Errorf("sidecar %s over %s: %v", s.Name, options.Addr, err)
				}
			}
			for _, page := range []string{s.EnvoyAdmin + "/ready", s.Metrics} {
				if err := answers(t.Context(), page); err != nil {
					t.Error(err)
				}
			}
		}
		for j, s := range r.Shards {
			pool := []string{"timelines", "content"}[j/3]
			if s.Pool != pool || s.Name != fmt.Sprintf("%s-%d", pool, j%3) || len(s.Nodes) != 2 {
				t.Errorf("shard %d of %s is %+v", j, name, s)
			}
			for k, n := range s.Nodes {
				info, err := newClient(t, &redis.Options{Addr: n.Address}).InfoMap(t.Context(), "server", "replication").Result()
				if err != nil {
					t.Error(err)
				}
				role := []string{"primary", "replica"}[k]
				if n.Role != role || info["Replication"]["role"] != map[string]string{"primary": "master", "replica": "slave"}[role] || info["Server"]["process_id"] != strconv.Itoa(n.PID) {
					t.Errorf("node %+v says it is %v with pid %s", n, info["Replication"]["role"], info["Server"]["process_id"])
				}
			}
		}
	}
}

// checkCommands finds the mesh in each way that there is.
func (d *demoRun) checkCommands(t *testing.T) {
	t.Helper()
	first, second := d.endpoints.Regions[0].Controlplane.HTTP, d.endpoints.Regions[1].Controlplane.HTTP
	for way, i := range map[string]invocation{
		"--dir":                  {args: []string{"--dir", d.dir}},
		"--controlplane":         {args: []string{"--controlplane", first, "--controlplane", second}},
		"CACHEMESH_CONTROLPLANE": {env: []string{"CACHEMESH_CONTROLPLANE=" + first + "," + second}},
	} {
		run := func(code int, args ...string) result {
			t.Helper()
			return invocation{args: append(args, i.args...), env: i.env}.run(t).want(t, code)
		}
		eventually(t, 15*time.Second, func() error {
			s := decode[meshStatus](t, run(0, "status", "-o", "json"))
			if len(s.Regions) != 2 || len(s.Errors) != 0 {
				t.Fatalf("%s: status %+v", way, s)
			}
			for _, r := range s.Regions {
				if len(r.Sidecars) != 2 || r.Sidecars[0].State != "SYNCED" || r.Sidecars[1].State != "SYNCED" || len(r.Shards) != 6 || len(r.Alerts) != 0 {
					return fmt.Errorf("%s: status %+v", way, r)
				}
			}
			return nil
		})
		if table := run(0, "status").stdout; !strings.Contains(table, "eu-west-1") || !strings.Contains(table, "timelines-2") || strings.Contains(table, "\033") {
			t.Errorf("%s: status shows:\n%s", way, table)
		}
		places := decode[[]place](t, run(0, "where", "-o", "json", "timeline:1", "tweet:1"))
		if len(places) != 2 || places[0].Region != "us-east" || places[0].Pool != "timelines" || places[1].Pool != "content" {
			t.Errorf("%s: where %+v", way, places)
		}
		if places := decode[[]place](t, run(0, "where", "-o", "json", "--region", "eu-west", "timeline:1")); places[0].Region != "eu-west" {
			t.Errorf("%s: where --region eu-west %+v", way, places)
		}
		run(2, "where", "--region", "mars", "timeline:1")
		if found := run(0, "check").stdout; !strings.Contains(found, "eu-west sidecars") || strings.Contains(found, "FAIL") {
			t.Errorf("%s: check shows:\n%s", way, found)
		}
	}
}

// checkClusters reads Envoy's admin page as an operator would.
func (d *demoRun) checkClusters(t *testing.T) {
	t.Helper()
	page, err := clusters(d.endpoints.Regions[1].Sidecars[0].EnvoyAdmin)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.endpoints.Regions[1].Shards {
		line := fmt.Sprintf("%s::%s::hostname::%s\n", s.Pool, s.Nodes[0].Address, s.Name)
		if !strings.Contains(page, line) {
			t.Errorf("/clusters lacks %q", line)
		}
	}
}

func TestDemoThatIsInterruptedWhileItStartsStopsEverything(t *testing.T) {
	d := newDemo(t, "--no-load")
	eventually(t, 20*time.Second, func() error {
		logs, err := filepath.Glob(filepath.Join(d.dir, "logs", "redis-*.log"))
		if err == nil && len(logs) == 0 {
			err = errors.New("no Redis has started yet")
		}
		return err
	})
	if err := d.command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	if code := d.command.ProcessState.ExitCode(); code != 1 || !strings.Contains(d.stderr.String(), "canceled") || d.stdout.Len() > 0 {
		t.Errorf("exit status %d, it says %q: want 1, and that it was stopped", code, d.stderr.String())
	}
	d.checkGone(t)
}
