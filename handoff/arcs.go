package handoff

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/ring"
)

// arcs say whose a key is before a handoff and after it.
type arcs struct {
	names    []string // of the shards of both rings, which are known by their index here
	from, to placing
	routes   []route // longest prefix first
}

// placing is a ring.
type placing struct {
	ring   *ring.Ring
	shards []int // by host of the ring
}

type route struct {
	prefix  []byte
	onLanes bool
}

func newArcs(s Spec) (*arcs, error) {
	a := &arcs{}
	for _, g := range []struct {
		name   string
		shards []mesh.Shard
		into   *placing
	}{{"from", s.From, &a.from}, {"to", s.To, &a.to}} {
		hosts := make([]ring.Host, len(g.shards))
		for i, shard := range g.shards {
			hosts[i] = ring.Host{HashKey: shard.Name, Weight: shard.Weight}
			at := slices.Index(a.names, shard.Name)
			if at < 0 {
				at = len(a.names)
				a.names = append(a.names, shard.Name)
			}
			g.into.shards = append(g.into.shards, at)
		}
		var err error
		if g.into.ring, err = ring.New(ring.Config{Algorithm: ring.Algorithm(s.Hashing.Algorithm), Size: s.Hashing.Size}, hosts); err != nil {
			return nil, fmt.Errorf("handoff of pool %s, the ring %s: %w", s.Pool, g.name, err)
		}
	}
	for _, r := range s.Routes {
		a.routes = append(a.routes, route{[]byte(r.Prefix), s.OnLanes != nil && s.OnLanes(r)})
	}
	if len(a.routes) == 0 {
		return nil, errors.New("handoff of pool " + s.Pool + ": it has no routes, so no keys")
	}
	slices.SortStableFunc(a.routes, func(x, y route) int { return cmp.Compare(len(y.prefix), len(x.prefix)) })
	return a, nil
}

func (p placing) of(hash uint64) int { return p.shards[p.ring.Lookup(hash)] }

// moving is a key that changes its shard.
type moving struct {
	from, to int
	onLanes  bool
}

// Where a key is at home in the one ring and the other.
func before(m moving) int { return m.from }
func after(m moving) int  { return m.to }

var reserved = []byte(mesh.ReservedPrefix)

// owners are the shards of an application's key; ok is false for any other key.
func (a *arcs) owners(key []byte) (m moving, ok bool) {
	if bytes.HasPrefix(key, reserved) {
		return m, false
	}
	for i := range a.routes {
		if r := &a.routes[i]; bytes.HasPrefix(key, r.prefix) {
			hash := ring.Hash(key)
			return moving{a.from.of(hash), a.to.of(hash), r.onLanes}, true
		}
	}
	return m, false
}

// moves says whether the key changes its shard.
func (a *arcs) moves(key []byte) (moving, bool) {
	m, ok := a.owners(key)
	return m, ok && m.from != m.to
}

// prefixes are what there is to be watched. Redis refuses a prefix of another.
func (a *arcs) prefixes() []string {
	var all []string
	for _, r := range slices.Backward(a.routes) {
		covered := slices.ContainsFunc(all, func(p string) bool { return bytes.HasPrefix(r.prefix, []byte(p)) })
		if !covered {
			all = append(all, string(r.prefix))
		}
	}
	return all
}

// share is the part of the hash space that moves, and the least that could.
func (a *arcs) share() (moved, ideal float64) {
	const samples = 1 << 20
	n := 0
	for i := range uint64(samples) {
		hash := i * 0x9e3779b97f4a7c15
		if a.from.of(hash) != a.to.of(hash) {
			n++
		}
	}
	gains := make([]float64, len(a.names))
	for i, s := range a.to.ring.Share() {
		gains[a.to.shards[i]] += s
	}
	for i, s := range a.from.ring.Share() {
		gains[a.from.shards[i]] -= s
	}
	for _, g := range gains {
		ideal += max(g, 0)
	}
	return float64(n) / samples, ideal
}
