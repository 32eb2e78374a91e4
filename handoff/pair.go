package handoff

import (
	"reflect"

	"github.com/cachemesh/cachemesh/mesh"
)

// Pair is a pool's two rings while agents are to coexist. It does not change. A nil one moves nothing.
type Pair struct {
	id     uint64 // of the handoff
	routes []mesh.Route
	arcs   *arcs
}

// Of is the pair of a pool as it is now: nil if agents are not to coexist, and p itself if it is that still.
func (p *Pair) Of(pool mesh.Pool) (*Pair, error) {
	h := pool.Handoff
	if !h.Coexists() {
		return nil, nil
	}
	if p != nil && p.id == h.ID && reflect.DeepEqual(p.routes, pool.Routes) {
		return p, nil
	}
	a, err := newArcs(Spec{Pool: pool.Name, Hashing: pool.Hashing, From: h.From, To: h.To, Routes: pool.Routes})
	if err != nil {
		return nil, err
	}
	return &Pair{h.ID, pool.Routes, a}, nil
}

// Moves says whether a key has two owners.
func (p *Pair) Moves(key []byte) bool {
	if p == nil {
		return false
	}
	_, moves := p.arcs.moves(key)
	return moves
}

// Owners are the shards of a key in the ring before and in the one after, "" if the key is not an application's.
func (p *Pair) Owners(key []byte) (from, to string) {
	m, ok := p.arcs.owners(key)
	if !ok {
		return "", ""
	}
	return p.arcs.names[m.from], p.arcs.names[m.to]
}
