package controlplane

import (
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/reports"
	"github.com/cachemesh/cachemesh/shards"
)

// linkWorld has links decide for agents that speak as they should, unless they are silent.
type linkWorld struct {
	*links
	t      *testing.T
	last   map[string]*reports.Follow
	events []shards.Event
}

func newLinkWorld(t *testing.T, count int) *linkWorld {
	w := &linkWorld{links: newLinks("here", slog.New(slog.DiscardHandler)), t: t}
	w.follow = func(all map[string]*reports.Follow) { w.last = all }
	w.note = func(e shards.Event) { w.events = append(w.events, e) }
	pool := mesh.Pool{Name: "users", Routes: []mesh.Route{{Prefix: "user:", Coherence: mesh.Invalidate}}}
	for _, name := range []string{"users-0", "users-1", "users-2", "users-3", "users-4", "users-5"}[:count] {
		pool.Shards = append(pool.Shards, mesh.Shard{Name: name, Epoch: 1, Nodes: []mesh.Node{{Address: "127.0.0.1:1", Role: mesh.Primary}}})
	}
	local := mesh.Pool{Name: "local", Routes: []mesh.Route{{Prefix: ""}}, Shards: []mesh.Shard{{Name: "local-0"}}}
	w.update(mesh.Topology{Region: "here", Links: map[string][]string{"there": {"127.0.0.1:2"}}, Pools: []mesh.Pool{pool, local}})
	return w
}

// speak has agents report for a while, as often as agents do.
func (w *linkWorld) speak(d time.Duration, agents ...string) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, a := range agents {
			w.heard(a, nil, nil)
		}
		w.assign()
	}
}

// followers are the shards of each agent.
func (w *linkWorld) followers() map[string][]string {
	all := map[string][]string{}
	for agent, f := range w.last {
		for _, s := range f.GetShards() {
			all[agent] = append(all[agent], s.GetShard())
		}
	}
	return all
}

func (w *linkWorld) total() (n int) {
	for _, s := range w.followers() {
		n += len(s)
	}
	return n
}

func TestEachJournalHasOneFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLinkWorld(t, 6)
		w.seen("a", "127.0.0.1:10")
		w.seen("deaf", "")
		w.assign()
		if w.last != nil {
			t.Errorf("%v is decided before agents can have come back", w.last)
		}
		w.seen("b", "127.0.0.1:11")
		w.speak(3*time.Second, "a", "b")
		before := w.followers()
		if w.total() != 6 || len(before["a"]) == 0 || len(before["b"]) == 0 || len(before) != 2 {
			t.Fatalf("%v", before)
		}
		// One more takes over some, and from nobody else to nobody else.
		w.seen("c", "127.0.0.1:12")
		w.speak(time.Second, "a", "b", "c")
		for _, agent := range []string{"a", "b"} {
			for _, s := range w.followers()[agent] {
				if !slices.Contains(before[agent], s) {
					t.Errorf("%s came to %s without need", s, agent)
				}
			}
		}
		// A stream that breaks is seen at once, silence within two seconds.
		w.gone("c")
		if got := w.followers(); w.total() != 6 || len(got["c"]) > 0 {
			t.Errorf("after c is gone: %v", got)
		}
		began := time.Now()
		for w.total() != 6 || len(w.followers()["a"]) > 0 {
			w.speak(100*time.Millisecond, "b")
			if time.Since(began) > 2*time.Second {
				t.Fatalf("a is silent for %v and follows %v", time.Since(began), w.followers())
			}
		}
		// One that speaks again may follow again; without anybody, nobody does.
		w.speak(time.Second, "a", "b")
		if got := w.followers(); !maps.EqualFunc(got, before, slices.Equal) {
			t.Errorf("%v, want %v as before", got, before)
		}
		w.gone("a")
		w.gone("b")
		if len(w.last) != 0 {
			t.Errorf("%v", w.last)
		}
	})
}

func TestLinkStatusAndEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLinkWorld(t, 2)
		if l := w.status().Links; len(l) != 1 || l[0].State != LinkDown || l[0].LagMS != nil || !strings.Contains(l[0].Problem, "--link") {
			t.Errorf("without agents: %+v", l)
		}
		w.seen("a", "127.0.0.1:10")
		w.speak(3*time.Second, "a")
		pairs := []*reports.Pair{
			{Shard: "users-0", Region: "there", Epoch: 1, Cursor: "1 5-0 3", LagUs: 1500, Backlog: 2, Keys: 10, Fences: []*reports.Fence{{Id: "f", Reason: "lost", SinceMs: 1000}}},
			{Shard: "users-1", Region: "there", Epoch: 1, Cursor: "1 9-0 7", LagUs: 700, Backlog: 1, Keys: 5},
		}
		notices := []*reports.Notice{
			{Id: 1, TimeMs: time.Now().UnixMilli(), Shard: "users-0", Region: "there", Reason: string(journal.Lost)},
			{Id: 2, TimeMs: time.Now().UnixMilli(), Shard: "users-0", Region: "there", Fence: true, Keys: 12, AfterMs: 30},
		}
		w.heard("a", pairs, notices)
		w.heard("a", pairs, notices) // over another stream, all come again
		l := w.status().Links[0]
		if l.State != LinkUp || *l.LagMS != 1.5 || l.Backlog != 3 || l.Gaps != 1 || l.Fences != 1 || l.Journals[0].Sent != 10 || l.Journals[0].Agent != "a" || l.Problem != "" {
			t.Errorf("%+v", l)
		}
		if len(w.events) != 2 || w.events[0].Kind != shards.Gap || w.events[1].Kind != shards.Fence || w.events[0].To != "there" {
			t.Errorf("events %+v", w.events)
		}
		w.assign()
		if f := w.last["a"].GetShards(); len(f) != 2 || !f[0].GetKnown() {
			t.Errorf("followers are not told that the region has read: %v", f)
		}
		since := l.Since
		pairs[0].Problem = "refused"
		w.heard("a", pairs, nil)
		if l := w.status().Links[0]; l.State != LinkDown || l.Problem != "refused" || l.Since.Before(since) {
			t.Errorf("%+v", l)
		}
		pairs[0].Paused, pairs[1].Paused = true, true
		w.heard("a", pairs, nil)
		if l := w.status().Links[0]; l.State != LinkPaused || l.Problem != "" {
			t.Errorf("%+v", l)
		}
	})
}

func TestRegionsAPI(t *testing.T) {
	w := newLinkWorld(t, 1)
	mux := http.NewServeMux()
	linksAPI{links: w.links}.register(mux)
	for _, c := range []struct {
		method, page, body string
		want               int
	}{
		{"GET", "/v1/regions", "", 200},
		{"POST", "/v1/regions/pause", `{"region": "nowhere"}`, 409},
		{"POST", "/v1/regions/pause", `{"region": "there"}`, 409}, // its shard does not answer
		{"POST", "/v1/regions/resume", `{"regions": "there"}`, 400},
	} {
		request := httptest.NewRequest(c.method, c.page, strings.NewReader(c.body))
		request.RemoteAddr = "127.0.0.1:1"
		request.Header.Set("Content-Type", "application/json")
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, request)
		if answer.Code != c.want {
			t.Errorf("%s %s %s: %d %s", c.method, c.page, c.body, answer.Code, answer.Body)
		}
	}
}
