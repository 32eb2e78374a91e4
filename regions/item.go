package regions

import (
	"encoding/binary"
	"errors"
	"time"
)

// A page of the link has items one after the other, each
//
//	kind   1 byte
//	TTL    uvarint, in milliseconds; 0 is for ever
//	key    uvarint length, bytes
//	value  uvarint length, bytes; of a kind without value, nothing
const (
	// ItemString is a string, and its value is that.
	ItemString = 's'
	// ItemDump is of any type, and its value is what DUMP said.
	ItemDump = 'd'
	// ItemMissing is a key under which nothing is cached, ItemLarge one whose value is too large to be told, and ItemLater one whose value is not
	// on this page and can be fetched.
	ItemMissing = 'm'
	ItemLarge   = 'l'
	ItemLater   = 'k'
)

// Item is a key and what is cached under it. Its bytes are parts of the page.
type Item struct {
	Kind       byte
	TTL        time.Duration // 0 is for ever
	Key, Value []byte
}

func appendItem(b []byte, kind byte, ms int, key []byte) []byte {
	b = binary.AppendUvarint(append(b, kind), uint64(max(ms, 0)))
	return append(binary.AppendUvarint(b, uint64(len(key))), key...)
}

func appendLength(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }

var errItems = errors.New("a page of another region is damaged")

// CutItem cuts the first item off a page that is not empty.
func CutItem(page []byte) (i Item, rest []byte, err error) {
	i.Kind, rest = page[0], page[1:]
	ms, n := binary.Uvarint(rest)
	if n <= 0 || ms > uint64(1<<63-1)/uint64(time.Millisecond) {
		return i, nil, errItems
	}
	i.TTL = time.Duration(ms) * time.Millisecond
	if i.Key, rest, err = cutBytes(rest[n:]); err != nil {
		return i, nil, err
	}
	switch i.Kind {
	case ItemString, ItemDump:
		i.Value, rest, err = cutBytes(rest)
	case ItemMissing, ItemLarge, ItemLater:
	default:
		err = errItems
	}
	return i, rest, err
}

func cutBytes(b []byte) (value, rest []byte, err error) {
	length, n := binary.Uvarint(b)
	if n <= 0 || length > uint64(len(b)-n) {
		return nil, nil, errItems
	}
	return b[n : n+int(length) : n+int(length)], b[n+int(length):], nil
}
