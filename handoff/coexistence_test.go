package handoff_test

import (
	"fmt"
	"log/slog"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
)

// topology is the region's, in a step of the handoff.
func (p *pool) topology(step mesh.HandoffStep, login uint64) *mesh.Topology {
	from, to := p.placed(p.spec.From), p.placed(p.spec.To)
	t := &mesh.Topology{Transactions: mesh.TransactionsLanes, Pools: []mesh.Pool{{
		Name: "timelines", Hashing: p.spec.Hashing, Routes: p.spec.Routes, Shards: from, Login: login,
		Handoff: &mesh.Handoff{ID: 1, Generation: 1, Step: step, From: from, To: to},
	}}}
	if slices.Contains([]mesh.HandoffStep{mesh.Flipping, mesh.Purging}, step) {
		t.Pools[0].Shards = to
	}
	return t
}

func TestCoexistence(t *testing.T) {
	p := newPool(t, names(1, 2), names(1, 2, 3), true)
	var key, still string
	for i := 0; key == "" || still == ""; i++ {
		if k := fmt.Sprintf("timeline:%d", i); p.from(k) != p.to(k) {
			key = k
		} else {
			still = k
		}
	}
	donor, recipient := p.from(key), p.to(key)
	c := handoff.NewCoexistence(slog.New(slog.DiscardHandler))
	defer c.Close()
	c.Update(p.topology(mesh.Copying, 0))
	if c.Pair("timelines").Moves([]byte(key)) {
		t.Error("agents are to coexist while keys are only copied")
	}
	c.Update(p.topology(mesh.Preparing, 0))
	pair := c.Pair("timelines")
	if from, to := pair.Owners([]byte(key)); from != donor || to != recipient || !pair.Moves([]byte(key)) || pair.Moves([]byte(still)) {
		t.Errorf("%s moves from %s to %s", key, from, to)
	}
	written := func(here string, hold time.Duration) {
		t.Helper()
		c.Unlink(pair, here, []handoff.Removal{{Key: []byte(key), Hold: hold}, {Key: []byte(still)}})
	}
	set := func() {
		for shard := range p.nodes {
			p.do(shard, "SET", key, "v")
			p.do(shard, "SET", still, "v")
		}
	}
	there := func(shard, key string) bool { return p.do(shard, "EXISTS", key) == int64(1) }

	set()
	written(donor, time.Second)
	if !there(donor, key) || there(recipient, key) || !there(recipient, still) || !there(donor, still) {
		t.Error("a write at the donor has removed something else than the key at the recipient")
	}
	if p.do(recipient, "ZSCORE", "cachemesh:held", key) == nil {
		t.Error("the recipient does not hold what was removed")
	}
	set()
	written(recipient, 0)
	if there(donor, key) || !there(recipient, key) {
		t.Error("a write at the recipient has removed something else than the key at the donor")
	}

	// The other owner hangs.
	set()
	process := p.nodes[recipient].Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	written(donor, 0)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a write waits for %s", took)
	}
	if n := c.Kept("timelines"); n != 1 {
		t.Errorf("%d keys are kept", n)
	}
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.wait(func() bool { return c.Kept("timelines") == 0 })
	if there(recipient, key) {
		t.Error("what was kept is not removed")
	}

	// It wants a later login.
	set()
	client := node.New(p.nodes[recipient].Address(), nil, 5*time.Second)
	defer client.Close()
	if err := client.Fence(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	written(donor, 0)
	if c.Kept("timelines") != 1 || !there(recipient, key) {
		t.Error("a writer of an earlier login still removes keys")
	}
	c.Update(p.topology(mesh.Fencing, 1))
	p.wait(func() bool { return c.Kept("timelines") == 0 })
	if there(recipient, key) {
		t.Error("what was kept is not removed")
	}
	c.Update(p.topology(mesh.Undoing, 1))
	if c.Pair("timelines") != nil {
		t.Error("agents coexist though it is undone")
	}
}
