package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/regions/journal"
)

// removals is what `region invalidate -o json` and `flush -o json` print.
type removals struct {
	Removals  []control.ShardRemoval `json:"removals"`
	Unreached []struct {
		Region string `json:"region"`
		Error  string `json:"error"`
	} `json:"unreached"`
}

// twoRegions are two regions of one mesh, each with a control plane and two shards of a pool with a coherent route and one without.
type twoRegions struct {
	*testMesh
	planes []*controlplane
	redis  [][]*redis.Client // by region and shard
}

func newTwoRegions(t *testing.T) *twoRegions {
	t.Helper()
	m := &twoRegions{testMesh: newMesh(t)}
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Routes: []mesh.Route{{Prefix: "user:", Coherence: mesh.Invalidate, Writes: mesh.Refill}, {Prefix: ""}}}}
	m.spec.Regions = nil
	links := freeAddresses(t, 2)
	for i, name := range []string{region, "there"} {
		spec := mesh.RegionSpec{Name: name, Links: []string{links[i]}}
		var clients []*redis.Client
		for n := range 2 {
			node := m.startManaged(t)
			spec.Shards = append(spec.Shards, mesh.ShardSpec{Pool: "all", Name: fmt.Sprintf("all-%d", n), Nodes: []string{node}})
			client := redis.NewClient(&redis.Options{Addr: node})
			t.Cleanup(func() { client.Close() })
			clients = append(clients, client)
		}
		m.redis = append(m.redis, clients)
		m.spec.Regions = append(m.spec.Regions, spec)
	}
	m.write(t)
	for _, r := range m.spec.Regions {
		m.planes = append(m.planes, m.startControlplane(t, "--region", r.Name, "--state", m.dir+"/state-"+r.Name))
	}
	return m
}

// startManaged starts a node that waits for its role.
func (m *testMesh) startManaged(t *testing.T) (address string) {
	t.Helper()
	server := process.Redis{Port: freePorts(t, 1)[0], Dir: m.dir, Managed: true}
	p, err := server.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(0) })
	m.nodes[server.Address()] = p
	return server.Address()
}

// flags name both control planes.
func (m *twoRegions) flags(args ...string) []string {
	return append(args, "--controlplane", m.planes[0].url, "--controlplane", m.planes[1].url)
}

// fill writes keys where they belong, in both regions.
func (m *twoRegions) fill(t *testing.T, keys ...string) {
	t.Helper()
	for i := range m.planes {
		m.fillOne(t, i, keys...)
	}
}

// fillOne writes keys where they belong in one region.
func (m *twoRegions) fillOne(t *testing.T, region int, keys ...string) {
	t.Helper()
	pipes := make([]redis.Pipeliner, len(m.redis[region]))
	for n, client := range m.redis[region] {
		pipes[n] = client.Pipeline()
	}
	for i, at := range m.planes[region].where(t, keys...) {
		n := slices.IndexFunc(m.spec.Regions[region].Shards, func(s mesh.ShardSpec) bool { return s.Name == at.Shard })
		pipes[n].Set(t.Context(), keys[i], "old", 0)
	}
	for _, pipe := range pipes {
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// left are the applications' keys in a region.
func (m *twoRegions) left(t *testing.T, region int) []string {
	t.Helper()
	var all []string
	for _, client := range m.redis[region] {
		keys, err := client.Keys(t.Context(), "*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if !strings.HasPrefix(k, mesh.ReservedPrefix) {
				all = append(all, k)
			}
		}
	}
	slices.Sort(all)
	return all
}

// journaled are the removals that a region's journals have, of keys as they are, others as their kind.
func (m *twoRegions) journaled(t *testing.T, region int) []string {
	t.Helper()
	var all []string
	for _, client := range m.redis[region] {
		entries, err := client.XRange(t.Context(), journal.Key(1), "-", "+").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			removals, err := journal.Decode(nil, []byte(e.Values["e"].(string)))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range removals {
				all = append(all, fmt.Sprintf("%d %s", r.Op, r.Key))
			}
		}
	}
	slices.Sort(all)
	return all
}

func TestAnOperatorRemovesKeysInEveryRegion(t *testing.T) {
	m := newTwoRegions(t)
	want := func(step string, left, journaled []string) {
		t.Helper()
		for i := range m.planes {
			if got := m.left(t, i); !slices.Equal(got, left) {
				t.Errorf("%s: %q are left in region %d, want %q", step, got, i, left)
			}
		}
		if got := m.journaled(t, 0); !slices.Equal(got, journaled) {
			t.Errorf("%s: the journals of the first region say %q, want %q", step, got, journaled)
		}
		if got := m.journaled(t, 1); len(got) > 0 {
			t.Errorf("%s: the journals of the second region say %q, too", step, got)
		}
	}
	m.fill(t, "user:1", "user:2", "user:3", "a:1", "a:2")
	r := cachemesh(t, m.flags("region", "invalidate", "user:1", "user:9", "a:1")...).want(t, 0)
	if !strings.Contains(r.stdout, "removed 4 keys") || !strings.Contains(r.stdout, "2 regions") {
		t.Errorf("the proof is %s", r.stdout)
	}
	want("keys", []string{"a:2", "user:2", "user:3"}, []string{"1 a:1", "1 user:1", "1 user:9"})

	m.fill(t, "user:\xff\n*")
	i := invocation{args: m.flags("region", "invalidate", "-0", "-o", "json"), stdin: "user:\xff\n*\x00user:2\x00"}
	proof := decode[removals](t, i.run(t).want(t, 0))
	var removed, seen uint64
	for _, s := range proof.Removals {
		removed, seen = removed+s.Removed, seen+s.Seen
		if !s.Done || s.Node == "" || s.Epoch != 1 || (s.Journal != "") != (s.Region == region) {
			t.Errorf("the answer of a shard is %+v", s)
		}
	}
	if removed != 4 || seen != 4 || len(proof.Unreached) != 0 {
		t.Errorf("the proof is %+v", proof)
	}
	want("keys on standard input", []string{"a:2", "user:3"}, []string{"1 a:1", "1 user:1", "1 user:2", "1 user:9", "1 user:\xff\n*"})

	before := m.journaled(t, 0)
	many := []string{"user:3"}
	for n := range 2500 {
		many = append(many, fmt.Sprint("user:many:", n))
	}
	m.fill(t, many...)
	if r := cachemesh(t, m.flags("region", "invalidate", "--prefix", "user:many:")...).want(t, 0); !strings.Contains(r.stdout, "removed 5000 keys of 4 shards in 2 regions") {
		t.Errorf("the proof of a prefix is %s", r.stdout)
	}
	want("a prefix", []string{"a:2", "user:3"}, append(before, "2 user:many:"))

	if r := cachemesh(t, m.flags("flush", "all")...).want(t, 2); !strings.Contains(r.stderr, "every key of pool all") || !strings.Contains(r.stderr, "on 2 shards in there") || !strings.Contains(r.stderr, "--yes") {
		t.Errorf("a flush that nobody confirmed says %s", r.stderr)
	}
	want("a flush that nobody confirmed", []string{"a:2", "user:3"}, append(before, "2 user:many:"))
	cachemesh(t, m.flags("flush", "all", "--region", "there", "--yes")...).want(t, 0)
	if here, there := m.left(t, 0), m.left(t, 1); len(here) != 2 || len(there) != 0 {
		t.Errorf("a flush of one region leaves %q and %q", here, there)
	}
	m.fill(t, "user:3")
	cachemesh(t, m.flags("flush", "all", "--yes")...).want(t, 0)
	want("a flush", nil, append(append(before, "2 user:many:"), "3 ", "3 "))

	// Who is away is named, and what it does not know is kept for it.
	m.planes[1].process.Stop(0)
	m.fillOne(t, 0, "user:1")
	r = cachemesh(t, m.flags("region", "invalidate", "user:1")...).want(t, 1)
	if !strings.Contains(r.stderr, "there") || !strings.Contains(r.stderr, "the journals of here") || !strings.Contains(r.stdout, "removed 1 key of 1 shard in 1 region") {
		t.Errorf("with a region that is away: %s%s", r.stdout, r.stderr)
	}
	if r := cachemesh(t, "region", "invalidate", "user:1", "--controlplane", m.planes[0].url).want(t, 1); !strings.Contains(r.stderr, "there: none of its control planes") {
		t.Errorf("with a region that was not named: %s", r.stderr)
	}
}

func TestRegionCommandsThatAreCalledWrongly(t *testing.T) {
	for _, args := range [][]string{
		{"region", "invalidate", "k", "--prefix", "p"}, {"region", "invalidate", "--prefix", ""}, {"region", "invalidate"},
		{"region", "pause"}, {"region", "resume", "a", "b"}, {"region", "status", "x"}, {"flush"}, {"flush", "a", "b"},
		{"region", "status", "--watch", "-o", "yaml", "--controlplane", "http://127.0.0.1:1"},
	} {
		if r := cachemesh(t, args...).want(t, 2); !strings.Contains(r.stderr, "error: ") {
			t.Errorf("%q says %s", args, r.stderr)
		}
	}
}

// planesOfLinks answer as control planes of two regions do, and keep what they were asked to pause.
type planesOfLinks struct {
	urls []string

	mu     sync.Mutex
	paused []string
}

func newPlanesOfLinks(t *testing.T) *planesOfLinks {
	t.Helper()
	p := &planesOfLinks{}
	lag := 1500.0
	for from, to := range map[string]string{"here": "there", "there": "here"} {
		answer := control.RegionsStatus{Region: from, Links: []control.LinkStatus{
			{From: from, To: to, Pool: "users", State: control.LinkUp, LagMS: new(float64)},
			{From: from, To: to, Pool: "all", State: control.LinkDown, LagMS: &lag, Backlog: 7, Gaps: 2, Fences: 1, Problem: "no agent of there answers"},
		}}
		mux := http.NewServeMux()
		page := func(v any) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) }
		}
		mux.HandleFunc("GET /v1/status", page(control.Status{Region: from}))
		mux.HandleFunc("GET /v1/topology", page(mesh.Topology{Region: from, Links: map[string][]string{to: {"127.0.0.1:1"}}}))
		mux.HandleFunc("GET /v1/regions", page(answer))
		mux.HandleFunc("POST /v1/regions/{verb}", func(w http.ResponseWriter, r *http.Request) {
			var body control.PauseRequest
			decodeBody(r, &body)
			p.mu.Lock()
			p.paused = append(p.paused, from+" "+r.PathValue("verb")+" "+body.Region)
			p.mu.Unlock()
			page(answer)(w, r)
		})
		server := httptest.NewServer(mux)
		t.Cleanup(server.Close)
		p.urls = append(p.urls, server.URL)
	}
	return p
}

func decodeBody(r *http.Request, v any) { json.NewDecoder(r.Body).Decode(v) }

func TestRegionStatusHasARowAPairAndPool(t *testing.T) {
	p := newPlanesOfLinks(t)
	flags := []string{"--controlplane", p.urls[0], "--controlplane", p.urls[1]}
	r := cachemesh(t, append([]string{"region", "status"}, flags...)...).want(t, 0)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != 5 {
		t.Fatalf("status prints %s", r.stdout)
	}
	for i, want := range [][]string{
		{"FROM", "TO", "POOL", "STATE", "LAG", "BACKLOG", "GAPS", "FENCES", "PROBLEM"},
		{"here", "there", "all", "down", "1.5", "s", "7", "2", "1", "no", "agent", "of", "there", "answers"},
		{"here", "there", "users", "up", "0", "ms", "0", "0", "0"},
	} {
		if got := strings.Fields(lines[i]); !slices.Equal(got, want) {
			t.Errorf("row %d is %q, want %q", i, got, want)
		}
	}
	s := decode[struct {
		Links  []control.LinkStatus `json:"links"`
		Errors []string             `json:"errors"`
	}](t, cachemesh(t, append([]string{"region", "status", "-o", "json"}, flags...)...).want(t, 0))
	if len(s.Links) != 4 || len(s.Errors) != 0 || s.Links[0].Backlog != 7 {
		t.Errorf("as JSON %+v", s)
	}
	if r := cachemesh(t, "region", "status", "--controlplane", p.urls[0], "--controlplane", "http://127.0.0.1:1").want(t, 1); !strings.Contains(r.stderr, "does not answer") || !strings.Contains(r.stdout, "users") {
		t.Errorf("with one that is gone: %s%s", r.stdout, r.stderr)
	}
}

func TestARegionIsPausedByTheOthers(t *testing.T) {
	p := newPlanesOfLinks(t)
	flags := []string{"--controlplane", p.urls[0], "--controlplane", p.urls[1]}
	if r := cachemesh(t, append([]string{"region", "pause", "there"}, flags...)...).want(t, 0); !strings.Contains(r.stdout, "here") {
		t.Errorf("pause prints %s", r.stdout)
	}
	cachemesh(t, append([]string{"region", "resume", "there"}, flags...)...).want(t, 0)
	if want := []string{"here pause there", "here resume there"}; !slices.Equal(p.paused, want) {
		t.Errorf("the control planes were asked %q, want %q", p.paused, want)
	}
	if r := cachemesh(t, append([]string{"region", "pause", "nowhere"}, flags...)...).want(t, 2); !strings.Contains(r.stderr, "here") {
		t.Errorf("pause of no region: %s", r.stderr)
	}
}
