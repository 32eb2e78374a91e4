package controlplane

import "time"

// LeaderStatus says which of a region's control planes decides.
type LeaderStatus struct {
	Leading bool      `json:"leading"`           // this one does
	URL     string    `json:"url,omitempty"`     // of the one that does; left out if none is known
	Until   time.Time `json:"until,omitzero"`    // this one may act before that, unless it is renewed; left out if it need not be
	Problem string    `json:"problem,omitempty"` // with the lease, or with the state
}

// leader says who leads, as far as the store knows.
func (m *manager) leader() LeaderStatus {
	m.mu.Lock()
	leading := m.machine.Leading(time.Now())
	m.mu.Unlock()
	s := LeaderStatus{Leading: leading, URL: m.store.leader()}
	if until := m.store.leadsUntil(); leading && time.Until(until) < 24*time.Hour {
		s.Until = until // else it is a file's lock, which is held for good
	}
	if err := m.store.problem(); err != nil {
		s.Problem = err.Error()
	}
	return s
}
