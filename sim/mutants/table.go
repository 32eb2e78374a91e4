package main

// mutant is a bug.
type mutant struct {
	name  string
	edits []edit
}

// edit replaces a piece of a file of package shards that occurs once.
type edit struct{ file, old, new string }

func one(name, file, old, new string) mutant { return mutant{name, []edit{{file, old, new}}} }

var mutants = []mutant{
	// Who is down.
	{"the quorum is of the witnesses that are heard", []edit{
		{"health.go", "func (m *Manager) down(now time.Time, name string, s Shard) bool {\n\tdown, _ := m.count", "func (m *Manager) down(now time.Time, name string, s Shard) bool {\n\tdown, up := m.count"},
		{"health.go", "m.config.DownAfter && agreed(down, len(s.Witnesses))", "m.config.DownAfter && agreed(down, down+up)"},
	}},
	one("half of the witnesses are a quorum", "health.go", "2*down > witnesses", "2*down >= witnesses"),
	one("witnesses are not asked", "health.go", "m.config.DownAfter && agreed(down, len(s.Witnesses))", "m.config.DownAfter && down >= 0"),
	one("the control plane need not miss the primary itself", "health.go", "return m.silence(now, name, s) >= m.config.DownAfter && agreed(", "return agreed("),
	one("a verdict counts for ever", "health.go", "now.Sub(v.at) > verdictLife || ", ""),
	one("a verdict on the primary before counts", "health.go", "v.Epoch != s.Epoch || v.Address != s.Primary", "false"),
	one("a witness is forgotten when it disconnects", "witness.go", "a.connected || d.now.Sub(last) < agentLife", "a.connected || d.now.Sub(last) < 0"),
	one("a witness counts for a minute after it is gone", "witness.go", "< agentLife", "< time.Minute"),
	{"another process at the primary's address is the primary", []edit{
		{"health.go", "n.RunID == s.RunID && ", ""},
		{"health.go", "n.leader == s.RunID && ", ""},
	}},
	one("a node that has answered once is alive for ever", "health.go", "return s != nil && now.Sub(s.at) < m.config.DownAfter", "return s != nil"),

	// Who takes over.
	one("the replica with the least data takes over", "health.go", "inHistory(s, n) && n.Offset > offset", "inHistory(s, n) && (best == \"\" || n.Offset < offset)"),
	one("a replica with other data takes over", "health.go", "inHistory(s, n) && n.Offset > offset", "n.Role == mesh.Replica && n.Offset > offset"),
	one("a shard without replica goes on with old data", "decide.go", "c.Fresh, c.To = true, d.spare(d.now, member)", "c.Fresh, c.To = false, d.spare(d.now, member)"),
	one("a recovery keeps old data", "decide.go", "Kind: Recovery, To: to, Fresh: true", "Kind: Recovery, To: to, Fresh: false"),
	one("a node that restarted meanwhile is promoted", "change.go", "Fresh: c.Fresh, RunID: c.RunID}", "Fresh: c.Fresh}"),
	one("that the chosen node has restarted is not seen", "change.go", "return c.RunID != \"\" && d.alive", "return false && d.alive"),
	one("a node that refuses to be made primary is asked for ever", "change.go", "k.refusals >= maxRefusals && ", "false && "),
	one("a primary whose epoch is raised is replaced at will", "change.go", "if c.Kind == Raised {", "if false {"),

	// Epochs.
	one("a change keeps the shard's epoch", "decide.go", "c.Epoch = max(c.Epoch, s.Epoch+1)", "c.Epoch = max(c.Epoch, s.Epoch)"),
	one("a change begun anew keeps the epoch", "decide.go", "c.Epoch = max(c.Epoch, s.Change.Epoch+1)", "c.Epoch = max(c.Epoch, s.Change.Epoch)"),
	one("the epoch of an abandoned switch is used again", "change.go", "s.Change, s.Epoch = nil, c.Epoch+1", "s.Change = nil"),
	one("a node's newer epoch is ignored", "decide.go", "d.alive(d.now, address) && n.Epoch > s.Epoch {", "d.alive(d.now, address) && n == nil {"),
	{"epochs that other nodes remember are used again", []edit{
		{"decide.go", "c.Epoch = max(c.Epoch, n.Epoch+1)", "c.Epoch = max(c.Epoch, 1)"},
		{"change.go", ", address != c.To && n.Role == mesh.Primary && d.alive(d.now, address):", ":"},
	}},
	one("another primary's epoch is given again", "change.go", ", address != c.To && n.Role == mesh.Primary && d.alive(d.now, address):", ":"),
	one("a state made anew begins with an empty node", "decide.go", "return a.Offset > b.Offset", "return a.Offset < b.Offset"),
	one("a replica may be promoted with the epoch that it has", "change.go", "(n.Epoch > c.Epoch || n.Role == mesh.Replica)", "n.Epoch > c.Epoch"),
	one("epochs beyond belief are believed", "manager.go", "if n.Epoch > maxEpoch {", "if false {"),
	one("the epoch is not mirrored", "decide.go", "if primary.Epoch < s.Epoch {", "if false {"),

	// In which order.
	one("a state counts before it is written", "decide.go", "= cloned(d.next.Shards), ", "= d.next.Shards, "),
	{"a promotion is done before it is written", []edit{
		{"decide.go", "	d.set(name, s)\n}\n\nfunc ms(", "	d.set(name, s)\n	if c.To != \"\" {\n		d.act(Action{Op: Promote, Shard: name, Node: c.To, Epoch: c.Epoch})\n	}\n}\n\nfunc ms("},
		{"decide.go", "	if d.changed {\n		return Decision{State", "	if d.changed && len(d.actions) == 0 {\n		return Decision{State"},
	}},
	one("others follow before the new primary is written", "change.go", "	case d.alive(d.now, c.To):\n		d.act(", "	case d.alive(d.now, c.To):\n		if c.From != \"\" {\n			d.act(Action{Op: Demote, Shard: member.Shard, Node: c.From, Of: c.To, Epoch: c.Epoch})\n		}\n		d.act("),
	one("a primary counts before it has its epoch", "change.go", "n.Role == mesh.Primary && n.Epoch == c.Epoch", "n.Role == mesh.Primary"),
	one("a switch does not wait for the replica", "change.go", "Action{Op: Handover,", "Action{Op: Promote,"),
	one("an old primary that returns is left alone", "decide.go", "(n.Role == mesh.Primary || n.Of != s.Primary)", "n.Role != mesh.Primary && n.Of != s.Primary"),

	// Who may act.
	one("a lease has no margin", "lease.go", "l.terms.LockDelay - l.terms.Margin", "l.terms.LockDelay"),
	one("a lease lasts as long as the session", "lease.go", "l.terms.LockDelay - l.terms.Margin", "l.terms.TTL - l.terms.Margin"),
	{"a leader whose time is up goes on", []edit{
		{"manager.go", "m.loaded && now.Before(m.until) && ", "m.loaded && "},
		{"manager.go", "if !now.Before(until) {\n\t\tm.since = time.Time{}", "if !now.Before(until) {\n\t\tm.until = until"},
	}},

	// What a handoff waits for.
	one("a handoff's step does not wait for its move", "handoff.go", " || k.ran != move || ", " || k.ran.Pool == \"\" || "),
	one("a handoff's step does not wait for sidecars", "handoff.go", "case !whole || len(k.waits) > 0 || ", "case !whole || "),
	one("late sidecars are fenced before the others are there", "handoff.go", "if h.Step == mesh.Fencing && len(k.waits) > 0 {", "if false {"),
	one("a handoff begins in the place of another", "reshape.go", "; busy {\n		return fmt.Errorf(\"pool %q is in a handoff already", "; false && busy {\n		return fmt.Errorf(\"pool %q is in a handoff already"),
	one("a handoff is undone after its flip", "reshape.go", "case h.Step == mesh.Flipping || h.Step == mesh.Purging:", "case false:"),
	one("a move counts for other primaries than it had", "handoff.go", "fmt.Sprintf(\"%s@%d\", p.Shard, s.Epoch)", "fmt.Sprintf(\"%s\", p.Shard)"),

	// What stays.
	one("the guard is off", "guard.go", "return lost > fewest && ", "return false && lost > fewest && "),
	one("a frozen pool changes", "decide.go", "case d.held[member.Pool]:", "case false:"),
	one("a shard without nodes leaves the ring", "topology.go", "if state.Epoch == 0 {", "if state.Primary == \"\" {"),
	one("a shard without nodes gets no stand-in", "topology.go", "case s.Primary == \"\":", "case false:"),
}
