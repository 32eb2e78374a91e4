package warming

import (
	"fmt"
	"testing"
	"time"
)

func scheduled(t *testing.T, schedule string) *Plan {
	t.Helper()
	return plan(t, fmt.Sprintf("plans:\n  - name: p\n    schedule: {%s}\n    keys: {route: \"tweet:\"}\n    source: {file: /values}\n", schedule))
}

func at(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// begun runs the clock a minute at a time, and returns when runs began, in the region's time.
func begun(t *testing.T, p *Plan, region, from, until string, took time.Duration) (all []string) {
	t.Helper()
	slot := at(t, from)
	for now := slot; now.Before(at(t, until)); now = now.Add(time.Minute) {
		d := p.Due(region, slot, now, took)
		if slot = d.Slot; d.Run {
			all = append(all, now.In(p.regions[region]).Format("02 15:04 -0700"))
		}
	}
	return all
}

func TestTimesAreThoseOfTheRegion(t *testing.T) {
	p := scheduled(t, `cron: "07:00"`)
	for region, want := range map[string]string{"us-east": "[01 07:00 -0400]", "eu-west": "[01 07:00 +0100]", "ap-south": "[01 07:00 +0530]"} {
		if got := fmt.Sprint(begun(t, p, region, "2026-07-01T01:00:00Z", "2026-07-01T23:00:00Z", 0)); got != want {
			t.Errorf("%s: %s, want %s", region, got, want)
		}
	}
}

func TestClocksChangeInSpringAndAutumn(t *testing.T) {
	for _, c := range []struct{ name, cron, region, from, until, want string }{
		{"a day of 23 hours", `cron: "07:00"`, "us-east", "2026-03-07T10:00:00Z", "2026-03-10T00:00:00Z", "[07 07:00 -0500 08 07:00 -0400 09 07:00 -0400]"},
		{"a day of 25 hours", `cron: "07:00"`, "us-east", "2026-10-31T10:00:00Z", "2026-11-03T00:00:00Z", "[31 07:00 -0400 01 07:00 -0500 02 07:00 -0500]"},
		{"a time that does not come", `cron: "30 2 * * *"`, "us-east", "2026-03-08T00:00:00Z", "2026-03-09T12:00:00Z", "[08 03:30 -0400 09 02:30 -0400]"},
		{"a time that comes twice", `cron: "30 1 * * *"`, "us-east", "2026-11-01T00:00:00Z", "2026-11-02T12:00:00Z", "[01 01:30 -0400 02 01:30 -0500]"},
		{"on the other side, in spring", `cron: "30 1 * * *"`, "eu-west", "2026-03-29T00:00:00Z", "2026-03-30T12:00:00Z", "[29 02:30 +0100 30 01:30 +0100]"},
		{"on the other side, in autumn", `cron: "30 1 * * *"`, "eu-west", "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z", "[25 01:30 +0100 26 01:30 +0000]"},
		{"where clocks do not change", `cron: "30 1 * * *"`, "ap-south", "2026-10-24T12:00:00Z", "2026-10-26T00:00:00Z", "[25 01:30 +0530 26 01:30 +0530]"},
		{"finish by, in spring", `finishBy: "08:00"`, "us-east", "2026-03-07T10:00:00Z", "2026-03-09T00:00:00Z", "[07 07:34 -0500 08 07:34 -0400]"},
		{"finish by, over the change", `finishBy: "03:10"`, "us-east", "2026-03-08T00:00:00Z", "2026-03-08T12:00:00Z", "[08 01:44 -0500]"},
	} {
		if got := fmt.Sprint(begun(t, scheduled(t, c.cron), c.region, c.from, c.until, 20*time.Minute)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestEveryHourComesInAutumnToo(t *testing.T) {
	got := begun(t, scheduled(t, `cron: "0 * * * *"`), "us-east", "2026-11-01T03:30:00Z", "2026-11-01T08:30:00Z", 0)
	if want := "[01 00:00 -0400 01 01:00 -0400 01 01:00 -0500 01 02:00 -0500 01 03:00 -0500]"; fmt.Sprint(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestTheClockIsSet(t *testing.T) {
	p := scheduled(t, `cron: "07:00"`)
	slot := at(t, "2026-07-01T05:00:00Z")
	step := func(now string, run bool) {
		t.Helper()
		d := p.Due("eu-west", slot, at(t, now), 0)
		if d.Run != run {
			t.Errorf("at %s: %+v, want run %v", now, d, run)
		}
		slot = d.Slot
	}
	step("2026-07-01T06:00:00Z", true)
	step("2026-07-01T06:00:01Z", false)
	step("2026-07-01T05:30:00Z", false) // set back: what has run does not run again
	step("2026-07-01T06:00:30Z", false)
	step("2026-07-02T09:00:00Z", false) // set forward: it was missed
	step("2027-07-01T06:00:10Z", true)  // a year ahead
	step("2026-07-02T12:00:00Z", false) // and back: the plan does not wait for that year
	step("2026-07-03T06:00:00Z", true)
}

func TestMissedTimes(t *testing.T) {
	for schedule, want := range map[string]Due{
		`cron: "07:00"`:                  {Slot: at(t, "2026-07-05T06:00:00Z"), Missed: 4},
		`cron: "07:00", missed: run`:     {Slot: at(t, "2026-07-05T06:00:00Z"), Run: true, Missed: 3},
		`finishBy: "07:00"`:              {Slot: at(t, "2026-07-05T06:00:00Z"), Missed: 4},
		`finishBy: "07:00", missed: run`: {Slot: at(t, "2026-07-05T06:00:00Z"), Run: true, Missed: 3},
		`finishBy: "11:30"`:              {Slot: at(t, "2026-07-05T10:30:00Z"), Run: true, Missed: 3}, // there is still time
		`cron: "10:59"`:                  {Slot: at(t, "2026-07-05T09:59:00Z"), Run: true, Missed: 3}, // late is not missed
	} {
		now := at(t, "2026-07-05T10:00:00Z")
		if schedule == `finishBy: "11:30"` {
			now = at(t, "2026-07-05T10:20:00Z")
		}
		got := scheduled(t, schedule).Due("eu-west", at(t, "2026-07-01T12:00:00Z"), now, 0)
		if got.Slot.UTC() != want.Slot || got.Run != want.Run || got.Missed != want.Missed {
			t.Errorf("%s: %+v, want %+v", schedule, got, want)
		}
		again := scheduled(t, schedule).Due("eu-west", got.Slot, now, 0)
		if again.Run || again.Missed > 0 || !again.Next.After(now) {
			t.Errorf("%s: again %+v", schedule, again)
		}
	}
}

func TestJitterPutsOffAndStays(t *testing.T) {
	p := scheduled(t, `cron: "0 * * * *", jitter: 30m`)
	slot, seen := at(t, "2026-07-01T00:30:00Z"), map[time.Duration]bool{}
	for range 24 {
		d := p.Due("eu-west", slot, slot, 0)
		next := p.times.next(time.UTC, slot)
		delay := d.Next.Sub(next)
		if delay < 0 || delay >= 30*time.Minute || d.Run {
			t.Fatalf("%+v after %s", d, slot)
		}
		seen[delay] = true
		if before := p.Due("eu-west", slot, d.Next.Add(-time.Nanosecond), 0); before.Run {
			t.Errorf("it ran before its delay was over: %+v", before)
		}
		if then := p.Due("eu-west", slot, d.Next, 0); !then.Run || !then.Slot.Equal(next) {
			t.Errorf("%+v", then)
		}
		slot = next
	}
	if len(seen) < 20 {
		t.Errorf("%d delays in 24 hours", len(seen))
	}
	if a, b := p.Due("eu-west", slot, slot, 0), p.Due("us-east", slot, slot, 0); a.Next.Equal(b.Next) {
		t.Error("two regions begin at once")
	}
}

func TestARunBeginsEarlyEnough(t *testing.T) {
	p := scheduled(t, `finishBy: "08:00"`)
	for took, want := range map[time.Duration]string{
		0:               "2026-07-01T06:45:00Z", // nothing is known
		4 * time.Minute: "2026-07-01T06:54:00Z",
		2 * time.Hour:   "2026-07-01T04:29:00Z",
	} {
		if d := p.Due("eu-west", at(t, "2026-06-30T12:00:00Z"), at(t, "2026-07-01T00:00:00Z"), took); !d.Next.Equal(at(t, want)) {
			t.Errorf("after one that took %s it begins at %s, want %s", took, d.Next.UTC(), want)
		}
	}
}

func TestTheSunIsFollowed(t *testing.T) {
	p := plans(t, loadMesh(t))["sun"] // 20 minutes ahead
	got := begun(t, p, "us-east", "2026-07-01T10:15:00Z", "2026-07-01T13:00:00Z", 0)
	if want := "[01 06:40 -0400 01 07:40 -0400 01 08:40 -0400]"; fmt.Sprint(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
	d := p.Due("us-east", at(t, "2026-07-01T10:15:00Z"), at(t, "2026-07-01T10:40:00Z"), 0)
	if hour, ok := p.Hour(d.Slot); hour != 11 || !ok {
		t.Errorf("hour %d", hour)
	}
	if d := p.Due("us-east", at(t, "2026-07-01T03:00:00Z"), at(t, "2026-07-01T10:35:00Z"), 0); d.Run {
		t.Error("the working set of an hour is loaded when half of the hour is over")
	}
}
