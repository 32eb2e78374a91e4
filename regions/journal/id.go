package journal

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/cachemesh/cachemesh/mesh"
)

// Key is the key of an epoch's journal.
func Key(epoch uint64) string {
	return mesh.ReservedPrefix + "journal:" + strconv.FormatUint(epoch, 10)
}

// ID is an entry's, as Redis gave it: milliseconds of the shard's clock, and a number within them.
type ID struct{ Milliseconds, Sequence uint64 }

// ParseID reads an ID as Redis writes it.
func ParseID(text string) (ID, error) {
	ms, seq, ok := strings.Cut(text, "-")
	m, err := strconv.ParseUint(ms, 10, 64)
	s, errSeq := strconv.ParseUint(seq, 10, 64)
	if !ok || err != nil || errSeq != nil {
		return ID{}, fmt.Errorf("%q is not the ID of an entry", text)
	}
	return ID{m, s}, nil
}

// String is the ID as Redis writes it.
func (id ID) String() string {
	return strconv.FormatUint(id.Milliseconds, 10) + "-" + strconv.FormatUint(id.Sequence, 10)
}

// Compare orders IDs of one journal.
func (id ID) Compare(other ID) int {
	return cmp.Or(cmp.Compare(id.Milliseconds, other.Milliseconds), cmp.Compare(id.Sequence, other.Sequence))
}

// Cursor is how far a region has what a shard's journals say: in the journal of Epoch, up to and with ID, which was the Read-th of its
// entries. The zero value is of a region that has nothing.
type Cursor struct {
	Epoch uint64
	ID    ID
	Read  uint64
}

// ParseCursor reads what String writes.
func ParseCursor(text string) (c Cursor, err error) {
	fields := strings.Fields(text)
	if len(fields) != 3 {
		return c, fmt.Errorf("%q is no cursor", text)
	}
	if c.Epoch, err = strconv.ParseUint(fields[0], 10, 64); err != nil {
		return c, fmt.Errorf("cursor %q: %w", text, err)
	}
	if c.ID, err = ParseID(fields[1]); err != nil {
		return c, fmt.Errorf("cursor %q: %w", text, err)
	}
	if c.Read, err = strconv.ParseUint(fields[2], 10, 64); err != nil {
		return c, fmt.Errorf("cursor %q: %w", text, err)
	}
	return c, nil
}

// String is "EPOCH ID READ".
func (c Cursor) String() string {
	return strconv.FormatUint(c.Epoch, 10) + " " + c.ID.String() + " " + strconv.FormatUint(c.Read, 10)
}

// Compare says which of two cursors of a shard is further.
func (c Cursor) Compare(other Cursor) int {
	return cmp.Or(cmp.Compare(c.Epoch, other.Epoch), c.ID.Compare(other.ID))
}
