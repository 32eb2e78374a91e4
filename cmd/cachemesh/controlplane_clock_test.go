package main

import (
	"testing"
	"time"
)

func TestFastClock(t *testing.T) {
	var c fastClock
	if off := time.Since(c.now()); off > time.Minute {
		t.Errorf("without a speed it is %s late", off)
	}
	since := time.Now().Add(-10 * time.Second).UTC().Format(time.RFC3339)
	if err := c.Set("2026-01-12T00:00:00Z@" + since + "*240"); err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 12, 0, 0, 0, 0, time.UTC)
	if got := c.now().Sub(start); got < 40*time.Minute || got > time.Hour {
		t.Errorf("10 s after it showed its start, it shows %s more", got)
	}
	for _, bad := range []string{"", "x@" + since + "*2", "2026-01-12T00:00:00Z@x*2", "2026-01-12T00:00:00Z@" + since, "2026-01-12T00:00:00Z@" + since + "*NaN", "2026-01-12T00:00:00Z@" + since + "*0"} {
		if err := c.Set(bad); err == nil {
			t.Errorf("%q is a clock", bad)
		}
	}
	if c.speed != 240 {
		t.Error("a bad clock changed it")
	}
}
