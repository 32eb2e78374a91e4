package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/journal"
	"github.com/cachemesh/cachemesh/reports"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	// settleLinks is how long after its start a control plane waits for agents, before it decides who follows what.
	settleLinks = 2 * time.Second
	lookAtLinks = 200 * time.Millisecond
	// silentLink is how long an agent that follows journals may say nothing. It speaks every 500 ms.
	silentLink = 1400 * time.Millisecond
	// fenceTimeout bounds one attempt to keep a fence on a shard.
	fenceTimeout = time.Second
)

// links decides which agent follows which shard's journals, and knows how they fare. What must not be lost is on the shards: every control plane
// of the region comes to about the same, and where two do not, a journal is followed twice for a while, which does no harm.
type links struct {
	region string
	log    *slog.Logger
	follow func(map[string]*reports.Follow)
	note   func(shards.Event) // is told of gaps and fences
	began  time.Time

	mu       sync.Mutex
	topology mesh.Topology
	agents   map[string]*linkAgent
	follower map[string]string // agent by shard
	pairs    map[linkPair]*pairState
	known    map[string]bool // shards whose journals a region has read
	states   map[linkOfPool]linkSince
	purging  map[string]time.Time // by pool: since when its handoff purges
	unread   func(map[string]string)
}

type (
	linkAgent struct {
		link    string // "" follows nothing
		heard   time.Time
		noticed uint64
	}
	linkPair  struct{ shard, region string }
	pairState struct {
		agent string
		at    time.Time
		told  *reports.Pair
		gaps  map[string]uint64
		sent  uint64 // by agents before
	}
	linkOfPool struct{ to, pool string }
	linkSince  struct {
		state LinkState
		since time.Time
	}
)

func newLinks(region string, log *slog.Logger) *links {
	return &links{region: region, log: log, began: time.Now(), agents: map[string]*linkAgent{}, follower: map[string]string{}, pairs: map[linkPair]*pairState{},
		known: map[string]bool{}, purging: map[string]time.Time{}, states: map[linkOfPool]linkSince{}, follow: func(map[string]*reports.Follow) {}, note: func(shards.Event) {}, unread: func(map[string]string) {}}
}

// update takes in what the region is like.
func (l *links) update(t mesh.Topology) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.topology = t
}

// seen says that an agent has a stream.
func (l *links) seen(agent, link string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.agents[agent]
	if a == nil {
		a = &linkAgent{}
		l.agents[agent] = a
	}
	// Its notices come again, from the first: one that began anew counts from 1.
	a.link, a.heard = link, time.Now()
}

// gone says that an agent has no stream any more.
func (l *links) gone(agent string) {
	l.mu.Lock()
	if a := l.agents[agent]; a != nil {
		a.link = ""
	}
	l.mu.Unlock()
	l.assign()
}

// heard takes in what an agent says of journals.
func (l *links) heard(agent string, pairs []*reports.Pair, notices []*reports.Notice) {
	now := time.Now()
	l.mu.Lock()
	a := l.agents[agent]
	if a == nil {
		l.mu.Unlock()
		return
	}
	a.heard = now
	for _, p := range pairs {
		s := l.pair(p.GetShard(), p.GetRegion())
		if s.agent != agent && l.follower[p.GetShard()] != agent && now.Sub(s.at) < silentLink {
			continue // of one that is about to stop
		}
		if s.told != nil && p.GetKeys() < s.told.GetKeys() {
			s.sent += s.told.GetKeys()
		}
		s.agent, s.at, s.told = agent, now, p
		if p.GetCursor() != "" {
			l.known[p.GetShard()] = true
		}
	}
	var events []shards.Event
	for _, n := range notices {
		// A few milliseconds apart, the time tells agents of the same name from each other.
		if id := uint64(n.GetTimeMs())<<20 + n.GetId()&(1<<20-1); id > a.noticed {
			a.noticed = id
		} else {
			continue
		}
		events = append(events, l.event(agent, n))
	}
	l.mu.Unlock()
	for _, e := range events {
		l.note(e)
	}
}

// pair is the shard's and region's. The caller holds the lock.
func (l *links) pair(shard, region string) *pairState {
	name := linkPair{shard, region}
	s := l.pairs[name]
	if s == nil {
		s = &pairState{gaps: map[string]uint64{}}
		l.pairs[name] = s
	}
	return s
}

// event makes one of a notice. The caller holds the lock.
func (l *links) event(agent string, n *reports.Notice) shards.Event {
	e := shards.Event{Kind: shards.Gap, Time: time.UnixMilli(n.GetTimeMs()).UTC(), Shard: n.GetShard(), Epoch: n.GetEpoch(), To: n.GetRegion(), From: agent,
		Reason: fmt.Sprintf("region %s may lack removals (%s): all that they may be about is removed there", n.GetRegion(), n.GetReason())}
	if n.GetFence() {
		e.Kind = shards.Fence
		e.Reason = fmt.Sprintf("region %s removed %d keys within %s", n.GetRegion(), n.GetKeys(), time.Duration(n.GetAfterMs())*time.Millisecond)
		return e
	}
	l.pair(n.GetShard(), n.GetRegion()).gaps[n.GetReason()]++
	return e
}

// listening are where the region's agents listen for others, by agent.
func (l *links) listening() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]string{}
	for name, a := range l.agents {
		if a.link != "" {
			all[name] = a.link
		}
	}
	return all
}

// registerEvery is how often Consul is told where agents listen.
const registerEvery = 2 * time.Second

// register tells Consul where agents listen for other regions, until ctx ends.
func (l *links) register(ctx context.Context, spec mesh.ConsulSpec) error {
	tick := time.NewTicker(registerEvery)
	defer tick.Stop()
	told := ""
	for {
		l.mu.Lock()
		needed := len(l.topology.Links) > 0
		l.mu.Unlock()
		if needed {
			err := func() error {
				client, err := consul.New(spec)
				if err != nil {
					return err
				}
				defer client.Close()
				return client.RegisterLinks(ctx, l.region, l.listening())
			}()
			if text := fmt.Sprint(err); err != nil && text != told && ctx.Err() == nil {
				l.log.Warn("other regions may not find this one's agents", "error", err)
				told = text
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run decides again and again until ctx ends.
func (l *links) run(ctx context.Context) error {
	tick := time.NewTicker(lookAtLinks)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			l.assign()
			l.status()
			l.unread(l.leaving())
		}
	}
}

// leaving says of which pools a shard that a handoff removes has a journal that another region has not read to its end, and why. Nobody writes
// to it any more once the handoff purges.
func (l *links) leaving() map[string]string {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]string{}
	for _, p := range l.topology.Pools {
		if p.Handoff == nil || p.Handoff.Step != mesh.Purging {
			delete(l.purging, p.Name)
		} else if l.purging[p.Name].IsZero() {
			l.purging[p.Name] = now
		}
		if p.Handoff == nil || !coherent(p) {
			continue
		}
		for _, s := range p.Handoff.From {
			if inMesh(p.Handoff.To, s.Name) {
				continue
			}
			for region := range l.topology.Links {
				if !l.read(now, s, region, l.purging[p.Name]) {
					all[p.Name] = fmt.Sprintf("region %s has not read the journal of shard %s to its end", region, s.Name)
				}
			}
		}
	}
	return all
}

// read says whether a region has all of a shard's journal up to a time after since. The caller holds the lock.
func (l *links) read(now time.Time, s mesh.Shard, region string, since time.Time) bool {
	j, _ := l.journal(now, s, region)
	if j.LagMS == nil || len(j.Fences) > 0 || since.IsZero() {
		return false
	}
	until := l.pair(s.Name, region).at.Add(-time.Duration(*j.LagMS * float64(time.Millisecond)))
	return until.After(since)
}

// assign has each journal followed by one of the agents that can: by the same one for as long as it can.
func (l *links) assign() {
	now := time.Now()
	l.mu.Lock()
	if now.Sub(l.began) < settleLinks {
		l.mu.Unlock()
		return
	}
	busy := map[string]bool{}
	for _, agent := range l.follower {
		busy[agent] = true
	}
	var able []string
	for name, a := range l.agents {
		if a.link != "" && (!busy[name] || now.Sub(a.heard) < silentLink) {
			able = append(able, name)
		}
	}
	slices.Sort(able)
	all := map[string]*reports.Follow{}
	follower := map[string]string{}
	for _, p := range l.topology.Pools {
		if len(l.topology.Links) == 0 || !coherent(p) {
			continue
		}
		for _, s := range p.Members() {
			agent := choose(able, s.Name)
			if agent == "" {
				continue
			}
			if l.follower[s.Name] != agent {
				l.log.Info("a shard's journal is followed by another agent", "shard", s.Name, "agent", agent, "before", l.follower[s.Name])
			}
			if !busy[agent] {
				busy[agent], l.agents[agent].heard = true, now // it is to speak from now on
			}
			follower[s.Name] = agent
			if all[agent] == nil {
				all[agent] = &reports.Follow{}
			}
			all[agent].Shards = append(all[agent].Shards, &reports.Followed{Shard: s.Name, Known: l.known[s.Name]})
		}
	}
	l.follower = follower
	l.mu.Unlock()
	l.follow(all)
}

// choose is the agent that follows a shard's journals: each agent has its share, and when one goes, only its own change hands.
func choose(able []string, shard string) (best string) {
	var most uint64
	for _, agent := range able {
		if h := xxhash.Sum64String(agent + "\x00" + shard); best == "" || h > most {
			best, most = agent, h
		}
	}
	return best
}

// primaryOf is a shard's primary and how to reach it.
type primaryOf struct {
	address string
	epoch   uint64
	access  *mesh.RedisAccess
}

func findShard(t mesh.Topology, shard string) (at primaryOf, pool string, ok bool) {
	for _, p := range t.Pools {
		for _, s := range p.Members() {
			if s.Name == shard {
				if primary, there := s.Primary(); there && s.StandIn != mesh.Null {
					at = primaryOf{primary.Address, s.Epoch, p.Redis}
				}
				return at, p.Name, coherent(p)
			}
		}
	}
	return primaryOf{}, "", false
}

// do does something on the shard.
func (t primaryOf) do(ctx context.Context, f func(context.Context, *journal.Shard) error) error {
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	client := redis.NewClient(node.Options(t.address, t.access, fenceTimeout))
	defer client.Close()
	return f(ctx, journal.Open(client, t.epoch))
}

// pause has nothing sent to a region, or goes on.
func (l *links) pause(ctx context.Context, region string, paused bool) error {
	l.mu.Lock()
	t := l.topology
	l.mu.Unlock()
	if _, ok := t.Links[region]; !ok {
		return fmt.Errorf("nothing is sent to a region %q: there are %v", region, slices.Sorted(maps.Keys(t.Links)))
	}
	var errs []error
	for _, p := range t.Pools {
		for _, s := range p.Members() {
			at, _, ok := findShard(t, s.Name)
			if !ok {
				continue
			}
			if at.address == "" {
				errs = append(errs, fmt.Errorf("shard %q has no node", s.Name))
				continue
			}
			errs = append(errs, at.do(ctx, func(ctx context.Context, s *journal.Shard) error { return s.Pause(ctx, region, paused) }))
		}
	}
	return errors.Join(errs...)
}

// status is how other regions learn of this region's writes.
func (l *links) status() RegionsStatus {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	all := RegionsStatus{Region: l.region, Links: []LinkStatus{}}
	for _, to := range slices.Sorted(maps.Keys(l.topology.Links)) {
		for _, p := range l.topology.Pools {
			if !coherent(p) {
				continue
			}
			link := LinkStatus{From: l.region, To: to, Pool: p.Name, Journals: []JournalStatus{}, State: LinkUp}
			paused := len(p.Shards) > 0
			for _, s := range p.Members() {
				j, its := l.journal(now, s, to)
				link.Journals = append(link.Journals, j)
				paused = paused && its
				if j.Problem != "" && !its {
					link.State, link.Problem = LinkDown, cmp.Or(link.Problem, j.Problem)
				}
				if j.LagMS != nil && (link.LagMS == nil || *j.LagMS > *link.LagMS) {
					link.LagMS = j.LagMS
				}
				link.Backlog += j.Backlog
				link.Fences += len(j.Fences)
				for _, n := range j.Gaps {
					link.Gaps += n
				}
			}
			if paused {
				link.State, link.Problem = LinkPaused, ""
			}
			name := linkOfPool{to, p.Name}
			if l.states[name].state != link.State {
				l.states[name] = linkSince{link.State, now}
			}
			link.Since = l.states[name].since
			all.Links = append(all.Links, link)
		}
	}
	return all
}

// journal is a shard's, as far as a region has it. The caller holds the lock.
func (l *links) journal(now time.Time, s mesh.Shard, to string) (j JournalStatus, paused bool) {
	state := l.pair(s.Name, to)
	j = JournalStatus{Shard: s.Name, Epoch: s.Epoch, Agent: l.follower[s.Name], Gaps: maps.Clone(state.gaps), Fences: []FenceStatus{}, Sent: state.sent}
	told := state.told
	if told == nil || now.Sub(state.at) > 2*time.Second {
		j.Problem = "nobody follows its journal: start agents with --link"
		if j.Agent != "" {
			j.Problem = fmt.Sprintf("agent %q has not said how its journal fares", j.Agent)
		}
	} else {
		lag := float64(told.GetLagUs()) / 1000
		j.LagMS, j.Problem, paused = &lag, told.GetProblem(), told.GetPaused()
	}
	if told != nil {
		j.Cursor, j.Backlog, j.Sent = told.GetCursor(), told.GetBacklog(), state.sent+told.GetKeys()
		for _, f := range told.GetFences() {
			j.Fences = append(j.Fences, FenceStatus{ID: f.GetId(), Reason: f.GetReason(), Prefix: f.Prefix, Since: time.UnixMilli(f.GetSinceMs()).UTC()})
		}
	}
	return j, paused
}

// linksAPI is the part of the HTTP API about links.
type linksAPI struct {
	commandAPI
	links *links
}

func (a linksAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/regions", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, a.links.status()) })
	for verb, paused := range map[string]bool{"pause": true, "resume": false} {
		mux.HandleFunc("POST /v1/regions/"+verb, func(w http.ResponseWriter, r *http.Request) {
			var body PauseRequest
			if !a.accepts(w, r, &body) {
				return
			}
			if err := a.links.pause(r.Context(), body.Region, paused); err != nil {
				writeError(w, http.StatusConflict, err)
				return
			}
			a.await(r.Context(), body.Region, paused)
			writeJSON(w, http.StatusOK, a.links.status())
		})
	}
}

// await waits a moment for agents to say that a region is paused, or is not.
func (a linksAPI) await(ctx context.Context, region string, paused bool) {
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		same := true
		for _, l := range a.links.status().Links {
			same = same && (l.To != region || (l.State == LinkPaused) == paused)
		}
		if same {
			return
		}
	}
}
