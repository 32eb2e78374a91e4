package handoff

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/resp"
)

// bridge keeps the two owners of keys alike that are not on lanes, until ctx ends: what changes at one is brought to the other. It does one
// thing at a time, since two that brought a key each way would swap its values.
func (s *session) bridge(ctx context.Context) error {
	var flushed chan struct{}
	for {
		if flushed != nil {
			close(flushed)
			flushed = nil
		}
		select {
		case <-s.bridging:
		case flushed = <-s.flush:
		case <-ctx.Done():
			return ctx.Err()
		}
		for to, waiting := range s.bridges {
			// Of keys that change at both owners all the time, one must not keep the others waiting.
			for size := batchKeys; waiting.len() > 0; {
				keys := waiting.take(size)
				quiet, err := s.bring(ctx, to, keys)
				if err != nil {
					return err
				}
				if size = batchKeys; !quiet {
					size = max(1, len(keys)/2)
				}
			}
		}
	}
}

// flushBridge returns when all that changed before it was called is at both owners.
func (s *session) flushBridge(ctx context.Context) error {
	if err := s.pingAll(ctx); err != nil {
		return err
	}
	// Twice, since what is brought to one shard may have to be tried again at another.
	for range 2 {
		flushed := make(chan struct{})
		select {
		case s.flush <- flushed:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-flushed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// bring makes keys at a shard what they are at their other owner. What has changed at both is removed at both. quiet is false if something is to
// be tried again.
func (s *session) bring(ctx context.Context, to int, keys [][]byte) (quiet bool, err error) {
	bySource := map[int][][]byte{}
	var both [][]byte
	for _, k := range keys {
		m, _ := s.arcs.moves(k)
		from := m.from + m.to - to // the other one
		if s.bridges[from].has(k) {
			both = append(both, k)
		} else {
			bySource[from] = append(bySource[from], k)
		}
	}
	quiet = true
	for from, part := range bySource {
		done, err := s.mirror(ctx, from, to, part)
		if err != nil {
			return false, err
		}
		for _, k := range part {
			switch {
			case s.bridges[from].has(k) || !done && len(part) == 1:
				both = append(both, k)
			case !done:
				quiet = false
				if err := s.bridges[to].add(k); err != nil {
					return false, err
				}
			}
		}
	}
	for _, k := range both {
		m, _ := s.arcs.moves(k)
		for _, owner := range []int{m.from, m.to} {
			s.bridges[owner].drop(k)
		}
		for _, owner := range []int{m.from, m.to} {
			n, ok, err := unlinkUnseen(ctx, s.links[owner], k)
			s.count.unlinked.Add(n)
			if err == nil && !ok {
				quiet = false
				err = s.bridges[m.from+m.to-owner].add(k)
			}
			if err != nil {
				return false, err
			}
		}
	}
	return quiet, nil
}

// mirror copies keys as they are now, unless one of them changes at its destination meanwhile: then done is false and nothing has happened.
//
// Redis tells of a change at the end of its turn, and only of who changed a key last in it. Another's change right before a copy would never be
// told of: so the copy is made on condition that there was none. When it is made, all that came before is told.
func (s *session) mirror(ctx context.Context, from, to int, keys [][]byte) (done bool, err error) {
	if _, err := ask(ctx, s.links[to], appendKeys(nil, "WATCH", keys)); err != nil {
		return false, err
	}
	w := worker{copier: &copier{session: s, donor: from}}
	entries, err := w.look(ctx, keys)
	if err != nil {
		return false, err
	}
	for i := range entries {
		entries[i].to = to
		if entries[i].size > maxWhole {
			entries[i].gone = true
		}
	}
	if err := w.fetch(ctx, entries); err != nil {
		return false, err
	}
	out := resp.AppendCommand(nil, "MULTI")
	for i := range entries {
		out = entries[i].appendRestore(out, s.links[from].lfu)
	}
	replies, err := s.links[to].do(ctx, resp.AppendCommand(out, "EXEC"), 2+len(entries))
	if err != nil {
		return false, err
	}
	results, made := replies[len(replies)-1].([]any)
	if replies[len(replies)-1] == nil {
		return false, nil
	}
	// A node whose memory is full takes no transaction, and one copy may be refused where others are not: what is there is old.
	var refused [][]byte
	for i := range entries {
		failed := !made
		if made {
			_, failed = results[i].(resp.Failure)
		}
		if failed {
			refused = append(refused, entries[i].key)
		} else if n, gone := results[i].(int64); gone {
			s.count.unlinked.Add(n)
		}
	}
	n, err := s.links[to].unlink(ctx, refused)
	s.count.unlinked.Add(n)
	return true, err
}

// unlinkUnseen removes a key, unless it changes at this moment: then ok is false and it stays.
func unlinkUnseen(ctx context.Context, l *link, key []byte) (removed int64, ok bool, err error) {
	keys := [][]byte{key}
	if _, err := ask(ctx, l, appendKeys(nil, "WATCH", keys)); err != nil {
		return 0, false, err
	}
	out := resp.AppendCommand(nil, "MULTI")
	out = appendKeys(out, "UNLINK", keys)
	replies, err := l.do(ctx, resp.AppendCommand(out, "EXEC"), 3)
	if err != nil {
		return 0, false, err
	}
	switch v := replies[2].(type) {
	case nil:
		return 0, false, nil
	case []any:
		removed, _ = v[0].(int64)
		return removed, true, nil
	}
	removed, err = l.unlink(ctx, keys) // a node whose memory is full takes no transaction
	return removed, true, err
}

// digests is a script: whether keys have a value, and which.
const digests = lookups.Lua + `local all = {}
for i, key in ipairs(KEYS) do
  local usage = redis.call('MEMORY', 'USAGE', key)
  if not usage then all[i] = ''
  elseif usage > tonumber(ARGV[1]) then all[i] = 'large'
  else all[i] = redis.sha1hex(look('DUMP', key)) end
end
return all`

// reconcile is for the time after the rings changed, when nobody knows what changed before this session: a moving key stays only if both owners have
// the same.
func (s *session) reconcile(ctx context.Context) error {
	s.become(bridging)
	group, ctx := errgroup.WithContext(ctx)
	for here, l := range s.links {
		group.Go(func() error {
			return scan(ctx, l, func(keys [][]byte) error {
				byOther := map[int][][]byte{}
				for _, k := range keys {
					if m, moves := s.arcs.moves(k); moves && (m.from == here || m.to == here) {
						byOther[m.from+m.to-here] = append(byOther[m.from+m.to-here], k)
					}
				}
				for other, part := range byOther {
					for some := range slices.Chunk(part, batchKeys) {
						if err := s.compare(ctx, l, s.links[other], some); err != nil {
							return err
						}
					}
				}
				return nil
			})
		})
	}
	return group.Wait()
}

// compare removes at both owners what they have different values of, or what only one of them has.
func (s *session) compare(ctx context.Context, one, other *link, keys [][]byte) error {
	if err := s.pace.wait(ctx, len(keys), 0); err != nil {
		return err
	}
	var values [2][]any
	group, asking := errgroup.WithContext(ctx)
	for i, l := range []*link{one, other} {
		group.Go(func() error {
			out := resp.AppendArray(nil, 4+len(keys))
			out = resp.AppendBulk(resp.AppendBulk(out, "EVAL"), digests)
			out = resp.AppendBulk(out, fmt.Sprint(len(keys)))
			for _, k := range keys {
				out = resp.AppendBulk(out, k)
			}
			v, err := ask(asking, l, resp.AppendBulk(out, fmt.Sprint(maxWhole)))
			values[i], _ = v.([]any)
			if err == nil && len(values[i]) != len(keys) {
				err = fmt.Errorf("shard %s: %d digests of %d keys", l.shard, len(values[i]), len(keys))
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var differ [][]byte
	for i, k := range keys {
		if a, b := text(values[0][i]), text(values[1][i]); a != b || a == "large" {
			differ = append(differ, k)
		}
	}
	for _, l := range []*link{one, other} {
		n, err := l.unlink(ctx, differ)
		s.count.unlinked.Add(n)
		if err != nil {
			return err
		}
	}
	return nil
}
