package sidecar

import (
	"encoding/json"
	"log/slog"
	"slices"
	"testing"

	"github.com/cachemesh/cachemesh/warming"
)

func TestRunsOfSeveralControlPlanes(t *testing.T) {
	c := Config{Name: "here-0", Region: "here", Logger: slog.New(slog.DiscardHandler)}
	l := newLink(c, "", nil)
	t.Cleanup(l.close)
	w := newWarmth(c, l)
	follow := func(from string, runs ...warming.Run) {
		t.Helper()
		text, err := json.Marshal(runs)
		if err == nil {
			err = w.follow(from, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, r := range w.loader.Runs() {
			got = append(got, r.ID+" "+string(r.State))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	follow("a", warming.Run{ID: "1", State: warming.Running})
	follow("b", warming.Run{ID: "1", State: warming.Paused}, warming.Run{ID: "2", State: warming.Running})
	check("what was said last counts", "1 paused", "2 running")
	follow("a", warming.Run{ID: "1", State: warming.Running})
	check("what was said last counts", "1 running", "2 running")
	if w.follow("a", []byte("nonsense")) == nil {
		t.Error("nonsense is followed")
	}
	check("after nonsense", "1 running", "2 running")
	w.forget("b")
	check("one is gone", "1 running")
	w.forget("a")
	check("all are gone", "1 running")
	follow("b")
	check("another says that there is none")
}
