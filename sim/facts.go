package main

import (
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// facts are what has truly reached a control plane's process. They are kept beside the manager, and decide nothing: the judge holds
// the manager's decisions against them.
type facts struct {
	decided  time.Duration              // when it decided last
	led      time.Duration              // since when it leads
	proof    time.Duration              // by its clock, of the last request of which Consul knows that its session lived
	good     map[string]time.Duration   // by address and run id: the last answer as a primary
	answered map[string]time.Duration   // by address
	views    map[string]shards.Node     // by address
	epochs   map[string]uint64          // by shard, as the process knows it
	since    map[string]time.Duration   // by shard: from when on it knows that epoch
	votes    map[string]map[string]vote // by shard and agent
	agents   map[string]time.Duration   // when each was seen last
	gone     map[string]time.Duration   // when each said goodbye
	refusals map[string]int             // by address: promotions in a row that failed
}

type vote struct {
	shards.Verdict
	at time.Duration
}

func newFacts() facts {
	return facts{good: map[string]time.Duration{}, answered: map[string]time.Duration{}, views: map[string]shards.Node{}, epochs: map[string]uint64{},
		since: map[string]time.Duration{}, votes: map[string]map[string]vote{}, agents: map[string]time.Duration{}, gone: map[string]time.Duration{}, refusals: map[string]int{}}
}

func (f *facts) probed(c *plane, view shards.Node) {
	f.answered[view.Address], f.views[view.Address] = c.w.now, view
	if view.Role == mesh.Primary && !view.Loading {
		f.good[view.Address+" "+view.RunID] = c.w.now
	}
}

// promotion takes in what came of one.
func (f *facts) promotion(address string, err error) {
	f.refusals[address]++
	if err == nil {
		f.refusals[address] = 0
	}
}

// loaded takes in a state that the process knows from now on.
func (f *facts) loaded(c *plane, state shards.State) {
	for name, shard := range state.Shards {
		if f.since[name] == 0 || f.epochs[name] != shard.Epoch {
			f.epochs[name], f.since[name] = shard.Epoch, c.w.now
		}
	}
}

func (f *facts) seen(agent string, now time.Duration) { f.agents[agent] = now; delete(f.gone, agent) }
func (f *facts) left(agent string, now time.Duration) { f.gone[agent] = now }

func (f *facts) verdicts(agent string, all []shards.Verdict, now time.Duration) {
	f.agents[agent] = now
	for _, v := range all {
		if f.votes[v.Shard] == nil {
			f.votes[v.Shard] = map[string]vote{}
		}
		f.votes[v.Shard][agent] = vote{v, now}
	}
}

// prove notes that Consul knew the session when it took a request that was sent then.
func (c *plane) prove(session string, sent time.Time) {
	if session == c.store.lease.Session() {
		c.facts.proof = max(c.facts.proof, sent.Sub(c.base))
	}
}

// silent is for how long there was no good answer of the primary, as far as that can be told.
func (f *facts) silent(now time.Duration, name string, shard shards.Shard) time.Duration {
	return now - max(f.good[shard.Primary+" "+shard.RunID], f.led, f.since[name])
}

// alive says whether a node has answered lately. strictly is by every clock, whatever its pace; else it is by some.
func (f *facts) alive(c *plane, address string, strictly bool) bool {
	limit := c.w.settings.downAfter * 103 / 100
	if strictly {
		limit = c.w.settings.downAfter * 97 / 100
	}
	at, ok := f.answered[address]
	return ok && c.w.now-at < limit
}

// heir says whether a node can take over the shard's data.
func (f *facts) heir(c *plane, shard shards.Shard, address string, strictly bool) bool {
	n := f.views[address]
	return address != shard.Primary && f.alive(c, address, strictly) && n.Role == mesh.Replica && !n.Loading && n.ReplID != "" && n.ReplID == shard.ReplID
}
