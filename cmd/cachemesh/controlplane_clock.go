package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// fastClock is a clock by which a day passes in minutes: it shows start at since. It is written START@SINCE*SPEED.
type fastClock struct {
	text         string
	start, since time.Time
	speed        float64
}

func (c *fastClock) String() string { return c.text }
func (c *fastClock) Type() string   { return "START@SINCE*SPEED" }

func (c *fastClock) Set(text string) error {
	start, rest, _ := strings.Cut(text, "@")
	since, speed, _ := strings.Cut(rest, "*")
	parsed := fastClock{text: text}
	var err error
	if parsed.start, err = time.Parse(time.RFC3339, start); err != nil {
		return err
	}
	if parsed.since, err = time.Parse(time.RFC3339, since); err != nil {
		return err
	}
	if parsed.speed, err = strconv.ParseFloat(speed, 64); err != nil || !(parsed.speed >= 1 && parsed.speed <= 10_000) {
		return fmt.Errorf("a speed of %q: choose 1 to 10000", speed)
	}
	*c = parsed
	return nil
}

// now is what it shows; without a speed it is everybody's clock.
func (c *fastClock) now() time.Time {
	if c.speed == 0 {
		return time.Now()
	}
	return c.start.Add(time.Duration(float64(time.Since(c.since)) * c.speed))
}
