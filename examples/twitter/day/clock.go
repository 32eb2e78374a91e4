package day

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Clock runs faster than others: it shows Start at Since.
type Clock struct {
	Start, Since time.Time
	Speed        float64
}

// ParseClock reads START@SINCE*SPEED, such as 2026-01-12T00:00:00Z@2026-11-24T14:40:00Z*240.
func ParseClock(text string) (c Clock, err error) {
	start, rest, ok := strings.Cut(text, "@")
	since, speed, fast := strings.Cut(rest, "*")
	if !ok || !fast {
		return c, fmt.Errorf("%q is no clock: write START@SINCE*SPEED", text)
	}
	if c.Start, err = time.Parse(time.RFC3339, start); err != nil {
		return c, err
	}
	if c.Since, err = time.Parse(time.RFC3339, since); err != nil {
		return c, err
	}
	if c.Speed, err = strconv.ParseFloat(speed, 64); err != nil || !(c.Speed >= 1 && c.Speed <= 10_000) {
		return c, fmt.Errorf("the clock's speed is %q: choose 1 to 10000", speed)
	}
	return c, nil
}

// At is what the clock shows at a moment.
func (c Clock) At(real time.Time) time.Time {
	return c.Start.Add(time.Duration(float64(real.Sub(c.Since)) * c.Speed))
}

// When is the moment at which the clock shows a time.
func (c Clock) When(shown time.Time) time.Time {
	return c.Since.Add(time.Duration(float64(shown.Sub(c.Start)) / c.Speed))
}
