package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Op is what is to be removed.
type Op uint8

const (
	RemoveKey    Op = 1
	RemovePrefix Op = 2 // all keys that begin so
	RemoveAll    Op = 3 // all keys of the journal's shard
)

// Removal is one removal of an entry. Key is a key, a prefix, or empty, as Op says.
type Removal struct {
	Op  Op
	Key []byte
}

const (
	// Version is the only one that there is.
	Version = 1
	// MaxKey bounds a key or prefix, in bytes. What is longer is removed as all that begins as it does.
	MaxKey = 1 << 20
	// MaxEntry bounds an entry, in bytes: more than a lane's largest.
	MaxEntry = 16 << 20
)

// ErrEntry says that an entry cannot be read: it is damaged, somebody else's, or of a newer version. What it says is lost.
var ErrEntry = errors.New("an entry of the journal cannot be read")

// Append appends an entry that says that the keys are to be removed; without any, one that says nothing. It is what lane.Config.Encode wants.
func Append(dst []byte, keys [][]byte) []byte {
	dst = binary.AppendUvarint(append(dst, Version), uint64(len(keys)))
	for _, k := range keys {
		dst = appendRemoval(dst, RemoveKey, k)
	}
	return dst
}

// AppendRemovals appends an entry of any removals.
func AppendRemovals(dst []byte, removals []Removal) []byte {
	dst = binary.AppendUvarint(append(dst, Version), uint64(len(removals)))
	for _, r := range removals {
		dst = appendRemoval(dst, r.Op, r.Key)
	}
	return dst
}

func appendRemoval(dst []byte, op Op, key []byte) []byte {
	if len(key) > MaxKey {
		op, key = RemovePrefix, key[:MaxKey]
	}
	return append(binary.AppendUvarint(append(dst, byte(op)), uint64(len(key))), key...)
}

// Decode appends an entry's removals to into. Their keys are parts of the entry. Its errors are ErrEntry.
func Decode(into []Removal, entry []byte) ([]Removal, error) {
	if len(entry) > MaxEntry {
		return into, fmt.Errorf("%w: it has %d bytes", ErrEntry, len(entry))
	}
	if len(entry) == 0 {
		return into, fmt.Errorf("%w: it is empty", ErrEntry)
	}
	if entry[0] != Version {
		return into, fmt.Errorf("%w: it is of version %d, and this program reads %d", ErrEntry, entry[0], Version)
	}
	rest := entry[1:]
	count, rest, err := uvarint(rest)
	if err != nil {
		return into, err
	}
	start := len(into)
	for range count {
		if len(rest) == 0 {
			return into[:start], fmt.Errorf("%w: it ends within its removals", ErrEntry)
		}
		op := Op(rest[0])
		var size uint64
		if size, rest, err = uvarint(rest[1:]); err != nil {
			return into[:start], err
		}
		switch {
		case op < RemoveKey || op > RemoveAll:
			err = fmt.Errorf("%w: it has a removal of kind %d", ErrEntry, op)
		case size > MaxKey || size > uint64(len(rest)):
			err = fmt.Errorf("%w: it has a key of %d bytes, and %d are left", ErrEntry, size, len(rest))
		case op == RemoveAll && size > 0:
			err = fmt.Errorf("%w: it removes everything, and a key", ErrEntry)
		}
		if err != nil {
			return into[:start], err
		}
		into = append(into, Removal{op, rest[:size:size]})
		rest = rest[size:]
	}
	if len(rest) > 0 {
		return into[:start], fmt.Errorf("%w: %d bytes follow its removals", ErrEntry, len(rest))
	}
	return into, nil
}

func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, fmt.Errorf("%w: it has no number where one should be", ErrEntry)
	}
	return v, b[n:], nil
}
