package checker

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/bench/delay"
	"github.com/cachemesh/cachemesh/bench/pubsub"
	"github.com/cachemesh/cachemesh/process"
)

// caches starts so many Redis, each a region's.
func caches(t *testing.T, n int) (addresses []string) {
	t.Helper()
	ports, err := process.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		r := process.Redis{Port: port, Dir: t.TempDir()}
		started, err := r.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { started.Stop(5 * time.Second) })
		addresses = append(addresses, r.Address())
	}
	return addresses
}

// configured is a run of a second or two.
func configured(t *testing.T, addresses ...string) Config {
	c := Config{Seed: 1, Database: filepath.Join(t.TempDir(), "versions.db"), Prefix: "user:", Writes: Refill,
		Keys: 100, Rate: 200, For: 1500 * time.Millisecond, Bound: 400 * time.Millisecond, Lost: 1200 * time.Millisecond}
	for i, address := range addresses {
		c.Regions = append(c.Regions, Region{Name: string(rune('a' + i)), Caches: []string{address}})
	}
	return c
}

func run(t *testing.T, c Config) *Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := Run(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if r.Acked == 0 || r.Looks < r.Acked*int64(len(c.Regions)) {
		t.Errorf("%d changes, %d looks at them: want some, each in %d regions", r.Acked, r.Looks, len(c.Regions))
	}
	return r
}

// Two regions that are one and the same Redis cannot disagree.
func TestOneCacheIsCoherent(t *testing.T) {
	one := caches(t, 1)[0]
	c := configured(t, one, one)
	c.Writes = Update
	if r := run(t, c); r.StaleReads != 0 || r.Lost != 0 || r.Outlived != 0 || r.Late != 0 {
		t.Errorf("in one Redis: %+v", r)
	}
}

func TestRegionsThatAreNeverToldLoseEverything(t *testing.T) {
	c := configured(t, caches(t, 2)...)
	r := run(t, c)
	if r.Lost == 0 || r.StaleReads == 0 || r.Outlived > r.Lost {
		t.Errorf("nobody told the other region, but %d are lost, %d outlived, %d stale reads", r.Lost, r.Outlived, r.StaleReads)
	}
	for _, f := range r.Findings {
		if f.Region == f.Home || f.Held >= f.Changed || f.Age < c.Bound.Seconds() || f.Ended == "" {
			t.Errorf("no such thing can be found: %+v", f)
		}
	}
}

// A replica that lags has a refill bring back what was removed. That is no loss, and is told from it.
func TestLateRefills(t *testing.T) {
	one := caches(t, 1)[0]
	c := configured(t, one, one)
	c.Lag = 300 * time.Millisecond
	if r := run(t, c); r.Outlived == 0 || r.Lost != 0 {
		t.Errorf("%d values outlived and %d are lost, want some and none", r.Outlived, r.Lost)
	}
}

func TestSecondRunWithTheSameDatabaseFile(t *testing.T) {
	one := caches(t, 1)[0]
	c := configured(t, one, one)
	c.Writes, c.For, c.Most = Update, time.Minute, 20
	for range 2 {
		// Versions start over, while the cache still has those of the first run: newer is never stale.
		if r := run(t, c); r.Acked == 0 || r.Acked > 20 {
			t.Errorf("%d changes, want at most 20", r.Acked)
		}
	}
}

func TestPubSub(t *testing.T) {
	all := caches(t, 4) // two caches, and where each region publishes
	regions := func(first, second string) []Region {
		return []Region{
			{Name: "a", Caches: all[:1], Publish: all[2], Subscribe: []string{second}},
			{Name: "b", Caches: all[1:2], Publish: all[3], Subscribe: []string{first}},
		}
	}
	t.Run("calm", func(t *testing.T) {
		c := configured(t, all[:2]...)
		c.PubSub, c.Regions = true, regions(all[2], all[3])
		if r := run(t, c); r.Lost != 0 {
			t.Errorf("%d are lost while all is well", r.Lost)
		}
	})
	t.Run("parted", func(t *testing.T) {
		p, err := delay.Listen(all[2], time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		c := configured(t, all[:2]...)
		c.PubSub, c.Regions = true, regions(p.Address(), all[3])
		c.For, c.Lost, c.Keys = 3*time.Second+3*pubsub.Silence, 4*pubsub.Silence, 5000
		time.AfterFunc(time.Second, p.Part)
		time.AfterFunc(time.Second+3*pubsub.Silence, p.Heal)
		if r := run(t, c); r.Lost == 0 {
			t.Errorf("%d changes, and a partition of %s lost none", r.Acked, 3*pubsub.Silence)
		}
	})
}

func TestConfig(t *testing.T) {
	good := configured(t, "127.0.0.1:1", "127.0.0.1:1")
	for name, spoil := range map[string]func(*Config){
		"one region": func(c *Config) { c.Regions = c.Regions[:1] },
		"no keys":    func(c *Config) { c.Keys = 0 },
		"no rate":    func(c *Config) { c.Rate = 0 },
		"no bound":   func(c *Config) { c.Bound = 0 },
		"lost early": func(c *Config) { c.Lost = c.Bound / 2 },
	} {
		bad := good
		spoil(&bad)
		if _, err := Run(t.Context(), bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
