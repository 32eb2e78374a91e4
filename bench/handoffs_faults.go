package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/node"
)

// handoffFault is something that fails while a handoff is under way.
type handoffFault struct {
	name    string
	weight  int
	longest float64 // seconds until it is mended
}

var handoffFaults = []handoffFault{
	{"none", 3, 0}, {"leader_killed", 2, 1}, {"recipient_killed", 3, 2}, {"recipient_stopped", 3, 3}, {"donor_killed", 3, 2}, {"donor_stopped", 3, 3},
	{"replica_killed", 1, 2}, {"tracking_cut", 3, 0}, {"agent_killed", 2, 1}, {"agent_stopped", 2, 4}, {"envoy_killed", 1, 0},
}

func faultNames() (names []string) {
	for _, f := range handoffFaults {
		names = append(names, f.name)
	}
	return names
}

func (p handoffsPlan) validate() error {
	for _, f := range p.faults {
		if !slices.Contains(faultNames(), f) {
			return fmt.Errorf("--fault %s: want some of %s", f, strings.Join(faultNames(), ", "))
		}
	}
	return nil
}

// fail has the round's fault happen at its moment, and mends it. Whom it hits is drawn, too.
func (m *handoffMesh) fail(ctx context.Context, r *handoffRound) error {
	if r.Fault == "none" {
		return nil
	}
	random := rand.New(rand.NewPCG(r.Seed, 3))
	base, sidecar := m.region.sets[random.IntN(len(m.region.sets))], m.region.sidecars[random.IntN(len(m.region.sidecars))]
	donor, recipient := base, m.spare.replicaSet
	if r.Kind == "remove" {
		donor, recipient = m.spare.replicaSet, base
	}
	if err := m.waitFor(ctx, r.When); err != nil {
		return err
	}
	who, how, _ := strings.Cut(r.Fault, "_")
	var h hit
	var err error
	switch who {
	case "leader":
		h = hit{what: "control plane", kill: func() error { m.region.control.running.Kill(); return nil }, back: m.region.control.start}
	case "recipient":
		h, err = nodeHit(ctx, recipient, how, true)
	case "donor":
		h, err = nodeHit(ctx, donor, how, true)
	case "replica":
		h, err = nodeHit(ctx, donor, how, false)
	case "tracking":
		h = hit{what: donor.name, kill: func() error { return cutTracking(ctx, donor) }}
	case "envoy":
		h = sidecar.envoyHit()
	case "agent":
		h = sidecar.agentHit()
		if how == "stopped" {
			h.kill = func() error { return sidecar.agent.running.Signal(syscall.SIGSTOP) }
			h.back = func(context.Context) error { return sidecar.agent.running.Signal(syscall.SIGCONT) }
		}
	}
	if errors.Is(err, errNoPrimary) {
		return nil // it has none yet, or is gone
	}
	if err != nil {
		return err
	}
	state, err := m.spare.state()
	if err != nil {
		return err
	}
	struck, excused := time.Now(), who == "donor" || who == "recipient" || who == "leader"
	step := state.step()
	if step == "" {
		step = ended
	}
	r.What, r.Struck = h.what, step
	if err := h.kill(); err != nil {
		return fmt.Errorf("%s: %w", r.Fault, err)
	}
	if h.back == nil {
		return nil
	}
	// It must be there again to be stopped well, whatever ctx says.
	_ = sleep(ctx, time.Duration(r.For*float64(time.Second)))
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if err := h.back(back); err != nil {
		return fmt.Errorf("mend %s: %w", r.Fault, err)
	}
	if excused {
		m.lapses = append(m.lapses, lapse{struck.Add(-losesBefore), time.Now().Add(2 * losesBefore)})
	}
	return nil
}

var errNoPrimary = errors.New("no primary")

// nodeHit is of the primary of a set, or of its replica.
func nodeHit(ctx context.Context, set replicaSet, how string, primary bool) (hit, error) {
	for _, n := range set.nodes {
		info, err := n.direct.InfoMap(ctx, "replication").Result()
		if err != nil || (info["Replication"]["role"] == "master") != primary {
			continue
		}
		h := hit{what: fmt.Sprintf("%s %s", set.name, n.redis.Address())}
		if how == "killed" {
			h.kill = func() error { n.running.Kill(); return nil }
			h.back = func(ctx context.Context) (err error) { n.running, err = n.redis.Start(ctx); return err }
		} else {
			h.kill = func() error { return n.inflict(how) }
			h.back = func(context.Context) error { return n.resume(how) }
		}
		return h, nil
	}
	return hit{}, errNoPrimary
}

// cutTracking cuts all connections on which a set is watched.
func cutTracking(ctx context.Context, set replicaSet) error {
	for _, n := range set.nodes {
		list, err := n.direct.ClientList(ctx).Result()
		if err != nil {
			return err
		}
		for client := range node.Clients(list) {
			if strings.Contains(client["flags"], "t") {
				if err := n.direct.ClientKillByFilter(ctx, "ID", client["id"]).Err(); err != nil && !errors.Is(err, redis.Nil) {
					return err
				}
			}
		}
	}
	return nil
}
