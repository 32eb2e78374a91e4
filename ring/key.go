package ring

import (
	"bytes"
	"encoding/binary"
)

// Hash is the place of a key in the hash space: 64-bit MurmurHash2 (Austin Appleby's MurmurHash64A) of its
// hash tag, or of the whole key if it has none, with the seed that Envoy shares with libstdc++.
func Hash(key []byte) uint64 {
	const seed = 0xc70f6907
	return murmur2(Tag(key), seed)
}

// Tag is the part of a key that decides its place: what stands between a key's first brace and the next closing one, or the whole key where that is nothing.
func Tag(key []byte) []byte {
	open := bytes.IndexByte(key, '{')
	if open < 0 {
		return key
	}
	tag := key[open+1:]
	if end := bytes.IndexByte(tag, '}'); end > 0 {
		return tag[:end]
	}
	return key
}

func murmur2(data []byte, seed uint64) uint64 {
	const m = 0xc6a4a7935bd1e995
	h := seed ^ uint64(len(data))*m
	for ; len(data) >= 8; data = data[8:] {
		k := binary.LittleEndian.Uint64(data) * m
		h = (h ^ (k^k>>47)*m) * m
	}
	if len(data) > 0 {
		var tail uint64
		for i, b := range data {
			tail |= uint64(b) << (8 * i)
		}
		h = (h ^ tail) * m
	}
	h = (h ^ h>>47) * m
	return h ^ h>>47
}
