// Package day loads the Twitter example in several regions as a day does whose hours pass in seconds: each region's users sleep and get up by their own
// time zone, somebody whom everybody knows posts, and something happens in one place of the world. It tells what the applications say of themselves
// meanwhile, and knows nothing of who may fill their caches.
package day

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/load"
	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

// Config is a day.
type Config struct {
	Regions []Region
	Peak    float64 // requests a second in each region when most is asked for
	Check   float64 // share of the answers that are checked
	// Clock shows the day. Load begins at once, and ends a day after the clock's start.
	Clock Clock
	Tell  func(any) // takes a Sample, a Posted, a Read or a Total; one at a time
	Log   *slog.Logger
}

// Region is where users are, and the apps that answer them.
type Region struct {
	Name    string
	Zone    *time.Location
	Targets []string
}

const (
	// popular is how many tweets are what people talk about in a region, and leastSpread in how many timelines they are.
	popular     = 4000
	leastSpread = 2
)

type runner struct {
	Config
	db      *store.Store
	tell    sync.Mutex
	sources []*source
	watched *watched
}

// Run loads the regions for the day.
func Run(ctx context.Context, c Config, db *store.Store) error {
	homes, err := db.Homes(ctx)
	if err != nil {
		return err
	}
	r := &runner{Config: c, db: db, watched: &watched{}}
	for _, region := range c.Regions {
		newest, err := db.NewestTweet(ctx)
		if err != nil {
			return err
		}
		gen, err := workload.NewGenerator(workload.Day, workload.Population{Homes: homes, Region: region.Name, Newest: newest}, rand.Uint64())
		if err != nil {
			return err
		}
		s := &source{gen: gen, rng: rand.New(rand.NewPCG(rand.Uint64(), 4)), now: func() time.Time { return c.Clock.At(time.Now()).In(region.Zone) }}
		s.settle(homes)
		r.sources = append(r.sources, s)
	}
	ends := c.Clock.When(c.Clock.Start.Add(24 * time.Hour))
	ctx, cancel := context.WithDeadline(ctx, ends)
	defer cancel()
	var running sync.WaitGroup
	totals := make([]load.Interval, len(c.Regions))
	for i, region := range c.Regions {
		running.Go(func() { r.follow(ctx, region, r.sources[i]) })
		running.Go(func() { totals[i] = r.load(ctx, region, r.sources[i]) })
	}
	running.Go(func() { err = r.happen(ctx, homes) })
	running.Wait()
	for i, total := range totals {
		r.say(Total{Kind: "total", Region: c.Regions[i].Name, Interval: total})
		if total.Errors > 0 || total.Wrong > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %d errors and %d wrong answers", c.Regions[i].Name, total.Errors, total.Wrong))
		}
	}
	return err
}

func (r *runner) say(v any) {
	r.tell.Lock()
	defer r.tell.Unlock()
	r.Tell(v)
}

func (r *runner) load(ctx context.Context, region Region, s *source) load.Interval {
	client := &http.Client{Timeout: time.Second}
	level := func(at time.Time) float64 { return level(r.Clock.At(at).In(region.Zone)) }
	report := func(i load.Interval) {
		sample, err := r.sample(ctx, client, region, i)
		if err != nil {
			r.Log.Warn("an app does not say how it fares", "error", err)
			return
		}
		r.say(sample)
	}
	return load.Run(ctx, load.Config{Targets: region.Targets, Rate: r.Peak, Check: r.Check, Level: level, Report: report, Log: r.Log,
		Answered: func(request workload.Request, answer []byte, at time.Time) {
			r.watched.answered(region.Name, request, answer, at)
		}}, s, r.db)
}

// follow tells a source every second what is popular in its region by now.
func (r *runner) follow(ctx context.Context, region Region, s *source) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		ids, err := r.db.Spread(ctx, region.Name, leastSpread, popular)
		if err == nil {
			s.popular.Store(&ids)
		} else if ctx.Err() == nil {
			r.Log.Warn("what is popular is not known", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
