package warming

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/netresearch/go-cron"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// late is how long after its time a run may still begin without being one that was missed.
	late = time.Minute
	// back is how far back the clock may have been set before the times that are known are void.
	back = 26 * time.Hour
	// A run that is to be over in time begins earlier than the last one took: by a quarter and a minute. Without one before it, by unknown.
	margin  = time.Minute
	unknown = 15 * time.Minute
	// usable is how much of its hour a working set is still loaded for.
	usable = 30 * time.Minute
)

// times are those of a schedule.
type times struct {
	cron   cron.Schedule
	hourly bool // they come in each hour that there is, not at hours that are named
	finish bool // they say when a run is to be over
	jitter time.Duration
	missed mesh.Missed
}

var clock = regexp.MustCompile(`^([01]?[0-9]|2[0-3]):([0-5][0-9])$`)

var parser = cron.MustNewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

func (c *compiler) times(field string, s mesh.Schedule) *times {
	t := &times{jitter: s.Jitter, missed: s.Missed}
	expression, field := s.Cron, field+".cron"
	if s.FinishBy != "" {
		expression, field, t.finish = s.FinishBy, strings.TrimSuffix(field, "cron")+"finishBy", true
	}
	spec := expression
	if at := clock.FindStringSubmatch(expression); at != nil {
		spec = fmt.Sprintf("%s %s * * *", at[2], at[1])
	}
	var err error
	if t.cron, err = parser.Parse(spec); err != nil {
		column, what := blame(expression, err)
		c.add(field, `write five fields, which are minute, hour, day of the month, month and day of the week, such as "0 7 * * MON-FRI", or HH:MM`,
			"%q is no time: column %d: %s", expression, column, what)
		return t
	}
	t.hourly = strings.HasPrefix(strings.Fields(spec)[1], "*")
	if at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC); t.cron.Next(at).IsZero() {
		c.add(field, "write a day that exists", "%q never comes", expression)
	}
	return t
}

// blame finds the first field of a cron expression that is wrong, and its column, from 1.
func blame(expression string, err error) (column int, what string) {
	fields := regexp.MustCompile(`\S+`).FindAllStringIndex(expression, -1)
	if len(fields) != 5 {
		return len(strings.TrimRight(expression, " \t")) + 1, fmt.Sprintf("it has %d of five fields", len(fields))
	}
	for i, at := range fields {
		only := []string{"*", "*", "*", "*", "*"}
		only[i] = expression[at[0]:at[1]]
		if _, err := parser.Parse(strings.Join(only, " ")); err != nil {
			return at[0] + 1, err.Error()
		}
	}
	return 1, err.Error()
}

// Due says what a plan's times ask for in a region now. The caller keeps the slot that it was told last, over restarts; before the first,
// it is when the plan was first seen. took is how long the plan's last run in the region took, 0 if there is none.
type Due struct {
	Slot time.Time // the last time that is settled by this: the caller keeps it, whether it is to run or not
	Run  bool      // a run is to begin now, for Slot
	Next time.Time // when the next run is to begin, if nothing changes; zero if never
	// Missed are how many times went by without a run.
	Missed int
}

// Timed says whether the plan has times.
func (p *Plan) Timed() bool { return p.times != nil || p.FollowSun != nil }

// Due is the zero value, but for the slot, for plans that have no times.
func (p *Plan) Due(region string, slot, now time.Time, took time.Duration) Due {
	zone := p.regions[region]
	now, slot = now.Round(0), slot.Round(0) // by the wall clock, which is what people mean
	if slot.After(now.Add(back)) {
		slot = now // the clock was wrong when that was written
	}
	switch {
	case zone == nil:
	case p.times != nil:
		return p.times.due(zone, p.Name+"\x00"+region, slot, now, took)
	case p.FollowSun != nil:
		return hours(p.FollowSun.Ahead, slot, now)
	}
	return Due{Slot: slot}
}

func (t *times) due(zone *time.Location, seed string, slot, now time.Time, took time.Duration) Due {
	begin := func(at time.Time) time.Time { return at.Add(t.delay(seed, at)) }
	expires := func(at time.Time) time.Time { return begin(at).Add(late) }
	if t.finish {
		need := unknown
		if took > 0 {
			need = took*5/4 + margin
		}
		begin = func(at time.Time) time.Time { return at.Add(-need) }
		expires = func(at time.Time) time.Time { return at }
	}
	d := Due{Slot: slot}
	at := t.next(zone, slot)
	if span := now.Sub(slot); span > 366*24*time.Hour {
		at = t.next(zone, now.Add(-31*24*time.Hour)) // what is older than a month is not counted one by one
	}
	for ; !at.IsZero() && !begin(at).After(now); at = t.next(zone, at) {
		if d.Run {
			d.Missed++ // the one before
		}
		d.Slot, d.Run = at, true
	}
	d.Next = at
	if !at.IsZero() {
		d.Next = begin(at)
	}
	if d.Run && expires(d.Slot).Before(now) && t.missed != mesh.MissedRun {
		d.Missed++
		d.Run = false
	}
	return d
}

// next is the first time after another. In the hour that comes twice when summer ends, a time comes once.
func (t *times) next(zone *time.Location, after time.Time) time.Time {
	for at := after.In(zone); ; {
		if at = t.cron.Next(at); at.IsZero() || t.hourly || !again(at) {
			return at
		}
	}
}

// again says whether clocks show this time for the second time.
func again(at time.Time) bool {
	_, offset := at.Zone()
	_, before := at.Add(-3 * time.Hour).Zone()
	first := at.Add(time.Duration(offset-before) * time.Second)
	_, then := first.Zone()
	return before > offset && then == before
}

// delay is by how much a time is put off.
func (t *times) delay(seed string, at time.Time) time.Duration {
	if t.jitter <= 0 {
		return 0
	}
	return time.Duration(xxhash.Sum64String(fmt.Sprintf("%s\x00%d", seed, at.Unix())) % uint64(t.jitter))
}

// hours are those of the sun: each begins ahead of time.
func hours(ahead time.Duration, slot, now time.Time) Due {
	d := Due{Slot: slot}
	coming := now.Add(ahead).Truncate(time.Hour)
	if coming.After(slot) && now.Before(coming.Add(usable)) {
		d.Slot, d.Run = coming, true
	}
	d.Next = coming.Add(time.Hour - ahead)
	return d
}

// Hour is the hour of the day, of UTC, whose working set a run for a slot loads, if the plan follows the sun.
func (p *Plan) Hour(slot time.Time) (hour int, ok bool) {
	return slot.UTC().Hour(), p.FollowSun != nil
}
