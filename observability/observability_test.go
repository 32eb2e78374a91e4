package observability

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/cachemesh/cachemesh/process"
)

func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := process.Find("promtool")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPrometheusTakesTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, Prometheus()); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "config", filepath.Join(dir, "prometheus.yml"))
}

func TestRules(t *testing.T) {
	files, err := filepath.Glob("testdata/*_test.yml")
	if err != nil || len(files) != 2 {
		t.Fatalf("the tests of the rules are %q, %v", files, err)
	}
	for _, file := range files {
		promtool(t, "test", "rules", file)
	}
}

func TestEachAlertHasARunbookAndATest(t *testing.T) {
	data, err := fs.ReadFile(Prometheus(), "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(data, &rules); err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("testdata/alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, g := range rules.Groups {
		for _, a := range g.Rules {
			known[a.Alert+".md"] = true
			want := "https://github.com/cachemesh/cachemesh/blob/main/docs/runbooks/" + a.Alert + ".md"
			if got := a.Annotations["runbook_url"]; got != want {
				t.Errorf("%s has the runbook %q, want %q", a.Alert, got, want)
			}
			if s := a.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s has the severity %q", a.Alert, s)
			}
			page, err := os.ReadFile("../docs/runbooks/" + a.Alert + ".md")
			if err != nil {
				t.Error(err)
			}
			for _, part := range []string{"# " + a.Alert + "\n", "**Meaning.**", "**Impact.**", "## What to look at\n", "## What to do\n"} {
				if !strings.Contains(string(page), part) {
					t.Errorf("the runbook of %s lacks %q", a.Alert, part)
				}
			}
			// One time at which it is quiet, and one at which it fires.
			quiet := regexp.MustCompile(`\{alertname: ` + a.Alert + `, eval_time: \w+\}`)
			fires := regexp.MustCompile(`alertname: ` + a.Alert + `\n +eval_time: \w+\n +exp_alerts:`)
			if !quiet.Match(tests) || !fires.Match(tests) {
				t.Errorf("alerts_test.yml does not show %s both quiet and firing", a.Alert)
			}
		}
	}
	if len(known) < 10 {
		t.Errorf("only %d alerts were found", len(known))
	}
	pages, err := os.ReadDir("../docs/runbooks")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if !known[p.Name()] {
			t.Errorf("docs/runbooks/%s is of no alert", p.Name())
		}
	}
}
