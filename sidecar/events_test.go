package sidecar

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/reports"
	placement "github.com/cachemesh/cachemesh/warming/place"
)

func TestEventsAreValidated(t *testing.T) {
	for name, test := range map[string]struct {
		body, kind, origin, from string
		code                     int
		text                     string
	}{
		"one":               {`{"type": "a"}`, "application/json", "", "127.0.0.1:5", 200, `{"dropped":0,"taken":1}`},
		"several":           {`[{"type": "a"}, {"type": "b"}]`, "application/json; charset=utf-8", "", "[::1]:5", 200, `{"dropped":0,"taken":2}`},
		"none":              {`[]`, "application/json", "", "127.0.0.1:5", 200, `{"dropped":0,"taken":0}`},
		"nothing":           {``, "application/json", "", "127.0.0.1:5", 400, "not a JSON object"},
		"half of one":       {`{"type": `, "application/json", "", "127.0.0.1:5", 400, "event 0 is not a JSON object"},
		"a number":          {`[{"type": "a"}, 7]`, "application/json", "", "127.0.0.1:5", 400, "event 1 is not a JSON object"},
		"a long one":        {`{"type": "` + strings.Repeat("x", reports.MaxEvent) + `"}`, "application/json", "", "127.0.0.1:5", 400, "may have 8192"},
		"too much":          {"[" + strings.Repeat(" ", maxEventsBody) + "]", "application/json", "", "127.0.0.1:5", 413, "fewer"},
		"of another host":   {`{}`, "application/json", "", "192.0.2.1:5", 403, "this host only"},
		"of a form":         {`{}`, "text/plain", "", "127.0.0.1:5", 415, "Content-Type"},
		"of a page":         {`{}`, "application/json", "https://example.com", "127.0.0.1:5", 415, "web pages"},
		"of a proxy's page": {`{}`, "application/json", "null", "127.0.0.1:5", 415, "web pages"},
	} {
		e := newEvents()
		r := httptest.NewRequest(http.MethodPost, "/v1/events", strings.NewReader(test.body))
		r.RemoteAddr = test.from
		r.Header.Set("Content-Type", test.kind)
		if test.origin != "" {
			r.Header.Set("Origin", test.origin)
		}
		w := httptest.NewRecorder()
		e.post(w, r)
		if w.Code != test.code || !strings.Contains(w.Body.String(), test.text) {
			t.Errorf("%s: %d %s, want %d %q", name, w.Code, w.Body, test.code, test.text)
		}
		if taken, dropped := e.counts(); (test.code != 200) != (dropped == 1) || test.code != 200 && taken > 0 {
			t.Errorf("%s: %d were taken, %d dropped", name, taken, dropped)
		}
	}
}

func event(i int) []byte { return fmt.Appendf(nil, `{"n": %d}`, i) }

func TestAFloodOfEventsIsBoundedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEvents()
		flood := make([][]byte, 100_000)
		for i := range flood {
			flood[i] = event(i)
		}
		if taken := e.add(flood, true); taken != eventsBurst {
			t.Errorf("%d were taken, and may be %d", taken, eventsBurst)
		}
		// No control plane takes them.
		total := eventsBurst
		for range 20 {
			time.Sleep(time.Second)
			total += e.add(flood, true)
		}
		if total != maxKeptEvents || len(e.kept) != maxKeptEvents {
			t.Errorf("%d were taken while nobody took them, and %d are kept", total, len(e.kept))
		}
		if taken, dropped := e.counts(); taken+dropped != 21*100_000 || taken != uint64(total) {
			t.Errorf("%d and %d were counted", taken, dropped)
		}
		// Then one does.
		got, number, more := 0, uint64(0), true
		for more {
			var all [][]byte
			all, number, more = e.from(number)
			if len(all) > reports.MaxEvents || got == 0 && string(all[0]) != string(event(0)) {
				t.Fatalf("a report has %d events, the first is %s", len(all), all[0])
			}
			got += len(all)
			e.sent(number)
		}
		if got != maxKeptEvents {
			t.Errorf("%d were told", got)
		}
		time.Sleep(time.Second)
		if taken := e.add(flood, true); taken != eventsBurst || len(e.kept) > maxKeptEvents {
			t.Errorf("%d were taken after a second, %d are kept", taken, len(e.kept))
		}
		// A control plane that comes late hears nothing of long ago.
		_, before := e.counts()
		time.Sleep(keptFor + time.Second)
		if all, next, _ := e.from(0); len(all) != 0 || next != e.next {
			t.Errorf("%d old events are told", len(all))
		}
		if _, dropped := e.counts(); dropped != before+eventsBurst {
			t.Errorf("%d that nobody was told of are counted", dropped-before)
		}
	})
}

func TestAStreamOfEvents(t *testing.T) {
	node := newRedis(t)
	startRedis(t, node)
	m, err := placement.New(&mesh.Topology{Pools: []mesh.Pool{{Name: "all", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 65537}, Routes: []mesh.Route{{Prefix: "app:"}},
		Shards: []mesh.Shard{{Name: "all-0", Nodes: []mesh.Node{{Address: node.Address(), Role: mesh.Primary}}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: node.Address()})
	defer client.Close()
	const key = "app:events"
	both := []*events{newEvents(), newEvents()}
	for i, e := range both {
		s := &eventStream{key: key, agent: fmt.Sprint("agent-", i), events: e, at: func() *placement.Map { return m }, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		go s.run(t.Context())
	}
	eventually(t, func() error {
		_, err := client.XPending(t.Context(), key, eventsGroup).Result()
		return err
	})
	const n = 300
	for i := range n {
		client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []any{eventField, string(event(i))}})
	}
	client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []any{eventField, "nonsense"}})
	client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []any{"type", "tweet.created", "id", "7"}})
	eventually(t, func() error {
		a, bad := both[0].counts()
		b, worse := both[1].counts()
		pending, err := client.XPending(t.Context(), key, eventsGroup).Result()
		if a+b != n+1 || bad+worse != 1 || err != nil || pending.Count != 0 {
			return fmt.Errorf("%d and %d were taken, %d and %d dropped, %v", a, b, bad, worse, err)
		}
		return nil
	})
	found := false
	for _, e := range both {
		for number, more := uint64(0), true; more; {
			var all [][]byte
			all, number, more = e.from(number)
			for _, text := range all {
				found = found || string(text) == `{"id":"7","type":"tweet.created"}`
			}
		}
	}
	if !found {
		t.Error("an entry whose fields are the event was not told")
	}
}
