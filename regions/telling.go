package regions

import (
	"errors"
	"strings"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/resp"
)

const (
	// fetchBytes is about how much of values is asked of a shard at once, and fetchAtOnce how many keys at most: meanwhile it serves nobody else.
	fetchBytes  = 64 << 10
	fetchAtOnce = 512
	fetchFirst  = 16
	// maxTold bounds what is told at once, as long as no single value is larger.
	maxTold = 8 << 20
)

// telling reads values of a shard and makes items of them.
type telling struct {
	usual
	pipe  *node.Pipe
	items []byte
	keys  int
	out   []byte
	ttls  []int // milliseconds
	none  []int // keys under which there is no string
}

// usual is what is known of a shard from the last time.
type usual struct {
	atOnce int  // keys, as many as give about fetchBytes
	mortal bool // some of its keys have a time to live
}

// telling begins with room for so many bytes.
func (v *values) telling(at *place, p *node.Pipe, bytes int) *telling {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := &telling{pipe: p, usual: v.usual[at], items: make([]byte, 0, bytes)}
	t.atOnce = max(fetchFirst, t.atOnce)
	return t
}

func (v *values) told(at *place, t *telling) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.usual[at] = t.usual
}

// forget has what was usual found out anew.
func (v *values) forget(at *place) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.usual, at)
}

// all tells keys, and the values of as many as fit into a message.
func (t *telling) all(keys [][]byte) error {
	for len(keys) > 0 {
		if len(t.items) >= maxTold {
			for _, k := range keys {
				t.items = appendItem(t.items, ItemLater, 0, k)
			}
			t.keys += len(keys)
			return nil
		}
		n := min(len(keys), t.atOnce)
		if err := t.some(keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (t *telling) some(keys [][]byte) error {
	if err := t.ask(keys); err != nil {
		return err
	}
	size := 0
	t.none = t.none[:0]
	for i, k := range keys {
		n, err := t.pipe.Bulk()
		if err != nil {
			return err
		}
		if n < 0 {
			t.none = append(t.none, i)
			continue
		}
		if err := t.item(ItemString, i, k, n); err != nil {
			return err
		}
		size += n
	}
	t.keys += len(keys)
	if err := t.missed(keys); err != nil {
		return err
	}
	for _, i := range t.none {
		n, err := t.other(i, keys[i])
		if err != nil {
			return err
		}
		size += n
	}
	t.atOnce = max(1, min(fetchAtOnce, 4*t.atOnce, fetchBytes*len(keys)/(size+1)))
	return nil
}

// gone is the time to live of what is not there.
const gone = -2

// ask asks for values, which are the next to be read, and finds out how long they live. To ask that of each costs more than its value: where no
// key of the shard ends, as the shard says in one step with the values, nobody asks.
func (t *telling) ask(keys [][]byte) error {
	t.ttls = append(t.ttls[:0], make([]int, len(keys))...)
	if !t.mortal {
		if err := t.askImmortal(keys); err != nil || !t.mortal {
			return err
		}
		for range keys {
			n, err := t.pipe.Bulk()
			if err == nil && n >= 0 {
				err = t.pipe.Skip(n)
			}
			if err != nil {
				return err
			}
		}
	}
	out := t.out[:0]
	for _, k := range keys {
		out = appendTTL(out, k)
	}
	if err := t.send(appendGet(out, keys)); err != nil {
		return err
	}
	// In this order, a value that is newer than its time to live ends too early, never too late, unless it was given less meanwhile.
	for i := range keys {
		if err := t.ttl(i); err != nil {
			return err
		}
	}
	_, err := t.pipe.Array()
	return err
}

// askImmortal asks for values, and notes whether any key of the shard ends.
func (t *telling) askImmortal(keys [][]byte) error {
	out := append(t.out[:0], "*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nINFO\r\n$8\r\nkeyspace\r\n"...)
	if err := t.send(append(appendGet(out, keys), "*1\r\n$4\r\nEXEC\r\n"...)); err != nil {
		return err
	}
	for range 3 {
		if _, err := t.pipe.Value(); err != nil {
			return err
		}
	}
	if n, err := t.pipe.Array(); err != nil || n != 2 {
		return errors.Join(err, errors.New("Redis answers EXEC with something else"))
	}
	v, err := t.pipe.Value()
	if err != nil {
		return err
	}
	info, _ := v.(string)
	t.mortal = !strings.Contains(node.Field(info, "db0")+",", ",expires=0,")
	_, err = t.pipe.Array()
	return err
}

func (t *telling) send(out []byte) error {
	if t.out = out; t.pipe.Send(out) != nil {
		return errors.New("a shard takes no more")
	}
	return nil
}

func appendTTL(b, key []byte) []byte {
	return resp.AppendBulk(append(b, "*2\r\n$4\r\nPTTL\r\n"...), key)
}

func appendGet(b []byte, keys [][]byte) []byte {
	b = resp.AppendBulk(resp.AppendArray(b, 1+len(keys)), "MGET")
	for _, k := range keys {
		b = resp.AppendBulk(b, k)
	}
	return b
}

func (t *telling) ttl(i int) (err error) {
	t.ttls[i], err = t.pipe.Integer()
	return err
}

// missed finds out about keys without a string whether anything is there, if that is not known with their times to live.
func (t *telling) missed(keys [][]byte) error {
	if t.mortal || len(t.none) == 0 {
		return nil
	}
	out := t.out[:0]
	for _, i := range t.none {
		out = appendTTL(out, keys[i])
	}
	if err := t.send(out); err != nil {
		return err
	}
	for _, i := range t.none {
		if err := t.ttl(i); err != nil {
			return err
		}
	}
	return nil
}

// item reads the value's n bytes. -1 is that there is none.
func (t *telling) item(kind byte, i int, key []byte, n int) (err error) {
	switch {
	case n < 0:
		t.items = appendItem(t.items, ItemMissing, 0, key)
	case n > MaxValue:
		t.items = appendItem(t.items, ItemLarge, 0, key)
		err = t.pipe.Skip(n)
	default:
		t.items = appendLength(appendItem(t.items, kind, max(t.ttls[i], 0), key), n)
		t.items, err = t.pipe.Take(t.items, n)
	}
	return err
}

// other reads a value that is no string, unless it is so large that the shard would take long to tell it.
func (t *telling) other(i int, key []byte) (size int, err error) {
	if t.ttls[i] == gone {
		return 0, t.item(ItemDump, i, key, -1)
	}
	if err := t.send(resp.AppendCommand(t.out[:0], "MEMORY", "USAGE", string(key))); err != nil {
		return 0, err
	}
	l, err := t.pipe.Line()
	if err != nil {
		return 0, err
	}
	if l[0] == '$' { // nil
		return 0, t.item(ItemDump, i, key, -1)
	}
	used, err := node.Length(l, ':')
	if err != nil {
		return 0, err
	}
	if used > 2*MaxValue {
		t.items = appendItem(t.items, ItemLarge, 0, key)
		return 0, nil
	}
	if err := t.send(resp.AppendCommand(t.out[:0], "DUMP", string(key))); err != nil {
		return 0, err
	}
	n, err := t.pipe.Bulk()
	if err != nil {
		return 0, err
	}
	return max(n, 0), t.item(ItemDump, i, key, n)
}
