package shards

import (
	"errors"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// Config is how a manager decides.
type Config struct {
	Region    string
	Name      string        // of this control plane, for events
	DownAfter time.Duration // a node that gave no good answer for so long is down
	MaxLoss   float64       // share of a pool's nodes; if more go at once, the pool is frozen
	OpTimeout time.Duration // a request that a sidecar has sent is carried out within it, or not at all
	// Wall makes the time of day out of a reading of the clock that only goes forwards; nil takes the reading for it.
	Wall func(time.Time) time.Time
}

// Member is a shard with its nodes, as the membership has them.
type Member struct {
	Pool   string
	Shard  string
	Weight uint32   // on the ring, as the membership has it; 0 is 1
	Lanes  bool     // agents carry writes of the pool
	Follow bool     // others manage its nodes: they are only looked at
	First  string   // with Follow: who is followed if several nodes say that they are primary; "" is who was last
	Nodes  []string // addresses, in the membership's order
}

// Node is what a probe saw of a node.
type Node struct {
	Address string
	RunID   string
	ReplID  string
	Role    mesh.Role
	Of      string // address of its primary, if it is a replica
	Linked  bool   // the link to that primary is up, and it has all of its data
	Loading bool
	Offset  int64  // of the replication history ReplID
	Epoch   uint64 // mirrored on it; 0 is none, or not readable
}

// Verdict is what an agent says of a shard's primary.
type Verdict struct {
	Shard   string
	Epoch   uint64
	Address string
	Down    bool
}

// Op is what an action does to a node.
type Op string

// The actions. Each is refused by a node that has seen a newer epoch.
const (
	Promote  Op = "promote"  // make Node the primary of Epoch; Fresh empties it
	Handover Op = "handover" // pause writes at From, wait until Node has them all, then as Promote
	Demote   Op = "demote"   // make Node a replica of Of
	Mirror   Op = "mirror"   // write Epoch on Node
	Restart  Op = "restart"  // end Node's process; whoever runs it starts it again
	Clear    Op = "clear"    // remove the keys on Node that a handoff under way moves
)

// Action is something to be done to a node.
type Action struct {
	Op    Op
	Shard string
	Node  string // address
	From  string // of Handover
	Of    string // of Demote
	Epoch uint64
	Fresh bool
	RunID string // of Node's process; to Promote and Handover another is refused, since it has lost its data
}

// Command is what an operator asks for.
type Command struct {
	Kind  Kind // Switch, Restarted, Accepted, HandoffBegun or HandoffUndone
	Pool  string
	Shard string
	Node  string // "" lets the manager choose
	Force bool
	// Of HandoffBegun:
	Reshape Reshape
	Weight  uint32
	Nodes   []string // addresses of a shard that is added; none: the membership's
	Limits  Limits
}

// Answer is what came of a command.
type Answer struct {
	ID    uint64 // of Ask
	Event Event
	Err   error
}

// Target is a primary that an agent witnesses.
type Target struct {
	Shard   string
	Epoch   uint64
	Address string
	RunID   string
}

// Alert is something that a person should look at.
type Alert struct {
	Subject string `json:"subject"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// Decision is what is to be done next: either State is to be written in place of Revision, or Actions are to be done, and Moves to be
// under way or done, and no others.
type Decision struct {
	State    *State // nil: nothing to write
	Revision uint64
	Actions  []Action
	Moves    []Move
	Answers  []Answer
}

// Manager is one control plane's view of its region's shards. All of its methods are to be called one at a time, with readings of one
// clock that only goes forwards.
type Manager struct {
	config Config

	state    State
	revision uint64
	loaded   bool

	until time.Time // it may act before that
	since time.Time // it has led without a break from then on

	decided time.Time // last
	awake   time.Time // it has decided without a break from then on

	offered   []Member             // the membership
	members   []Member             // what the state makes of it
	pools     []pool               // of members
	nodes     map[string]*sighting // by address
	agents    map[string]*agent    // by name
	verdicts  map[string]map[string]verdict
	acked     map[string]map[string]string    // by shard and agent: the address that its Envoy has acknowledged
	memory    map[string]*memory              // by shard
	moving    map[string]*moving              // by pool
	following map[string]map[string]Following // by pool and agent
	unread    map[string]string               // why, of pools of which a shard that leaves has a journal that is not read to its end
	running   map[Action]bool
	retry     map[Action]time.Time // not again before

	asked    uint64
	waiting  []question
	restarts map[Action]uint64 // the question of each
	ready    []Answer
	queued   []Event // to be written with the next state
	flushing int     // so many of them are in the decision that is being written

	upkeep time.Time // of witnesses, next
}

// sighting is the last that was seen of a node.
type sighting struct {
	Node
	at     time.Time // of the last answer
	led    time.Time // of the last answer as a primary
	leader string    // run id of that
	told   bool      // its loss is in the events
	served string    // run id of a process of it that was made primary, or found as one
	plain  bool      // it came up as a primary by itself
	claims bool      // it said that it was primary when it was last demoted
	joined time.Time // when its link to its primary was first seen
	before int64     // the offset of the answer before
}

type agent struct {
	at        time.Time // last seen
	connected bool
}

type verdict struct {
	Verdict
	at time.Time
}

// memory is what a manager knows of a shard beyond its state.
type memory struct {
	epoch uint64
	first time.Time // when this manager saw the shard, or its present epoch, first
	good  time.Time // when the primary gave its last good answer
	phase Phase     // of the change, as of begun
	begun time.Time // when this manager first saw the change in this phase
	held  time.Time // when all sidecars were first seen to hold the shard's requests
	tried error     // why the last action of the change failed
	ended time.Time // when that was
	// handed is that this manager has handed the shard over, and the old primary does not go on.
	handed bool
	// cleared is the change's node, if it has none of the keys that a handoff moves.
	cleared string
	// How often in a row the change's node was not made primary, and when others were given up for that.
	refusals int
	refused  map[string]time.Time
}

// New makes a manager that knows nothing yet.
func New(config Config) *Manager {
	if config.Wall == nil {
		config.Wall = func(t time.Time) time.Time { return t.Round(0).UTC() }
	}
	return &Manager{config: config, nodes: map[string]*sighting{}, agents: map[string]*agent{}, verdicts: map[string]map[string]verdict{},
		acked: map[string]map[string]string{}, memory: map[string]*memory{}, running: map[Action]bool{}, retry: map[Action]time.Time{}, restarts: map[Action]uint64{},
		moving: map[string]*moving{}, following: map[string]map[string]Following{}}
}

// Configure changes how it decides from now on; the region stays.
func (m *Manager) Configure(downAfter time.Duration, maxLoss float64, opTimeout time.Duration) {
	m.config.DownAfter, m.config.MaxLoss, m.config.OpTimeout = downAfter, maxLoss, opTimeout
}

// Members takes in the whole membership.
func (m *Manager) Members(members []Member) {
	m.offered = members
	m.arrange()
}

// arrange makes the shards that are managed out of the membership and the state.
func (m *Manager) arrange() {
	m.members = m.state.arrange(m.offered)
	m.pools = poolsOf(m.members)
	listed := map[string]bool{}
	named := map[string]bool{}
	for _, member := range m.members {
		named[member.Shard] = true
		for _, address := range member.Nodes {
			listed[address] = true
		}
	}
	for address := range m.nodes {
		if !listed[address] {
			delete(m.nodes, address)
		}
	}
	for shard := range m.memory {
		if !named[shard] {
			delete(m.memory, shard)
			delete(m.verdicts, shard)
		}
	}
}

// Loaded takes in what the store has.
func (m *Manager) Loaded(now time.Time, s State, revision uint64) {
	m.state, m.revision, m.loaded = s, revision, true
	m.arrange()
	m.remember(now)
}

// Ready says whether the store has been read.
func (m *Manager) Ready() bool { return m.loaded }

// Lease says until when this control plane may act; the past, or the zero time, is that it does not lead.
func (m *Manager) Lease(now, until time.Time) {
	if !now.Before(until) {
		m.since = time.Time{}
	} else if m.since.IsZero() {
		m.since = now
		if m.config.Name != "" && m.config.Name != m.leader() {
			m.queue(now, Event{Kind: Leader, To: m.config.Name, Reason: "this control plane leads the region from now on"})
		}
	}
	m.until = until
}

// leader is who leads by the last event that says so: a lease may lapse for a moment and come back.
func (m *Manager) leader() string {
	for _, e := range slices.Backward(m.state.Events) {
		if e.Kind == Leader {
			return e.To
		}
	}
	return ""
}

// Leading says whether it may act.
func (m *Manager) Leading(now time.Time) bool {
	return m.loaded && now.Before(m.until) && !m.since.IsZero()
}

// maxEpoch is more than any shard gets to. A node that says so has not got it from a control plane, and a number after it may not exist.
const maxEpoch = 1 << 62

// Probed takes in an answer of a node.
func (m *Manager) Probed(now time.Time, n Node) {
	if n.Epoch > maxEpoch {
		n.Epoch = 0
	}
	s := m.nodes[n.Address]
	if s == nil {
		s = &sighting{}
		m.nodes[n.Address] = s
	}
	if n.RunID != s.RunID && n.Role == mesh.Primary && n.RunID != s.served && n.Epoch == 0 {
		s.plain = true
	}
	if !s.Linked || !n.Linked || n.Of != s.Of || n.RunID != s.RunID || n.ReplID != s.ReplID {
		s.joined = now
	}
	s.before = s.Offset
	s.Node, s.at = n, now
	if n.Role == mesh.Primary && !n.Loading {
		s.led, s.leader = now, n.RunID
	}
}

// AgentSeen takes in that an agent is connected.
func (m *Manager) AgentSeen(now time.Time, name string) {
	m.agents[name] = &agent{at: now, connected: true}
}

// AgentLost takes in that an agent's connection has ended. It may be alive.
func (m *Manager) AgentLost(now time.Time, name string) {
	if a := m.agents[name]; a != nil {
		a.at, a.connected = now, false
	}
	for _, acked := range m.acked {
		delete(acked, name)
	}
	m.unfollow(name)
}

// AgentLeft takes in that an agent has stopped as planned.
func (m *Manager) AgentLeft(name string) {
	m.agents[name] = &agent{} // the distant past: a witness no more
	for _, acked := range m.acked {
		delete(acked, name)
	}
	m.unfollow(name)
}

// Verdicts takes in what an agent says of the primaries that it witnesses.
func (m *Manager) Verdicts(now time.Time, name string, all []Verdict) {
	if a := m.agents[name]; a != nil && a.connected {
		a.at = now
	}
	for _, v := range all {
		if m.verdicts[v.Shard] == nil {
			m.verdicts[v.Shard] = map[string]verdict{}
		}
		m.verdicts[v.Shard][name] = verdict{v, now}
	}
}

// Acknowledged takes in where an agent's Envoy sends a shard's requests: an address, or a stand-in's path.
func (m *Manager) Acknowledged(name, shard, address string) {
	if m.acked[shard] == nil {
		m.acked[shard] = map[string]string{}
	}
	m.acked[shard][name] = address
}

// Ask takes in a command; its answer comes with a decision.
func (m *Manager) Ask(c Command) (id uint64) {
	m.asked++
	m.waiting = append(m.waiting, question{id: m.asked, command: c})
	return m.asked
}

// Written takes in that a decision's state has been written.
func (m *Manager) Written(now time.Time, s State, revision uint64) {
	m.state, m.revision = s, revision
	m.arrange()
	m.queued = slices.Delete(m.queued, 0, m.flushing)
	m.flushing = 0
	m.remember(now)
}

// ErrEpoch is why a node refuses an action: it has seen a newer epoch.
var ErrEpoch = errors.New("the node has seen a newer epoch")

// ErrUndone is why a handover failed that has done nothing and will not.
var ErrUndone = errors.New("nothing was done")

// Done takes in what came of an action. What the node is now is to be taken in with Probed before.
func (m *Manager) Done(now time.Time, a Action, err error) {
	delete(m.running, a)
	m.retry[a] = now.Add(retryAfter)
	for other, at := range m.retry {
		if now.Sub(at) > time.Minute {
			delete(m.retry, other)
		}
	}
	if k := m.memory[a.Shard]; k != nil && (a.Op == Promote || a.Op == Handover) {
		k.tried, k.ended = err, now
		k.handed = k.handed || a.Op == Handover && err == nil
		switch {
		case err == nil:
			k.refusals = 0
		case a.Op == Promote && !errors.Is(err, ErrEpoch):
			k.refusals++
		}
	}
	m.answerRestart(a, err)
	if err != nil {
		return
	}
	switch a.Op {
	case Clear:
		if k := m.memory[a.Shard]; k != nil {
			k.cleared = a.Node
		}
	case Promote, Handover:
		if n := m.nodes[a.Node]; n != nil {
			n.served = n.RunID
		}
		if n := m.nodes[a.From]; n != nil {
			n.Role, n.Of = mesh.Replica, a.Node // what was seen of it is from before
		}
	case Demote:
		if n := m.nodes[a.Node]; n != nil && n.claims {
			n.claims = false
			m.queue(now, Event{Kind: Demoted, Shard: a.Shard, To: a.Node, Reason: "it said that it was primary, and " + a.Of + " is"})
		}
	case Restart:
		m.queue(now, Event{Kind: Restarted, Shard: a.Shard, To: a.Node, Reason: "asked for by an operator"})
	}
}

// State is what the store has, as far as this manager knows.
func (m *Manager) State() (State, uint64) { return m.state, m.revision }

// remember keeps the memory of shards in step with the state.
func (m *Manager) remember(now time.Time) {
	for name, s := range m.state.Shards {
		k := m.memory[name]
		if k == nil {
			k = &memory{}
			m.memory[name] = k
		}
		if k.epoch != s.Epoch || k.first.IsZero() {
			k.epoch, k.first, k.good = s.Epoch, now, time.Time{}
		}
		var phase Phase
		if s.Change != nil {
			phase = s.Change.Phase
		}
		if phase != k.phase {
			k.phase, k.begun, k.held, k.tried, k.ended, k.handed, k.cleared, k.refusals, k.refused = phase, now, time.Time{}, nil, time.Time{}, false, "", 0, map[string]time.Time{}
		}
	}
}
