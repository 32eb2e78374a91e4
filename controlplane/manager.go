package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	// decideEvery bounds how late a decision is that only time brings about.
	decideEvery = 20 * time.Millisecond
	// actionTimeout bounds one action on one node.
	actionTimeout = 2 * time.Second
	writeTimeout  = 2 * time.Second
)

// manager feeds shards.Manager with what is known of nodes and agents, writes its states and does its actions. It decides nothing.
type manager struct {
	store   store
	agents  *agents
	health  *health
	observe bool // it acts on no node: who is primary is looked up
	record  func([]shards.Event)
	// accepted is called when an operator has accepted a loss; changed, when the state is another. They must not block.
	accepted, changed func()
	// recovered is told of shards that began empty.
	recovered func(shard string)
	log       *slog.Logger
	wake      chan struct{}
	last      uint64  // sequence of the last event that was told; run's own
	movers    *movers // run's own, but for what it shows

	mu       sync.Mutex // guards what follows, shards.Manager among it
	machine  *shards.Manager
	loaded   []byte                       // what machine has of the store. After a wipe, another state may have the revision that one had
	base     mesh.Topology                // the membership's
	frozen   bool                         // the membership's catalogue is
	accesses map[string]*mesh.RedisAccess // by address
	clients  map[string]actor             // for actions
	pools    map[string]mesh.Pool         // by shard
	settings mesh.Health
	answers  map[uint64]chan shards.Answer
	told     string // the last problem in the log
}

// actor is a client for actions, and how it logs in.
type actor struct {
	*node.Client
	access *mesh.RedisAccess
}

func newManager(config Config, s store, observe bool) *manager {
	m := &manager{store: s, observe: observe, log: config.Logger, wake: make(chan struct{}, 1), accepted: func() {}, changed: func() {}, recovered: func(string) {}, record: func([]shards.Event) {},
		machine:  shards.New(shards.Config{Region: config.Region, Name: config.advertised(), DownAfter: mesh.DefaultDownAfter, MaxLoss: mesh.DefaultMaxLoss / 100.0}),
		accesses: map[string]*mesh.RedisAccess{}, clients: map[string]actor{}, pools: map[string]mesh.Pool{}, answers: map[uint64]chan shards.Answer{}, movers: newMovers(config.Logger)}
	m.movers.spec, m.movers.fence, m.movers.moved = m.spec, m.fence, m.moved
	return m
}

// members takes in which nodes the shards have.
func (m *manager) members(t mesh.Topology, frozen bool) {
	m.mu.Lock()
	m.frozen, m.settings = frozen, t.Health
	m.machine.Configure(t.Health.DownAfter, float64(t.Health.MaxLoss)/100, t.OpTimeout)
	m.base = t
	var members []shards.Member
	for _, pool := range t.Pools {
		for _, shard := range pool.Shards {
			member := shards.Member{Pool: pool.Name, Shard: shard.Name, Weight: shard.Weight, Lanes: t.PoolOnLanes(pool), Follow: m.observe || pool.Failover == mesh.FollowIts}
			if first, ok := shard.Primary(); ok {
				member.First = first.Address // of mesh.yaml; registrations have no order
			}
			for _, n := range shard.Nodes {
				member.Nodes = append(member.Nodes, n.Address)
			}
			members = append(members, member)
		}
	}
	m.machine.Members(members)
	m.mu.Unlock()
	m.look()
	signal(m.wake)
}

// arrange notes of all shards that are managed how to reach their nodes. The caller holds the lock.
func (m *manager) arrange() {
	state, _ := m.machine.State()
	m.accesses, m.pools = map[string]*mesh.RedisAccess{}, map[string]mesh.Pool{}
	for _, pool := range shards.Offer(m.base, state).Pools {
		for _, shard := range pool.Shards {
			m.pools[shard.Name] = pool
			for _, n := range shard.Nodes {
				m.accesses[n.Address] = pool.Redis
			}
		}
	}
}

// membership is what the membership says.
func (m *manager) membership() mesh.Topology {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.base
}

// offer gives a membership's topology the shards that the state has, also those that are not on a ring.
func (m *manager) offer(t mesh.Topology) mesh.Topology {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, _ := m.machine.State()
	return shards.Offer(t, state)
}

// look has every node probed that matters, and tells agents whom to witness.
func (m *manager) look() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.arrange()
	wanted := maps.Clone(m.accesses)
	state, _ := m.machine.State()
	for name, s := range state.Shards {
		if pool, ok := m.pools[name]; ok && s.Primary != "" {
			wanted[s.Primary] = pool.Redis // also if it is not registered any more
		}
	}
	m.health.want(m.settings.Interval, m.settings.DownAfter, wanted)
	targets := map[string][]Target{}
	for agent, list := range m.machine.Targets() {
		for _, t := range list {
			targets[agent] = append(targets[agent], Target{Shard: t.Shard, Epoch: t.Epoch, Address: t.Address, RunID: t.RunID, Access: m.pools[t.Shard].Redis})
		}
	}
	m.agents.Instruct(m.settings.Interval, m.settings.DownAfter, targets)
}

// topology gives a membership's topology the primaries of the state, and names the shards that have none yet.
func (m *manager) topology(t mesh.Topology) (served mesh.Topology, waits []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, _ := m.machine.State()
	return shards.Topology(t, state)
}

// run decides and acts until ctx ends.
func (m *manager) run(ctx context.Context) error {
	ticker := time.NewTicker(decideEvery)
	defer ticker.Stop()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		m.step(ctx, &work)
		select {
		case <-ctx.Done():
			m.refuse(errors.New("this control plane stops"))
			return ctx.Err()
		case <-ticker.C:
		case <-m.wake:
		}
	}
}

// step carries decisions out until there is nothing to be written.
func (m *manager) step(ctx context.Context, work *sync.WaitGroup) {
	for ctx.Err() == nil {
		if m.load() {
			m.tell()
		}
		m.agents.Behind(m.store.problem() != nil)
		m.mu.Lock()
		now := time.Now()
		led := m.machine.Leading(now)
		m.machine.Lease(now, m.store.leadsUntil())
		if !led && m.machine.Leading(now) {
			m.health.forget() // what another leader did may be newer than the epochs that were read
		}
		decision := m.machine.Decide(now)
		m.deliver(decision.Answers)
		m.mu.Unlock()
		if decision.State == nil {
			for _, a := range decision.Actions {
				work.Go(func() { m.do(ctx, a) })
			}
			m.movers.follow(ctx, work, decision.Moves)
			return
		}
		if !m.write(ctx, decision) {
			return
		}
		m.tell()
	}
}

// load takes in what the store has, and says whether that is new.
func (m *manager) load() bool {
	data, revision := m.store.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	state, known := m.machine.State()
	if revision == known && bytes.Equal(data, m.loaded) && (revision > 0 || m.machine.Ready()) {
		return false
	}
	if revision == 0 && len(state.Shards) > 0 {
		return false // a store that was wiped: what is known stays until it is written again
	}
	var next shards.State
	if revision > 0 {
		if err := json.Unmarshal(data, &next); err != nil {
			m.problem(fmt.Errorf("the state of revision %d is no state of this program: %w", revision, err))
			return false
		}
	}
	m.machine.Loaded(time.Now(), next, revision)
	m.loaded = data
	return true
}

func (m *manager) write(ctx context.Context, decision shards.Decision) bool {
	data, err := json.Marshal(decision.State)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		var revision uint64
		if revision, err = m.store.write(ctx, data, decision.Revision); err == nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.machine.Written(time.Now(), *decision.State, revision)
			m.loaded = data
			m.problem(nil)
			return true
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problem(err)
	return false
}

// problem logs why a state is not written or taken, once. The caller holds the lock.
func (m *manager) problem(err error) {
	if text := fmt.Sprint(err); text != m.told {
		if m.told = text; err != nil && !errors.Is(err, errConflict) {
			m.log.Error("the shards' state", "error", err)
		}
	}
}

// tell passes a new state on.
func (m *manager) tell() {
	m.mu.Lock()
	state, _ := m.machine.State()
	m.mu.Unlock()
	m.changed()
	m.record(state.Events)
	for _, e := range state.Events {
		if m.last == 0 || e.ID <= m.last {
			continue
		}
		switch e.Kind {
		case shards.Accepted:
			m.accepted()
		case shards.Recovery:
			m.recovered(e.Shard)
		}
	}
	m.last = state.Sequence
	m.look()
}

// note has an event written that agents tell of, if this control plane leads. Agents tell of each again when a control plane begins anew.
func (m *manager) note(e shards.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, _ := m.machine.State()
	if !slices.ContainsFunc(state.Events, func(o shards.Event) bool {
		return o.Kind == e.Kind && o.Shard == e.Shard && o.To == e.To && o.From == e.From && !e.Time.IsZero() && o.Time.Equal(e.Time)
	}) {
		m.machine.Note(time.Now(), e)
	}
	signal(m.wake)
}

// do acts on a node, if this control plane still may.
func (m *manager) do(ctx context.Context, a shards.Action) {
	view, err := m.act(ctx, a)
	m.mu.Lock()
	defer m.mu.Unlock()
	if view.RunID != "" {
		m.machine.Probed(time.Now(), view)
	}
	m.machine.Done(time.Now(), a, err)
	if err != nil {
		m.log.Warn("an action on a node failed", "action", a.Op, "shard", a.Shard, "node", a.Node, "epoch", a.Epoch, "error", err)
	} else {
		m.log.Info("an action on a node", "action", a.Op, "shard", a.Shard, "node", a.Node, "epoch", a.Epoch)
	}
	signal(m.wake)
}

func (m *manager) act(ctx context.Context, a shards.Action) (shards.Node, error) {
	if a.Op == shards.Clear {
		return shards.Node{}, m.clear(ctx, a) // which costs misses at worst, whoever leads
	}
	until := m.store.leadsUntil()
	if limit := time.Now().Add(actionTimeout); until.After(limit) {
		until = limit
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	view, err := m.client(a.Node).Do(ctx, a)
	m.health.acted(a.Node)
	return view, err
}

// client is the one for actions on a node.
func (m *manager) client(address string) *node.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	access := m.accesses[address]
	if old, ok := m.clients[address]; ok {
		if reflect.DeepEqual(old.access, access) {
			return old.Client
		}
		old.Close()
	}
	for other, c := range m.clients {
		if _, listed := m.accesses[other]; !listed && len(m.clients) > 2*len(m.accesses) {
			c.Close()
			delete(m.clients, other)
		}
	}
	c := node.New(address, access, time.Second)
	m.clients[address] = actor{c, access}
	return c
}

// probed takes in an answer of a node; silence says itself.
func (m *manager) probed(n shards.Node, err error) {
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.machine.Probed(time.Now(), n)
}

// ask has a command carried out, and returns the event that it ends in. It fails with notLeading, or says why not.
func (m *manager) ask(ctx context.Context, c shards.Command) (shards.Event, error) {
	m.mu.Lock()
	if !m.machine.Leading(time.Now()) {
		m.mu.Unlock()
		return shards.Event{}, m.elsewhere()
	}
	if m.observe {
		m.mu.Unlock()
		return shards.Event{}, errors.New("this control plane only looks on: it needs --state, or membership.consul, to manage nodes")
	}
	if c.Kind == shards.Accepted && m.frozen {
		c.Force = true // what the catalogue lost
	}
	id := m.machine.Ask(c)
	answer := make(chan shards.Answer, 1)
	m.answers[id] = answer
	m.mu.Unlock()
	signal(m.wake)
	select {
	case a := <-answer:
		return a.Event, a.Err
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.answers, id) // it is carried out all the same
		return shards.Event{}, ctx.Err()
	}
}

// leads is nil while this control plane decides for its region, else notLeading.
func (m *manager) leads() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.machine.Leading(time.Now()) {
		return nil
	}
	return m.elsewhere()
}

func (m *manager) elsewhere() notLeading {
	leader := m.store.leader()
	if leader == "" {
		return notLeading{"", errors.New("no control plane of the region leads now: see `cachemesh status`")}
	}
	return notLeading{leader, errors.New("another control plane of the region leads: " + leader)}
}

// deliver passes answers on to who asked. The caller holds the lock.
func (m *manager) deliver(answers []shards.Answer) {
	for _, a := range answers {
		if ch, ok := m.answers[a.ID]; ok {
			delete(m.answers, a.ID)
			ch <- a
		}
	}
}

func (m *manager) refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.answers)) {
		m.deliver([]shards.Answer{{ID: id, Err: err}})
	}
	for _, c := range m.clients {
		c.Close()
	}
}

// state is what this control plane knows of the region's shards.
func (m *manager) state() (shards.State, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.machine.State()
}

// alerts are what needs a person: of the shards, and of the store.
func (m *manager) alerts() []Alert {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	all := m.machine.Alerts(now)
	switch err := m.store.problem(); {
	case m.observe:
	case err != nil:
		all = append(all, Alert{Subject: "state", Message: "the shards' state cannot be kept: " + err.Error(), Remedy: "nothing changes for sidecars, and there is no failover until that is mended"})
	case !m.machine.Leading(now) && m.store.leader() == "":
		all = append(all, Alert{Subject: "leader", Message: "no control plane of this region leads: no failover", Remedy: "it ends by itself within half a minute if another one was killed; else see the control planes' logs"})
	}
	return all
}

// What agents say goes to the machine as it is. A decision comes in a moment anyway: only news that somebody waits for wakes it.

func (m *manager) AgentSeen(agent string) {
	m.with(func(now time.Time) { m.machine.AgentSeen(now, agent) })
}
func (m *manager) AgentLeft(agent string) { m.with(func(time.Time) { m.machine.AgentLeft(agent) }) }
func (m *manager) AgentLost(agent string) {
	m.with(func(now time.Time) { m.machine.AgentLost(now, agent) })
}

func (m *manager) Verdicts(agent string, all []shards.Verdict) {
	m.with(func(now time.Time) { m.machine.Verdicts(now, agent, all) })
	if slices.ContainsFunc(all, func(v shards.Verdict) bool { return v.Down }) {
		signal(m.wake)
	}
}

func (m *manager) Acknowledged(agent string, endpoints []Endpoint) {
	m.with(func(time.Time) {
		for _, e := range endpoints {
			m.machine.Acknowledged(agent, e.Shard, e.Address)
		}
	})
	signal(m.wake)
}

func (m *manager) Follows(agent string, all []shards.Following) {
	m.with(func(time.Time) { m.machine.Follows(agent, all) })
}

func (m *manager) with(f func(now time.Time)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(time.Now())
}
