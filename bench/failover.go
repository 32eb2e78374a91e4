package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/mesh"
)

// failoverPlan is how often primaries are killed and stopped.
type failoverPlan struct {
	rounds, sentinelRounds int           // of each fault; pauses have as many as Sentinel
	every                  time.Duration // a write to the victim's shard, a request to the others
	before                 time.Duration // load without fault
	resume                 time.Duration // from the first acknowledgement by another process until one that hangs goes on: longer than a request may wait
	calm                   time.Duration // load after that without a failure: longer than any request may take
	limit                  time.Duration // what an outage that does not end counts as
	writtenKeys, readKeys  int           // a shard; a round writes no key twice
}

var (
	failoverFull = failoverPlan{rounds: 100, sentinelRounds: 20, every: time.Millisecond, before: 2 * time.Second, resume: 600 * time.Millisecond,
		calm: 1200 * time.Millisecond, limit: 20 * time.Second, writtenKeys: 10_000, readKeys: 500}
	failoverQuick = failoverPlan{rounds: 1, sentinelRounds: 1, every: 2 * time.Millisecond, before: 500 * time.Millisecond, resume: 600 * time.Millisecond,
		calm: 1200 * time.Millisecond, limit: 20 * time.Second, writtenKeys: 10_000, readKeys: 100}
)

// faults of a primary: SIGKILL, SIGSTOP, and a SIGSTOP that ends as soon as another process answers in its place.
var faults = []string{"kill", "hang", pause}

const pause = "pause"

func failoverFlags(cmd *cobra.Command, s *settings) {
	f := cmd.Flags()
	f.IntVar(&s.rounds, "rounds", 0, "rounds of each fault (default: 100)")
	f.IntVar(&s.sentinelRounds, "sentinel-rounds", -1, "rounds of each fault with Sentinel, at most as many (default: 20)")
}

// contender is one way to fail over.
type contender struct {
	name    string
	sets    []replicaSet
	written [][]string // keys by set
	// read are those of the bystander, by set; nil is none.
	read    [][]string
	connect func() []*redis.Client // as an application does
	settled func(context.Context) error
	// restore mends what a fault has left.
	restore func(ctx context.Context, n *redisNode, fault string) error
	// look tells what the contender says of a fault, and counts keys that moved. It is called when all is served again.
	look   func(ctx context.Context, f *failoverFigures, set int, at time.Time) (epoch time.Time, err error)
	number int64 // of the last write
	turn   int   // whose primary is next
}

func benchFailover(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "failover", s.quick)
	if err != nil {
		return nil, err
	}
	plan := failoverFull
	if s.quick {
		plan = failoverQuick
	}
	if s.rounds > 0 {
		plan.rounds = s.rounds
	}
	if s.sentinelRounds >= 0 {
		plan.sentinelRounds = s.sentinelRounds
	}
	plan.sentinelRounds = min(plan.sentinelRounds, plan.rounds)
	redis.SetLogger(silence{})
	var running programs
	defer running.stop()
	r := newFailoverResult(head, plan)
	m, err := startFailoverMesh(ctx, &running, s.dir, plan)
	if err != nil {
		return nil, err
	}
	defer m.stop()
	ours := &contender{name: "cachemesh", sets: m.sets, written: m.written, read: m.read, connect: m.connect, settled: m.settled, restore: m.restore,
		look: func(ctx context.Context, f *failoverFigures, set int, at time.Time) (time.Time, error) {
			return m.look(ctx, r, f, set, at)
		}}
	contenders := []*contender{ours}
	if plan.sentinelRounds > 0 {
		sentinel, err := startSentinels(ctx, &running, s.dir, mesh.DefaultDownAfter)
		if err != nil {
			return nil, err
		}
		defer sentinel.stop()
		contenders = append(contenders, &contender{name: "sentinel", sets: []replicaSet{sentinel.set}, written: m.written[:1],
			connect: sentinel.connect, settled: sentinel.settled, restore: sentinel.restore})
	}
	for round := range plan.rounds {
		for _, i := range interleaved(len(faults), round) {
			for _, c := range contenders {
				few := c != ours || faults[i] == pause
				if few && plan.sentinelRounds*(round+1)/plan.rounds == plan.sentinelRounds*round/plan.rounds {
					continue
				}
				f := r.Contenders[c.name][faults[i]]
				err := c.round(ctx, plan, f, faults[i])
				for errors.Is(err, errUnasked) && f.Unasked < maxUnasked {
					f.Unasked++
					err = c.round(ctx, plan, f, faults[i])
				}
				if err != nil {
					return nil, fmt.Errorf("round %d, %s, %s: %w", round+1, c.name, faults[i], err)
				}
				fmt.Fprintf(s.progress, "round %d of %d: %s, %s: %s\n", round+1, plan.rounds, c.name, faults[i], f.last())
			}
		}
	}
	r.summarize()
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// errUnasked is a failover before the fault. A machine that stands still for longer than a primary may be silent has one.
var errUnasked = errors.New("there was a failover before the fault")

// maxUnasked is how many such failovers are no reason to give up.
const maxUnasked = 10

// silence is in place of the client's log, which has a line for each connection that fails.
type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// round inflicts one fault on one primary under load and adds what came of it.
func (c *contender) round(ctx context.Context, plan failoverPlan, f *failoverFigures, fault string) error {
	if err := eventually(ctx, "before the fault", c.settled); err != nil {
		return err
	}
	set := c.turn % len(c.sets)
	c.turn++
	victim, old, _, err := c.sets[set].synced(ctx)
	if err != nil {
		return err
	}
	w := &writer{clients: c.connect(), keys: c.written[set], first: c.number + 1}
	defer closeClients(w.clients)
	if err := warm(ctx, w.clients, int(clientTimeout/plan.every)+100); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	b := &bystander{clients: c.connect()}
	defer closeClients(b.clients)
	for i, keys := range c.read {
		if i != set {
			b.keys = append(b.keys, keys...)
		}
	}
	at, until, err := underLoad(ctx, plan, w, b, victim, fault, old)
	c.number += int64(len(w.attempts))
	if err != nil {
		return err
	}
	if err := eventually(ctx, "restore the node", func(ctx context.Context) error { return c.restore(ctx, victim, fault) }); err != nil {
		return err
	}
	var epoch time.Time
	if c.look != nil {
		if epoch, err = c.look(ctx, f, set, at); err != nil {
			return err
		}
	}
	f.add(plan, at, until, old, epoch, w, b)
	if err := eventually(ctx, "after the fault", func(ctx context.Context) error { _, _, _, err := c.sets[set].synced(ctx); return err }); err != nil {
		return err
	}
	stored, err := storedNumbers(ctx, w.clients[0], w.keys)
	if err != nil {
		return fmt.Errorf("read the written keys: %w", err)
	}
	f.Lost += lost(w.attempts, stored)
	return nil
}

// underLoad inflicts a fault on the primary, whose process is old, and returns when. It keeps the load up before and after, until no write
// has failed for a while; what fails later has another cause.
func underLoad(ctx context.Context, plan failoverPlan, w *writer, b *bystander, victim *redisNode, fault, old string) (at, until time.Time, err error) {
	loaded, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	load.Go(func() { w.run(loaded, plan.every) })
	if len(b.keys) > 0 {
		load.Go(func() { b.run(loaded, plan.every) })
	}
	// What disturbs the machine meanwhile must not count as what the fault did.
	if err := w.calm(ctx, plan.before, settleTimeout); err != nil {
		return at, until, err
	}
	if w.replaced(old) {
		return at, until, errUnasked
	}
	at = time.Now()
	if err := victim.inflict(fault); err != nil {
		return at, until, err
	}
	for !w.replaced(old) && time.Since(at) < plan.limit {
		if err := sleep(ctx, time.Millisecond); err != nil {
			return at, until, err
		}
	}
	if fault != pause {
		if err := sleep(ctx, plan.resume); err != nil {
			return at, until, err
		}
	}
	if err := victim.resume(fault); err != nil {
		return at, until, err
	}
	// Without calm the outage has not ended, and the round says so.
	if err := w.calm(ctx, plan.calm, plan.limit); err != nil && ctx.Err() != nil {
		return at, until, err
	}
	return at, time.Now(), nil
}

// sleep waits, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
