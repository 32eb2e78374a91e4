package load

import (
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/warming"
)

func TestWhenRunsWereLoading(t *testing.T) {
	var w windows
	now := time.Now()
	runs := []warming.Run{{ID: "a", Pool: "tweets", Begun: now.Add(-time.Hour), State: warming.Done}, {ID: "b", Pool: "tweets", Begun: now.Add(-time.Minute), State: warming.Running}}
	w.update(runs)
	for _, test := range []struct {
		run, pool string
		at        time.Duration
		want      bool
	}{
		{"b", "tweets", -59 * time.Minute, true}, {"b", "tweets", -30 * time.Minute, false}, {"b", "users", -59 * time.Minute, false},
		{"a", "tweets", 0, true}, {"a", "tweets", -30 * time.Second, true}, {"a", "tweets", -2 * time.Minute, false}, {"b", "tweets", 0, false},
	} {
		if got := w.within(test.run, test.pool, now.Add(test.at)); got != test.want {
			t.Errorf("another than %s at %v of %s: %v", test.run, test.at, test.pool, got)
		}
	}
	runs[1].State = warming.Done
	w.update(runs)
	if w.within("a", "tweets", time.Now().Add(time.Minute)) {
		t.Error("a run that is over is still loading")
	}
	w.update(nil)
	if w.within("a", "tweets", now) {
		t.Error("runs that are forgotten are still loading")
	}
}
