package lane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/node"
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
	if e.tail.size() == 0 || e.s.target.Load().StandIn != "" {
		return
	}
	// A new primary must not keep old values until somebody writes.
	up, err := e.connect(time.Now().Add(houseWithin))
	if err != nil {
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
	if offset, ok := replicated(info); ok {
		e.tail.confirmed(offset)
	}
}

// silent is how many seconds without a word make a replica one that nobody would promote before the others.
const silent = 10

// replicated is the offset that all replicas have, of those that are online; ok is false if none is.
func replicated(info string) (offset int64, ok bool) {
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if _, err := strconv.Atoi(strings.TrimPrefix(name, "slave")); err != nil || !strings.HasPrefix(name, "slave") {
			continue
		}
		fields := map[string]string{}
		for pair := range strings.SplitSeq(value, ",") {
			k, v, _ := strings.Cut(pair, "=")
			fields[k] = v
		}
		at, err := strconv.ParseInt(fields["offset"], 10, 64)
		lag, errLag := strconv.Atoi(fields["lag"])
		if err != nil || errLag != nil || fields["state"] != "online" || lag > silent {
			continue
		}
		if !ok || at < offset {
			offset, ok = at, true
		}
	}
	return offset, ok
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
