package lane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/writers"
)

// maxTail bounds what a tail remembers.
const maxTail = 8 << 20

// tail remembers the keys that were written since the last offset that replicas confirmed. What takes over from a lost primary may have the
// values from before.
type tail struct {
	mu     sync.Mutex
	data   []byte // of each key its length, doubled, plus 1 if it is to be removed elsewhere, and the key
	begin  int64  // position of data in all that was ever added
	marks  []mark
	forgot int64 // position up to which keys were forgotten for want of room; 0 for none
}

// mark says that all keys before a position were written before an offset of the primary's.
type mark struct{ position, offset int64 }

func (t *tail) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.data)
}

func (t *tail) add(key []byte, removed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.data)+len(key)+binary.MaxVarintLen64 > maxTail {
		t.drop(t.begin + int64(len(t.data)))
		t.forgot = t.begin
		if len(key) > maxTail/2 {
			return
		}
	}
	head := uint64(len(key)) << 1
	if removed {
		head |= 1
	}
	t.data = append(binary.AppendUvarint(t.data, head), key...)
}

// drop forgets what is before a position. The caller holds the lock.
func (t *tail) drop(position int64) {
	n := copy(t.data, t.data[position-t.begin:])
	t.data, t.begin = t.data[:n], position
}

// written says that all keys until now were written before the primary's offset.
func (t *tail) written(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks = append(t.marks, mark{t.begin + int64(len(t.data)), offset})
}

// confirmed says that every replica has all that is before the offset.
func (t *tail) confirmed(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.marks) > 0 && t.marks[0].offset <= offset {
		if at := t.marks[0].position; at >= t.begin {
			t.drop(at)
			if t.forgot <= at {
				t.forgot = 0
			}
		}
		t.marks = t.marks[1:]
	}
}

// lost returns the keys that are to be removed everywhere, those that are to be removed here, and whether others were forgotten. Offsets
// of the primary before mean nothing any more.
func (t *tail) lost() (everywhere, here [][]byte, forgot bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks = nil
	data := append([]byte(nil), t.data...)
	for len(data) > 0 {
		head, n := binary.Uvarint(data)
		end := n + int(head>>1)
		if k := data[n:end]; head&1 == 1 {
			everywhere = append(everywhere, k)
		} else {
			here = append(here, k)
		}
		data = data[end:]
	}
	return everywhere, here, t.forgot > 0
}

// houseWithin bounds how long writes wait because a primary is looked for without one.
const houseWithin = 50 * time.Millisecond

// keepHouse brings what is remembered to a new primary, and looks which of the tail's keys the replicas have by now.
func (e *executor) keepHouse() {
	t := e.s.target.Load()
	arrived := e.last == identity{} || e.last.epoch == t.Epoch && e.last.address == t.Address
	if t.StandIn != "" || arrived && e.tail.size() == 0 {
		return
	}
	// A new primary must not keep old values until somebody writes, nor miss this writer.
	up, err := e.connect(time.Now().Add(houseWithin))
	if err != nil || e.tail.size() == 0 {
		return // the next tick tries again
	}
	v, err := e.ask(up, appendCommand(nil, "INFO", "replication"), 1)
	if err != nil {
		e.disconnect()
		return
	}
	e.up.used = time.Now()
	info, _ := v.(string)
	if offset, err := strconv.ParseInt(node.Field(info, "master_repl_offset"), 10, 64); err == nil {
		e.tail.written(offset)
	}
	if offset, ok := node.Replicated(info); ok {
		e.tail.confirmed(offset)
	}
}

// tailStep is how many keys are removed at once.
const tailStep = 1000

// arrive makes a new primary's data safe to write to: keys of which it may have values from before are removed, here and elsewhere.
func (e *executor) arrive(up *upstream) error {
	if e.last == up.id {
		return nil
	}
	if (e.last != identity{}) {
		everywhere, here, forgot := e.tail.lost()
		for keys := range slices.Chunk(everywhere, tailStep) {
			if err := e.unlink(up, keys, true); err != nil {
				return err
			}
			if err := e.hold(up, keys); err != nil {
				return err
			}
		}
		for keys := range slices.Chunk(here, tailStep) {
			if err := e.unlink(up, keys, false); err != nil {
				return err
			}
		}
		if forgot {
			e.s.gap(Gap{Epoch: up.id.epoch, Reason: GapTail})
			e.tail.forgive()
		}
		if n := len(everywhere) + len(here); n > 0 {
			e.s.config.Log.Info("removed what a lost primary may have kept to itself", "shard", e.s.config.Shard, "epoch", up.id.epoch, "keys", n)
		}
	}
	e.last = up.id
	return nil
}

// joinWithin bounds how long a replica may take to learn of a writer.
const joinWithin = 100 * time.Millisecond

// join says that what was written to primaries before is made good, and from then on, that the lane writes still. A replica learns of it before
// anything is written: it must not be lost together with that.
func (e *executor) join(up *upstream) error {
	name := e.s.writer(e.resp3)
	if name == "" || time.Since(up.joined) < writers.Again {
		return nil
	}
	out, replies := appendCommand(nil, writers.Join(name, up.id.epoch)...), 1
	if up.joined.IsZero() && up.replicas > 0 {
		out, replies = appendCommand(out, "WAIT", "1", strconv.FormatInt(joinWithin.Milliseconds(), 10)), 2
	}
	if _, err := e.ask(up, out, replies); err != nil {
		return err
	}
	up.joined = time.Now()
	return nil
}

func (t *tail) forgive() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgot = 0
}

// unlink removes keys, and journals that they are to be removed elsewhere too.
func (e *executor) unlink(up *upstream, keys [][]byte, elsewhere bool) error {
	removal := appendBulk(appendLength(nil, '*', 1+len(keys)), "UNLINK")
	for _, k := range keys {
		removal = appendBulk(removal, k)
	}
	out := append([]byte(multi), removal...)
	if elsewhere {
		out = appendEntry(out, up.journal, e.s.config.Encode(nil, keys))
	}
	out = append(out, "*1\r\n$4\r\nEXEC\r\n"...)
	v, err := e.ask(up, out, 3+ones(elsewhere))
	if err != nil {
		return err
	}
	text, refused := v.(failed)
	switch results, _ := v.([]any); {
	case !refused && elsewhere && (len(results) == 0 || !isID(results[len(results)-1])):
		e.s.gap(Gap{Epoch: up.id.epoch, Reason: GapLost, Removed: keys})
		return nil
	case !refused:
		return nil
	case passes(string(text)):
		return fmt.Errorf("%w: %s", errNotYet, text)
	}
	// A full node refuses all transactions.
	if elsewhere {
		e.s.gap(Gap{Epoch: up.id.epoch, Reason: GapRefused, Removed: keys})
	}
	if v, err = e.ask(up, removal, 1); err == nil && isError(v) {
		err = errors.New(string(v.(failed)))
	}
	return err
}

// isID says whether a reply to XADD is that of an entry that was written.
func isID(v any) bool {
	id, is := v.(string)
	return is && id != ""
}

// ask sends commands and returns the last of the replies.
func (e *executor) ask(up *upstream, out []byte, replies int) (last any, err error) {
	if err := up.net.SetDeadline(e.later()); err != nil {
		return nil, err
	}
	if _, err := up.net.Write(out); err != nil {
		return nil, err
	}
	for range replies {
		if last, err = up.value(0); err != nil {
			return nil, err
		}
	}
	return last, nil
}
