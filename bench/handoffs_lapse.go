package main

import (
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/bench/aside"
)

// lapse is a time whose acknowledged writes a local route may lose: what a primary has not replicated when it fails, or acknowledges when it has stood
// still, and what is written at one owner while no leader brings it to the other.
type lapse struct{ from, to time.Time }

const (
	// losesBefore is what a primary that fails may have acknowledged and not replicated, and what who stood still may acknowledge.
	losesBefore = time.Second
	// failingFor is how long a failover may have taken until it is told of, on a busy machine.
	failingFor = 5 * time.Second
)

// lapsed says whether a stale read is of a write that may be lost. Those of coherent routes may not, which wait for a replica. A busy machine has
// failovers of its own.
func (m *handoffMesh) lapsed(s ringState, f aside.Finding) bool {
	if !m.local {
		return false
	}
	all := slices.Clone(m.lapses)
	for _, e := range s.Events {
		if slices.Contains([]string{"failover", "stand-in", "recovery"}, e.Kind) {
			all = append(all, lapse{e.Time.Add(-failingFor), e.Time.Add(losesBefore)})
		}
	}
	return slices.ContainsFunc(all, func(l lapse) bool { return !f.Acked.Before(l.from) && f.Acked.Before(l.to) })
}
