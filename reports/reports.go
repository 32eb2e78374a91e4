// Package reports is how agents and control planes talk about what agents see: verdicts on the primaries that they witness, and
// the endpoints that their Envoys have acknowledged. It is a gRPC service with the bounds of its messages, and nothing else:
// sidecar reports, controlplane asks and listens.
package reports

import (
	"fmt"
	"net/netip"
	"unicode/utf8"
)

// The bounds of messages. With all of them reached, a report stays below the 4 MiB that gRPC takes.
const (
	Max        = 10_000 // verdicts, endpoints or targets of a message
	MaxName    = 253    // bytes of an agent's, a region's, a version's or a shard's name
	MaxAddress = 128    // bytes
	MaxError   = 100    // bytes
	MaxAccess  = 16 << 10
	// MaxTopology is for some ten thousand shards. Instructions need not stay below gRPC's 4 MiB.
	MaxTopology = 16 << 20
	// Events of the application: of a report, and bytes of each. The rest of a report leaves room for them.
	MaxEvents = 32
	MaxEvent  = 8 << 10
	// MaxWarming is for all runs at once. Keys are no part of them.
	MaxWarming = 1 << 20
)

// Check says which field of a report is out of bounds.
func (r *Report) Check() error {
	if a := r.GetAgent(); a != nil {
		if a.GetName() == "" {
			return fmt.Errorf("agent.name is empty: give the sidecar a name that is unique in its region")
		}
		if err := first(bound("agent.name", a.GetName(), MaxName), bound("agent.region", a.GetRegion(), MaxName), bound("agent.version", a.GetVersion(), MaxName),
			bound("agent.link", a.GetLink(), MaxAddress)); err != nil {
			return err
		}
	}
	if err := count("verdicts", len(r.GetVerdicts())); err != nil {
		return err
	}
	for i, v := range r.GetVerdicts() {
		field := fmt.Sprintf("verdicts[%d].", i)
		if err := first(named(field, v.GetShard()), bound(field+"address", v.GetAddress(), MaxAddress), bound(field+"error", v.GetError(), MaxError)); err != nil {
			return err
		}
	}
	if err := count("endpoints", len(r.GetEndpoints())); err != nil {
		return err
	}
	for i, e := range r.GetEndpoints() {
		field := fmt.Sprintf("endpoints[%d].", i)
		if err := first(named(field, e.GetShard()), bound(field+"address", e.GetAddress(), MaxAddress)); err != nil {
			return err
		}
	}
	if err := first(count("pairs", len(r.GetPairs())), count("notices", len(r.GetNotices())), count("rings", len(r.GetRings()))); err != nil {
		return err
	}
	for i, g := range r.GetRings() {
		field := fmt.Sprintf("rings[%d].", i)
		if err := first(bound(field+"pool", g.GetPool(), MaxName), bound(field+"step", g.GetStep(), MaxName)); err != nil {
			return err
		}
	}
	for i, p := range r.GetPairs() {
		field := fmt.Sprintf("pairs[%d].", i)
		if err := first(named(field, p.GetShard()), bound(field+"region", p.GetRegion(), MaxName), bound(field+"to", p.GetTo(), MaxAddress), bound(field+"problem", p.GetProblem(), MaxError),
			bound(field+"cursor", p.GetCursor(), MaxAddress), count(field+"fences", len(p.GetFences()))); err != nil {
			return err
		}
		for _, f := range p.GetFences() {
			if err := first(bound(field+"fences.id", f.GetId(), 2*MaxName), bound(field+"fences.reason", f.GetReason(), MaxName)); err != nil {
				return err
			}
		}
	}
	if n := len(r.GetEvents()); n > MaxEvents {
		return fmt.Errorf("events has %d entries and may have %d", n, MaxEvents)
	}
	for i, e := range r.GetEvents() {
		if len(e) > MaxEvent {
			return fmt.Errorf("events[%d] has %d bytes and may have %d", i, len(e), MaxEvent)
		}
	}
	for i, n := range r.GetNotices() {
		field := fmt.Sprintf("notices[%d].", i)
		if err := first(named(field, n.GetShard()), bound(field+"region", n.GetRegion(), MaxName), bound(field+"reason", n.GetReason(), MaxName)); err != nil {
			return err
		}
	}
	return nil
}

// Check says which field of the instructions is out of bounds. It does not read how to log in.
func (m *Instructions) Check() error {
	if err := count("targets", len(m.GetTargets())); err != nil {
		return err
	}
	if m.GetIntervalMs() < 10 || m.GetDownAfterMs() < m.GetIntervalMs() || m.GetDownAfterMs() > 60_000 {
		return fmt.Errorf("interval_ms %d, down_after_ms %d: the first is at least 10, the second at least as much and at most 60000", m.GetIntervalMs(), m.GetDownAfterMs())
	}
	if err := count("follow", len(m.GetFollow().GetShards())); err != nil {
		return err
	}
	if n := len(m.GetTopology()); n > MaxTopology {
		return fmt.Errorf("topology has %d bytes and may have %d", n, MaxTopology)
	}
	if n := len(m.GetWarming()); n > MaxWarming {
		return fmt.Errorf("warming has %d bytes and may have %d", n, MaxWarming)
	}
	for i, t := range m.GetTargets() {
		field := fmt.Sprintf("targets[%d].", i)
		if err := first(named(field, t.GetShard()), bound(field+"run_id", t.GetRunId(), MaxName), bound(field+"access", t.GetAccess(), MaxAccess)); err != nil {
			return err
		}
		if _, err := netip.ParseAddrPort(t.GetAddress()); err != nil {
			return fmt.Errorf("%saddress is not IP:port", field)
		}
	}
	return nil
}

// Shorten cuts the text of an error to what a verdict may hold.
func Shorten(text string) string {
	if len(text) <= MaxError {
		return text
	}
	const mark = "…"
	cut := MaxError - len(mark)
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + mark
}

func count(field string, n int) error {
	if n > Max {
		return fmt.Errorf("%s has %d entries and may have %d", field, n, Max)
	}
	return nil
}

func named(field, shard string) error {
	if shard == "" {
		return fmt.Errorf("%sshard is empty", field)
	}
	return bound(field+"shard", shard, MaxName)
}

func bound(field, value string, most int) error {
	if len(value) > most {
		return fmt.Errorf("%s has %d bytes and may have %d", field, len(value), most)
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
