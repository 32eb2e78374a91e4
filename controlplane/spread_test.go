package controlplane

import (
	"math"
	"strings"
	"testing"
)

// pool is a pool whose shards have primaries with so many keys each; bytes are a thousand times the keys, operations the keys.
func pool(weights []uint32, keys ...int64) (all []ShardStatus) {
	for i, k := range keys {
		all = append(all, ShardStatus{Name: "p-" + string(rune('0'+i)), Pool: "p", Weight: weights[i], Nodes: []NodeStatus{
			{Role: "primary", Up: true, Keys: k, MemoryBytes: 1000 * k, RecentOps: float64(k)},
			{Role: "replica", Up: true, Keys: 1 << 40, MemoryBytes: 1 << 40, RecentOps: 1 << 40},
		}})
	}
	return all
}

func TestSpreadIsTheMostOverTheShareByWeight(t *testing.T) {
	for name, c := range map[string]struct {
		pool []ShardStatus
		want float64 // 0 is not known
	}{
		"even":          {pool([]uint32{1, 1}, 500, 500), 1},
		"one has all":   {pool([]uint32{1, 1, 1, 1}, 0, 0, 9, 0), 4},
		"three to one":  {pool([]uint32{1, 1}, 1, 3), 1.5},
		"as weighted":   {pool([]uint32{1, 3}, 1, 3), 1},
		"light is full": {pool([]uint32{1, 3}, 2, 2), 2},
		"no weights":    {pool([]uint32{0, 0}, 1, 3), 1.5},
		"empty":         {pool([]uint32{1, 1}, 0, 0), 0},
		"no shards":     {nil, 0},
		"one shard":     {pool([]uint32{5}, 7), 1},
	} {
		s := spreadOf(c.pool)
		for what, got := range map[string]*float64{"keys": s.Keys, "bytes": s.Bytes, "operations": s.Operations} {
			switch {
			case c.want == 0 && got != nil:
				t.Errorf("%s: %s %v, want none", name, what, *got)
			case c.want != 0 && (got == nil || math.Abs(*got-c.want) > 1e-9):
				t.Errorf("%s: %s %v, want %v", name, what, got, c.want)
			}
		}
	}
	dead := pool([]uint32{1, 1, 1}, 10, 10, 0)
	dead[2].Nodes[0].Up = false
	if s := spreadOf(dead); s.Keys == nil || *s.Keys != 1 {
		t.Errorf("a shard that does not answer counts as empty: %v", s.Keys)
	}
}

func TestASpreadBeyondTheLimitIsAnAlert(t *testing.T) {
	for name, c := range map[string]struct {
		pool []ShardStatus
		want []string
	}{
		"uneven":    {pool([]uint32{1, 1}, 1000, 9000), []string{"p-1 has 1.80 times its share of the keys", "bytes", "operations"}},
		"even":      {pool([]uint32{1, 1}, 4000, 6000), nil},
		"few keys":  {pool([]uint32{1, 1}, 10, 90), nil},
		"as chosen": {pool([]uint32{1, 9}, 1000, 9000), nil},
	} {
		got := spreadOf(c.pool).alerts("p", 1.5)
		if len(got) != len(c.want) {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i].Message, want) || got[i].Remedy == "" || got[i].Subject != "pool p" {
				t.Errorf("%s: %+v, want %q", name, got[i], want)
			}
		}
	}
	idle := pool([]uint32{1, 1}, 5000, 5000)
	idle[0].Nodes[0].RecentOps, idle[1].Nodes[0].RecentOps = 1, 99
	if got := spreadOf(idle).alerts("p", 1.5); len(got) != 0 {
		t.Errorf("a pool that nobody asks: %+v", got)
	}
}
