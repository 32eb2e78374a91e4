package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/bench/delay"
	"github.com/cachemesh/cachemesh/bench/pubsub"
	"github.com/cachemesh/cachemesh/process"
)

// invalidationPlan is how invalidations between regions are measured.
type invalidationPlan struct {
	regions       []int           // how many there are
	delays        []time.Duration // one way
	rate          float64         // invalidations a second
	warmUp        time.Duration
	window        time.Duration
	settle        time.Duration // after the last write, until what has not arrived counts as lost
	partition     time.Duration
	partitionRate float64
	partitionWay  time.Duration // one-way delay with a partition
}

var (
	invalidationFull = invalidationPlan{regions: []int{2, 3}, delays: []time.Duration{0, 40 * time.Millisecond, 100 * time.Millisecond}, rate: 500,
		warmUp: time.Second, window: 12 * time.Second, settle: 5 * time.Second, partition: time.Minute, partitionRate: 2000, partitionWay: 40 * time.Millisecond}
	// Its partition is longer than a subscriber waits until it connects anew.
	invalidationQuick = invalidationPlan{regions: []int{2}, delays: []time.Duration{0, 40 * time.Millisecond}, rate: 100,
		warmUp: 300 * time.Millisecond, window: time.Second, settle: 2 * time.Second, partition: 3 * pubsub.Silence, partitionRate: 200, partitionWay: 40 * time.Millisecond}
)

const (
	// invalidationRoutes are cachemesh's, and one for Pub/Sub, of which cachemesh tells nobody.
	invalidationRoutes = `prefix: "user:", coherence: invalidate, writes: refill
prefix: ""`
	coherentPrefix, pubsubPrefix = "user:", "plain:"
	invalidationShards           = 2
)

// invalidationResult is what `bench invalidation` prints.
type invalidationResult struct {
	header
	Plan map[string]any `json:"plan"`
	Lost int            `json:"lost"` // acknowledged invalidations that another region never saw, of all runs
	// BeyondDelay is p99 less the one-way delay, by delay in milliseconds: the worst of the numbers of regions.
	BeyondDelay    map[string]float64 `json:"lag_p99_beyond_delay_ms"`
	PartitionDrain float64            `json:"partition_drain_seconds"`
	PubSubLost     int                `json:"pubsub_lost"`
	// Lags go contender → "2 regions, 40 ms".
	Lags       map[string]map[string]*lagFigures `json:"lags"`
	Partitions map[string]*partitionFigures      `json:"partitions"` // by contender
}

// lagFigures are times from the write's reply until no region serves the old value.
type lagFigures struct {
	Regions int     `json:"regions"`
	Delay   float64 `json:"one_way_delay_ms"`
	Writes  int     `json:"writes"` // acknowledged
	Failed  int     `json:"failed_writes"`
	P50     float64 `json:"lag_ms_p50"`
	P99     float64 `json:"lag_ms_p99"`
	P999    float64 `json:"lag_ms_p999"`
	Lost    int     `json:"lost"`
}

// partitionFigures are of one partition under load.
type partitionFigures struct {
	Seconds float64 `json:"seconds"`
	Backlog int     `json:"backlog"` // writes acknowledged before it ended
	Writes  int     `json:"writes"`  // acknowledged at all
	Failed  int     `json:"failed_writes"`
	// Drain is the time from its end until no other region served the backlog's old values, or until nobody looked any more: then some are lost.
	Drain float64 `json:"drain_seconds,omitempty"` // cachemesh only
	Lost  int     `json:"lost"`
}

// invalidator is one way to invalidate in all regions.
type invalidator struct {
	name, prefix string
	clients      []*redis.Client // by region
	// tell has the other regions learn of a key that was removed at home; nil is that the cache itself does.
	tell func(ctx context.Context, home int, key string) error
	part func(parted bool)
}

func benchInvalidation(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "invalidation", s.quick)
	if err != nil {
		return nil, err
	}
	plan := invalidationFull
	if s.quick {
		plan = invalidationQuick
	}
	cachemesh, err := build(ctx, s.dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return nil, err
	}
	r := &invalidationResult{header: head, BeyondDelay: map[string]float64{}, Lags: map[string]map[string]*lagFigures{"cachemesh": {}, "pubsub": {}},
		Partitions: map[string]*partitionFigures{}, Plan: map[string]any{"shards": invalidationShards, "writes_per_second": plan.rate, "window_seconds": plan.window.Seconds(),
			"partition_seconds": plan.partition.Seconds(), "partition_writes_per_second": plan.partitionRate, "partition_one_way_delay_ms": milliseconds(plan.partitionWay),
			"pubsub_silence_ms": milliseconds(pubsub.Silence)}}
	for _, n := range plan.regions {
		if err := r.among(ctx, s, plan, cachemesh, n); err != nil {
			return nil, fmt.Errorf("%d regions: %w", n, err)
		}
	}
	for _, f := range r.Lags["cachemesh"] {
		r.Lost += f.Lost
		delay := fmt.Sprint(f.Delay)
		r.BeyondDelay[delay] = max(r.BeyondDelay[delay], rounded(f.P99-f.Delay))
	}
	for _, f := range r.Lags["pubsub"] {
		r.PubSubLost += f.Lost
	}
	r.Lost += r.Partitions["cachemesh"].Lost
	r.PubSubLost += r.Partitions["pubsub"].Lost
	r.PartitionDrain = r.Partitions["cachemesh"].Drain
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// among measures between n regions. The partition is between two.
func (r *invalidationResult) among(ctx context.Context, s settings, plan invalidationPlan, cachemesh string, n int) error {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("region-%d", i+1))
	}
	dir := fmt.Sprintf("%s/%d", s.dir, n)
	m, err := startRegions(ctx, dir, cachemesh, regionsPlan{names: names, routes: invalidationRoutes, probe: coherentPrefix, shards: invalidationShards, nodes: 1, sidecars: 1, link: true})
	if err != nil {
		return err
	}
	defer m.stop()
	var clients []*redis.Client
	for _, region := range m.regions {
		clients = append(clients, patientClient(region.sidecars[0].redis))
	}
	defer closeClients(clients)
	var running programs
	defer running.stop()
	peer, err := startPubSub(ctx, &running, dir, clients)
	if err != nil {
		return err
	}
	defer peer.close()
	ways := append(m.links, peer.ways...)
	part := func(parted bool) {
		for _, way := range ways {
			if parted {
				way.Part()
			} else {
				way.Heal()
			}
		}
	}
	contenders := []*invalidator{
		{name: "cachemesh", prefix: coherentPrefix, clients: clients, part: part},
		{name: "pubsub", prefix: pubsubPrefix, clients: clients, part: part, tell: peer.tell},
	}
	if err := contenders[0].linked(ctx); err != nil {
		return err
	}
	for _, delay := range plan.delays {
		for _, way := range ways {
			way.SetDelay(delay)
		}
		for _, c := range contenders {
			name := fmt.Sprintf("%d regions, %v ms", n, milliseconds(delay))
			f, err := c.lag(ctx, plan, delay)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, name, err)
			}
			r.Lags[c.name][name] = f
			fmt.Fprintf(s.progress, "%s, %s: p50 %.1f ms, p99 %.1f ms, p99.9 %.1f ms; %d of %d lost, %d failed\n", c.name, name, f.P50, f.P99, f.P999, f.Lost, f.Writes, f.Failed)
		}
	}
	if n > 2 {
		return nil
	}
	for _, way := range ways {
		way.SetDelay(plan.partitionWay)
	}
	for _, c := range contenders {
		f, err := c.partition(ctx, plan)
		if err != nil {
			return fmt.Errorf("%s, partition: %w", c.name, err)
		}
		r.Partitions[c.name] = f
		fmt.Fprintf(s.progress, "%s: a partition of %.0f s: %d writes waited, %.2f s to drain, %d of %d lost, %d failed\n", c.name, f.Seconds, f.Backlog, f.Drain, f.Lost, f.Writes, f.Failed)
	}
	return nil
}

// pubsubPeer is a Redis in each region, to which the other regions subscribe over ways as long as those of the links.
type pubsubPeer struct {
	publish []*redis.Client // by region
	ways    []*delay.Proxy
	stop    context.CancelFunc
	done    []chan struct{}
}

// startPubSub has every region hear of the others' changes and remove the keys through its cache.
func startPubSub(ctx context.Context, running *programs, dir string, caches []*redis.Client) (*pubsubPeer, error) {
	ports, err := process.FreePorts(len(caches))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	p := &pubsubPeer{stop: stop}
	for home, port := range ports {
		server := process.Redis{Port: port, Dir: dir}
		started, err := server.Start(ctx)
		if err != nil {
			p.close()
			return nil, err
		}
		*running = append(*running, started)
		p.publish = append(p.publish, patientClient(server.Address()))
		for away, cache := range caches {
			if away == home {
				continue
			}
			way, err := delay.Listen(server.Address(), 0)
			if err != nil {
				p.close()
				return nil, err
			}
			p.ways = append(p.ways, way)
			s, err := pubsub.Subscribe(ctx, way.Address())
			if err != nil {
				p.close()
				return nil, err
			}
			done := make(chan struct{})
			p.done = append(p.done, done)
			go func() {
				defer close(done)
				defer s.Close()
				s.Hear(ctx, func(key string) { cache.Del(ctx, key) }) // the cache is well
			}()
		}
	}
	return p, nil
}

func (p *pubsubPeer) tell(ctx context.Context, home int, key string) error {
	return pubsub.Publish(ctx, p.publish[home], key)
}

func (p *pubsubPeer) close() {
	p.stop()
	for _, done := range p.done {
		<-done
	}
	for _, way := range p.ways {
		way.Close()
	}
	closeClients(p.publish)
}

func (r *invalidationResult) markdown(w io.Writer) {
	r.header.markdown(w, "how fast the other regions forget")
	ours, peer := r.Partitions["cachemesh"], r.Partitions["pubsub"]
	fmt.Fprintf(w, "%v invalidations/s, %v shards a region, each region with an Envoy and its agent; lag is from the write's reply until no region serves the old value. %d were lost.\n"+
		"After a partition of %.0f s with %v writes/s, a backlog of %d is drained in %.1f s with %d lost. Redis Pub/Sub, whose subscribers ask after %v ms of\n"+
		"silence and connect anew, loses %d of %d then.\n\n",
		r.Plan["writes_per_second"], r.Plan["shards"], r.Lost, ours.Seconds, r.Plan["partition_writes_per_second"], ours.Backlog, ours.Drain, ours.Lost,
		r.Plan["pubsub_silence_ms"], peer.Lost, peer.Writes)
	fmt.Fprintln(w, "| regions | one-way delay ms | | lag p50 ms | p99 | p99.9 | lost |")
	fmt.Fprintln(w, "|--:|--:|---|--:|--:|--:|--:|")
	for _, f := range sortedLags(r.Lags) {
		fmt.Fprintf(w, "| %d | %.0f | %s | %.1f | %.1f | %.1f | %d of %d |\n", f.Regions, f.Delay, f.contender, f.P50, f.P99, f.P999, f.Lost, f.Writes)
	}
}
