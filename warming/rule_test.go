package warming

import (
	"fmt"
	"strings"
	"testing"
)

func event(t *testing.T, text string) Event {
	t.Helper()
	e, err := ParseEvent([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRulesMatchEvents(t *testing.T) {
	all := plans(t, loadMesh(t))
	for _, c := range []struct{ plan, region, event, want string }{
		{"celebrity", "us-east", `{"type": "tweet.created", "id": 9007199254740993, "author": {"followers": 1000001}}`, "[tweet:9007199254740993]"},
		{"celebrity", "eu-west", `{"type": "tweet.created", "id": "a:1", "author": {"followers": 2e6}}`, "[tweet:a:1]"},
		{"celebrity", "us-east", `{"type": "tweet.created", "id": 7, "author": {"followers": 1000000}}`, "[]"},
		{"celebrity", "us-east", `{"type": "tweet.created", "id": 7}`, "[]"},
		{"celebrity", "us-east", `{"type": "tweet.deleted", "id": 7, "author": {"followers": 1000001}}`, "[]"},
		{"celebrity", "us-east", `{}`, "[]"},
		{"local-event", "ap-south", `{"type": "place.busy", "tweet": 18446744073709551615, "geo": {"lat": 28.6, "lon": 77}}`, "[tweet:18446744073709551615 tweet:18446744073709551615:replies]"},
		{"local-event", "eu-west", `{"type": "place.busy", "tweet": 5, "geo": {"lat": 28.6, "lon": 77}}`, "[]"},
		{"local-event", "eu-west", `{"type": "place.busy", "tweet": 5, "geo": {"latitude": 48.9, "longitude": 2}}`, "[tweet:5 tweet:5:replies]"},
		{"morning-trending", "us-east", `{"type": "tweet.created"}`, "[]"},
	} {
		keys, err := all[c.plan].Match(c.region, event(t, c.event))
		if err != nil || fmt.Sprint(keys) != c.want {
			t.Errorf("%s in %s, %s: %v, %v; want %s", c.plan, c.region, c.event, keys, err, c.want)
		}
	}
}

func TestWhatAnEventLacksIsNamed(t *testing.T) {
	all := plans(t, loadMesh(t))
	for _, c := range []struct{ plan, event, want string }{
		{"celebrity", `{"type": "tweet.created", "author": {"followers": 2000000}}`, "rule.keys[0]: no such field"},
		{"celebrity", `{"type": "tweet.created", "id": [1], "author": {"followers": 2000000}}`, "a list cannot be part of a key"},
		{"celebrity", `{"type": "tweet.created", "id": "` + strings.Repeat("x", 1025) + `", "author": {"followers": 2000000}}`, "more than 1024 bytes"},
		{"local-event", `{"type": "place.busy", "tweet": 5}`, "rule.regions: no such field"},
		{"local-event", `{"type": "place.busy", "tweet": 5, "geo": {"lat": 91, "lon": 0}}`, "no place on earth"},
		{"local-event", `{"type": "place.busy", "tweet": 5, "geo": {"lat": "north"}}`, "a number named latitude"},
		{"local-event", `{"type": "place.busy", "tweet": 5, "geo": "Paris"}`, "a place is an object"},
	} {
		keys, err := all[c.plan].Match("eu-west", event(t, c.event))
		if err == nil || !strings.Contains(err.Error(), c.want) || keys != nil {
			t.Errorf("%s: %v, %v; want %q", c.event, keys, err, c.want)
		}
	}
}

func TestAnExpensiveRuleIsStopped(t *testing.T) {
	p := plan(t, `plans:
  - name: p
    rule:
      when: event.a.all(x, event.a.all(y, event.a.all(z, x + y + z >= 0)))
      keys: ["tweet:1"]
    keys: {route: "tweet:"}
    source: {region: nearest}
`)
	many := `{"a": [` + strings.Repeat("0,", 500) + `0]}`
	if _, err := p.Match("us-east", event(t, many)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("%v, want a limit that was reached", err)
	}
}

func TestEventsAreObjects(t *testing.T) {
	for _, text := range []string{"", "null", "1", "[]", `"x"`, "{", "{} {}", "\xff"} {
		if e, err := ParseEvent([]byte(text)); err == nil {
			t.Errorf("%q is %v", text, e)
		}
	}
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte(`{"type": "place.busy", "tweet": 5, "geo": {"lat": 28.6, "lon": 77}}`))
	f.Add([]byte(`{"type": "tweet.created", "id": 7, "author": {"followers": 1e400}}`))
	all := plans(f, loadMesh(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEvent(data)
		if err != nil {
			return
		}
		for _, p := range all {
			keys, err := p.Match("ap-south", e)
			for _, k := range keys {
				if err != nil || !strings.HasPrefix(k, "tweet:") || len(k) > maxKey {
					t.Errorf("key %q, error %v", k, err)
				}
			}
		}
	})
}
