package ring

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

func FuzzFind(f *testing.F) {
	f.Add([]byte("timeline:{42}:x"), uint16(1024), "shard", []byte{1, 1, 1})
	f.Add([]byte("{}\xff\x00"), uint16(1), "", []byte{255, 1})
	f.Add([]byte("}{a}{b}"), uint16(1000), "ключ_1", []byte{0, 3, 5, 11})
	f.Add([]byte{}, uint16(7), "_", []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Fuzz(func(t *testing.T, key []byte, size uint16, name string, weights []byte) {
		if len(weights) == 0 || len(weights) > 16 || len(name) > 100 || len(key) > 1000 {
			return // the oracle is slow
		}
		hosts := make([]Host, len(weights))
		for i, w := range weights {
			hosts[i] = Host{fmt.Sprint(name, i), uint32(w)}
		}
		for _, c := range []Config{{RingHash, uint64(size%2048) + 1}, {Maglev, primeFrom(uint64(size%512) + 2)}} {
			r, err := New(c, hosts)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := r.Find(key), oracle(c, hosts, key); got != want {
				t.Errorf("%+v over %v: key %q is on host %d, the oracle says %d", c, hosts, key, got, want)
			}
		}
	})
}

func primeFrom(n uint64) uint64 {
	for !prime(n) {
		n++
	}
	return n
}

func TestLookupAtEveryEnd(t *testing.T) {
	hosts := equalHosts(3)
	r := mustNew(t, Config{RingHash, 100}, hosts)
	for i, end := range r.arcs.ends[:r.entries] {
		if got := r.Lookup(end); got != int(r.owners[i]) {
			t.Errorf("hash %d, an entry of host %d, is on host %d", end, r.owners[i], got)
		}
		if got := r.Lookup(end + 1); got != int(r.owners[i+1]) {
			t.Errorf("hash %d, just beyond an entry, is on host %d, want the next entry's, %d", end+1, got, r.owners[i+1])
		}
	}
	if first := int(r.owners[0]); r.Lookup(0) != first || r.Lookup(math.MaxUint64) != first {
		t.Errorf("hash 0 is on host %d and the highest on %d, want the first entry's, %d", r.Lookup(0), r.Lookup(math.MaxUint64), first)
	}
}

func TestNewHostTakesFromAllAndNoneElseMoves(t *testing.T) {
	// A spare of weight 1 makes Envoy give each shard as many entries as its weight, however many there are.
	withSpare := func(shards int) []Host {
		hosts := []Host{{"spare", 1}}
		for _, h := range equalHosts(shards) {
			hosts = append(hosts, Host{h.HashKey, 1024})
		}
		return hosts
	}
	for shards := 1; shards < 12; shards++ {
		before := mustNew(t, Config{RingHash, 1}, withSpare(shards))
		after := mustNew(t, Config{RingHash, 1}, withSpare(shards+1))
		if want := 1024*shards + 1; before.Entries() != want {
			t.Errorf("%d shards and a spare: %d entries, want %d", shards, before.Entries(), want)
		}
		for hash := range hashes(20000) {
			if was, is := before.Lookup(hash), after.Lookup(hash); was != is && is != shards+1 {
				t.Fatalf("adding host %d moved hash %d from host %d to %d", shards+1, hash, was, is)
			}
		}
	}
}

func TestMovementToAFifthShard(t *testing.T) {
	const ideal = 1.0 / 5
	for _, test := range []struct {
		config Config
		most   float64 // times the ideal
	}{
		{Config{RingHash, 65536}, 1.6}, // every host loses entries to a ring of constant size
		{Config{Maglev, 65537}, 1.1},
	} {
		before, after := mustNew(t, test.config, equalHosts(4)), mustNew(t, test.config, equalHosts(5))
		const keys = 200000
		moved := 0
		for hash := range hashes(keys) {
			if before.Lookup(hash) != after.Lookup(hash) {
				moved++
			}
		}
		times := float64(moved) / keys / ideal
		t.Logf("%+v: %.4f of keys move, %.3f times the ideal", test.config, float64(moved)/keys, times)
		if times < 0.9 || times > test.most {
			t.Errorf("%+v: %.2f times the ideal moves, want at most %.1f", test.config, times, test.most)
		}
	}
}

// Where counts are whole, the order of hosts does not matter, nor does it ever for maglev.
func TestOrderOfHosts(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for _, c := range []Config{{RingHash, 1024}, {Maglev, 1021}} {
		for range 20 {
			hosts := equalHosts(1 << random.IntN(6))
			if c.Algorithm == Maglev {
				for i := range hosts {
					hosts[i].Weight = random.Uint32N(9)
				}
			}
			shuffled := append([]Host(nil), hosts...)
			random.Shuffle(len(hosts), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			r, other := mustNew(t, c, hosts), mustNew(t, c, shuffled)
			for hash := range hashes(2000) {
				if a, b := hosts[r.Lookup(hash)], shuffled[other.Lookup(hash)]; a != b {
					t.Fatalf("%+v: hash %d is on %v of %v but on %v of %v", c, hash, a, hosts, b, shuffled)
				}
			}
		}
	}
}

func TestShareIsWhatLookupsSee(t *testing.T) {
	for _, c := range []Config{{RingHash, 1}, {RingHash, 1024}, {RingHash, 65536}, {Maglev, 3}, {Maglev, 65537}} {
		for _, hosts := range [][]Host{equalHosts(1), equalHosts(2), equalHosts(16), {{"a", 1}, {"b", 0}, {"c", 7}}} {
			r := mustNew(t, c, hosts)
			const samples = 20000
			seen := make([]float64, len(hosts))
			for hash := range hashes(samples) {
				seen[r.Lookup(hash)] += 1.0 / samples
			}
			sum := 0.0
			for i, share := range r.Share() {
				sum += share
				if math.Abs(share-seen[i]) > 0.03 {
					t.Errorf("%+v over %v: host %d owns %.3f and got %.3f", c, hosts, i, share, seen[i])
				}
			}
			if math.Abs(sum-1) > 1e-9 {
				t.Errorf("%+v over %v: shares add up to %v", c, hosts, sum)
			}
		}
	}
}

func TestSpread(t *testing.T) {
	for size, most := range map[uint64]float64{1024: 1.25, 65536: 1.03} {
		r := mustNew(t, Config{RingHash, size}, equalHosts(16))
		highest := 0.0
		for _, share := range r.Share() {
			highest = max(highest, share*16)
		}
		t.Logf("ring of %d, 16 hosts: the fullest has %.3f of the mean", size, highest)
		if highest > most {
			t.Errorf("ring of %d: the fullest of 16 hosts has %.3f of the mean, want at most %.2f", size, highest, most)
		}
	}
}

func TestRingScale(t *testing.T) {
	for _, test := range []struct {
		size     uint64
		lightest float64
		want     float64
	}{
		{1024, 1, 1024},
		{1024, 1.0 / 4, 1024},
		{1000, 1.0 / 16, 1008},
		{1, 1.0 / 1025, 1025},
		{1, 1.0 / (3 * MaxSize), MaxSize}, // the light host's share is less than one entry
	} {
		if got := ringScale(test.size, test.lightest); got != test.want {
			t.Errorf("ringScale(%d, %v) = %v, want %v", test.size, test.lightest, got, test.want)
		}
	}
}

func TestBadInput(t *testing.T) {
	good := Config{RingHash, 1024}
	for _, test := range []struct {
		config Config
		hosts  []Host
		want   string
	}{
		{Config{"", 1024}, equalHosts(1), `algorithm "" is unknown: use ring_hash or maglev`},
		{Config{"random", 1024}, equalHosts(1), `algorithm "random"`},
		{Config{RingHash, 0}, equalHosts(1), "size 0 is not between 1 and 8388608"},
		{Config{RingHash, MaxSize + 1}, equalHosts(1), "size 8388609"},
		{Config{Maglev, 0}, equalHosts(1), "size 0 is not a prime"},
		{Config{Maglev, 1}, equalHosts(1), "size 1 is not a prime"},
		{Config{Maglev, 65536}, equalHosts(1), "size 65536 is not a prime"},
		{Config{Maglev, 255 * 257 * 3}, equalHosts(1), "is not a prime"},
		{Config{Maglev, 5000077}, equalHosts(1), "size 5000077 is not a prime up to 5000011"},
		{Config{Maglev, math.MaxUint64}, equalHosts(1), "is not a prime up to"},
		{good, nil, "at least one host"},
		{good, []Host{{"a", 1}, {"", 1}}, "host 1 has no hash key"},
		{good, []Host{{"a", 1}, {"b", 1}, {"a", 2}}, `hash key "a" occurs twice`},
		// xxHash64 of these two and any digit is the same; the real Envoy gives the arcs now to one, now to the other.
		{good, []Host{{"timelines-tie-00", 1}, {"b", 1}, {"inlkcaaampfzm4gl", 1}}, "rename one"},
		{good, []Host{{"a", math.MaxUint32}, {"b", 0}}, "weights add up to 4294967296"},
	} {
		if _, err := New(test.config, test.hosts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("New(%+v, %v): error %v, want one with %q", test.config, test.hosts, err, test.want)
		}
	}
	for _, c := range []Config{{RingHash, 1}, {RingHash, MaxSize}, {Maglev, 2}, {Maglev, 65537}, {Maglev, MaxMaglevSize}} {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	key := []byte("timeline:{1234}:5678")
	for _, c := range []Config{{RingHash, 65536}, {Maglev, 65537}} {
		r := mustNew(t, c, equalHosts(64))
		if n := testing.AllocsPerRun(100, func() { r.Find(key) }); n != 0 {
			t.Errorf("%+v: Find allocates %v times", c, n)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	stream := make([]uint64, 1<<20)
	for i := range stream {
		stream[i] = rand.Uint64()
	}
	benchmark(b, func(r *Ring, i int) int { return r.Lookup(stream[i%len(stream)]) })
}

func BenchmarkFind(b *testing.B) {
	keys := make([][]byte, 1<<18)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "timeline:%011d", rand.Uint64N(1e11)) // 20 bytes
	}
	benchmark(b, func(r *Ring, i int) int { return r.Find(keys[i%len(keys)]) })
}

func benchmark(b *testing.B, find func(*Ring, int) int) {
	for _, c := range []Config{{RingHash, 65536}, {Maglev, 65537}} {
		b.Run(fmt.Sprintf("%s/hosts=64/size=%d", c.Algorithm, c.Size), func(b *testing.B) {
			r := mustNew(b, c, equalHosts(64))
			b.ReportAllocs()
			i, sum := 0, 0
			for b.Loop() {
				sum += find(r, i)
				i++
			}
			b.ReportMetric(float64(i)/b.Elapsed().Seconds()/1e6, "Mlookups/s")
			if sum == 0 {
				b.Fatal("every key is on host 0")
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for _, c := range []Config{{RingHash, 65536}, {Maglev, 65537}} {
		b.Run(fmt.Sprintf("%s/hosts=64/size=%d", c.Algorithm, c.Size), func(b *testing.B) {
			hosts := equalHosts(64)
			b.ReportAllocs()
			for b.Loop() {
				mustNew(b, c, hosts)
			}
		})
	}
}

func mustNew(t testing.TB, c Config, hosts []Host) *Ring {
	t.Helper()
	r, err := New(c, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func equalHosts(n int) []Host {
	hosts := make([]Host, n)
	for i := range hosts {
		hosts[i] = Host{HashKey: fmt.Sprintf("timelines-%d", i)}
	}
	return hosts
}

// hashes yields n hashes, the same ones each time.
func hashes(n int) func(yield func(uint64) bool) {
	return func(yield func(uint64) bool) {
		random := rand.New(rand.NewPCG(3, 5))
		for range n {
			if !yield(random.Uint64()) {
				return
			}
		}
	}
}
