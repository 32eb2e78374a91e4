package test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the table of clients into the README")

// clientRows are what each client does, in this order.
var clientRows = []string{"strings", "hashes", "sorted sets", "pipelines", "MGET, MSET", "TTLs", "scripts", "big values", "reconnect"}

// clientRun is a client on one of a sidecar's two ports.
type clientRun struct {
	name    string
	resp3   bool   // on the port for RESP3
	options string // all that is set; a client without any runs as it is when nothing is set
	run     func(context.Context, *clientCourse) error
}

var clientRuns = []clientRun{
	{"go-redis", false, "`Protocol: 2`", runGoRedis},
	{"go-redis", true, "", runGoRedis},
	{"rueidis", false, "`DisableCache: true`, `AlwaysRESP2: true`", runRueidis},
	{"rueidis", true, "`DisableCache: true`", runRueidis},
	{"redis-py", false, "`protocol=2`", runPython},
	{"redis-py", true, "", runPython},
	{"ioredis", false, "`enableReadyCheck: false`", runNode("ioredis", `{"enableReadyCheck": false}`)},
	{"ioredis", true, "", runNode("ioredis")},
	{"ioredis 5", false, "`enableReadyCheck: false`", runNode("ioredis-5", `{"enableReadyCheck": false}`)},
	{"redis-cli", false, "", runRedisCLI},
	{"redis-cli", true, "`-3`", runRedisCLI},
}

// clientCourse is what one client goes through.
type clientCourse struct {
	clientRun
	port    string
	keys    string // begins all of its keys
	version string
	rows    map[string]error // nil for what passed

	waiting chan struct{}   // closed when nothing but the last row is left
	flipped <-chan struct{} // closed when the connections of before are gone
}

// through repeats a round until a while after the listeners have flipped.
func (c *clientCourse) through(round func(i int) error) error {
	close(c.waiting)
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for i, more := 0, 0; more < 50; i++ {
		if err := round(i); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		select {
		case <-c.flipped:
			more++
		default:
		}
		<-pace.C
	}
	return nil
}

// TestClientMatrix runs real clients through a sidecar and keeps the README's table of them.
func TestClientMatrix(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m := onePool(t, "", 2)
	// Values of 5 MB take their time on a busy machine.
	m.spec.OpTimeout = 20 * time.Second
	m.write(t)
	c := m.startControlplane(t)
	s := m.startSidecar(t, "here-0", c)
	version := c.waitSynced(t, s.name)

	flipped := make(chan struct{})
	done := make(chan struct{}, len(clientRuns))
	var courses []*clientCourse
	for i, run := range clientRuns {
		course := &clientCourse{clientRun: run, port: portOf(s.redis), keys: fmt.Sprintf("client-%d:", i), rows: map[string]error{},
			waiting: make(chan struct{}), flipped: flipped}
		if run.resp3 {
			course.port = portOf(s.resp3)
		}
		courses = append(courses, course)
		failed := make(chan error, 1)
		go func() {
			failed <- run.run(ctx, course)
			done <- struct{}{}
		}()
		// One after the other until they wait, so that none holds up another.
		select {
		case <-course.waiting:
		case err := <-failed:
			t.Errorf("%s on port %s ended early: %v", run.name, course.port, err)
		}
	}
	flipListeners(t, m, c, s, version)
	close(flipped)
	for range courses {
		<-done
	}
	for _, course := range courses {
		for _, row := range clientRows {
			if err, ran := course.rows[row]; !ran || err != nil {
				t.Errorf("%s %s on port %s, %s: %v", course.name, course.version, course.port, row, cmp.Or(err, errors.New("did not run")))
			}
		}
	}
	noneWasRefused(t, s)
	if t.Failed() {
		return
	}
	keepReadme(t, clientTable(courses))
}

// flipListeners changes both listeners and waits until no connection of before is left.
func flipListeners(t *testing.T, m *testMesh, c *controlplane, s *sidecar, version string) {
	t.Helper()
	m.spec.OpTimeout += time.Second
	m.write(t)
	c.waitVersion(t, version)
	c.waitSynced(t, s.name)
	eventually(t, 30*time.Second, func() error {
		stats, err := envoyStats(s, "^listener_manager\\.(listener_in_place_updated|total_filter_chains_draining)$")
		if want := "listener_manager.listener_in_place_updated: 2\nlistener_manager.total_filter_chains_draining: 0\n"; err == nil && stats != want {
			err = fmt.Errorf("the statistics are %q, want %q", stats, want)
		}
		return err
	})
}

// envoyStats are the statistics whose name fits a regular expression, a line each.
func envoyStats(s *sidecar, filter string) (string, error) {
	response, err := http.Get("http://" + s.admin + "/stats?filter=" + url.QueryEscape(filter))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	stats, err := io.ReadAll(response.Body)
	return string(stats), err
}

// noneWasRefused makes sure that no client has sent a refused command of its own accord, such as SELECT 0.
func noneWasRefused(t *testing.T, s *sidecar) {
	t.Helper()
	stats, err := envoyStats(s, "\\.command\\..*\\.error_fault$")
	if err != nil || strings.Count(stats, "\n") < 100 {
		t.Fatalf("the statistics of refusals are %q: %v", stats, err)
	}
	for line := range strings.Lines(stats) {
		if !strings.HasSuffix(line, ": 0\n") {
			t.Errorf("a client sent what is refused: %s", line)
		}
	}
}

const (
	clientsStart = "<!-- clients:start -->\n"
	clientsEnd   = "<!-- clients:end -->"
)

func clientTable(courses []*clientCourse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| client | version | port | set | %s |\n|---|---|---|---|%s\n", strings.Join(clientRows, " | "), strings.Repeat(":-:|", len(clientRows)))
	for _, c := range courses {
		port := "6379"
		if c.resp3 {
			port = "6380"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |%s\n", c.name, c.version, port, cmp.Or(c.options, "nothing"), strings.Repeat(" ✓ |", len(clientRows)))
	}
	return b.String()
}

// redisCLIVersion is the machine's, so it alone may differ from the README's.
var redisCLIVersion = regexp.MustCompile(`\| redis-cli \| [0-9.]+ `)

// keepReadme compares the README's table with this one, or with -update puts it there.
func keepReadme(t *testing.T, table string) {
	t.Helper()
	const file = "../README.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), clientsStart)
	old, after, ended := strings.Cut(rest, clientsEnd)
	if !found || !ended {
		t.Fatalf("the README has no place for the table of clients: add the lines %q and %q", clientsStart, clientsEnd)
	}
	same := func(table string) string { return redisCLIVersion.ReplaceAllString(table, "| redis-cli | ") }
	diff := gocmp.Diff(same(old), same(table))
	switch {
	case diff == "":
	case *update:
		if err := os.WriteFile(file, []byte(before+clientsStart+table+clientsEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the README's table of clients is stale: run `go test ./test -run TestClientMatrix -update`. README (-), now (+):\n%s", diff)
	}
}

func runPython(ctx context.Context, c *clientCourse) error {
	args := []string{"clients/python/client.py", c.port, c.keys}
	if !c.resp3 {
		args = append(args, "2")
	}
	return c.runProgram(ctx, "python3", args...)
}

func runNode(library string, options ...string) func(context.Context, *clientCourse) error {
	return func(ctx context.Context, c *clientCourse) error {
		return c.runProgram(ctx, "node", append([]string{"clients/node/client.js", c.port, c.keys, library}, options...)...)
	}
}

// runProgram runs a program of test/clients, which prints a line of JSON a row.
func (c *clientCourse) runProgram(ctx context.Context, program string, args ...string) error {
	command := exec.CommandContext(ctx, program, args...)
	environment, err := clientEnvironment()
	if err != nil {
		return err
	}
	command.Env = environment
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var said struct {
			Version, Row, Error string
			Ready               bool
		}
		if err = json.Unmarshal(lines.Bytes(), &said); err != nil {
			command.Process.Kill()
			break
		}
		switch {
		case said.Version != "":
			c.version = said.Version
		case said.Ready:
			close(c.waiting)
			go func() {
				<-c.flipped
				fmt.Fprintln(stdin)
			}()
		case said.Error != "":
			c.rows[said.Row] = errors.New(said.Error)
		default:
			c.rows[said.Row] = nil
		}
	}
	if err := errors.Join(err, command.Wait()); err != nil {
		return fmt.Errorf("%w\n%s", err, tail(stderr.Bytes()))
	}
	return nil
}

// clientEnvironment lets Python and Node find the clients that `make clients` installs.
func clientEnvironment() ([]string, error) {
	dir, err := filepath.Abs("../.tools/clients")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "stamp")); err != nil {
		return nil, fmt.Errorf("the clients are not installed: run `make clients` (%w)", err)
	}
	return append(os.Environ(), "PYTHONPATH="+filepath.Join(dir, "python"), "NODE_PATH="+filepath.Join(dir, "node", "node_modules")), nil
}
