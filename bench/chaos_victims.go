package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cachemesh/cachemesh/bench/delay"
)

// victims are what is killed, and mended as whoever runs it would: after a while it is started again as it was.
type victims struct {
	mesh   *meshRegions
	coming []*comingShard // by region
	buses  []*redisNode   // by region, with Pub/Sub
	ways   []*delay.Proxy // to them

	random *rand.Rand
	began  time.Time

	mu      sync.Mutex
	down    map[any]bool // what is killed or not yet well again
	strikes []strike
	errs    []error
	mending sync.WaitGroup
}

// strike is one kill.
type strike struct {
	Time   time.Time `json:"time"`
	At     float64   `json:"at_seconds"` // since the first change
	Kind   string    `json:"kind"`
	Region string    `json:"region"`
	What   string    `json:"what"`
	Back   float64   `json:"back_after_seconds"` // that it is started again; 0 is by its agent
}

// kindOfStrike is one, and how often it is.
type kindOfStrike struct {
	name   string
	weight int
}

var kinds = []kindOfStrike{
	{"agent", 4}, {"agents_of_a_region", 1}, {"envoy", 3}, {"primary", 4}, {"replica", 2}, {"primary_and_agent", 1}, {"control_plane", 2}, {"shard", 1}, {"handoff", 2},
}

func kindNames() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

func newVictims(ctx context.Context, dir string, m *meshRegions, plan chaosPlan) (*victims, error) {
	v := &victims{mesh: m, random: rand.New(rand.NewPCG(plan.seed, 0)), down: map[any]bool{}}
	for _, region := range m.regions {
		c, err := startComingShard(ctx, region, filepath.Join(dir, region.name))
		if err != nil {
			v.stop()
			return nil, err
		}
		v.coming = append(v.coming, c)
	}
	if plan.pubsub {
		if err := v.startBuses(ctx, dir); err != nil {
			v.stop()
			return nil, err
		}
	}
	return v, nil
}

func (v *victims) stop() {
	for _, c := range v.coming {
		c.stop()
	}
	for _, way := range v.ways {
		way.Close()
	}
	for _, bus := range v.buses {
		bus.stop()
	}
}

// run kills until the time is over, and returns when all is started again.
func (v *victims) run(ctx context.Context, plan chaosPlan, progress io.Writer) error {
	v.began = time.Now()
	defer v.mending.Wait()
	kinds := slices.DeleteFunc(slices.Clone(kinds), func(k kindOfStrike) bool { return len(plan.kinds) > 0 && !slices.Contains(plan.kinds, k.name) })
	if plan.pubsub {
		kinds = append(kinds, kindOfStrike{"bus", 8})
	}
	if len(kinds) == 0 {
		return fmt.Errorf("--kill %v: want some of %v", plan.kinds, kindNames())
	}
	total := 0
	for _, kind := range kinds {
		total += kind.weight
	}
	for {
		pause := time.Duration((0.5 + v.random.Float64()) * float64(plan.every))
		if time.Since(v.began)+pause > plan.time {
			v.mending.Wait()
			v.mu.Lock()
			defer v.mu.Unlock()
			return errors.Join(v.errs...)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		n := v.random.IntN(total)
		for _, kind := range kinds {
			if n -= kind.weight; n < 0 {
				v.strike(ctx, kind.name, progress)
				break
			}
		}
		v.mu.Lock()
		failed := errors.Join(v.errs...)
		v.mu.Unlock()
		if failed != nil {
			return failed
		}
	}
}

// hit is something to kill and how to mend it.
type hit struct {
	key  any // what must be well before
	what string
	kill func() error
	back func(context.Context) error // starts it and returns when it is well; nil is that somebody else does
}

// strike kills one thing of the kind, or several at once, unless one of them is down. What is drawn does not depend on that.
func (v *victims) strike(ctx context.Context, kind string, progress io.Writer) {
	i := v.random.IntN(len(v.mesh.regions))
	region := v.mesh.regions[i]
	sidecar := region.sidecars[v.random.IntN(len(region.sidecars))]
	set := region.sets[v.random.IntN(len(region.sets))]
	back := time.Duration((0.2 + 1.8*v.random.Float64()) * float64(time.Second))
	var hits []hit
	switch kind {
	case "agent":
		hits = append(hits, sidecar.agentHit())
	case "agents_of_a_region":
		for _, s := range region.sidecars {
			hits = append(hits, s.agentHit())
		}
	case "envoy":
		hits = append(hits, sidecar.envoyHit())
	case "control_plane":
		hits = append(hits, hit{region.control, "control plane", func() error { region.control.running.Kill(); return nil }, region.control.start})
	case "primary", "replica", "primary_and_agent":
		// A shard is hit again when it has two nodes again, but for the kind that is the whole shard.
		asked, cancel := context.WithTimeout(ctx, time.Second)
		primary, _, replica, err := set.synced(asked)
		cancel()
		if err != nil {
			return
		}
		node := primary
		if kind == "replica" {
			node = replica
		}
		hits = append(hits, node.hit(set))
		if kind == "primary_and_agent" {
			hits = append(hits, sidecar.agentHit())
		}
	case "shard":
		for _, node := range set.nodes {
			hits = append(hits, node.hit(set))
		}
	case "handoff":
		// Nothing is killed: whatever is next meets the handoff.
		hits = append(hits, hit{v.coming[i], "nothing, a shard comes or goes", func() error { return nil }, v.coming[i].comeOrGo})
	case "bus":
		hits = append(hits, v.buses[i].hit(replicaSet{}))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if slices.ContainsFunc(hits, func(h hit) bool { return v.down[h.key] }) {
		return
	}
	s := strike{Time: time.Now().UTC(), At: rounded(time.Since(v.began).Seconds()), Kind: kind, Region: region.name, Back: rounded(back.Seconds())}
	for _, h := range hits {
		v.down[h.key] = true
		if s.What != "" {
			s.What += ", "
		}
		s.What += h.what
		if err := h.kill(); err != nil {
			v.errs = append(v.errs, fmt.Errorf("kill %s of %s: %w", h.what, region.name, err))
		}
	}
	v.strikes = append(v.strikes, s)
	fmt.Fprintf(progress, "%.1f s: killed in %s: %s\n", s.At, s.Region, s.What)
	for _, h := range hits {
		v.mending.Go(func() {
			time.Sleep(back)
			// Not with ctx: what is killed must be there again to be stopped well.
			ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
			defer cancel()
			err := h.back(ctx)
			v.mu.Lock()
			defer v.mu.Unlock()
			delete(v.down, h.key)
			if err != nil {
				v.errs = append(v.errs, fmt.Errorf("after the kill of %s of %s: %w", h.what, region.name, err))
			}
		})
	}
}

func (s *linkedSidecar) agentHit() hit {
	return hit{s.agent, "agent " + s.agent.spec.Name, func() error { s.agent.running.Kill(); return nil }, s.agent.start}
}

// envoyHit is mended by the agent.
func (s *linkedSidecar) envoyHit() hit {
	old := 0
	return hit{s.home, "Envoy of " + s.agent.spec.Name, func() (err error) {
		if old, err = s.envoy(); err != nil {
			return err
		}
		if err = syscall.Kill(old, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) {
			err = nil // it had ended
		}
		return err
	}, func(ctx context.Context) error {
		return eventually(ctx, "another Envoy", func(context.Context) error {
			if pid, err := s.envoy(); err != nil || pid == old {
				return fmt.Errorf("it is process %d still (%w)", pid, err)
			}
			return nil
		})
	}}
}

// hit is of a node of a set, which is well when it follows the primary or is it; a set without nodes has only this one.
func (n *redisNode) hit(set replicaSet) hit {
	return hit{n, "Redis " + n.redis.Address(), func() error { n.running.Kill(); return nil }, func(ctx context.Context) error {
		started, err := n.redis.Start(ctx)
		if err != nil {
			return err
		}
		n.running = started
		if len(set.nodes) == 0 {
			return nil
		}
		return eventually(ctx, set.name, func(ctx context.Context) error { _, _, _, err := set.synced(ctx); return err })
	}}
}
