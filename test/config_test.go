package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// brokenFiles are what a user may do to a good mesh.yaml, each with what must be said of it: a line and a field, where
// there is one.
func brokenFiles(good string) map[string]struct{ text, says string } {
	line := func(part string) int {
		before, _, _ := strings.Cut(good, part)
		return strings.Count(before, "\n") + 1
	}
	replaced := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	shard1 := line("name: all-1")
	return map[string]struct{ text, says string }{
		"unknown field":     {replaced("kind: Mesh\n", "kind: Mesh\ncolour: red\n"), ":3:"},
		"prefix twice":      {replaced(`- prefix: "k:"`, "- prefix: \"k:\"\n      - prefix: \"k:\""), fmt.Sprintf(":%d:17: pools[0].routes[1].prefix: ", line(`- prefix: "k:"`)+1)},
		"duplicate shard":   {replaced("name: all-1", "name: all-0"), fmt.Sprintf(":%d:15: regions[0].shards[1].name: ", shard1)},
		"duplicate address": {replaced(nodeLine(good, 1), nodeLine(good, 0)), ": regions[0].shards[1].nodes[0]: "},
		"bad address":       {replaced(nodeLine(good, 1), "- localhost"), ": regions[0].shards[1].nodes[0]: "},
		"empty pool":        {replaced("regions:", "  - name: void\n    routes:\n      - prefix: \"v:\"\nregions:"), `: pool "void" is empty`},
		"truncated":         {good[:strings.Index(good, "name: all-1")+3], ":"},
		"nothing":           {"", ": the file is empty"},
	}
}

// nodeLine is the n-th address of the file, as it is written there.
func nodeLine(file string, n int) string {
	parts := strings.Split(file, "- 127.0.0.1:")
	port, _, _ := strings.Cut(parts[n+1], "\n")
	return "- 127.0.0.1:" + port
}

func TestBrokenFileIsNamedAndChangesNothing(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.addPool(t, mesh.PoolSpec{Name: "all", Routes: []mesh.Route{{Prefix: "k:"}}}, 1, 1)
	m.write(t)
	data, err := os.ReadFile(m.file())
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	c := m.startControlplane(t)
	s := m.startSidecar(t, "here-0", c)
	version := c.waitSynced(t, s.name)
	load := startLoad(t, s.over()["RESP2"], someKeys("k:", 100))
	load.waitMore(t, 100)

	stillServes := func(says string) {
		t.Helper()
		eventually(t, 5*time.Second, func() error {
			config := c.status(t).Config
			if config.Version != version {
				t.Fatalf("version %s is in effect, want %s as before", config.Version, version)
			}
			if !slices.ContainsFunc(config.Problems, func(p string) bool {
				return strings.Contains(p, m.file()) && strings.Contains(p, says)
			}) {
				return fmt.Errorf("the problems are %q, want one of %s that says %q", config.Problems, m.file(), says)
			}
			return nil
		})
		if alerts := c.status(t).Alerts; !slices.ContainsFunc(alerts, func(a alert) bool { return a.Subject == m.file() && a.Remedy != "" }) {
			t.Errorf("the alerts are %+v, want one of the file", alerts)
		}
	}
	for name, broken := range brokenFiles(good) {
		if broken.text == good {
			t.Fatalf("%s: nothing is broken in:\n%s", name, good)
		}
		m.replace(t, broken.text)
		stillServes(broken.says)
		load.waitMore(t, 20)
	}
	if err := os.Remove(m.file()); err != nil {
		t.Fatal(err)
	}
	stillServes("no such file")
	// Mended, with one shard more.
	m.addShard(t, mesh.ShardSpec{Pool: "all", Name: "all-2"})
	m.write(t)
	c.waitVersion(t, version)
	c.waitSynced(t, s.name)
	load.waitMore(t, 100)
	load.finish(t)
}

func TestRestartBesideABrokenFile(t *testing.T) {
	t.Parallel()
	m := onePool(t, "", 1)
	state := filepath.Join(m.dir, "state")
	c := m.startControlplane(t, "--state", state)
	version := c.status(t).Config.Version
	c.process.Stop(5 * time.Second)
	data, err := os.ReadFile(m.file())
	if err != nil {
		t.Fatal(err)
	}
	m.replace(t, strings.Replace(string(data), "kind: Mesh", "kind: Mush", 1))

	c.start(t)
	if config := c.status(t).Config; config.Version != version || len(config.Problems) == 0 || !strings.Contains(config.Problems[0], "mesh.yaml:2:") {
		t.Errorf("it serves %+v, want version %s and a problem in line 2", config, version)
	}
	c.process.Stop(5 * time.Second)

	for _, flags := range [][]string{nil, {"--state", filepath.Join(m.dir, "empty")}} {
		r := cachemesh(t, m.newControlplane(t, flags...).args...).want(t, 1)
		if !strings.Contains(r.stderr, "mesh.yaml:2:") || !strings.Contains(r.stderr, "kind") || r.stdout != "" {
			t.Errorf("with %q it says %q, want the line and the field", flags, r.stderr)
		}
	}
}
