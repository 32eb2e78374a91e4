package sidecar

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/lane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/ring"
)

// carrier has a lane for each shard whose socket is bound, and keeps them at what the region's topology says.
type carrier struct {
	writer string // name of the lanes among the shards' writers
	log    *slog.Logger
	// both removes what is written of keys that move at their other owner.
	both *handoff.Coexistence
	// gap is told what a shard's journal lacks, before the write that it is about is answered.
	gap func(shard string, g lane.Gap)

	mu      sync.Mutex
	views   map[string]lane.View // by shard, of the topology that counts
	pools   map[string]string    // of the shards
	lanes   map[string]*carried
	running sync.WaitGroup
}

// carried is the lane of one shard.
type carried struct {
	server   *lane.Server
	listener net.Listener
}

func newCarrier(writer string, log *slog.Logger) *carrier {
	c := &carrier{writer: writer, log: log, both: handoff.NewCoexistence(log), lanes: map[string]*carried{}}
	c.gap = func(shard string, g lane.Gap) {
		log.Warn("a shard's journal lacks something", "shard", shard, "epoch", g.Epoch, "reason", g.Reason, "keys", len(g.Removed))
	}
	return c
}

// follow makes the lanes follow a topology. When it returns, no write that comes begins to go where the topology before said.
func (c *carrier) follow(t *mesh.Topology) {
	c.both.Update(t)
	views := laneViews(*t, c.both.Pair)
	pools := map[string]string{}
	for _, p := range t.Pools {
		for _, s := range p.Members() {
			pools[s.Name] = p.Name
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.views, c.pools = views, pools
	for shard, l := range c.lanes {
		l.server.Update(views[shard])
	}
}

// settled says whether the lanes of a pool have answered all that began as topologies before the last one said.
func (c *carrier) settled(pool string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for shard, l := range c.lanes {
		if c.pools[shard] == pool && !l.server.Settled() {
			return false
		}
	}
	return true
}

// laneViews are what the lanes of a topology must know, by shard. pair knows the keys of a pool that move.
func laneViews(t mesh.Topology, pair func(pool string) *handoff.Pair) map[string]lane.View {
	rings := map[string]*ring.Ring{}
	for _, p := range t.Pools {
		if t.PoolOnLanes(p) {
			rings[p.Name], _ = envoy.Ring(p) // one without shards has none, and others were tried when the topology came
		}
	}
	shardOf := func(key []byte) string {
		p, _, err := t.Route(key)
		if r := rings[p.Name]; err == nil && r != nil {
			return p.Shards[r.Find(key)].Name
		}
		return ""
	}
	views := map[string]lane.View{}
	for _, p := range t.Pools {
		for _, s := range p.Members() {
			if !t.PoolOnLanes(p) {
				continue
			}
			v := lane.View{StandIn: s.StandIn, Epoch: s.Epoch, Access: p.Redis, Routes: p.Routes, ShardOf: shardOf, Pair: pair(p.Name), Login: p.Login}
			if primary, ok := s.Primary(); ok {
				v.Address = primary.Address
			}
			views[s.Name] = v
		}
	}
	return views
}

// bind begins a shard's lane at path.
func (c *carrier) bind(shard, path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return err
	}
	// Nobody else can enter the folder meanwhile.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := lane.New(lane.Config{Shard: shard, Writer: c.writer, Encode: journal.Append, Both: c.both, Log: c.log, Gap: func(g lane.Gap) { c.gap(shard, g) }}, c.views[shard])
	c.lanes[shard] = &carried{s, l}
	c.running.Go(func() { _ = s.Serve(l) }) // until it is closed
	return nil
}

// unbind ends a shard's lane once Envoy has closed its connections.
func (c *carrier) unbind(shard string) {
	c.mu.Lock()
	l := c.lanes[shard]
	delete(c.lanes, shard)
	c.mu.Unlock()
	if l == nil {
		return
	}
	c.running.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), unboundGrace)
		defer cancel()
		_ = l.server.Drain(ctx) // those that are left then end all the same
		l.server.Close()
	})
}

// unboundGrace is how long connections of a lane that Envoy knows no more may take to end.
const unboundGrace = 2 * sweepEvery

// drain accepts no connection any more, and returns when the last has ended, or ctx has.
func (c *carrier) drain(ctx context.Context) {
	var draining sync.WaitGroup
	for _, l := range c.all() {
		draining.Go(func() { _ = l.server.Drain(ctx) }) // those that are left end with close
	}
	draining.Wait()
}

// close ends all lanes, each after what it has taken is answered.
func (c *carrier) close() {
	for _, l := range c.all() {
		l.server.Close()
	}
	c.running.Wait()
	c.both.Close()
}

func (c *carrier) all() map[string]*carried {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.lanes)
}

// stats are those of each lane, by shard.
func (c *carrier) stats() map[string]lane.Stats {
	all := map[string]lane.Stats{}
	for shard, l := range c.all() {
		all[shard] = l.server.Stats()
	}
	return all
}
