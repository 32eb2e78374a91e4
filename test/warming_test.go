package test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

// warmRegions are two regions of one mesh that warm each other. Each has two control planes, two agents, and two shards of one node.
type warmRegions struct {
	*testMesh
	regions []*warmRegion
}

type warmRegion struct {
	name     string
	planes   []*controlplane
	sidecars []*sidecar
	nodes    []*keptNode
}

func newWarmRegions(t *testing.T) *warmRegions {
	t.Helper()
	m := &warmRegions{testMesh: newMesh(t)}
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Routes: []mesh.Route{{Prefix: "tweet:"}, {Prefix: ""}}}}
	m.spec.Regions = nil
	m.spec.Warming = &mesh.Warming{Plans: []mesh.Plan{
		{Name: "celebrity", Rule: &mesh.Rule{When: "event.followers > 1000000", Keys: []string{"tweet:{{event.id}}"}, Regions: `["there"]`}, Keys: mesh.Keys{Route: "tweet:"}, Source: mesh.Source{Region: region}},
		{Name: "return", Regions: []string{"there"}, OnReturn: true, Keys: mesh.Keys{Route: "tweet:"}, Source: mesh.Source{Region: region}},
		{Name: "broken", Manual: true, Keys: mesh.Keys{Route: "tweet:"}, Source: mesh.Source{SQL: &mesh.SQL{Driver: mesh.SQLite, DSNEnv: "DSN", Query: "DELETE FROM t"}}},
	}}
	links := freeAddresses(t, 4)
	for i, name := range []string{region, "there"} {
		r := &warmRegion{name: name}
		spec := mesh.RegionSpec{Name: name, Links: links[2*i : 2*i+2]}
		for n := range 2 {
			node := m.keepNode(t)
			r.nodes = append(r.nodes, node)
			spec.Shards = append(spec.Shards, mesh.ShardSpec{Pool: "all", Name: fmt.Sprintf("all-%d", n), Nodes: []string{node.server.Address()}})
		}
		m.regions = append(m.regions, r)
		m.spec.Regions = append(m.spec.Regions, spec)
	}
	m.write(t)
	for _, r := range m.regions {
		for range 2 {
			r.planes = append(r.planes, m.startControlplane(t, "--region", r.name, "--state", filepath.Join(m.dir, "state-"+r.name)))
		}
	}
	for i, r := range m.regions {
		for n := range 2 {
			s := m.newSidecar(t, fmt.Sprintf("%s-%d", r.name, n), r.planes...)
			s.args[slices.Index(s.args, "--region")+1] = r.name
			s.args = append(s.args, "--link", links[2*i+n])
			s.start(t)
			r.sidecars = append(r.sidecars, s)
		}
	}
	for _, r := range m.regions {
		for _, s := range r.sidecars {
			r.planes[0].waitSynced(t, s.name)
		}
	}
	return m
}

// warm runs a command about warming, which asks both control planes of each region.
func (m *warmRegions) warm(t *testing.T, args ...string) result {
	t.Helper()
	args = append([]string{"warm"}, args...)
	for _, r := range m.regions {
		for _, p := range r.planes {
			args = append(args, "--controlplane", p.url)
		}
	}
	return cachemesh(t, args...)
}

type runsOf struct{ Runs []control.RunStatus }

// run is how far a run is, or an error.
func (r *warmRegion) run(id string) (s control.RunStatus, err error) {
	for _, p := range r.planes {
		var all control.WarmingRuns
		if all, err = get[control.WarmingRuns](p.url + "/v1/warming/runs"); err != nil {
			continue
		}
		i := slices.IndexFunc(all.Runs, func(s control.RunStatus) bool { return s.ID == id })
		if i < 0 {
			return s, fmt.Errorf("%s is not known", id)
		}
		return all.Runs[i], nil
	}
	return s, err
}

func (r *warmRegion) eventually(t *testing.T, id string, is func(control.RunStatus) bool) (s control.RunStatus) {
	t.Helper()
	eventually(t, 60*time.Second, func() (err error) {
		if s, err = r.run(id); err == nil && !is(s) {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	return s
}

// warmValue is long enough for a region's keys to travel in many messages: what has not is not there when the other region is gone.
func warmValue(id string) string { return "value " + id + strings.Repeat(" and more", 100) }

// fill writes keys in a region, each with a value of its own.
func (r *warmRegion) fill(t *testing.T, count int) {
	t.Helper()
	client := r.sidecars[0].client(t)
	for from := 0; from < count; from += 500 {
		eventually(t, 20*time.Second, func() error {
			_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
				for i := from; i < min(count, from+500); i++ {
					p.Set(t.Context(), fmt.Sprintf("tweet:%d", i), warmValue(fmt.Sprint(i)), time.Hour)
				}
				return nil
			})
			return err
		})
	}
}

// has checks that a region's shards have all keys, with their values and times to live.
func (r *warmRegion) has(t *testing.T, count int) {
	t.Helper()
	found := 0
	for _, n := range r.nodes {
		client := n.client(t)
		keys, err := client.Keys(t.Context(), "tweet:*").Result()
		if err != nil {
			t.Fatal(err)
		}
		found += len(keys)
		for _, k := range keys[:min(len(keys), 100)] {
			value, ttl := client.Get(t.Context(), k).Val(), client.TTL(t.Context(), k).Val()
			if want := warmValue(strings.TrimPrefix(k, "tweet:")); value != want || ttl <= 0 || ttl > time.Hour {
				t.Errorf("%s is %q for %s, want %q", k, value, ttl, want)
			}
		}
	}
	if found != count {
		t.Errorf("%d keys are there, want %d", found, count)
	}
}

func TestACopyOutlivesAgentsAndControlPlanes(t *testing.T) {
	const count = 20_000
	m := newWarmRegions(t)
	here, there := m.regions[0], m.regions[1]
	here.fill(t, count)

	// A plan that cannot be used is named; the others are there.
	list := m.warm(t, "list").want(t, 0)
	if !strings.Contains(list.stderr, `"DELETE" is no SELECT`) || strings.Count(list.stdout, "celebrity") != 1 || strings.Contains(list.stdout, "broken") {
		t.Errorf("%s\n%s", list.stdout, list.stderr)
	}
	plans := filepath.Join(m.dir, "plans.yaml")
	if err := os.WriteFile(plans, []byte("plans: [{name: nightly, schedule: {cron: \"03:00\"}, keys: {route: \"tweet:\"}, source: {region: nearest}}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.warm(t, "apply", plans).want(t, 0)
	cost := decode[struct {
		Costs []struct{ Cost *warming.Cost }
	}](t, m.warm(t, "plan", "nightly", "--region", "there", "-o", "json").want(t, 0))
	if len(cost.Costs) != 1 || cost.Costs[0].Cost == nil || cost.Costs[0].Cost.Keys < count*9/10 || cost.Costs[0].Cost.Keys > count*11/10 {
		t.Errorf("%+v", cost)
	}

	run := decode[runsOf](t, m.warm(t, "copy", "--from", here.name, "--to", there.name, "--route", "tweet:", "--keys-per-second", "2000", "-o", "json").want(t, 0)).Runs[0]
	there.eventually(t, run.ID, func(s control.RunStatus) bool { return s.Counts.Keys() > count/10 })
	m.warm(t, "pause", run.ID).want(t, 0)
	paused := there.eventually(t, run.ID, func(s control.RunStatus) bool { return s.State == warming.Paused })
	m.warm(t, "resume", run.ID).want(t, 0)
	there.eventually(t, run.ID, func(s control.RunStatus) bool { return s.Counts.Keys() > paused.Counts.Keys()+count/20 })
	for _, d := range []daemon{there.sidecars[0].daemon, there.planes[0].daemon} { // which leads
		if err := d.process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	done := there.eventually(t, run.ID, func(s control.RunStatus) bool { return s.State.Over() })
	if done.State != warming.Done || done.Counts.Keys() != count || done.Counts.Loaded+done.Counts.There != count || done.Total != count {
		t.Errorf("%+v", done)
	}
	there.has(t, count)
	if list := m.warm(t, "list", "--region", "there"); !strings.Contains(list.stdout, "nightly") {
		t.Errorf("the plan that was applied is lost: %s\n%s", list.stdout, list.stderr)
	}
}

func TestACopyWaitsForARegionThatIsGone(t *testing.T) {
	const count = 8000
	m := newWarmRegions(t)
	here, there := m.regions[0], m.regions[1]
	here.fill(t, count)
	run := decode[runsOf](t, m.warm(t, "copy", "--from", here.name, "--to", there.name, "--route", "tweet:", "--keys-per-second", "500", "-o", "json").want(t, 0)).Runs[0]
	there.eventually(t, run.ID, func(s control.RunStatus) bool { return s.Counts.Keys() > count/10 })
	for _, s := range here.sidecars {
		if err := s.process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-s.process.Done()
	}
	there.eventually(t, run.ID, func(s control.RunStatus) bool { return s.Problem != "" })
	if s, err := there.run(run.ID); err != nil || s.State.Over() {
		t.Errorf("%+v, %v", s, err)
	}
	for _, s := range here.sidecars {
		s.start(t)
	}
	done := there.eventually(t, run.ID, func(s control.RunStatus) bool { return s.State.Over() })
	if done.State != warming.Done || done.Counts.Loaded+done.Counts.There != count || done.Counts.Keys() != count {
		t.Errorf("%+v", done)
	}
	there.has(t, count)
}

func TestEventsAndReturnsBeginRuns(t *testing.T) {
	const count = 2000
	m := newWarmRegions(t)
	here, there := m.regions[0], m.regions[1]
	here.fill(t, count)

	// The application of one region tells of an event; the rule names the other.
	tell := func() error {
		response, err := http.Post("http://"+here.sidecars[0].metrics+"/v1/events", "application/json", bytes.NewReader([]byte(`{"id": 7, "followers": 2000000}`)))
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", response.Status)
		}
		return nil
	}
	eventually(t, 30*time.Second, func() error {
		if err := tell(); err != nil {
			return err
		}
		for _, n := range there.nodes {
			if n.client(t).Get(t.Context(), "tweet:7").Val() == warmValue("7") {
				return nil
			}
		}
		return fmt.Errorf("tweet:7 is not there: %s", m.warm(t, "history").stdout)
	})
	if h := m.warm(t, "history", "--plan", "celebrity").want(t, 0); strings.Contains(h.stdout, " "+here.name+" ") {
		t.Errorf("a region that the rule does not name was warmed: %s", h.stdout)
	}

	// All nodes of a region restart empty.
	for _, n := range there.nodes {
		n.kill(t)
	}
	for _, n := range there.nodes {
		m.keepAgain(t, n)
	}
	began := time.Now()
	var run control.RunStatus
	eventually(t, 30*time.Second, func() error {
		all, err := get[control.WarmingRuns](there.planes[0].url + "/v1/warming/runs")
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all.Runs, func(s control.RunStatus) bool {
			return s.Trigger == "onReturn" && s.State == warming.Done && s.Counts.Keys() == count
		})
		if i < 0 {
			return fmt.Errorf("%+v", all.Runs)
		}
		run = all.Runs[i]
		return nil
	})
	t.Logf("the region is full again after %s; the run took %s", time.Since(began), run.Took())
	there.has(t, count)
}
