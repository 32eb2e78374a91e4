package ring

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// entry is one place of a host on the ring.
type entry struct {
	hash  uint64
	owner uint32
}

// ringScale is how many entries a whole ring has, give or take a fraction: enough that the lightest host gets
// a whole number and the ring at least size, unless that exceeds MaxSize.
func ringScale(size uint64, lightest float64) float64 {
	return min(math.Ceil(lightest*float64(size))/lightest, MaxSize)
}

// ringEntries computes the ring, sorted by hash, as Envoy's RingHashLoadBalancer does. Entries are counted
// with running sums over all hosts, so a host's count depends on those before it, down to the rounding of
// the sums. Two hosts with an entry at the same hash are an error: which of them Envoy takes depends on its
// sort algorithm. Chance makes such a pair in a ring of 65,536 once in ten billion.
func ringEntries(size uint64, hosts []Host, weights []float64) ([]entry, error) {
	scale := ringScale(size, slices.Min(weights))
	entries := make([]entry, 0, int(math.Ceil(scale)))
	var name []byte
	var target float64
	for i, host := range hosts {
		// The conversion keeps Go from fusing the two operations where the processor could: Envoy's build
		// for x86-64 rounds the product.
		target += float64(scale * weights[i])
		name = append(append(name[:0], host.HashKey...), '_')
		prefix := len(name)
		for n := uint64(0); float64(len(entries)) < target; n++ {
			name = strconv.AppendUint(name[:prefix], n, 10)
			entries = append(entries, entry{xxhash.Sum64(name), uint32(i)})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.hash, b.hash) })
	for i := 1; i < len(entries); i++ {
		if a, b := entries[i-1], entries[i]; a.hash == b.hash && a.owner != b.owner {
			return nil, fmt.Errorf("hash keys %q and %q both have an entry at %d: rename one", hosts[a.owner].HashKey, hosts[b.owner].HashKey, a.hash)
		}
	}
	return entries, nil
}

// arcs are the ends of the ring's arcs, sorted: arc i takes the hashes up to and including ends[i] that no
// arc before it takes. The last one ends at the highest hash and belongs to the first entry's host, which is
// how the ring closes.
type arcs struct {
	ends []uint64
	// first[b] is the first arc whose end is not below the bucket of hashes whose top bits are b. As there
	// are more buckets than arcs, a look-up seldom passes more than one arc.
	first []uint32
	shift uint
}

// newArcs also returns the host of each arc.
func newArcs(entries []entry) (arcs, []uint32) {
	n := len(entries)
	a := arcs{ends: make([]uint64, n+1)}
	owners := make([]uint32, n+1)
	for i, e := range entries {
		a.ends[i], owners[i] = e.hash, e.owner
	}
	a.ends[n], owners[n] = math.MaxUint64, entries[0].owner

	width := bits.Len(uint(n))
	a.shift = uint(64 - width)
	a.first = make([]uint32, 1<<width)
	arc := 0
	for b := range a.first {
		for a.ends[arc] < uint64(b)<<a.shift {
			arc++
		}
		a.first[b] = uint32(arc)
	}
	return a, owners
}

func (a *arcs) find(hash uint64) uint32 {
	i := a.first[hash>>a.shift]
	for a.ends[i] < hash {
		i++
	}
	return i
}
