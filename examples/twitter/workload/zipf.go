package workload

import (
	"math"
	"math/rand/v2"
	"sort"
)

// Zipf draws ranks 0 to n-1, rank r with a probability in proportion to 1/(r+1)^alpha. Unlike the standard library's, it
// takes any alpha of 0 or more, as it keeps the distribution as a table (8 bytes a rank).
type Zipf struct{ cumulative []float64 }

// NewZipf makes the table for n ranks.
func NewZipf(n int, alpha float64) *Zipf {
	z := &Zipf{cumulative: make([]float64, n)}
	sum := 0.0
	for r := range z.cumulative {
		sum += math.Pow(float64(r+1), -alpha)
		z.cumulative[r] = sum
	}
	for r := range z.cumulative {
		z.cumulative[r] /= sum
	}
	return z
}

// Draw returns a rank.
func (z *Zipf) Draw(rng *rand.Rand) int {
	return min(sort.SearchFloat64s(z.cumulative, rng.Float64()), len(z.cumulative)-1)
}
