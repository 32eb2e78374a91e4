package controlplane

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

func TestAlertsNameWhatNeedsAPerson(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	node := func(up bool, role, reported string) []ShardStatus {
		return []ShardStatus{{Name: "cache-0", Nodes: []NodeStatus{{Address: "a:1", Up: up, Role: role, ReportedRole: reported, Error: "refused"}}}}
	}
	for name, c := range map[string]struct {
		status Status
		want   string // "" is no alert
	}{
		"all well":              {Status{Sidecars: []xds.Node{{Name: "s", State: xds.Synced}}, Shards: node(true, "primary", "primary")}, ""},
		"a problem in the file": {Status{Config: ConfigStatus{File: "mesh.yaml", Problems: []string{"bad"}}}, "bad"},
		"a rejection":           {Status{Sidecars: []xds.Node{{Name: "s", State: xds.Rejected, Reason: "ugly", Rejections: []xds.Rejection{{Type: "listener"}}}}}, "rejects listener: ugly"},
		"stale for a moment":    {Status{Sidecars: []xds.Node{{Name: "s", State: xds.Stale, Since: now.Add(-5 * time.Second)}}}, ""},
		"stale for long":        {Status{Sidecars: []xds.Node{{Name: "s", State: xds.Stale, Since: now.Add(-time.Minute), Reason: "disconnected"}}}, "stale for 1m0s: disconnected"},
		"a crash":               {Status{Sidecars: []xds.Node{{Name: "s", State: xds.Synced, EnvoyRestarts: 2, ConnectedAt: now.Add(-time.Minute)}}}, "2 times"},
		"a crash long ago":      {Status{Sidecars: []xds.Node{{Name: "s", State: xds.Synced, EnvoyRestarts: 2, ConnectedAt: now.Add(-time.Hour)}}}, ""},
		"a dead primary":        {Status{Shards: node(false, "primary", "")}, "the primary does not answer: refused"},
		"a dead replica":        {Status{Shards: node(false, "replica", "")}, "the replica does not answer"},
		"a primary that is not": {Status{Shards: node(true, "primary", "replica")}, "is a replica, and the mesh says primary"},
	} {
		got := alerts(c.status, now, true)
		switch {
		case c.want == "" && len(got) != 0:
			t.Errorf("%s: alerts %+v, want none", name, got)
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0].Message, c.want) || got[0].Remedy == "" || got[0].Subject == ""):
			t.Errorf("%s: alerts %+v, want one with %q", name, got, c.want)
		}
	}
	if got := alerts(Status{Shards: node(false, "primary", "")}, now, false); len(got) != 0 {
		t.Errorf("alerts %+v before the first probe", got)
	}
}

func TestRecentHitRateForgetsAndSurvivesARestart(t *testing.T) {
	p := newProber()
	now := time.Unix(1_000_000, 0)
	life := "first"
	keep := func(after time.Duration, hits, misses int64) *float64 {
		p.keep(NodeStatus{Address: "a", Up: true, RunID: life, Hits: hits, Misses: misses}, now.Add(after))
		return p.last["a"].RecentHitRate
	}
	if r := keep(0, 1000, 1000); r != nil {
		t.Errorf("rate %v after one probe, want none", *r)
	}
	if r := keep(30*time.Second, 1090, 1010); r == nil || *r != 0.9 {
		t.Errorf("rate %v, want 0.9", r)
	}
	if r := keep(70*time.Second, 1090, 1110); r == nil || *r != 0 {
		t.Errorf("rate %v, want 0: the first probe is more than a minute old", r)
	}
	if keep(71*time.Second, 1089, 1110); p.last["a"].Hits != 1090 {
		t.Errorf("%d hits, fewer than before", p.last["a"].Hits)
	}
	life = "second"
	if r := keep(72*time.Second, 3, 1); r != nil {
		t.Errorf("rate %v after a restart, want none", *r)
	}
	if r := keep(74*time.Second, 6, 2); r == nil || *r != 0.75 {
		t.Errorf("rate %v, want 0.75", r)
	}
}

func TestReplicationIsAsNewAsTheHealthProbes(t *testing.T) {
	p := newProber()
	woken := func() bool {
		select {
		case <-p.wake:
			return true
		default:
			return false
		}
	}
	replica := shards.Node{Address: "a", RunID: "1", Role: mesh.Replica, Of: "b", Linked: true, Offset: 7}
	p.heard(replica, nil)
	if len(p.last) != 0 || woken() {
		t.Error("a node that was not asked for is known")
	}
	p.keep(NodeStatus{Address: "a", Up: true, RunID: "1", ReportedRole: "primary", Keys: 3}, time.Now().Add(-time.Second))
	p.heard(replica, nil)
	if s := p.status(mesh.Node{Address: "a"}); s.ReportedRole != "replica" || s.Replication == nil || *s.Replication != (ReplicationStatus{Of: "b", Linked: true, Offset: 7}) || s.Keys != 3 || woken() {
		t.Errorf("the status is %+v", s)
	}
	restarted := replica
	restarted.RunID, restarted.Offset = "2", 0
	p.heard(restarted, nil)
	if s := p.status(mesh.Node{Address: "a"}); s.Replication.Offset != 7 || !woken() {
		t.Errorf("a node that was restarted is not asked anew: %+v", s)
	}
	p.heard(replica, errors.New("refused"))
	if !woken() {
		t.Error("a node that went is not asked anew")
	}
	p.keep(NodeStatus{Address: "a"}, time.Now().Add(-time.Second))
	p.heard(replica, errors.New("refused"))
	if woken() {
		t.Error("a node that is known to be gone is asked anew")
	}
	p.keep(NodeStatus{Address: "a"}, time.Now())
	p.heard(replica, nil)
	if woken() {
		t.Error("nodes are asked anew without a pause")
	}
}
