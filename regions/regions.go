// Package regions makes what one region writes true in the others. Links has a region's agents follow the journals of its shards and send what
// they say to agents of other regions; Receiver takes that in and has Applier remove the keys at the shards of its own region. What a journal
// lacks is made good by fences, which remove all that may be stale.
//
// Everything it does may be done twice, so delivery is at least once, and a cursor on the shard that is home says how far each region is. What
// it applies is not journaled again. It decides neither who follows which journal, which the control plane does, nor who is primary. The
// agent calls it; its files are
//
//	applier.go, target.go  keys to shards by ring, and one shard's removals
//	fence.go               removing all keys that match
//	receiver.go            the server's side of the link
//	links.go, tail.go      which journals this agent follows, and one shard's
//	missing.go             who wrote to a primary that was lost, and is lost with it
//	pair.go                one shard's journals on their way to one region
//	direct.go              what no journal took
package regions

import (
	"slices"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxMessage bounds a message of the link, in bytes: more than the largest entry.
	maxMessage = 32 << 20
	// A batch is compressed from so many bytes on, if it is a tenth smaller then.
	compressFrom = 512
)

// pack compresses removals if it pays. uncompressed is 0 if it does not.
func pack(removals []byte) (packed []byte, uncompressed uint64) {
	if len(removals) < compressFrom {
		return removals, 0
	}
	small := encoder.EncodeAll(removals, nil)
	if len(small) > len(removals)*9/10 {
		return removals, 0
	}
	return small, uint64(len(removals))
}

func unpack(packed []byte, uncompressed uint64) ([]byte, error) {
	if uncompressed == 0 {
		return packed, nil
	}
	return decoder.DecodeAll(packed, make([]byte, 0, min(uncompressed, maxMessage)))
}

// They keep no state between calls, and may be used by several goroutines.
var (
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10)))
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxMessage)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // of options that never change
	}
	return v
}

// ofRing is a pool's ring as the link tells it.
func (r *Ring) valid() bool {
	return r != nil && int(r.GetShard()) < len(r.GetHosts()) && len(r.GetHosts()) <= 100_000 && !slices.Contains(r.GetHosts(), nil)
}
