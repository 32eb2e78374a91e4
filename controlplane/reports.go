package controlplane

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/reports"
	"github.com/cachemesh/cachemesh/shards"
)

// listener is told what agents say. Its methods return at once; those about one agent are called one at a time, those about
// several at once. What an agent said before it left or was lost is void.
type listener interface {
	// AgentSeen says that the agent has a stream, also when a new one took the place of one that was not known to be broken.
	AgentSeen(agent string)
	// AgentLeft says that the agent stops as it was asked to.
	AgentLeft(agent string)
	// AgentLost says that the agent's stream broke, for whatever reason.
	AgentLost(agent string)
	// Verdicts are all that the agent says now. A target without one has not been asked for long enough.
	Verdicts(agent string, verdicts []shards.Verdict)
	// Follows are the rings that the agent, its lanes and its Envoy follow now, of pools that were or are in a handoff.
	Follows(agent string, all []shards.Following)
	// Acknowledged are endpoints that the agent's Envoy has now and had not before: all, after AgentSeen.
	Acknowledged(agent string, endpoints []Endpoint)
}

// Endpoint is a shard's address as an Envoy has it: IP:port, the path of a stand-in's socket, or "" if it has none any more.
type Endpoint struct {
	Shard   string
	Address string
}

// Target is a primary that an agent is to probe.
type Target struct {
	Shard   string
	Epoch   uint64
	Address string // IP:port
	RunID   string // "" is not known
	Access  *mesh.RedisAccess
}

// agents serves the streams of a region's agents. It keeps what each is to probe, the topology, and nothing of what they say.
type agents struct {
	reports.UnimplementedReportsServer

	region    string
	authorise func(certificate *x509.Certificate, region, agent string) error // nil allows all
	listener  listener
	log       *slog.Logger

	mu                  sync.Mutex
	streams             map[string]*agentStream      // by agent
	targets             map[string][]*reports.Target // by agent
	interval, downAfter time.Duration                // 0 before the first Instruct
	behind              bool
	topology            []byte                     // JSON; nil while no agent needs it. It is not changed
	follows             map[string]*reports.Follow // by agent; nil before the first Follow
	warming             []byte                     // the runs; nil before the first Warm. It is not changed

	links  *links  // is told how journals fare
	warmer *warmer // is told of the application's events; nil before there is one
}

// agentStream is one stream of one agent.
type agentStream struct {
	agent  string
	wanted *reports.Instructions // guarded by agents.mu; nil before the first Instruct
	wake   chan struct{}         // there are newer instructions
	end    chan error            // another stream takes this one's place

	speaking sync.Mutex        // held while the listener is told; guards what follows
	silenced bool              // the listener is told nothing more
	down     map[string]string // primaries that the agent says are down, by shard
}

func newAgents(region string, authorise func(*x509.Certificate, string, string) error, l listener, log *slog.Logger) *agents {
	return &agents{region: region, authorise: authorise, listener: l, log: log, links: newLinks(region, log),
		streams: map[string]*agentStream{}, targets: map[string][]*reports.Target{}}
}

func (a *agents) register(g *grpc.Server) { reports.RegisterReportsServer(g, a) }

// Instruct says what each agent is to probe, how often, and after how long without a good answer it is to say that a target is
// down. Each agent is sent what is new to it; one that is not named has nothing to probe. Agents that come later get theirs
// when they come. Before the first call nobody is sent anything, so that what agents know outlives a control plane's restart.
func (a *agents) Instruct(interval, downAfter time.Duration, targets map[string][]Target) {
	wanted := make(map[string][]*reports.Target, len(targets))
	accesses := map[*mesh.RedisAccess]string{}
	for agent, list := range targets {
		if len(list) > reports.Max {
			a.log.Error("an agent is asked about fewer primaries than it should be", "agent", agent, "targets", len(list), "most", reports.Max)
			list = list[:reports.Max]
		}
		for _, t := range list {
			access, ok := accesses[t.Access]
			if !ok {
				access = accessJSON(t.Access)
				accesses[t.Access] = access
			}
			wanted[agent] = append(wanted[agent], &reports.Target{Shard: t.Shard, Epoch: t.Epoch, Address: t.Address, RunId: t.RunID, Access: access})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	before, all := a.targets, a.interval != interval || a.downAfter != downAfter
	a.interval, a.downAfter, a.targets = interval, downAfter, wanted
	if all {
		for _, s := range a.streams {
			a.instruct(s)
		}
		return
	}
	// Most agents have nothing to probe, before and now.
	for _, some := range []map[string][]*reports.Target{before, wanted} {
		for agent := range some {
			if s := a.streams[agent]; s != nil {
				a.instruct(s)
			}
		}
	}
}

// Behind says whether this control plane cannot read the region's state now, so that agents follow another that can.
func (a *agents) Behind(is bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.behind == is {
		return
	}
	a.behind = is
	for _, s := range a.streams {
		a.instruct(s)
	}
}

// Publish tells every agent the region's topology, from the first on that has a route on lanes, or a handoff. Until then agents need none.
func (a *agents) Publish(t mesh.Topology) {
	text, err := json.Marshal(t)
	if err != nil {
		panic(err) // it has strings, numbers and lists of them
	}
	if len(text) > reports.MaxTopology {
		a.log.Error("agents are not told of a change, since the topology is too large: lanes stay as they are", "bytes", len(text), "most", reports.MaxTopology)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.topology == nil && !t.HasLanes() && !t.HasHandoffs() && t.Links == nil || bytes.Equal(a.topology, text) {
		return
	}
	a.topology = text
	for _, s := range a.streams {
		s.notify()
	}
}

// Follow says whose journals each agent is to follow. One that is not named follows none.
func (a *agents) Follow(all map[string]*reports.Follow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, some := range []map[string]*reports.Follow{a.follows, all} {
		for agent := range some {
			if s := a.streams[agent]; s != nil && !proto.Equal(a.follows[agent], all[agent]) {
				s.notify()
			}
		}
	}
	a.follows = all
}

// Warm says which runs there are to work on, as JSON of a list of warming.Run.
func (a *agents) Warm(runs []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.warming = runs
	for _, s := range a.streams {
		s.notify()
	}
}

func (s *agentStream) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// instruct wakes a stream if there is something new for it. The caller holds the lock.
func (a *agents) instruct(s *agentStream) {
	if a.interval == 0 {
		return
	}
	next := &reports.Instructions{Targets: a.targets[s.agent], IntervalMs: milliseconds(a.interval), DownAfterMs: milliseconds(a.downAfter), Behind: a.behind}
	if s.wanted != nil && proto.Equal(s.wanted, next) {
		return
	}
	s.wanted = next
	s.notify()
}

func milliseconds(d time.Duration) uint32 { return uint32(d / time.Millisecond) }

func accessJSON(a *mesh.RedisAccess) string {
	if a == nil {
		return ""
	}
	text, err := json.Marshal(a)
	if err != nil {
		panic(err) // it has strings only
	}
	return string(text)
}

// Connect serves one stream of an agent.
func (a *agents) Connect(stream reports.Reports_ConnectServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	agent, err := a.identify(stream.Context(), first)
	if err != nil {
		return err
	}
	s := &agentStream{agent: agent, wake: make(chan struct{}, 1), end: make(chan error, 1), down: map[string]string{}}
	a.begin(s, first.GetAgent().GetLink())
	// It tells the agent that its reports are taken. With an error, receive ends too and says why.
	_ = stream.SendHeader(metadata.MD{})
	received := make(chan error, 1)
	go func() { received <- a.receive(s, stream, first) }()
	var told []byte              // the topology, on this stream
	var followed *reports.Follow // likewise
	var warmed []byte            // likewise
	for {
		select {
		case <-s.wake:
			a.mu.Lock()
			instructions, topology, follow, warming := s.wanted, a.topology, a.follows[s.agent], a.warming
			if follow == nil && a.follows != nil {
				follow = &reports.Follow{}
			}
			a.mu.Unlock()
			if instructions == nil {
				continue
			}
			if !bytes.Equal(told, topology) {
				told = topology
				instructions = proto.CloneOf(instructions)
				instructions.Topology = topology
			}
			if follow != nil && (followed == nil || !proto.Equal(followed, follow)) {
				followed = follow
				instructions = proto.CloneOf(instructions)
				instructions.Follow = follow
			}
			if !bytes.Equal(warmed, warming) {
				warmed = warming
				instructions = proto.CloneOf(instructions)
				instructions.Warming = warming
			}
			_ = stream.Send(instructions)
		case err := <-received:
			return err
		case err := <-s.end:
			return err
		}
	}
}

// identify returns who speaks, if they may.
func (a *agents) identify(ctx context.Context, first *reports.Report) (string, error) {
	if err := first.Check(); err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	agent := first.GetAgent()
	if agent == nil {
		return "", status.Error(codes.InvalidArgument, "agent is missing: the first report of a stream says who speaks")
	}
	if a.authorise != nil {
		if err := a.authorise(xds.Certificate(ctx), agent.GetRegion(), agent.GetName()); err != nil {
			return "", status.Error(codes.PermissionDenied, err.Error())
		}
	}
	if agent.GetRegion() != a.region {
		return "", status.Errorf(codes.InvalidArgument, "agent %q is of region %q, and this control plane serves %q: connect it to its own region", agent.GetName(), agent.GetRegion(), a.region)
	}
	return agent.GetName(), nil
}

// begin makes s the stream of its agent. Nothing is told of s before all is told of the one before.
func (a *agents) begin(s *agentStream, link string) {
	s.speaking.Lock()
	defer s.speaking.Unlock()
	a.mu.Lock()
	before := a.streams[s.agent]
	a.streams[s.agent] = s
	a.instruct(s)
	a.mu.Unlock()
	if before != nil {
		before.speaking.Lock()
		before.silenced = true
		before.speaking.Unlock()
		before.end <- status.Errorf(codes.Aborted, "another stream of agent %q took its place: is the name unique in its region?", s.agent)
	}
	a.listener.AgentSeen(s.agent)
	a.links.seen(s.agent, link)
}

// receive takes reports until the stream ends, and returns how.
func (a *agents) receive(s *agentStream, stream reports.Reports_ConnectServer, report *reports.Report) error {
	lost := func(agent string) {
		a.links.gone(agent)
		a.listener.AgentLost(agent)
	}
	for {
		if report.GetLeaving() {
			a.finish(s, func(agent string) {
				a.links.gone(agent)
				a.listener.AgentLeft(agent)
			})
			return nil
		}
		if err := a.take(s, report); err != nil {
			a.finish(s, lost)
			return err
		}
		var err error
		if report, err = stream.Recv(); err != nil {
			a.finish(s, lost)
			return err
		}
	}
}

// take tells the listener what a report says, or returns what is wrong with the report.
func (a *agents) take(s *agentStream, report *reports.Report) error {
	if err := report.Check(); err != nil {
		a.log.Warn("refused an agent's report", "agent", s.agent, "reason", err)
		return status.Error(codes.InvalidArgument, err.Error())
	}
	verdicts := make([]shards.Verdict, 0, len(report.GetVerdicts()))
	for _, v := range report.GetVerdicts() {
		verdicts = append(verdicts, shards.Verdict{Shard: v.GetShard(), Epoch: v.GetEpoch(), Address: v.GetAddress(), Down: v.GetDown()})
	}
	endpoints := make([]Endpoint, 0, len(report.GetEndpoints()))
	for _, e := range report.GetEndpoints() {
		endpoints = append(endpoints, Endpoint{Shard: e.GetShard(), Address: e.GetAddress()})
	}
	s.speaking.Lock()
	defer s.speaking.Unlock()
	if s.silenced {
		return nil
	}
	a.logVerdicts(s, report.GetVerdicts())
	a.links.heard(s.agent, report.GetPairs(), report.GetNotices())
	if events := report.GetEvents(); len(events) > 0 && a.warmer != nil {
		a.warmer.take(events)
	}
	a.listener.Verdicts(s.agent, verdicts)
	a.listener.Follows(s.agent, followings(report.GetRings()))
	if len(endpoints) > 0 {
		a.listener.Acknowledged(s.agent, endpoints)
	}
	return nil
}

func followings(rings []*reports.Ring) []shards.Following {
	all := make([]shards.Following, 0, len(rings))
	for _, g := range rings {
		all = append(all, shards.Following{Pool: g.GetPool(), Generation: g.GetGeneration(), Handoff: g.GetHandoff(), Step: mesh.HandoffStep(g.GetStep()), Kept: g.GetKept()})
	}
	return all
}

// logVerdicts says when an agent changes its mind about a primary.
func (a *agents) logVerdicts(s *agentStream, verdicts []*reports.Verdict) {
	for _, v := range verdicts {
		before := s.down[v.GetShard()]
		switch {
		case v.GetDown() && before != v.GetAddress():
			s.down[v.GetShard()] = v.GetAddress()
			a.log.Info("a witness says that a primary is down", "agent", s.agent, "shard", v.GetShard(), "epoch", v.GetEpoch(),
				"address", v.GetAddress(), "silent_ms", v.GetSilentMs(), "error", v.GetError())
		case !v.GetDown() && before != "":
			delete(s.down, v.GetShard())
			if before == v.GetAddress() { // and not another primary
				a.log.Info("a witness says that a primary is up again", "agent", s.agent, "shard", v.GetShard(), "epoch", v.GetEpoch(), "address", v.GetAddress())
			}
		}
	}
}

// finish tells how s ended, unless another stream took its place.
func (a *agents) finish(s *agentStream, tell func(agent string)) {
	s.speaking.Lock()
	if !s.silenced {
		s.silenced = true
		tell(s.agent)
	}
	s.speaking.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streams[s.agent] == s {
		delete(a.streams, s.agent)
	}
}
