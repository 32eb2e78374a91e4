package xds

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// State sums up whether a node has what it is to have.
type State string

// A node is Synced when it has acknowledged everything, Rejected ("NACK") when it has refused something and still
// lacks it, else Stale.
const (
	Synced   State = "SYNCED"
	Stale    State = "STALE"
	Rejected State = "NACK"
)

// Node is an Envoy that is connected, or was lately.
type Node struct {
	Name          string      `json:"name"`
	Region        string      `json:"region"`
	Zone          string      `json:"zone,omitempty"`
	Agent         string      `json:"agent,omitempty"` // the agent's version; empty for an Envoy without one
	Envoy         string      `json:"envoy"`           // Envoy's version
	EnvoyRestarts int         `json:"envoy_restarts"`  // crashes since the agent started
	Connected     bool        `json:"connected"`
	State         State       `json:"state"`
	Reason        string      `json:"reason,omitempty"`
	Version       string      `json:"version"` // of the last resources that it had all of
	Since         time.Time   `json:"since"`   // of the state
	AckedAt       time.Time   `json:"acked_at"`
	ConnectedAt   time.Time   `json:"connected_at"`
	Rejections    []Rejection `json:"rejections,omitempty"`
}

// Rejection is an answer that an Envoy refused. What it had before still serves.
type Rejection struct {
	Type      string    `json:"type"`
	Resources []string  `json:"resources"`
	Reason    string    `json:"reason"`
	At        time.Time `json:"at"`
}

// Nodes lists the nodes by name: those with a stream, then those that have lost theirs lately.
func (s *Server) Nodes() []Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := []Node{}
	for _, st := range s.streams {
		if st.identified {
			nodes = append(nodes, st.status(s.config.Now()))
		}
	}
	for _, n := range s.gone {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Or(strings.Compare(a.Name, b.Name), a.Since.Compare(b.Since)) })
	return nodes
}

func (st *stream) status(now time.Time) Node {
	n := st.node
	n.Connected, n.ConnectedAt = true, st.connectedAt
	for _, typeURL := range types {
		if r := st.rejections[typeURL]; r != nil {
			n.Rejections = append(n.Rejections, *r)
		}
	}
	switch {
	case len(n.Rejections) > 0:
		n.State = Rejected
		n.Since = n.Rejections[0].At
		n.Reason = n.Rejections[0].Reason
	case st.synced:
		n.State = Synced
	default:
		n.State = Stale
		n.Reason = st.lacks()
	}
	if n.Since.IsZero() {
		n.Since = now
	}
	return n
}

// lacks says what a stream that is not synced waits for.
func (st *stream) lacks() string {
	if st.target == nil {
		return "the control plane has no resources yet"
	}
	for _, typeURL := range types {
		for _, want := range st.target.ByType(typeURL) {
			if got := st.has[typeURL][want.Name]; got == nil || got.Version != want.Version {
				return "has not acknowledged " + ShortType(typeURL) + " " + want.Name
			}
		}
	}
	return ""
}

// ShortType is a type's last word, as people say it.
func ShortType(typeURL string) string {
	switch name := typeURL[strings.LastIndexByte(typeURL, '.')+1:]; name {
	case "ClusterLoadAssignment":
		return "endpoints"
	default:
		return strings.ToLower(name)
	}
}
