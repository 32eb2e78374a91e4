package controlplane

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cachemesh/cachemesh/mesh"
)

// consulMesh has pools a and b; named lists its shards as pool/shard.
func consulMesh(auto bool, named ...string) *mesh.Mesh {
	m := &mesh.Mesh{
		Membership: mesh.Membership{Consul: &mesh.ConsulSpec{}, Auto: auto},
		Pools:      []mesh.PoolSpec{{Name: "a", Routes: []mesh.Route{{Prefix: "a:"}}}, {Name: "b", Routes: []mesh.Route{{Prefix: "b:"}}}},
		Regions:    []mesh.RegionSpec{{Name: "home"}},
	}
	for _, n := range named {
		pool, shard, _ := strings.Cut(n, "/")
		m.Regions[0].Shards = append(m.Regions[0].Shards, mesh.ShardSpec{Pool: pool, Name: shard, Weight: 1})
	}
	return m
}

func address(n int) string { return fmt.Sprintf("10.0.0.%d:6379", n) }

// nodes are registrations, written as pool/shard=number of the address.
func nodes(entries ...string) []mesh.Registration {
	all := []mesh.Registration{}
	for _, e := range entries {
		var n int
		place, number, _ := strings.Cut(e, "=")
		pool, shard, _ := strings.Cut(place, "/")
		fmt.Sscan(number, &n)
		all = append(all, mesh.Registration{ID: e, Pool: pool, Shard: shard, Address: address(n)})
	}
	return all
}

// serves writes a topology as shard=node+node, by the numbers of their addresses.
func serves(t *mesh.Topology) string {
	if t == nil {
		return "nothing"
	}
	var shards []string
	for _, p := range t.Pools {
		for _, s := range p.Shards {
			var numbers []string
			for _, n := range s.Nodes {
				numbers = append(numbers, strings.TrimSuffix(strings.TrimPrefix(n.Address, "10.0.0."), ":6379"))
			}
			shards = append(shards, s.Name+"="+strings.Join(numbers, "+"))
		}
	}
	return strings.Join(shards, " ")
}

func TestSettle(t *testing.T) {
	named := []string{"a/a0", "b/b0"}
	last := func(entries ...string) members { return members{Nodes: nodes(entries...)} }
	two := last("a/a0=1", "a/a0=2", "b/b0=3", "b/b0=4")
	frozen := two
	frozen.Frozen = true
	autos := last("a/a0=1", "a/a1=2", "b/b0=3")
	autosFrozen := autos
	autosFrozen.Frozen = true
	for name, c := range map[string]struct {
		auto      bool
		named     []string
		last      members
		catalogue []mesh.Registration
		accepted  bool
		want      string
		err       string // in the error, "" if there is none
		frozen    bool
		alert     string // in the only alert, "" if there is none
	}{
		// The first time.
		"nothing was seen of Consul yet":   {named: named, want: "nothing", err: `shard "a0" of pool "a" has no registered node`},
		"Consul is empty":                  {named: named, catalogue: nodes(), want: "nothing", err: "not served yet"},
		"a shard lacks its nodes":          {named: named, catalogue: nodes("a/a0=1"), want: "nothing", err: `shard "b0" of pool "b" has no registered node`},
		"every shard has a node":           {named: named, catalogue: nodes("a/a0=1", "a/a0=2", "b/b0=3"), want: "a0=1+2 b0=3"},
		"bad registrations are ignored":    {named: named, catalogue: nodes("a/a0=1", "b/b0=2", "c/a0=3"), want: "a0=1 b0=2", alert: `there is no pool "c"`},
		"auto needs a shard for each pool": {auto: true, catalogue: nodes("a/a0=1"), want: "nothing", err: `pool "b" has no registered shard`},
		"auto takes shards as they are":    {auto: true, catalogue: nodes("a/a9=1", "b/b0=2", "a/a1=3"), want: "a1=3 a9=1 b0=2"},
		"auto beside shards of the mesh":   {auto: true, named: named, catalogue: nodes("a/a9=1", "b/b0=2", "a/a0=3"), want: "a0=3 a9=1 b0=2"},

		// Nodes come and go.
		"after a restart, before Consul answers": {named: named, last: two, want: "a0=1+2 b0=3+4"},
		"a shard moved to another address":       {named: named, last: two, catalogue: nodes("a/a0=5", "b/b0=3", "b/b0=4"), want: "a0=5 b0=3+4"},
		"a node joins":                           {named: named, last: two, catalogue: append(nodes("a/a0=5"), two.Nodes...), want: "a0=1+2+5 b0=3+4"},
		"a node goes":                            {named: named, last: two, catalogue: nodes("a/a0=1", "b/b0=3", "b/b0=4"), want: "a0=1 b0=3+4"},
		"a shard's nodes go":                     {named: named, last: two, catalogue: nodes("b/b0=3", "b/b0=4"), want: "a0=1+2 b0=3+4", alert: "none of its nodes is registered any more"},
		"a new shard without nodes waits":        {named: []string{"a/a0", "b/b0", "b/b1"}, last: two, catalogue: two.Nodes, want: "a0=1+2 b0=3+4", err: `shard "b1" of pool "b" has no registered node`},
		"a new shard joins":                      {named: []string{"a/a0", "b/b0", "b/b1"}, last: two, catalogue: append(nodes("b/b1=5"), two.Nodes...), want: "a0=1+2 b0=3+4 b1=5"},
		"a shard leaves the mesh":                {named: []string{"a/a0", "b/b0"}, last: last("a/a0=1", "b/b0=2", "b/b1=3"), catalogue: nodes("a/a0=1", "b/b0=2"), want: "a0=1 b0=2"},
		"an automatic shard joins":               {auto: true, last: autos, catalogue: append(nodes("b/b1=4"), autos.Nodes...), want: "a0=1 a1=2 b0=3 b1=4"},
		"an automatic shard leaves":              {auto: true, last: autos, catalogue: nodes("a/a0=1", "b/b0=3"), want: "a0=1 b0=3"},
		"a pool keeps its last shard":            {auto: true, last: autos, catalogue: nodes("a/a0=1", "a/a1=2"), want: "a0=1 a1=2 b0=3", alert: "none of its nodes is registered any more"},

		// A catalogue that must not be believed.
		"a wiped Consul":                     {named: named, last: two, catalogue: nodes(), want: "a0=1+2 b0=3+4", frozen: true, alert: "lists 0 usable nodes where 4 were"},
		"most nodes at once":                 {named: named, last: two, catalogue: nodes("a/a0=1"), want: "a0=1+2 b0=3+4", frozen: true, alert: "lists 1 usable nodes where 4 were"},
		"that is accepted":                   {named: named, last: frozen, catalogue: nodes("b/b0=3"), accepted: true, want: "a0=1+2 b0=3", alert: "none of its nodes is registered any more"},
		"half come back, a shard is missing": {named: named, last: frozen, catalogue: nodes("a/a0=1", "a/a0=2"), want: "a0=1+2 b0=3+4", frozen: true, alert: `those of shard "b0" are still missing`},
		"all shards come back":               {named: named, last: frozen, catalogue: nodes("a/a0=1", "b/b0=3"), want: "a0=1 b0=3"},
		"a wiped Consul with auto":           {auto: true, last: autos, catalogue: nodes(), want: "a0=1 a1=2 b0=3", frozen: true, alert: "lists 0 usable nodes where 3 were"},
		"it fills up again":                  {auto: true, last: autosFrozen, catalogue: nodes("a/a0=1", "b/b0=3"), want: "a0=1 a1=2 b0=3", frozen: true, alert: `shard "a1" are still missing`},
		"Consul is gone after it was wiped":  {named: named, last: frozen, want: "a0=1+2 b0=3+4", frozen: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := settle(consulMesh(c.auto, c.named...), "home", c.last, c.catalogue, c.accepted)
			if got := serves(s.topology); got != c.want {
				t.Errorf("serves %s, want %s", got, c.want)
			}
			if (s.err == nil) != (c.err == "") || s.err != nil && !strings.Contains(s.err.Error(), c.err) {
				t.Errorf("error %v, want %q", s.err, c.err)
			}
			if s.members.Frozen != c.frozen {
				t.Errorf("frozen %v (%s), want %v", s.members.Frozen, s.frozen, c.frozen)
			}
			if c.alert == "" && len(s.alerts) > 0 || c.alert != "" && (len(s.alerts) != 1 || !strings.Contains(s.alerts[0].Message, c.alert)) {
				t.Errorf("alerts %+v, want one with %q", s.alerts, c.alert)
			}
			for _, a := range s.alerts {
				if a.Subject == "" || a.Remedy == "" {
					t.Errorf("alert %+v lacks something", a)
				}
			}
			// Without news nothing changes any more.
			if again := settle(consulMesh(c.auto, c.named...), "home", s.members, c.catalogue, false); serves(again.topology) != c.want {
				t.Errorf("the second time it serves %s, want %s", serves(again.topology), c.want)
			}
		})
	}
}
