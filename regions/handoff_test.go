package regions

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
)

// unlink has the applier remove keys, and returns a channel that is closed when they are gone.
func (r *testRegion) unlink(keys ...string) <-chan struct{} {
	done := make(chan struct{})
	all := make([][]byte, len(keys))
	for i, k := range keys {
		all[i] = []byte(k)
	}
	r.applier.Remove(all, func() { close(done) })
	return done
}

func (r *testRegion) within(what string, done <-chan struct{}) {
	r.t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		r.t.Fatalf("not yet: %s", what)
	}
}

func TestKeysThatMoveAreRemovedAtBothOwners(t *testing.T) {
	r := newRegion(t, "eu", 2)
	pool := r.topology.Pools[0]
	all := pool.Shards
	step := func(step mesh.HandoffStep, login uint64) {
		next := *r.topology
		p := pool
		p.Shards, p.Login = all[:1], login
		p.Handoff = &mesh.Handoff{ID: 1, Generation: 1, Step: step, From: all[:1], To: all}
		next.Pools = []mesh.Pool{p}
		r.topology = &next
		r.applier.Update(r.topology)
	}
	step(mesh.Preparing, 0)
	pair := r.applier.view.Load().pairs["users"]
	key := ""
	for i := 0; key == ""; i++ {
		if k := fmt.Sprintf("user:%d", i); pair.Moves([]byte(k)) {
			key = k
		}
	}
	set := func() {
		for _, n := range r.nodes {
			if err := n.client.Set(t.Context(), key, "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	has := func(shard int) bool { return r.nodes[shard].client.Exists(t.Context(), key).Val() == 1 }
	set()
	r.within("removed", r.unlink(key))
	for i, n := range r.nodes {
		if has(i) || n.client.ZScore(t.Context(), "cachemesh:held", key).Err() != nil {
			t.Errorf("shard %d has the key still, or does not hold it", i)
		}
	}
	if !r.applier.Settled() {
		t.Error("nothing is on its way, and it is not settled")
	}

	// A later login is wanted: who is late removes nothing, and says nothing is removed.
	set()
	for _, n := range r.nodes {
		control := node.New(n.Address(), nil, 5*time.Second)
		defer control.Close()
		if err := control.Fence(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	done := r.unlink(key)
	select {
	case <-done:
		t.Error("a late applier says that it has removed a key")
	case <-time.After(300 * time.Millisecond):
	}
	if !has(0) || !has(1) {
		t.Error("a late applier has removed a key")
	}
	step(mesh.Fencing, 1)
	r.within("removed with the login", done)
	if has(0) || has(1) {
		t.Error("a shard has the key still")
	}
	r.until("settled applier", r.applier.Settled)

	step(mesh.Undoing, 1)
	set()
	r.within("removed", r.unlink(key))
	if has(0) || !has(1) {
		t.Error("what is undone is still removed at both")
	}
}

// What other regions have stays theirs when a shard comes: nobody can have missed what was written to it.
func TestAShardThatComesCostsOthersNothing(t *testing.T) {
	us, eu := newRegion(t, "us", 2), newRegion(t, "eu", 1)
	all := slices.Clone(us.topology.Pools[0].Shards)
	all[1].Epoch = 7
	at := func(step mesh.HandoffStep) *mesh.Topology {
		next := *us.topology
		p := us.topology.Pools[0]
		p.Shards, p.Handoff = all[:1], &mesh.Handoff{ID: 1, Generation: 1, Step: step, From: all[:1], To: all}
		if step == mesh.Flipping || step == "" {
			p.Shards = all
		}
		if step == "" {
			p.Handoff = nil
		}
		next.Pools = []mesh.Pool{p}
		return &next
	}
	us.topology = at(mesh.Copying)
	linked(us, eu)
	// It was there before, and went.
	us.links.Follow(map[string]bool{"users-0": false, "users-1": true})
	us.until("a cursor", func() bool {
		return us.nodes[1].client.HExists(t.Context(), "cachemesh:cursors", "eu").Val()
	})
	eu.set(keysOf("user:", 100)...)
	for _, step := range []mesh.HandoffStep{mesh.Preparing, mesh.Fencing, mesh.Flipping, mesh.Purging, ""} {
		us.topology = at(step)
		us.update()
	}
	us.flowing()
	gone := ""
	for _, key := range keysOf("user:", 100) {
		if us.shard(key) == 1 {
			gone = key
		}
	}
	us.remove(gone)
	eu.gone(gone)
	if n := eu.nodes[0].client.DBSize(t.Context()).Val(); n < 99 {
		t.Errorf("%d keys are left", n)
	}
	for _, p := range us.links.Pairs() {
		if p.Gaps > 0 || p.Fences > 0 {
			t.Errorf("%+v", p)
		}
	}
}
