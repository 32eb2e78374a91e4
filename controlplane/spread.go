package controlplane

import (
	"fmt"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	// With fewer keys a shard, or operations a second, chance alone makes a spread.
	telling    = 1000
	tellingOps = 100
)

// PoolStatus is a pool in a region.
type PoolStatus struct {
	Pool       string         `json:"pool"`
	Generation uint64         `json:"generation"` // of its ring; 0 until a handoff changes it
	Spread     Spread         `json:"spread"`
	Frozen     *shards.Freeze `json:"frozen,omitempty"`  // nothing changes in it until that is accepted
	Handoff    *HandoffStatus `json:"handoff,omitempty"` // under way
	// Late are sidecars of which it is not known that they follow the ring.
	Late []string `json:"late,omitempty"`
}

// Spread is how evenly a pool's primaries are loaded: the most that one has over what it would have by its weight alone. 1 is
// even; nil is not known.
type Spread struct {
	Keys       *float64 `json:"keys"`
	Bytes      *float64 `json:"bytes"`
	Operations *float64 `json:"operations"` // of the last minute

	most  map[string]string // the shard that has it, by what
	mean  float64           // keys a shard
	opsOf float64           // operations a second and shard
}

// spreadOf leaves out shards whose primary does not answer.
func spreadOf(pool []ShardStatus) Spread {
	s := Spread{most: map[string]string{}}
	var weights, keys, bytes, operations []float64
	var names []string
	for _, shard := range pool {
		for _, n := range shard.Nodes {
			if n.Role == string(mesh.Primary) && n.Up {
				names = append(names, shard.Name)
				weights = append(weights, float64(max(shard.Weight, 1)))
				keys = append(keys, float64(n.Keys))
				bytes = append(bytes, float64(n.MemoryBytes))
				operations = append(operations, n.RecentOps)
			}
		}
	}
	of := func(what string, loads []float64) *float64 {
		value, at := uneven(loads, weights)
		if value == 0 {
			return nil
		}
		s.most[what] = names[at]
		return &value
	}
	s.Keys, s.Bytes, s.Operations = of("keys", keys), of("bytes", bytes), of("operations", operations)
	if n := float64(len(names)); n > 0 {
		s.mean, s.opsOf = sum(keys)/n, sum(operations)/n
	}
	return s
}

// uneven is the greatest load over what its weight makes fair, and whose it is; 0 if there is no load.
func uneven(loads, weights []float64) (most float64, at int) {
	all, weight := sum(loads), sum(weights)
	if all == 0 {
		return 0, 0
	}
	for i, load := range loads {
		if over := load * weight / (weights[i] * all); over > most {
			most, at = over, i
		}
	}
	return most, at
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

// alerts names what is beyond the limit, for pools that are large and busy enough for it to mean something.
func (s Spread) alerts(pool string, limit float64) (found []Alert) {
	if s.mean < telling {
		return nil
	}
	add := func(what string, value *float64, remedy string) {
		if value != nil && *value > limit {
			found = append(found, Alert{Subject: "pool " + pool, Remedy: remedy,
				Message: fmt.Sprintf("shard %s has %.2f times its share of the %s, more than %.2f (health.maxSpread)", s.most[what], *value, what, limit)})
		}
	}
	add("keys", s.Keys, "see whether many keys share one {hash tag}, and whether each shard's weight is what it should be")
	add("bytes", s.Bytes, "look for a few values that are large: `redis-cli --bigkeys` on that shard's replica")
	if s.opsOf >= tellingOps {
		add("operations", s.Operations, "look for a few keys that everybody asks for: `redis-cli --hotkeys` or a moment of MONITOR on that shard")
	}
	return found
}
