package controlplane

import (
	"fmt"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// HandoffStatus is a handoff under way. What only its leader knows is missing elsewhere.
type HandoffStatus struct {
	ID         uint64            `json:"id"`
	Kind       shards.Reshape    `json:"kind"`
	Shard      string            `json:"shard"`
	Generation uint64            `json:"generation"` // that it leads to
	Step       mesh.HandoffStep  `json:"step"`
	Begun      time.Time         `json:"begun"`
	Steps      []shards.Step     `json:"steps"`             // that have ended
	Waits      []string          `json:"waits,omitempty"`   // sidecars that have yet to acknowledge the step
	Late       []string          `json:"late,omitempty"`    // sidecars that are not waited for any longer
	Problem    string            `json:"problem,omitempty"` // why it does not get on
	Undo       string            `json:"undo,omitempty"`    // why it is given up
	Progress   *handoff.Progress `json:"progress,omitempty"`
}

// stillAfter is how long a handoff may be in a step, other than copying, before that is an alert.
const stillAfter = 2 * time.Minute

func (m *manager) handoffStatus(pool string, h shards.Handoff) *HandoffStatus {
	s := &HandoffStatus{ID: h.ID, Kind: h.Kind, Shard: h.Shard, Generation: h.To.Generation, Step: h.Step, Begun: h.Begun, Steps: h.Steps,
		Late: h.Late, Undo: h.Undo, Progress: m.movers.progress(pool)}
	if s.Steps == nil {
		s.Steps = []shards.Step{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	waits, problem := m.machine.Progress(pool)
	s.Waits = waits
	if problem != nil {
		s.Problem = problem.Error()
	}
	return s
}

// in is for how long the handoff has been in its step.
func (s *HandoffStatus) in(now time.Time) time.Duration {
	since := s.Begun
	if n := len(s.Steps); n > 0 {
		since = since.Add(time.Duration(s.Steps[n-1].MS * float64(time.Millisecond)))
	}
	return now.Sub(since)
}

// alerts are what needs a person in a pool's handoff.
func (p PoolStatus) alerts(now time.Time) (found []Alert) {
	subject := "pool " + p.Pool
	if s := p.Handoff; s != nil {
		remedy := "see `cachemesh status`; before its flip `cachemesh shard abort " + p.Pool + "` gives it up"
		switch long := s.in(now); {
		case s.Problem != "" && long > time.Minute:
			found = append(found, Alert{Subject: subject, Remedy: remedy, Message: fmt.Sprintf("its handoff (%s %s) has been %s for %s: %s", s.Kind, s.Shard, s.Step, long.Round(time.Second), s.Problem)})
		case s.Step != mesh.Copying && long > stillAfter:
			found = append(found, Alert{Subject: subject, Remedy: remedy, Message: fmt.Sprintf("its handoff (%s %s) has been %s for %s", s.Kind, s.Shard, s.Step, long.Round(time.Second))})
		}
	}
	if len(p.Late) > 0 {
		found = append(found, Alert{Subject: subject, Remedy: "bring them back; what they left where keys were before is removed then",
			Message: fmt.Sprintf("sidecars have not said that they follow generation %d of its ring: %s", p.Generation, strings.Join(p.Late, ", "))})
	}
	return found
}
