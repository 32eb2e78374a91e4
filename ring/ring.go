// Package ring says which shard of a pool a key lives on, exactly as Envoy 1.40's Redis proxy chooses it
// with hash tagging enabled: the same hash of the key, the same table of hosts, the same rounding.
//
// It is pure: it talks to nobody and knows no Envoy types, and a Ring never changes once built, so any
// number of goroutines may use it. The operator commands, handoff, lanes, links and warming ask it where a
// key is; requests never do, since Envoy alone routes them. The vectors in testdata were recorded from the
// real Envoy by `go run ./ring/record`.
package ring

import (
	"errors"
	"fmt"
	"math"
)

// Algorithm is how hosts are spread over the hash space.
type Algorithm string

// Envoy's two consistent-hashing load balancers.
const (
	RingHash Algorithm = "ring_hash"
	Maglev   Algorithm = "maglev"
)

// Envoy's limits on Config.Size. A ring never has more than MaxSize entries, whatever the weights ask for.
const (
	MaxSize       = 8388608 // ring_hash
	MaxMaglevSize = 5000011 // maglev; a prime
)

// Host is one shard's place: HashKey is the shard's name, Weight its share against the others' (0 means 1).
type Host struct {
	HashKey string
	Weight  uint32
}

// Config is how a pool's hosts are placed. Size is Envoy's minimum_ring_size for RingHash, its table_size,
// a prime, for Maglev.
type Config struct {
	Algorithm Algorithm
	Size      uint64
}

// Validate reports what Envoy would refuse, or would accept and then crash or find no host with.
func (c Config) Validate() error {
	switch c.Algorithm {
	case RingHash:
		if c.Size < 1 || c.Size > MaxSize {
			return fmt.Errorf("%s: size %d is not between 1 and %d", c.Algorithm, c.Size, MaxSize)
		}
	case Maglev:
		if c.Size > MaxMaglevSize || !prime(c.Size) {
			return fmt.Errorf("%s: size %d is not a prime up to %d; 65537 is one", c.Algorithm, c.Size, MaxMaglevSize)
		}
	default:
		return fmt.Errorf("algorithm %q is unknown: use %s or %s", c.Algorithm, RingHash, Maglev)
	}
	return nil
}

func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

// Ring maps hashes to hosts.
type Ring struct {
	hosts   int
	entries int
	owners  []uint32 // host of each entry or table slot
	arcs    arcs     // empty for Maglev
}

// New places hosts, given in the order in which Envoy's cluster lists them; the order matters to RingHash
// where weights leave fractions of an entry. What Envoy would refuse, or decide by chance, is an error.
func New(c Config, hosts []Host) (*Ring, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	weights, err := normalize(hosts)
	if err != nil {
		return nil, err
	}
	r := &Ring{hosts: len(hosts)}
	if c.Algorithm == Maglev {
		r.owners = maglevTable(c.Size, hosts, weights)
		r.entries = len(r.owners)
	} else {
		entries, err := ringEntries(c.Size, hosts, weights)
		if err != nil {
			return nil, err
		}
		r.arcs, r.owners = newArcs(entries)
		r.entries = len(entries)
	}
	return r, nil
}

// normalize returns each host's part of the total weight, computed as Envoy does.
func normalize(hosts []Host) ([]float64, error) {
	if len(hosts) == 0 {
		return nil, errors.New("a ring needs at least one host")
	}
	seen := make(map[string]bool, len(hosts))
	var sum uint64
	for i, h := range hosts {
		if h.HashKey == "" {
			return nil, fmt.Errorf("host %d has no hash key", i)
		}
		if seen[h.HashKey] {
			return nil, fmt.Errorf("hash key %q occurs twice: each host needs its own", h.HashKey)
		}
		seen[h.HashKey] = true
		sum += uint64(max(h.Weight, 1))
	}
	if sum > math.MaxUint32 {
		return nil, fmt.Errorf("weights add up to %d, above Envoy's limit of %d", sum, uint32(math.MaxUint32))
	}
	weights := make([]float64, len(hosts))
	for i, h := range hosts {
		weights[i] = float64(max(h.Weight, 1)) / float64(sum)
	}
	return weights, nil
}

// Lookup returns the host, as an index into New's hosts, that owns a key's hash.
func (r *Ring) Lookup(hash uint64) int {
	if r.arcs.ends == nil {
		return int(r.owners[hash%uint64(len(r.owners))])
	}
	return int(r.owners[r.arcs.find(hash)])
}

// Find returns the host, as an index into New's hosts, that Envoy sends a key's commands to.
func (r *Ring) Find(key []byte) int { return r.Lookup(Hash(key)) }

// Entries is the number of places on the ring, or slots of the table.
func (r *Ring) Entries() int { return r.entries }

// Share returns the fraction of the hash space that each host owns. They add up to 1.
func (r *Ring) Share() []float64 {
	share := make([]float64, r.hosts)
	if r.arcs.ends == nil {
		for _, owner := range r.owners {
			share[owner] += 1 / float64(len(r.owners))
		}
		return share
	}
	var start uint64
	for i, end := range r.arcs.ends {
		share[r.owners[i]] += float64(end-start) / (1 << 64)
		start = end
	}
	return share
}
