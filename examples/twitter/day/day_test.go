package day

import (
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

func TestClock(t *testing.T) {
	c, err := ParseClock("2026-01-12T00:00:00Z@2026-11-24T14:40:00Z*240")
	if err != nil {
		t.Fatal(err)
	}
	real := time.Date(2026, 11, 24, 14, 40, 15, 0, time.UTC)
	if got, want := c.At(real), time.Date(2026, 1, 12, 1, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("after 15 s it shows %s, want %s", got, want)
	}
	if got := c.When(c.At(real)); !got.Equal(real) {
		t.Errorf("it shows that at %s, want %s", got, real)
	}
	if got, want := c.At(c.Since.Add(-time.Second)), c.Start.Add(-4*time.Minute); !got.Equal(want) {
		t.Errorf("before its start it shows %s, want %s", got, want)
	}
	for _, bad := range []string{"", "now", "2026-01-12T00:00:00Z*2", "x@2026-11-24T14:40:00Z*2", "2026-01-12T00:00:00Z@x*2", "2026-01-12T00:00:00Z@2026-11-24T14:40:00Z*0.5",
		"2026-01-12T00:00:00Z@2026-11-24T14:40:00Z*NaN"} {
		if _, err := ParseClock(bad); err == nil {
			t.Errorf("%q is a clock", bad)
		}
	}
}

func TestLevel(t *testing.T) {
	for at, want := range map[string]float64{"08:00": 1, "04:00": 0.05, "07:30": 0.85, "23:30": 0.525} {
		clock, err := time.Parse("15:04", at)
		if err != nil {
			t.Fatal(err)
		}
		if got := level(clock); got < want-1e-9 || got > want+1e-9 {
			t.Errorf("level at %s: %v, want %v", at, got, want)
		}
	}
}

func TestTheHundredthRead(t *testing.T) {
	w := &watched{}
	w.begin(7)
	tweet := workload.Request{Method: "GET", Thing: workload.TweetOf, ID: 7}
	timeline := workload.Request{Method: "GET", Thing: workload.Timeline, ID: 1}
	at := time.Unix(1000, 0)
	w.answered("a", tweet, []byte(`{"id":77,"user":1}`), at)
	w.answered("a", workload.Request{Method: "POST", Thing: workload.TweetOf}, []byte(`{"id":7,"user":1}`), at)
	for i := range 60 {
		w.answered("a", tweet, []byte(`{"id":7,"user":1}`), at.Add(time.Duration(i)*time.Second))
		w.answered("b", timeline, []byte(`{"user":1,"tweets":[{"id":9,"user":1},{"id":7,"user":1}]}`), at.Add(time.Duration(i)*time.Second))
	}
	got := w.end()
	if got.Tweet != 7 || got.Regions["a"] != 60 || got.Regions["b"] != 60 || !got.Hundredth.Equal(at.Add(49*time.Second)) {
		t.Errorf("%+v, want 60 reads in each and the hundredth at second 49", got)
	}
	w.answered("a", tweet, []byte(`{"id":7,"user":1}`), at)
	if got := w.end(); got.Regions["a"] != 60 {
		t.Error("it is watched no more, and counted")
	}
}
