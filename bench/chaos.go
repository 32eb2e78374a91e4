package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/bench/checker"
	"github.com/cachemesh/cachemesh/bench/delay"
	"github.com/cachemesh/cachemesh/process"
)

// chaosPlan is what is killed, how often, under which load.
type chaosPlan struct {
	seed             uint64
	time             time.Duration // of load and kills; looking takes up to a minute longer
	rate             float64       // changes a second, of all routes
	every            time.Duration // from one kill to the next, on average
	pubsub           bool          // in place of cachemesh's own invalidation
	peer             time.Duration // for how long Pub/Sub runs afterwards, in a mesh of its own
	kinds            []string      // what is killed; none is everything
	logs             string        // folder that keeps all files of the run; "" is none
	keysPerRate      float64       // how many keys there are for each change a second
	lag, holdOff     time.Duration // of the database's replicas, and of the route
	bound, withFence time.Duration // how old a value may be
}

var (
	chaosFull  = chaosPlan{seed: 1, time: 990 * time.Second, rate: 1300, every: 4 * time.Second, keysPerRate: 25, lag: 2 * time.Second, holdOff: 3 * time.Second, bound: 5 * time.Second, withFence: 30 * time.Second}
	chaosQuick = chaosPlan{seed: 1, time: 20 * time.Second, rate: 150, every: 1500 * time.Millisecond, keysPerRate: 25, lag: 2 * time.Second, holdOff: 3 * time.Second, bound: 5 * time.Second, withFence: 30 * time.Second}
)

const (
	chaosShards, chaosNodes, chaosSidecars = 2, 2, 2
	chaosWay                               = 20 * time.Millisecond
	// The peer need only lose something.
	peerRate, peerEvery = 200, 2 * time.Second
	// chaosRoutes have a route of each kind, and one of which cachemesh tells nobody, for Pub/Sub.
	chaosRoutes = `prefix: "user:", coherence: invalidate, writes: refill
prefix: "name:", coherence: invalidate, writes: update
prefix: ""`
)

func chaosFlags(cmd *cobra.Command, s *settings) {
	f := cmd.Flags()
	f.Uint64Var(&s.chaos.seed, "seed", 0, "of what is killed and what is changed (default: 1)")
	f.DurationVar(&s.chaos.time, "for", 0, "how long there are changes and kills; looking takes a minute longer (default: 16m30s)")
	f.Float64Var(&s.chaos.rate, "rate", 0, "changes a second (default: 1300)")
	f.DurationVar(&s.chaos.every, "kill-every", 0, "from one kill to the next, on average (default: 4s)")
	f.StringSliceVar(&s.chaos.kinds, "kill", nil, "kill only these: "+strings.Join(kindNames(), ", "))
	f.StringVar(&s.chaos.logs, "logs", "", "folder that keeps the logs and other files of the run")
	f.DurationVar(&s.chaos.peer, "peer", time.Minute, "how long the same runs with Redis Pub/Sub afterwards, which must lose something; 0 is not at all")
	f.BoolVar(&s.chaos.pubsub, "pubsub", false, "have applications invalidate over Redis Pub/Sub, to see what the checker sees")
}

// chaosResult is what `bench chaos` prints.
type chaosResult struct {
	header
	Verdict string         `json:"verdict"`
	Plan    map[string]any `json:"plan"`
	Began   time.Time      `json:"began"`
	Seed    uint64         `json:"seed"`
	PubSub  bool           `json:"pubsub"`
	Writes  int64          `json:"acknowledged_writes"`
	Lost    int            `json:"lost"` // acknowledged invalidations that a region never saw
	// Outlived are stale values that stay, and may have come as a refill.
	Outlived int `json:"outlived"`
	// Stale are values that were served longer than the bound and then went, without a fence or later than one may take.
	Stale int `json:"stale_later_than_bound"`
	// Fenced are those that a fence explains.
	Fenced     int                        `json:"stale_until_fence"`
	StaleReads int64                      `json:"stale_reads"`
	Kills      map[string]int             `json:"kills"` // by kind
	Strikes    []strike                   `json:"strikes"`
	Fences     []seenFence                `json:"fences"`
	Reports    map[string]*checker.Report `json:"reports"` // by kind of writes
	// Peer is what the same checker found of Redis Pub/Sub in cachemesh's place.
	Peer       *chaosResult `json:"pubsub_peer,omitempty"`
	PubSubLost *int         `json:"pubsub_lost,omitempty"`
}

// err is what is wrong with the cache.
func (r *chaosResult) err() error {
	switch {
	case r.PubSub:
		return nil
	case r.Lost+r.Outlived+r.Stale == 0 && r.PubSubLost != nil && *r.PubSubLost == 0:
		return fmt.Errorf("seed %d: Redis Pub/Sub lost nothing in %d changes, so the checker proves nothing: let it run for longer with --peer", r.Seed, r.Peer.Writes)
	case r.Lost+r.Outlived+r.Stale == 0:
		return nil
	}
	return fmt.Errorf("seed %d: %d acknowledged invalidations are lost, %d stale values stay, %d were served for too long", r.Seed, r.Lost, r.Outlived, r.Stale)
}

func benchChaos(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "chaos", s.quick)
	if err != nil {
		return nil, err
	}
	plan := s.chaos.or(chaosFull)
	if s.quick {
		plan = s.chaos.or(chaosQuick)
	}
	if plan.logs != "" {
		s.dir = plan.logs
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return nil, err
		}
	}
	cachemesh, err := build(ctx, s.dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return nil, err
	}
	r := &chaosResult{header: head, Seed: plan.seed}
	if err := r.perform(ctx, s, plan, cachemesh); err != nil {
		return nil, err
	}
	if plan.peer > 0 && !plan.pubsub {
		fmt.Fprintln(s.progress, "the same with Redis Pub/Sub")
		peer := plan
		peer.pubsub, peer.time, peer.rate, peer.every = true, plan.peer, min(plan.rate, peerRate), peerEvery
		s.dir = filepath.Join(s.dir, "peer")
		r.Peer = &chaosResult{header: head, Seed: plan.seed}
		if err := r.Peer.perform(ctx, s, peer, cachemesh); err != nil {
			return nil, fmt.Errorf("with Pub/Sub: %w", err)
		}
		r.PubSubLost = &r.Peer.Lost
	}
	r.Verdict = "nothing was lost, and nothing stayed or was served for too long"
	if err := r.err(); err != nil {
		r.Verdict = err.Error()
	}
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// perform runs a mesh, and a checker while victims are killed.
func (r *chaosResult) perform(ctx context.Context, s settings, plan chaosPlan, cachemesh string) error {
	began := time.Now()
	m, err := startRegions(ctx, s.dir, cachemesh, regionsPlan{names: []string{"us-east", "eu-west"}, routes: chaosRoutes, probe: "user:",
		shards: chaosShards, nodes: chaosNodes, sidecars: chaosSidecars, oneWay: chaosWay, link: true})
	if err != nil {
		return err
	}
	defer m.stop()
	v, err := newVictims(ctx, s.dir, m, plan)
	if err != nil {
		return err
	}
	defer v.stop()
	r.PubSub, r.Began, r.Reports = plan.pubsub, began.UTC(), map[string]*checker.Report{}
	r.Plan = map[string]any{
		"regions": len(m.regions), "shards": chaosShards, "nodes_per_shard": chaosNodes, "sidecars": chaosSidecars, "one_way_delay_ms": milliseconds(chaosWay),
		"seconds": plan.time.Seconds(), "writes_per_second": plan.rate, "kill_every_seconds": plan.every.Seconds(), "database_lag_seconds": plan.lag.Seconds(),
		"hold_off_seconds": plan.holdOff.Seconds(), "bound_seconds": plan.bound.Seconds(), "bound_with_fence_seconds": plan.withFence.Seconds()}
	err = r.run(ctx, s, plan, m, v)
	r.Seconds = rounded(time.Since(began).Seconds())
	return err
}

// or takes what is not set from another.
func (p chaosPlan) or(other chaosPlan) chaosPlan {
	if p.seed != 0 {
		other.seed = p.seed
	}
	if p.time != 0 {
		other.time = p.time
	}
	if p.rate != 0 {
		other.rate = p.rate
	}
	if p.every != 0 {
		other.every = p.every
	}
	other.pubsub, other.peer, other.kinds, other.logs = p.pubsub, p.peer, p.kinds, p.logs
	return other
}

// run has the checkers change and look while victims are killed.
func (r *chaosResult) run(ctx context.Context, s settings, plan chaosPlan, m *meshRegions, v *victims) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	fences := newFenceWatch(m)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer stopWatching()
	watch.Go(func() { fences.run(watching) })

	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
		cancel(err)
	}
	for _, c := range v.checkers(s, plan) {
		all.Go(func() {
			report, err := checker.Run(ctx, c)
			if err != nil {
				fail(fmt.Errorf("checker of %s: %w", c.Writes, err))
				return
			}
			mu.Lock()
			defer mu.Unlock()
			r.Reports[string(c.Writes)] = report
		})
	}
	all.Go(func() {
		if err := v.run(ctx, plan, s.progress); err != nil {
			fail(err)
		}
	})
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	stopWatching()
	watch.Wait()
	r.Strikes, r.Fences, r.Kills = v.strikes, fences.seen(), map[string]int{}
	for _, strike := range r.Strikes {
		r.Kills[strike.Kind]++
	}
	r.judge(plan)
	return nil
}

// judge sums up what the checkers found.
func (r *chaosResult) judge(plan chaosPlan) {
	for _, report := range r.Reports {
		r.Writes += report.Acked
		r.Lost += report.Lost
		r.Outlived += report.Outlived
		r.StaleReads += report.StaleReads
		r.Stale += report.Late // less those that a fence explains
		for _, f := range report.Findings {
			if f.Ended == "gone" && f.Age <= plan.withFence.Seconds() && slices.ContainsFunc(r.Fences, func(fence seenFence) bool { return fence.explains(f) }) {
				r.Fenced++
				r.Stale--
			}
		}
	}
}

// checkers are one for each kind of writes. Most writes are removals.
func (v *victims) checkers(s settings, plan chaosPlan) (all []checker.Config) {
	for _, kind := range []struct {
		writes checker.Writes
		prefix string
		share  float64
	}{{checker.Refill, "user:", 0.8}, {checker.Update, "name:", 0.2}} {
		c := checker.Config{Seed: plan.seed, Database: filepath.Join(s.dir, string(kind.writes)+".db"), Prefix: kind.prefix, Writes: kind.writes, PubSub: plan.pubsub,
			Rate: plan.rate * kind.share, Keys: int(plan.rate * kind.share * plan.keysPerRate), For: plan.time, Lag: plan.lag, HoldOff: plan.holdOff,
			Bound: plan.bound, Lost: plan.withFence + plan.bound, Progress: prefixed{s.progress, string(kind.writes) + ": "}}
		if plan.pubsub {
			c.Prefix = "plain-" + kind.prefix
			c.HoldOff = 0
		}
		for i, region := range v.mesh.regions {
			place := checker.Region{Name: region.name}
			for _, sidecar := range region.sidecars {
				place.Caches = append(place.Caches, sidecar.redis)
			}
			if plan.pubsub {
				place.Publish = v.buses[i].redis.Address()
				for j, way := range v.ways {
					if j != i {
						place.Subscribe = append(place.Subscribe, way.Address())
					}
				}
			}
			c.Regions = append(c.Regions, place)
		}
		all = append(all, c)
	}
	return all
}

// prefixed begins every write with who it is by.
type prefixed struct {
	to   io.Writer
	name string
}

func (p prefixed) Write(line []byte) (int, error) {
	_, err := p.to.Write(append([]byte(p.name), line...))
	return len(line), err
}

// startBuses runs a Redis in each region where applications publish, and the ways to them.
func (v *victims) startBuses(ctx context.Context, dir string) error {
	ports, err := process.FreePorts(len(v.mesh.regions))
	if err != nil {
		return err
	}
	for _, port := range ports {
		bus, err := startNode(ctx, process.Redis{Port: port, Dir: dir})
		if err != nil {
			return err
		}
		v.buses = append(v.buses, bus)
		way, err := delay.Listen(bus.redis.Address(), chaosWay)
		if err != nil {
			return err
		}
		v.ways = append(v.ways, way)
	}
	return nil
}

func (r *chaosResult) markdown(w io.Writer) {
	r.header.markdown(w, "everything is killed while a checker looks")
	var kills []string
	for _, kind := range slices.Sorted(maps.Keys(r.Kills)) {
		kills = append(kills, fmt.Sprintf("%s %d", strings.ReplaceAll(kind, "_", " "), r.Kills[kind]))
	}
	fmt.Fprintf(w, "Two regions of %v shards with a replica each and %v sidecars, %v ms apart. An application changes keys in a database and invalidates them through both regions, its\n"+
		"reads refill from replicas that lag by up to %v s. %d changes were acknowledged; killed with SIGKILL meanwhile (seed %d): %s. **%d acknowledged\n"+
		"invalidations were lost, %d stale values stayed**; %d were served later than %v s after the change, and %d more until a fence, of which there were %d.\n",
		r.Plan["shards"], r.Plan["sidecars"], r.Plan["one_way_delay_ms"], r.Plan["database_lag_seconds"], r.Writes, r.Seed, strings.Join(kills, ", "),
		r.Lost, r.Outlived, r.Stale, r.Plan["bound_seconds"], r.Fenced, len(r.Fences))
	switch {
	case r.PubSub:
		fmt.Fprint(w, "\nThis was Redis Pub/Sub in cachemesh's place.\n")
	case r.Peer != nil:
		fmt.Fprintf(w, "Redis Pub/Sub in cachemesh's place lost %d of %d.\n", r.Peer.Lost, r.Peer.Writes)
	}
	if len(r.Fences) > 0 {
		fmt.Fprint(w, "\n| at, s | fence | of | for, s | why |\n|---|---|---|---|---|\n")
	}
	for _, f := range r.Fences {
		fmt.Fprintf(w, "| %.1f | %s → %s | %s | %.1f | %s |\n", f.Since.Sub(r.Began).Seconds(), f.From, f.To, f.Shard, f.Last.Sub(f.Since).Seconds(), f.Reason)
	}
}
