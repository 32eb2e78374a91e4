package controlplane

import (
	"fmt"
	"slices"
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

// say makes nodes answer: p is a primary, r a replica, x is silent for long, s for a moment, - was not probed; the first letter is
// that of address 1.
func say(letters string) func(string) answer {
	return func(at string) answer {
		for i, letter := range letters {
			if at != address(i+1) {
				continue
			}
			switch letter {
			case 'p':
				return answer{probed: true, up: true, role: mesh.Primary}
			case 'r':
				return answer{probed: true, up: true, role: mesh.Replica}
			case 's':
				return answer{probed: true, missed: 1}
			case 'x':
				return answer{probed: true, missed: patience}
			}
		}
		return answer{}
	}
}

// serves writes a topology as shard=primary+replicas, by the numbers of their addresses.
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
			if primary, ok := s.Primary(); !ok || primary != s.Nodes[0] {
				numbers[0] = "?" + numbers[0]
			}
			shards = append(shards, s.Name+"="+strings.Join(numbers, "+"))
		}
	}
	return strings.Join(shards, " ")
}

func TestSettle(t *testing.T) {
	named := []string{"a/a0", "b/b0"}
	last := func(primaries map[string]string, entries ...string) members {
		m := members{Nodes: nodes(entries...), Primaries: map[string]string{}}
		for shard, n := range primaries {
			m.Primaries[shard] = "10.0.0." + n + ":6379"
		}
		return m
	}
	two := last(map[string]string{"a0": "1", "b0": "3"}, "a/a0=1", "a/a0=2", "b/b0=3", "b/b0=4")
	frozen := two
	frozen.Frozen = true
	autos := last(map[string]string{"a0": "1", "a1": "2", "b0": "3"}, "a/a0=1", "a/a1=2", "b/b0=3")
	autosFrozen := autos
	autosFrozen.Frozen = true
	for name, c := range map[string]struct {
		auto      bool
		named     []string
		last      members
		catalogue []mesh.Registration
		says      string
		want      string
		err       string // in the error, "" if there is none
		frozen    bool
		alert     string // in the only alert, "" if there is none
	}{
		// The first time.
		"nothing was seen of Consul yet":        {named: named, want: "nothing", err: `shard "a0" of pool "a" has no registered node`},
		"Consul is empty":                       {named: named, catalogue: nodes(), want: "nothing", err: "not served yet"},
		"a shard lacks its nodes":               {named: named, catalogue: nodes("a/a0=1"), says: "p", want: "nothing", err: `shard "b0" of pool "b" has no registered node`},
		"nodes were not asked yet":              {named: named, catalogue: nodes("a/a0=1", "b/b0=2"), says: "p-", want: "nothing", err: `shard "b0" are being asked`},
		"every shard has a primary":             {named: named, catalogue: nodes("a/a0=1", "a/a0=2", "b/b0=3"), says: "rpp", want: "a0=2+1 b0=3"},
		"a dead shard holds up no other":        {named: named, catalogue: nodes("a/a0=1", "a/a0=2", "b/b0=3"), says: "xrp", want: "a0=1+2 b0=3", alert: "no node says that it is primary; 10.0.0.1:6379 is taken"},
		"two primaries from the start":          {named: named, catalogue: nodes("a/a0=1", "a/a0=2", "b/b0=3"), says: "ppp", want: "a0=1+2 b0=3", alert: "several nodes say that they are primary"},
		"bad registrations are ignored":         {named: named, catalogue: nodes("a/a0=1", "b/b0=2", "c/a0=3"), says: "ppp", want: "a0=1 b0=2", alert: `there is no pool "c"`},
		"auto needs a shard for each pool":      {auto: true, catalogue: nodes("a/a0=1"), says: "p", want: "nothing", err: `pool "b" has no registered shard`},
		"auto takes shards as they are":         {auto: true, catalogue: nodes("a/a9=1", "b/b0=2", "a/a1=3"), says: "ppp", want: "a1=3 a9=1 b0=2"},
		"auto beside shards of the mesh":        {auto: true, named: named, catalogue: nodes("a/a9=1", "b/b0=2", "a/a0=3"), says: "ppp", want: "a0=3 a9=1 b0=2"},
		"auto waits for a primary at the start": {auto: true, catalogue: nodes("a/a0=1", "b/b0=2", "b/b1=3"), says: "pp-", want: "nothing", err: `shard "b1" are being asked`},

		// Who is primary.
		"a failover":                         {named: named, last: two, says: "xppr", want: "a0=2+1 b0=3+4"},
		"a switch":                           {named: named, last: two, says: "rppr", want: "a0=2+1 b0=3+4"},
		"the primary is silent for a moment": {named: named, last: two, says: "sppr", want: "a0=1+2 b0=3+4"},
		"a second primary":                   {named: named, last: two, says: "pppr", want: "a0=1+2 b0=3+4", alert: "several nodes say that they are primary: 10.0.0.1:6379, 10.0.0.2:6379; 10.0.0.1:6379 stays"},
		"no primary":                         {named: named, last: two, says: "rrpr", want: "a0=1+2 b0=3+4", alert: "no node says that it is primary; 10.0.0.1:6379 stays"},
		"all nodes of a shard are silent":    {named: named, last: two, says: "xxpr", want: "a0=1+2 b0=3+4"},
		"after a restart, before any probe":  {named: named, last: two, says: "----", want: "a0=1+2 b0=3+4"},
		"the primary was deregistered":       {named: named, last: two, catalogue: nodes("a/a0=2", "b/b0=3", "b/b0=4"), says: "prpr", want: "a0=1+2 b0=3+4", alert: "its primary 10.0.0.1:6379 is not registered any more"},
		"it was, and another one took over":  {named: named, last: two, catalogue: nodes("a/a0=2", "b/b0=3", "b/b0=4"), says: "pppr", want: "a0=2 b0=3+4"},
		"a shard moved to another address":   {named: named, last: two, catalogue: nodes("a/a0=5", "b/b0=3", "b/b0=4"), says: "xxprp", want: "a0=5 b0=3+4"},

		// Nodes come and go.
		"a replica joins":                 {named: named, last: two, catalogue: append(nodes("a/a0=5"), two.Nodes...), says: "prpr-", want: "a0=1+2+5 b0=3+4"},
		"a replica goes":                  {named: named, last: two, catalogue: nodes("a/a0=1", "b/b0=3", "b/b0=4"), says: "prpr", want: "a0=1 b0=3+4"},
		"a shard's nodes go":              {named: named, last: two, catalogue: nodes("b/b0=3", "b/b0=4"), says: "xxpr", want: "a0=1+2 b0=3+4", alert: "none of its nodes is registered any more"},
		"a new shard without nodes waits": {named: []string{"a/a0", "b/b0", "b/b1"}, last: two, catalogue: two.Nodes, says: "prpr", want: "a0=1+2 b0=3+4", err: `shard "b1" of pool "b" has no registered node`},
		"a new shard joins":               {named: []string{"a/a0", "b/b0", "b/b1"}, last: two, catalogue: append(nodes("b/b1=5"), two.Nodes...), says: "prprp", want: "a0=1+2 b0=3+4 b1=5"},
		"a shard leaves the mesh":         {named: []string{"a/a0", "b/b0"}, last: last(map[string]string{"a0": "1", "b0": "2", "b1": "3"}, "a/a0=1", "b/b0=2", "b/b1=3"), catalogue: nodes("a/a0=1", "b/b0=2"), says: "ppp", want: "a0=1 b0=2"},
		"an automatic shard joins":        {auto: true, last: autos, catalogue: append(nodes("b/b1=4"), autos.Nodes...), says: "pppp", want: "a0=1 a1=2 b0=3 b1=4"},
		"it does not before it was asked": {auto: true, last: autos, catalogue: append(nodes("b/b1=4"), autos.Nodes...), says: "ppp-", want: "a0=1 a1=2 b0=3"},
		"nor if it is dead":               {auto: true, last: autos, catalogue: append(nodes("b/b1=4"), autos.Nodes...), says: "pppx", want: "a0=1 a1=2 b0=3", alert: "does not join the ring"},
		"an automatic shard leaves":       {auto: true, last: autos, catalogue: nodes("a/a0=1", "b/b0=3"), says: "ppp", want: "a0=1 b0=3"},
		"a pool keeps its last shard":     {auto: true, last: autos, catalogue: nodes("a/a0=1", "a/a1=2"), says: "ppp", want: "a0=1 a1=2 b0=3", alert: "none of its nodes is registered any more"},

		// A catalogue that must not be believed.
		"a wiped Consul":                     {named: named, last: two, catalogue: nodes(), says: "prpr", want: "a0=1+2 b0=3+4", frozen: true, alert: "lists 0 usable nodes where 4 were"},
		"most nodes at once":                 {named: named, last: two, catalogue: nodes("a/a0=1"), says: "prpr", want: "a0=1+2 b0=3+4", frozen: true, alert: "lists 1 usable nodes where 4 were"},
		"a failover while frozen":            {named: named, last: two, catalogue: nodes(), says: "xppr", want: "a0=2+1 b0=3+4", frozen: true, alert: "lists 0 usable nodes"},
		"half come back, a shard is missing": {named: named, last: frozen, catalogue: nodes("a/a0=1", "a/a0=2"), says: "prpr", want: "a0=1+2 b0=3+4", frozen: true, alert: `those of shard "b0" are still missing`},
		"all shards come back":               {named: named, last: frozen, catalogue: nodes("a/a0=1", "b/b0=3"), says: "prpr", want: "a0=1 b0=3"},
		"a wiped Consul with auto":           {auto: true, last: autos, catalogue: nodes(), says: "ppp", want: "a0=1 a1=2 b0=3", frozen: true, alert: "lists 0 usable nodes where 3 were"},
		"it fills up again":                  {auto: true, last: autosFrozen, catalogue: nodes("a/a0=1", "b/b0=3"), says: "ppp", want: "a0=1 a1=2 b0=3", frozen: true, alert: `shard "a1" are still missing`},
		"Consul is gone":                     {named: named, last: two, says: "prpr", want: "a0=1+2 b0=3+4"},
		"Consul is gone after it was wiped":  {named: named, last: frozen, says: "prpr", want: "a0=1+2 b0=3+4", frozen: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := settle(consulMesh(c.auto, c.named...), "home", c.last, c.catalogue, say(c.says))
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
			if again := settle(consulMesh(c.auto, c.named...), "home", s.members, c.catalogue, say(c.says)); serves(again.topology) != c.want {
				t.Errorf("the second time it serves %s, want %s", serves(again.topology), c.want)
			}
			// Every registered node is probed, and so is every one that serves.
			if s.topology != nil && !slices.Equal(numbersOf(s.topology), slices.DeleteFunc(numbersOf(&s.candidates), func(n string) bool {
				return !slices.Contains(numbersOf(s.topology), n)
			})) {
				t.Errorf("candidates %s lack nodes of %s", serves(&s.candidates), serves(s.topology))
			}
		})
	}
}

func numbersOf(t *mesh.Topology) []string {
	var all []string
	for _, p := range t.Pools {
		for _, s := range p.Shards {
			for _, n := range s.Nodes {
				all = append(all, n.Address)
			}
		}
	}
	return all
}

// A primary that answers now and then beside another that says that it is primary is left once and for all.
func TestThePrimaryDoesNotFlap(t *testing.T) {
	m := consulMesh(false, "a/a0", "b/b0")
	catalogue := nodes("a/a0=1", "a/a0=2", "b/b0=3")
	state := members{}
	changes, primary := 0, ""
	for i := range 60 {
		says := []string{"ppp", "spp", "xpp", "ppp"}[i%4]
		s := settle(m, "home", state, catalogue, say(says))
		state = s.members
		if p := state.Primaries["a0"]; p != primary {
			changes, primary = changes+1, p
		}
	}
	if changes > 2 {
		t.Errorf("the primary changed %d times, want at most once after the first choice", changes)
	}
}
