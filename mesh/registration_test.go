package mesh

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func loadConsul(t *testing.T) *Mesh {
	t.Helper()
	data, err := os.ReadFile("testdata/consul.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Load("consul.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestADatacenterIsNamedLikeItsRegion(t *testing.T) {
	m := loadConsul(t)
	if m.Regions[0].Datacenter != "dc1" || m.Regions[1].Datacenter != "eu-west" {
		t.Errorf("datacenters %q and %q", m.Regions[0].Datacenter, m.Regions[1].Datacenter)
	}
}

// A catalogue is written as pool/shard=address, its ids counted from a.
func catalogue(entries ...string) []Registration {
	var all []Registration
	for i, e := range entries {
		place, address, _ := strings.Cut(e, "=")
		pool, shard, _ := strings.Cut(place, "/")
		all = append(all, Registration{ID: string(rune('a' + i)), Pool: pool, Shard: shard, Address: address})
	}
	return all
}

func TestMembersIgnoresAndNamesBadRegistrations(t *testing.T) {
	const one, two = "10.0.0.1:6379", "10.0.0.2:6379"
	for name, c := range map[string]struct {
		auto      bool
		catalogue []Registration
		members   string // ids in order
		bad       string // what the only bad one is about, "" if there is none
	}{
		"nothing":                  {},
		"two nodes, sorted":        {catalogue: catalogue("timelines/timelines-0="+two, "timelines/timelines-0="+one), members: "ba"},
		"no pool":                  {catalogue: catalogue("/timelines-0=" + one), bad: "a: names no pool"},
		"no shard":                 {catalogue: catalogue("timelines/=" + one), bad: "a: names no shard"},
		"a shard's name":           {catalogue: catalogue("timelines/Shard 1=" + one), bad: `a: "Shard 1" is no name`},
		"a pool's name":            {catalogue: catalogue("time lines/timelines-0=" + one), bad: `a: "time lines" is no name`},
		"unknown pool":             {catalogue: catalogue("images/images-0=" + one), bad: `a: there is no pool "images"`},
		"unknown pool with auto":   {auto: true, catalogue: catalogue("images/images-0=" + one), bad: `a: there is no pool "images"`},
		"unknown shard":            {catalogue: catalogue("timelines/timelines-9="+one, "content/content-0="+two), members: "b", bad: `a: there is no shard "timelines-9" in region "us-east"`},
		"unknown shard with auto":  {auto: true, catalogue: catalogue("timelines/timelines-9=" + one), members: "a"},
		"another pool's shard":     {catalogue: catalogue("content/timelines-0=" + one), bad: `a: shard "timelines-0" belongs to pool "timelines"`},
		"one new shard, two pools": {auto: true, catalogue: catalogue("timelines/new="+one, "content/new="+two), members: "a", bad: `b: shard "new" belongs to pool "timelines"`},
		"one node, two shards":     {catalogue: catalogue("timelines/timelines-0="+one, "timelines/timelines-1="+one), members: "a", bad: `b: node 10.0.0.1:6379 is registered already for shard "timelines-0", as "a"`},
		"one node, twice":          {catalogue: catalogue("timelines/timelines-0="+one, "timelines/timelines-0="+one), members: "a"},
		"a host name":              {catalogue: catalogue("timelines/timelines-0=redis.example:6379"), bad: "a: address \"redis.example:6379\": not an IP"},
		"no port":                  {catalogue: catalogue("timelines/timelines-0=10.0.0.1:0"), bad: "port 0"},
		"any host":                 {catalogue: catalogue("timelines/timelines-0=0.0.0.0:6379"), bad: "names no host"},
	} {
		m := loadConsul(t)
		m.Membership.Auto = c.auto
		members, bad := m.Members("us-east", c.catalogue)
		ids := ""
		for _, r := range members {
			ids += r.ID
		}
		if ids != c.members {
			t.Errorf("%s: members %q, want %q", name, ids, c.members)
		}
		switch {
		case c.bad == "" && len(bad) > 0:
			t.Errorf("%s: %v, want nothing bad", name, bad)
		case c.bad != "" && (len(bad) != 1 || !strings.Contains(bad[0].ID+": "+bad[0].Message, c.bad) || bad[0].Remedy == ""):
			t.Errorf("%s: bad registrations %v, want one with %q", name, bad, c.bad)
		}
	}
}

func TestOneBadRegistrationHarmsNoOther(t *testing.T) {
	m := loadConsul(t)
	good := catalogue("timelines/timelines-0=10.0.0.1:1", "timelines/timelines-1=10.0.0.2:1", "content/content-0=10.0.0.3:1")
	want, _ := m.Members("us-east", good)
	got, bad := m.Members("us-east", append(slices.Clone(good), catalogue("/x=1", "nope/x=10.0.0.9:1", "content/content-0=10.0.0.1:1", "=")...))
	if !slices.Equal(got, want) || len(bad) != 4 {
		t.Errorf("members %v, want %v; bad %v", got, want, bad)
	}
}
