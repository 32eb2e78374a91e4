package envoy

import (
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/ring"
)

// Ring is the ring that Envoy makes of a pool's endpoints: the index that it finds is that of the pool's shards.
func Ring(p mesh.Pool) (*ring.Ring, error) {
	hosts := make([]ring.Host, len(p.Shards))
	for i, s := range p.Shards {
		hosts[i] = ring.Host{HashKey: s.Name, Weight: s.Weight}
	}
	return ring.New(ring.Config{Algorithm: ring.Algorithm(p.Hashing.Algorithm), Size: p.Hashing.Size}, hosts)
}
