package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Case is one cluster of the recording Envoy.
type Case struct {
	Name      string `json:"-"`
	Algorithm string `json:"algorithm"`
	Size      uint64 `json:"size"`
	Hosts     []Host `json:"hosts"`
}

// Host is an endpoint of the cluster; they stand in the order of the cluster's endpoints.
type Host struct {
	Name   string `json:"name"`
	Weight uint32 `json:"weight"`
}

const (
	ringHash = "ring_hash"
	maglev   = "maglev"
)

func cases() []Case {
	var all []Case
	equal := func(algorithm string, size uint64, count int) {
		weights := make([]uint32, count)
		for i := range weights {
			weights[i] = 1
		}
		all = append(all, Case{fmt.Sprintf("%s_%d_shards_%d", algorithm, count, size), algorithm, size, shards(weights...)})
	}
	weighted := func(algorithm string, size uint64, weights ...uint32) {
		name := strings.Join(strings.Fields(strings.Trim(fmt.Sprint(weights), "[]")), "_")
		all = append(all, Case{fmt.Sprintf("%s_weights_%s_size_%d", algorithm, name, size), algorithm, size, shards(weights...)})
	}
	odd := func(algorithm string, size uint64) {
		hosts := []Host{{"b", 3}, {"a", 1}, {"a_1", 2}, {"a_1_1", 1}, {"größe/пул 7", 5}, {strings.Repeat("long-", 50), 2}}
		all = append(all, Case{algorithm + "_odd_names", algorithm, size, hosts})
	}

	equal(ringHash, 1024, 1)
	equal(ringHash, 1, 2)
	equal(ringHash, 1024, 2)
	equal(ringHash, 1000, 3)
	equal(ringHash, 1024, 3)
	equal(ringHash, 65536, 3)
	equal(ringHash, 1000, 5)
	equal(ringHash, 65536, 5)
	equal(ringHash, 1024, 16)
	equal(ringHash, 65536, 16)
	equal(ringHash, 1000, 64)
	equal(ringHash, 65536, 64)
	weighted(ringHash, 1, 2, 3)
	weighted(ringHash, 1, 7, 3, 5, 11)
	weighted(ringHash, 1, 1024, 1)
	weighted(ringHash, 1, 1024, 1024, 1024, 1024, 1)
	weighted(ringHash, 1000, 1, 2, 3, 7)
	weighted(ringHash, 1024, 7, 3, 2, 1)
	weighted(ringHash, 65536, 10, 11, 13)
	odd(ringHash, 1000)

	equal(maglev, 1021, 1)
	equal(maglev, 2, 2)
	equal(maglev, 65537, 2)
	equal(maglev, 1021, 3)
	equal(maglev, 65537, 3)
	equal(maglev, 65537, 5)
	equal(maglev, 65537, 16)
	equal(maglev, 1021, 64)
	equal(maglev, 65537, 64)
	weighted(maglev, 3, 1, 1, 2, 5, 2)
	weighted(maglev, 31, 2, 1, 1)
	weighted(maglev, 1021, 1, 2, 3, 7)
	weighted(maglev, 65537, 7, 3, 2, 1)
	weighted(maglev, 65537, 1024, 1024, 1)
	odd(maglev, 1021)
	return all
}

func shards(weights ...uint32) []Host {
	hosts := make([]Host, len(weights))
	for i, weight := range weights {
		hosts[i] = Host{fmt.Sprintf("timelines-%d", i), weight}
	}
	return hosts
}

// keys returns the keys that a case is asked for: odd ones, some that hit the ends of arcs, and plain ones.
func (c Case) keys() [][]byte {
	var keys [][]byte
	for _, key := range []string{
		"", "a", " ", "\x00", "\xff", "\r\n", "*1\r\n$4\r\nPING\r\n", "a\x00b", "a\x00c", "\xc3\x28\xa0\xa1", "ключ", "鍵:7", "🔑", "e\u0301", "\u00e9",
		"{a}b", "{a}c", "a{b}c", "b", "{}x", "{}{a}", "x{}", "{a", "{b", "a}b", "}a{b}", "a}b{c", "b{c}", "{a}{b}", "{{a}}", "{{a}b}", "{a{b}c}",
		"{", "}", "{}", "}{", "{\x00}x", "{\r\n}x", "{\xff\xfe}x", "{ключ}x", "{ }x", "x{user:1}y", "user:1", "{user:1", "\x00{a}", "{a\x00}",
	} {
		keys = append(keys, []byte(key))
	}
	random := rand.NewChaCha8([32]byte{})
	for length := 1; length <= 40; length++ {
		key := make([]byte, length)
		random.Read(key)
		keys = append(keys, key, bytes.Repeat([]byte("k"), length))
	}
	// The hash of a key does not depend on the case, so the long ones need not be in every file.
	if len(c.Hosts) == 64 {
		long := bytes.Repeat([]byte("0123456789abcdef"), 640)
		keys = append(keys, long, fmt.Appendf(nil, "{%s}", long[:1001]), fmt.Appendf(nil, "{long}%s", long[:1001]))
	}
	for _, hash := range []uint64{0, 1, 1 << 63, math.MaxUint64 - 1, math.MaxUint64} {
		keys = append(keys, keyOf(hash))
	}
	for _, host := range c.Hosts[:min(len(c.Hosts), 16)] {
		end := xxhash.Sum64String(host.Name + "_0")
		keys = append(keys, keyOf(end-1), keyOf(end), keyOf(end+1))
	}
	for i := range 200 {
		keys = append(keys, fmt.Appendf(nil, "timeline:%d", i*i*i))
	}
	return keys
}

// keyOf returns the key of 8 bytes that has the given hash: the steps of MurmurHash64A, undone from the last
// to the first. They can be, since its multiplier is odd and shifting by 47 twice leaves nothing.
func keyOf(hash uint64) []byte {
	const seed, m = 0xc70f6907, 0xc6a4a7935bd1e995
	inverse := uint64(m) // correct to 3 bits, as every odd number is its own inverse modulo 8
	for range 5 {
		inverse *= 2 - m*inverse
	}
	unmix := func(h uint64) uint64 { return h ^ h>>47 }

	h := unmix(hash) * inverse
	h = unmix(h) * inverse
	length := uint64(8)
	h ^= seed ^ length*m
	return binary.LittleEndian.AppendUint64(nil, unmix(h*inverse)*inverse)
}
