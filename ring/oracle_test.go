package ring

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"sort"

	"github.com/cespare/xxhash/v2"
)

// oracle is the slow and obvious way to find a key's host: everything is computed for each key anew.
func oracle(c Config, hosts []Host, key []byte) int {
	hash := naiveHash(key)
	if c.Algorithm == Maglev {
		return naiveTable(c.Size, hosts)[hash%c.Size]
	}
	owner, end, firstOwner, first := -1, uint64(0), -1, uint64(0)
	for host, count := range naiveCounts(c.Size, hosts) {
		for i := range count {
			h := xxhash.Sum64String(fmt.Sprintf("%s_%d", hosts[host].HashKey, i))
			if h >= hash && (owner < 0 || h < end) {
				owner, end = host, h
			}
			if firstOwner < 0 || h < first {
				firstOwner, first = host, h
			}
		}
	}
	if owner < 0 {
		return firstOwner
	}
	return owner
}

var tag = regexp.MustCompile(`(?s)^[^{]*\{([^}]+)\}`)

func naiveHash(key []byte) uint64 {
	if match := tag.FindSubmatch(key); match != nil {
		key = match[1]
	}
	// MurmurHash64A with big integers, cut to 64 bits where a register would be.
	m := big.NewInt(0).SetUint64(0xc6a4a7935bd1e995)
	cut := new(big.Int).Lsh(big.NewInt(1), 64)
	times := func(x *big.Int) *big.Int { return new(big.Int).Mod(new(big.Int).Mul(x, m), cut) }
	mix := func(x *big.Int) *big.Int { return new(big.Int).Xor(x, new(big.Int).Rsh(x, 47)) }
	xor := func(x, y *big.Int) *big.Int { return new(big.Int).Xor(x, y) }

	h := xor(big.NewInt(0xc70f6907), times(big.NewInt(int64(len(key)))))
	for start := 0; start < len(key); start += 8 {
		block := big.NewInt(0)
		end := min(start+8, len(key))
		for i := end - 1; i >= start; i-- { // the first byte is the lowest
			block.Add(block.Lsh(block, 8), big.NewInt(int64(key[i])))
		}
		if end-start == 8 {
			block = times(mix(times(block)))
		}
		h = times(xor(h, block))
	}
	return mix(times(mix(h))).Uint64()
}

// naiveCounts is how many entries each host has.
func naiveCounts(size uint64, hosts []Host) []int {
	weights, lightest, _ := naiveWeights(hosts)
	scale := math.Min(math.Ceil(lightest*float64(size))/lightest, 8<<20)
	counts := make([]int, len(hosts))
	total, target := 0, 0.0
	for i, w := range weights {
		part := scale * w
		target += part
		for float64(total) < target {
			counts[i]++
			total++
		}
	}
	return counts
}

func naiveWeights(hosts []Host) (weights []float64, lightest, heaviest float64) {
	sum := 0
	for _, h := range hosts {
		sum += max(int(h.Weight), 1)
	}
	lightest = 1
	for _, h := range hosts {
		w := float64(max(h.Weight, 1)) / float64(sum)
		weights = append(weights, w)
		lightest, heaviest = math.Min(lightest, w), math.Max(heaviest, w)
	}
	return weights, lightest, heaviest
}

// naiveTable writes down every host's whole permutation first.
func naiveTable(size uint64, hosts []Host) map[uint64]int {
	weights, _, heaviest := naiveWeights(hosts)
	permutation := make([][]uint64, len(hosts))
	order := make([]int, len(hosts))
	for i, h := range hosts {
		order[i] = i
		seeded := xxhash.NewWithSeed(1)
		seeded.Write([]byte(h.HashKey))
		for j := range size {
			permutation[i] = append(permutation[i], (xxhash.Sum64String(h.HashKey)%size+j*(seeded.Sum64()%(size-1)+1))%size)
		}
	}
	sort.Slice(order, func(i, j int) bool { return hosts[order[i]].HashKey < hosts[order[j]].HashKey })

	table := make(map[uint64]int)
	target := make([]float64, len(hosts))
	for round := uint32(1); ; round++ {
		for _, host := range order {
			if uint64(len(table)) == size {
				return table
			}
			if float64(round)*weights[host] < target[host] {
				continue
			}
			target[host] += heaviest
			for _, slot := range permutation[host] {
				if _, taken := table[slot]; !taken {
					table[slot] = host
					break
				}
			}
		}
	}
}
