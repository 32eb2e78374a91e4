package mesh

import (
	"os"
	"strings"
	"testing"
	"time"
)

func loadWarming(t *testing.T) *Mesh {
	t.Helper()
	data, err := os.ReadFile("testdata/warming.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Load("warming.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPlansGetTheirDefaults(t *testing.T) {
	m := loadWarming(t)
	trending, celebrity, sun := m.Warming.Plans[0], m.Warming.Plans[1], m.Warming.Plans[3]
	if want := (Budget{KeysPerSecond: 5000, BytesPerSecond: DefaultBytesPerSecond, OriginPerSecond: 200, Concurrency: DefaultConcurrency}); trending.Budget != want {
		t.Errorf("budget %+v, want %+v", trending.Budget, want)
	}
	if *trending.TTLSpread != 20 || *celebrity.TTLSpread != DefaultTTLSpread || celebrity.Rule.Regions != "regions.all" || celebrity.Keys.Prefix != "tweet:" || sun.FollowSun.Ahead != 20*time.Minute {
		t.Errorf("%+v, %+v, %+v", trending, celebrity, sun)
	}
	east, _ := m.Region("us-east")
	if east.Zone().String() != "America/New_York" {
		t.Errorf("zone %s", east.Zone())
	}
	if zone := (RegionSpec{}).Zone(); zone != time.UTC {
		t.Errorf("zone %s of a region that says none", zone)
	}
}

func TestWarmingNeedsOtherRegionsLinks(t *testing.T) {
	topology, err := loadWarming(t).Topology("us-east")
	if err != nil {
		t.Fatal(err)
	}
	if got := topology.Links["eu-west"]; len(got) != 1 || got[0] != "127.0.0.1:7902" {
		t.Errorf("links %v", topology.Links)
	}
	without, err := loadRegions(t).Topology("us-east")
	if err != nil || without.Links != nil {
		t.Errorf("links %v, error %v in a mesh that neither warms nor is coherent", without.Links, err)
	}
}

func TestAFileOfPlansIsCheckedAgainstTheMesh(t *testing.T) {
	m := loadWarming(t)
	with, err := m.LoadPlans("plans.yaml", []byte("plans:\n  - name: more\n    manual: true\n    keys: {route: \"tweet:\"}\n    source: {region: us-east}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(with.Warming.Plans) != 1 || with.Warming.Plans[0].Budget.KeysPerSecond != DefaultKeysPerSecond || len(m.Warming.Plans) != 6 {
		t.Errorf("%+v", with.Warming.Plans)
	}
	if p := with.Locate(Problem{Field: "warming.plans[0].source.region"}); p.String() != `plans.yaml:5:22: plans[0].source.region: ` {
		t.Errorf("%q", p.String())
	}
	for text, want := range map[string]string{
		"":                   "start it with plans:",
		"plans: [{nam: x}]":  "plans.yaml:1:15: plans[0].nam: is no field that exists: the fields here are budget, followSun,",
		"plans: [{name: X}]": `"X" is no name`,
		"plans:\n  - {name: x, manual: true, keys: {route: \"user:\"}, source: {region: nearest}}": `plans.yaml:2:43: plans[0].keys.route: no route has the prefix "user:"`,
		"apiVersion: cachemesh.dev/v1": "plans.yaml:1:13: apiVersion: is no field that exists: the fields here are plans",
	} {
		if _, err := m.LoadPlans("plans.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
