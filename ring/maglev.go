package ring

import (
	"cmp"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// maglevTable computes the host of each slot as Envoy's MaglevLoadBalancer does: every host walks its own
// permutation of the slots, and the hosts, sorted by hash key, take their next free one in turn, the
// heaviest in each round and the others in proportion. (Eisenbud et al., "Maglev: A Fast and Reliable
// Software Network Load Balancer", NSDI 2016, section 3.4; the weights are Envoy's addition.)
func maglevTable(size uint64, hosts []Host, weights []float64) []uint32 {
	type walker struct {
		owner      uint32
		slot, skip uint64
		weight     float64
		due        float64 // takes a slot when its weight, summed over the rounds, has come this far
	}
	walkers := make([]walker, len(hosts))
	for i, host := range hosts {
		seeded := xxhash.NewWithSeed(1)
		seeded.WriteString(host.HashKey)
		walkers[i] = walker{
			owner:  uint32(i),
			slot:   xxhash.Sum64String(host.HashKey) % size,
			skip:   seeded.Sum64()%(size-1) + 1,
			weight: weights[i],
		}
	}
	slices.SortFunc(walkers, func(a, b walker) int { return cmp.Compare(hosts[a.owner].HashKey, hosts[b.owner].HashKey) })
	heaviest := slices.Max(weights)

	table := make([]uint32, size)
	taken := make([]bool, size)
	for round, filled := 1.0, uint64(0); ; round++ {
		for i := range walkers {
			w := &walkers[i]
			if round*w.weight < w.due {
				continue
			}
			w.due += heaviest
			for taken[w.slot] {
				w.slot = (w.slot + w.skip) % size
			}
			table[w.slot], taken[w.slot] = w.owner, true
			if filled++; filled == size {
				return table
			}
		}
	}
}
