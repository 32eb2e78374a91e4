package mesh

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func loadCoherence(t *testing.T, change ...string) *Mesh {
	t.Helper()
	data, err := os.ReadFile("testdata/coherence.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Load("coherence.yaml", []byte(strings.NewReplacer(change...).Replace(string(data))))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRoutesHaveThePoliciesThatAreStated(t *testing.T) {
	want := []Route{
		{Prefix: "user:", Coherence: Invalidate, Writes: Refill, Durability: DurablePrimary, HoldOff: 3 * time.Second},
		{Prefix: "price:", Coherence: Invalidate, Writes: Update, Durability: DurableReplica},
		{Prefix: "trend:", Coherence: Local},
	}
	if got := loadCoherence(t).Pools[0].Routes; !reflect.DeepEqual(got, want) {
		t.Errorf("routes %+v, want %+v", got, want)
	}
}

func TestATopologyKnowsTheLinksOfOtherRegions(t *testing.T) {
	topology, err := loadCoherence(t).Topology("us-east")
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string][]string{"eu-west": {"127.0.0.1:8946"}}; !reflect.DeepEqual(topology.Links, want) {
		t.Errorf("links %v, want %v", topology.Links, want)
	}
	text, err := json.Marshal(topology)
	if err != nil {
		t.Fatal(err)
	}
	var again Topology
	if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(topology, again) {
		t.Errorf("%v: read again from JSON it is %+v, want %+v", err, again, topology)
	}
	alone, err := loadRegions(t).Topology("us-east")
	if err != nil || alone.Links != nil || alone.HasLanes() {
		t.Errorf("%v: a mesh without coherent routes has links %v, lanes: %v", err, alone.Links, alone.HasLanes())
	}
}

func TestWhichRoutesAreOnLanes(t *testing.T) {
	for _, c := range []struct {
		transactions string
		routes       []bool
		pools        []bool
	}{
		{"", []bool{true, true, false, false}, []bool{true, false}},
		{"transactions: refused\n", []bool{true, true, false, false}, []bool{true, false}},
		{"transactions: lanes\n", []bool{true, true, true, true}, []bool{true, true}},
	} {
		topology, err := loadCoherence(t, "pools:\n", c.transactions+"pools:\n").Topology("us-east")
		if err != nil {
			t.Fatal(err)
		}
		var routes, pools []bool
		for _, p := range topology.Pools {
			pools = append(pools, topology.PoolOnLanes(p))
			for _, r := range p.Routes {
				routes = append(routes, topology.OnLanes(r))
			}
		}
		if !reflect.DeepEqual(routes, c.routes) || !reflect.DeepEqual(pools, c.pools) || !topology.HasLanes() {
			t.Errorf("%q: routes %v, pools %v", c.transactions, routes, pools)
		}
	}
}
