package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

const warmMesh = `apiVersion: cachemesh.dev/v1
kind: Mesh
pools: [{name: content, routes: [{prefix: "tweet:"}]}]
regions:
  - name: us
    timezone: America/New_York
    links: ["127.0.0.1:7901"]
    shards: [{pool: content, name: content-0, nodes: ["127.0.0.1:7004"]}]
  - name: eu
    links: ["127.0.0.1:7902"]
    shards: [{pool: content, name: content-0, nodes: ["127.0.0.1:7104"]}]
warming:
  plans:
    - name: morning
      schedule: {cron: "07:00"}
      keys: {route: "tweet:"}
      source: {region: eu}
    - name: celebrity
      rule: {when: event.followers > 1000000, keys: ["tweet:{{event.id}}"]}
      keys: {route: "tweet:"}
      source: {region: eu}
    - name: broken
      schedule: {cron: "07:00:00"}
      keys: {route: "tweet:"}
      source: {region: eu}
`

// warmRegion is one with a warmer whose shards nobody knows, so that runs wait for their queues.
type warmRegion struct {
	*warmer
	store  *fileStore
	leader atomic.Bool
	handed []byte
}

func newWarmRegion(t *testing.T, dir string, now func() time.Time) *warmRegion {
	t.Helper()
	r := &warmRegion{store: newFileStore(dir, "http://here")}
	r.leader.Store(true)
	r.warmer = newWarmer(Config{Region: "us", Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: now}, r.store.shelf("warming"), func() error {
		if !r.leader.Load() {
			return notLeading{"http://there", errNotLeading}
		}
		return nil
	}, func(runs []byte) { r.handed = runs })
	m, err := mesh.Load("mesh.yaml", []byte(warmMesh))
	if err != nil {
		t.Fatal(err)
	}
	r.configure(m)
	t.Cleanup(func() { r.store.letGo() })
	return r
}

// start runs the warmer until the test, or what is returned, ends it.
func (r *warmRegion) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		r.run(ctx)
		close(done)
	}()
	stop = func() {
		cancel()
		<-done
		r.store.letGo()
	}
	return stop
}

// runs are those of a plan.
func (r *warmRegion) runs(plan string) (all []RunStatus) {
	for _, s := range r.shown.Load().Runs {
		if s.Plan == plan {
			all = append(all, s)
		}
	}
	return all
}

func TestPlansBeginAtTheirTimesAndABadOneKeepsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2026, 7, 1, 10, 59, 59, 0, time.UTC))) // 06:59:59 in New York
		r := newWarmRegion(t, t.TempDir(), nil)
		stop := r.start(t)
		defer stop()
		time.Sleep(500 * time.Millisecond)
		s := r.shown.Load()
		if len(s.Plans) != 2 || len(s.Problems) != 1 || !strings.Contains(s.Problems[0].String(), `mesh.yaml:23:24:`) || len(r.runs("morning")) != 0 {
			t.Fatalf("%d plans, problems %v, runs %v", len(s.Plans), s.Problems, s.Runs)
		}
		if alerts := s.alerts(time.Now()); len(alerts) != 1 || !strings.Contains(alerts[0].Message, `"07:00:00"`) {
			t.Errorf("alerts %v", alerts)
		}
		if next := s.Plans[1].Next; !next.Equal(time.Date(2026, 7, 1, 11, 0, 0, 0, time.UTC)) {
			t.Errorf("it begins next at %s", next)
		}
		time.Sleep(time.Second)
		runs := r.runs("morning")
		if len(runs) != 1 || runs[0].Trigger != "cron" || runs[0].State != warming.Waiting || runs[0].Source.Region != "eu" {
			t.Fatalf("%+v", runs)
		}
		time.Sleep(24 * time.Hour)
		if s := r.shown.Load(); len(r.runs("morning")) != 1 || s.Plans[1].Missed != 1 {
			t.Errorf("a second run began while the first was not over: %+v", s.Plans[1])
		}
	})
}

func TestAClockOfOnesOwnIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		r := newWarmRegion(t, t.TempDir(), func() time.Time { return began.Add(240 * time.Since(began)) })
		defer r.start(t)()
		time.Sleep(time.Hour / 2) // five days
		if missed := r.shown.Load().Plans[1].Missed; missed < 3 || len(r.runs("morning")) != 1 {
			t.Errorf("%d missed, runs %v", missed, r.runs("morning"))
		}
	})
}

func TestAnotherLeaderGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		time.Sleep(time.Until(time.Date(2026, 7, 1, 10, 59, 59, 0, time.UTC)))
		first := newWarmRegion(t, dir, nil)
		stop := first.start(t)
		time.Sleep(2 * time.Second)
		applied := 0
		if err := first.order(t.Context(), func(ctx context.Context) error {
			_, err := first.apply(ctx, PlanFile{"plans.yaml", "plans: [{name: more, manual: true, keys: {route: \"tweet:\"}, source: {region: nearest}}]"})
			applied++
			return err
		}); err != nil || applied != 1 {
			t.Fatal(err)
		}
		before := first.runs("morning")
		stop()
		time.Sleep(12 * time.Hour)
		second := newWarmRegion(t, dir, nil)
		stop = second.start(t)
		time.Sleep(time.Second)
		after := second.runs("morning")
		if len(before) != 1 || len(after) != 1 || before[0].ID != after[0].ID {
			t.Errorf("before %v, after %v", before, after)
		}
		if s := second.shown.Load(); !slices.ContainsFunc(s.Plans, func(p PlanStatus) bool { return p.Name == "more" && p.Applied }) {
			t.Errorf("the plan that was applied is lost: %+v", s.Plans)
		}
		second.leader.Store(false)
		time.Sleep(time.Second)
		if s := second.shown.Load(); s.Leading || len(s.Plans) > 0 {
			t.Errorf("it still shows what only the leader knows: %+v", s)
		}
		stop()
	})
}

func TestAFloodOfEventsIsBoundedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWarmRegion(t, t.TempDir(), nil)
		const flood = 3 * maxWaiting
		for i := range flood { // before anybody looks at them
			r.take([][]byte{fmt.Appendf(nil, `{"id": %d, "followers": 2000000}`, i)})
		}
		if c := &r.counted; c.taken.Load() != maxWaiting || c.dropped.Load() != flood-maxWaiting {
			t.Errorf("%d were taken, %d dropped", c.taken.Load(), c.dropped.Load())
		}
		defer r.start(t)()
		time.Sleep(time.Second)
		if runs := r.runs("celebrity"); len(runs) != 1 || runs[0].Trigger != "rule" || !runs[0].Keys.Named {
			t.Fatalf("%+v", runs)
		}
		for i := range 4 * warming.MaxNamed { // while the first run is not over
			r.take([][]byte{fmt.Appendf(nil, `{"id": "x%d", "followers": 2000000}`, i)})
			if i%1000 == 0 {
				synctest.Wait()
			}
		}
		r.take([][]byte{[]byte("garbage"), []byte(`{"followers": 2000000}`), []byte(`{"followers": 1}`)})
		time.Sleep(time.Second)
		s := r.shown.Load()
		if len(r.runs("celebrity")) != 1 || s.Events.KeysDropped < 2*warming.MaxNamed || s.Events.Bad != 1 || s.Plans[0].Failed != 1 {
			t.Errorf("runs %d, %+v, %+v", len(r.runs("celebrity")), s.Events, s.Plans[0])
		}
		if !slices.ContainsFunc(s.alerts(time.Now()), func(a Alert) bool { return a.Subject == "events" }) {
			t.Error("nobody is told of what was dropped")
		}
	})
}

func TestRunsAreSteered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWarmRegion(t, t.TempDir(), nil)
		defer r.start(t)()
		ask := func(f func(ctx context.Context) error) string {
			t.Helper()
			return fmt.Sprint(r.order(t.Context(), f))
		}
		var id string
		copied := func(c CopyRequest) func(context.Context) error {
			return func(ctx context.Context) error {
				s, err := r.copy(ctx, c)
				if err == nil {
					id = s.ID
				}
				return err
			}
		}
		steer := func(to warming.State) func(context.Context) error {
			return func(ctx context.Context) error { _, err := r.steer(ctx, id, to); return err }
		}
		run := func(plan string) func(context.Context) error {
			return func(ctx context.Context) error { _, err := r.manual(ctx, plan); return err }
		}
		for _, c := range []struct {
			do   func(context.Context) error
			want string
		}{
			{copied(CopyRequest{From: "us", Route: "tweet:"}), "cannot be copied to itself"},
			{copied(CopyRequest{From: "eu", Route: "user:"}), "no route has the prefix"},
			{copied(CopyRequest{From: "eu", Route: "tweet:", Budget: mesh.Budget{Concurrency: 1000}}), "a concurrency of 1000"},
			{copied(CopyRequest{From: "eu", Route: "tweet:", Budget: mesh.Budget{KeysPerSecond: -1}}), "its budget"},
			{copied(CopyRequest{From: "eu", Route: "tweet:"}), "<nil>"},
			{copied(CopyRequest{From: "eu", Route: "tweet:"}), "runs already"},
			{steer(warming.Running), "is not paused"},
			{steer(warming.Paused), "<nil>"},
			{steer(warming.Paused), "is paused already"},
			{steer(warming.Running), "<nil>"},
			{steer(warming.Cancelled), "<nil>"},
			{steer(warming.Paused), "is over"},
			{run("morning"), "<nil>"},
			{run("morning"), "runs already"},
			{run("celebrity"), "runs on events"},
			{run("broken"), "there is no plan"},
		} {
			if got := ask(c.do); !strings.Contains(got, c.want) {
				t.Errorf("%s, want %q", got, c.want)
			}
		}
		r.leader.Store(false)
		if got := ask(run("morning")); !strings.Contains(got, errNotLeading.Error()) {
			t.Errorf("%s", got)
		}
	})
}

func TestAFileOfPlansIsAppliedInFullOrNotAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWarmRegion(t, t.TempDir(), nil)
		defer r.start(t)()
		apply := func(text string) error {
			return r.order(t.Context(), func(ctx context.Context) error {
				_, err := r.apply(ctx, PlanFile{"plans.yaml", text})
				return err
			})
		}
		const good = "plans:\n  - {name: good, manual: true, keys: {route: \"tweet:\"}, source: {region: eu}}\n"
		for text, want := range map[string]string{
			good + "  - {name: bad, schedule: {cron: \"61 * * * *\"}, keys: {route: \"tweet:\"}, source: {region: eu}}\n": "plans.yaml:3:34: plans[1].schedule.cron",
			good + "  - {name: morning, manual: true, keys: {route: \"tweet:\"}, source: {region: eu}}\n":                 `plans.yaml:3:12: plans[1].name: mesh.yaml has a plan "morning"`,
			"plans: 1": "plans.yaml:1:8: plans:",
		} {
			if err := apply(text); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
			if s := r.shown.Load(); len(s.Plans) != 2 {
				t.Errorf("%+v", s.Plans)
			}
		}
		if err := apply(good); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if len(r.shown.Load().Plans) != 3 {
			t.Error("it was not applied")
		}
		withdraw := func(name string) error {
			return r.order(t.Context(), func(ctx context.Context) error { _, err := r.withdraw(ctx, name); return err })
		}
		if err := withdraw("morning"); err == nil || !strings.Contains(err.Error(), "plans of mesh.yaml are removed there") {
			t.Error(err)
		}
		if err := withdraw("good"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if len(r.shown.Load().Plans) != 2 {
			t.Error("it is still there")
		}
	})
}

func TestWhatWasKeptIsDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/warming.json", []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := newWarmRegion(t, dir, nil)
		defer r.start(t)()
		time.Sleep(time.Second)
		s := r.shown.Load()
		if s.Leading || !strings.Contains(s.Problem, "warming.json") || len(s.alerts(time.Now())) == 0 {
			t.Errorf("%+v", s)
		}
		if data, err := os.ReadFile(dir + "/warming.json"); err != nil || !bytes.Equal(data, []byte("{}")) {
			t.Errorf("it was replaced: %s, %v", data, err)
		}
		if err := os.Remove(dir + "/warming.json"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if s := r.shown.Load(); !s.Leading || s.Problem != "" {
			t.Errorf("%+v", s)
		}
	})
}

func TestAgentsAreToldOfRuns(t *testing.T) {
	r := newWarmRegion(t, t.TempDir(), nil)
	r.lead(t.Context())
	if r.tell(); r.handed != nil {
		t.Errorf("agents are told %s before there is anything", r.handed)
	}
	record := func(id string, state warming.State, loaded uint64, ended time.Duration) warming.Record {
		return warming.Record{Run: warming.Run{ID: id, State: state}, Counts: warming.Counts{Loaded: loaded}, Ended: time.Now().Add(-ended)}
	}
	r.book.Runs = []warming.Record{record("old", warming.Done, 5, 25*time.Hour), record("used", warming.Done, 5, time.Hour), record("nothing", warming.Done, 0, time.Hour),
		record("failed", warming.Failed, 5, time.Hour), record("runs", warming.Running, 0, 0), record("rests", warming.Paused, 0, 0), record("waits", warming.Waiting, 0, 0)}
	r.tell()
	var runs []warming.Run
	if err := json.Unmarshal(r.handed, &runs); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	if want := "[used runs rests]"; fmt.Sprint(ids) != want {
		t.Errorf("agents are told of %v, want %s", ids, want)
	}
	if r.resign(); string(r.handed) != "[]" {
		t.Errorf("one that does not lead says %s", r.handed)
	}
}
