package handoff

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/resp"
)

const (
	// maxWhole is the largest value, in memory, that is copied at once. A node serves nobody else while it dumps or restores one.
	maxWhole = 4 << 20
	// chunk is about how much of a larger one is copied at once.
	chunk = 512 << 10
	// maxElements bounds the elements of a chunk.
	maxElements = 4096
	// maxTries is how often a large value is copied that changes all the time.
	maxTries = 3
)

// errCold says that a value has no way to be copied in chunks.
var errCold = errors.New("a value of more than 4 MiB is not copied")

// large copies a value in chunks, or leaves it cold. Nobody reads the copy before it is whole: until the rings change, the donor answers, and
// a change meanwhile makes it a change to be copied again.
func (w *worker) large(ctx context.Context, e entry) error {
	w.dirty[w.donor].drop(e.key)
	from, to := w.from(), w.links[e.to]
	if _, err := to.unlink(ctx, [][]byte{e.key}); err != nil {
		return err
	}
	w.tried[string(e.key)]++
	if w.tried[string(e.key)] > maxTries {
		if w.tried[string(e.key)] == maxTries+1 {
			w.count.cold.Add(1)
		}
		return nil
	}
	err := w.chunks(ctx, from, to, e)
	var refused resp.Failure
	if errors.Is(err, errCold) || errors.As(err, &refused) {
		w.problem(fmt.Errorf("key %q, of %d bytes: %w", e.key, e.size, err))
		return w.cold(ctx, e.to, [][]byte{e.key})
	}
	return err
}

// collection is how a type is read and written in chunks.
type collection struct {
	size, scan, add string
	pairs           bool // of what scan returns
	swapped         bool // add wants the second of a pair first
}

var collections = map[string]collection{
	"hash": {size: "HLEN", scan: "HSCAN", add: "HSET", pairs: true},
	"set":  {size: "SCARD", scan: "SSCAN", add: "SADD"},
	"zset": {size: "ZCARD", scan: "ZSCAN", add: "ZADD", pairs: true, swapped: true},
}

func (w *worker) chunks(ctx context.Context, from, to *link, e entry) error {
	v, err := ask(ctx, from, appendKeys(nil, "TYPE", [][]byte{e.key}))
	if err != nil {
		return err
	}
	kind := text(v)
	how, isCollection := collections[kind]
	switch {
	case kind == "none":
		return nil
	case kind == "string":
		err = w.stringChunks(ctx, from, to, e.key)
	case kind == "list":
		err = w.listChunks(ctx, from, to, e)
	case kind == "hash" && from.expiresFields:
		err = errCold // fields may have a time to live of their own
	case isCollection:
		err = w.scanChunks(ctx, from, to, e, how)
	default:
		err = fmt.Errorf("%w: its type is %s", errCold, kind)
	}
	if err != nil {
		return err
	}
	return w.expire(ctx, from, to, e.key)
}

// expire gives the copy the rest of the time to live.
func (w *worker) expire(ctx context.Context, from, to *link, key []byte) error {
	asked := time.Now()
	v, err := ask(ctx, from, appendKeys(nil, "PTTL", [][]byte{key}))
	if err != nil {
		return err
	}
	ttl, _ := v.(int64)
	switch {
	case ttl == -1:
		return nil
	case ttl == -2:
		_, err = to.unlink(ctx, [][]byte{key})
		return err
	}
	ttl -= time.Since(asked).Milliseconds() + 1 // one of 0 or less removes the key
	_, err = ask(ctx, to, resp.AppendCommand(nil, "PEXPIRE", string(key), strconv.FormatInt(ttl, 10)))
	return err
}

func (w *worker) stringChunks(ctx context.Context, from, to *link, key []byte) error {
	for at := 0; ; at += chunk {
		v, err := ask(ctx, from, resp.AppendCommand(nil, "GETRANGE", string(key), strconv.Itoa(at), strconv.Itoa(at+chunk-1)))
		if err != nil {
			return err
		}
		part, _ := v.([]byte)
		if len(part) > 0 {
			out := resp.AppendBulk(resp.AppendBulk(resp.AppendArray(nil, 3), "APPEND"), key)
			if _, err := ask(ctx, to, resp.AppendBulk(out, part)); err != nil {
				return err
			}
		}
		if err := w.took(ctx, len(part), at > 0); err != nil || len(part) < chunk {
			return err
		}
	}
}

// took counts what was copied, and waits until there may be more; counted says that the key's first bytes have been waited for.
func (w *worker) took(ctx context.Context, bytes int, more bool) error {
	w.count.bytes.Add(int64(bytes))
	if !more {
		return nil
	}
	return w.pace.wait(ctx, 0, int64(bytes))
}

// elements is how many of a collection make a chunk.
func (w *worker) elements(ctx context.Context, from *link, e entry, size string) (int, error) {
	v, err := ask(ctx, from, appendKeys(nil, size, [][]byte{e.key}))
	if err != nil {
		return 0, err
	}
	n, _ := v.(int64)
	each := max(1, e.size/max(1, n))
	return int(min(maxElements, max(1, chunk/each))), nil
}

func (w *worker) listChunks(ctx context.Context, from, to *link, e entry) error {
	n, err := w.elements(ctx, from, e, "LLEN")
	if err != nil {
		return err
	}
	for at := 0; ; at += n {
		v, err := ask(ctx, from, resp.AppendCommand(nil, "LRANGE", string(e.key), strconv.Itoa(at), strconv.Itoa(at+n-1)))
		if err != nil {
			return err
		}
		part, _ := v.([]any)
		size, err := w.write(ctx, to, "RPUSH", e.key, part)
		if err != nil {
			return err
		}
		if err := w.took(ctx, size, at > 0); err != nil || len(part) < n {
			return err
		}
	}
}

func (w *worker) scanChunks(ctx context.Context, from, to *link, e entry, how collection) error {
	n, err := w.elements(ctx, from, e, how.size)
	if err != nil {
		return err
	}
	first := true
	return scanned(ctx, from, func(cursor string) []byte {
		return resp.AppendCommand(nil, how.scan, string(e.key), cursor, "COUNT", strconv.Itoa(n))
	}, func(part []any) error {
		if how.pairs && len(part)%2 != 0 {
			return fmt.Errorf("shard %s: %s answers with half a pair", from.shard, how.scan)
		}
		if how.swapped {
			for i := 0; i < len(part); i += 2 {
				part[i], part[i+1] = part[i+1], part[i]
			}
		}
		size, err := w.write(ctx, to, how.add, e.key, part)
		if err != nil {
			return err
		}
		more := !first
		first = false
		return w.took(ctx, size, more)
	})
}

// write writes elements, and returns how large they are.
func (w *worker) write(ctx context.Context, to *link, command string, key []byte, elements []any) (size int, err error) {
	if len(elements) == 0 {
		return 0, nil
	}
	out := resp.AppendBulk(resp.AppendArray(w.out[:0], 2+len(elements)), command)
	out = resp.AppendBulk(out, key)
	for _, v := range elements {
		element, _ := v.([]byte)
		size += len(element)
		out = resp.AppendBulk(out, element)
	}
	w.out = out
	_, err = ask(ctx, to, out)
	return size, err
}

// expiresFields says whether a node's hashes may have fields that expire: from Redis 7.4 on.
func expiresFields(server string) bool {
	var major, minor int
	_, err := fmt.Sscanf(node.Field(server, "redis_version"), "%d.%d", &major, &minor)
	return err != nil || major > 7 || major == 7 && minor >= 4
}
