package warming

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

func loadMesh(t testing.TB) *mesh.Mesh {
	t.Helper()
	data, err := os.ReadFile("../mesh/testdata/warming.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.Load("warming.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func plans(t testing.TB, m *mesh.Mesh) map[string]*Plan {
	t.Helper()
	all, problems := Compile(m)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	byName := map[string]*Plan{}
	for _, p := range all {
		byName[p.Name] = p
	}
	return byName
}

// plan compiles one more plan of the mesh of the tests.
func plan(t *testing.T, text string) *Plan {
	t.Helper()
	m, err := loadMesh(t).LoadPlans("plans.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	all, problems := Compile(m)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return all[0]
}

func TestABadPlanIsNamedAndTheOthersStay(t *testing.T) {
	m, err := loadMesh(t).LoadPlans("plans.yaml", []byte(`plans:
  - name: good
    schedule: {cron: "0 7 * * MON-FRI"}
    keys: {route: "tweet:"}
    source: {region: nearest}
  - name: bad-cron
    schedule: {cron: "0 7 * * MOON"}
    keys: {route: "tweet:"}
    source: {region: nearest}
  - name: short-cron
    schedule: {finishBy: "0 7 *"}
    keys: {route: "tweet:"}
    source: {region: nearest}
  - name: never
    schedule: {cron: "0 7 30 2 *"}
    keys: {route: "tweet:"}
    source: {region: nearest}
  - name: bad-rule
    rule:
      when: event.type = "tweet.created"
      keys: ["tweet:{{event.id", "timeline:{{event.id}}", "tweet:{{event.}}"]
      regions: '["us-east", "mars"]'
    keys: {route: "tweet:"}
    source: {region: nearest}
  - name: no-rule
    rule:
      when: size(event.type)
      keys: ["tweet:{{event.id}}"]
      regions: '"us-east"'
    keys: {route: "tweet:"}
    source: {region: nearest}
  - name: mars
    rule:
      when: "true"
      keys: ["tweet:1"]
      regions: '["us-east", "mars"]'
    keys: {route: "tweet:"}
    source: {region: nearest}
  - name: bad-query
    manual: true
    keys: {route: "tweet:"}
    source:
      sql:
        driver: sqlite
        dsnEnv: DSN
        query: |
          SELECT 'a;b''c', (1 + 2 -- )
          FROM t; DROP TABLE t
  - name: bad-quote
    manual: true
    keys: {route: "tweet:"}
    source:
      sql: {driver: postgres, dsnEnv: DSN, query: "SELECT $tag$ x $tag$, 'y"}
  - name: no-select
    manual: true
    keys: {route: "tweet:"}
    source:
      sql: {driver: postgres, dsnEnv: DSN, query: "/* all */ DELETE FROM t"}
`))
	if err != nil {
		t.Fatal(err)
	}
	all, problems := Compile(m)
	if len(all) != 1 || all[0].Name != "good" {
		t.Errorf("%d plans are left", len(all))
	}
	got := problems.Error() + "\n"
	if *update {
		if err := os.WriteFile("testdata/problems.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/problems.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestPlansOfTheExampleMakeRuns(t *testing.T) {
	all := plans(t, loadMesh(t))
	now := time.Date(2026, 7, 1, 6, 0, 0, 123e6, time.UTC)
	for name, p := range all {
		for _, region := range []string{"us-east", "eu-west", "ap-south"} {
			if !p.Warms(region) {
				continue
			}
			r := p.Run(region, now)
			if err := r.Validate(); err != nil {
				t.Errorf("%s in %s: %v", name, region, err)
			}
		}
	}
	// Dublin is nearer to Virginia than to Mumbai, which is nearer to Dublin.
	for to, from := range map[string]string{"us-east": "eu-west", "eu-west": "us-east", "ap-south": "eu-west"} {
		if got := all["sun"].Run(to, now).Source.Region; got != from {
			t.Errorf("the sun of %s is from %s, want %s", to, got, from)
		}
	}
	if all["local-event"].Warms("us-east") {
		t.Error("a region warms itself")
	}
	r := all["morning-trending"].Run("us-east", now)
	if r.ID != "morning-trending-20260701T060000.123Z" || r.Pool != "content" || r.Spread != 0.2 || r.Keys.Prefix != "tweet:" || r.Keys.Named || !all["celebrity"].Run("us-east", now).Keys.Named {
		t.Errorf("%+v", r)
	}
}

func TestCopy(t *testing.T) {
	m := loadMesh(t)
	p, err := Copy(m, "us-east", "eu-west", "tweet:")
	if err != nil {
		t.Fatal(err)
	}
	r := p.Run("eu-west", time.Unix(0, 0))
	if err := r.Validate(); err != nil || r.Source.Region != "us-east" || r.Plan != CopyPlan || r.Budget.KeysPerSecond != mesh.DefaultKeysPerSecond {
		t.Errorf("%v, %+v", err, r)
	}
	for want, c := range map[string][3]string{
		`no route has the prefix "user:"`: {"us-east", "eu-west", "user:"},
		`there is no region "mars"`:       {"mars", "eu-west", "tweet:"},
		"cannot be copied to itself":      {"eu-west", "eu-west", "tweet:"},
	} {
		if _, err := Copy(m, c[0], c[1], c[2]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
