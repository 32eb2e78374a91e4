package handoff

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/resp"
)

// bridge removes at a shard the keys that changed at their other owner, until ctx ends.
func (s *session) bridge(ctx context.Context, shard int) error {
	l, waiting := s.links[shard], s.bridges[shard]
	for {
		select {
		case <-waiting.some:
		case <-ctx.Done():
			return ctx.Err()
		}
		// Of keys that change here all the time, one must not keep the others from being removed.
		for size := unlinkAtOnce; waiting.len() > 0; {
			keys := waiting.take(size)
			n, ok, err := unlinkUnseen(ctx, l, keys)
			s.count.unlinked.Add(n)
			if err != nil {
				return err
			}
			size = unlinkAtOnce
			if !ok {
				for _, k := range keys {
					if err := waiting.add(k); err != nil {
						return err
					}
				}
				size = max(1, len(keys)/2)
			}
		}
	}
}

// unlinkUnseen removes keys, unless one of them changes at this moment: then ok is false and nothing is removed. Redis tells of a change at the end of
// its turn, and only who changed a key last in it. Another's change right before this removal would never be told, and what it replaced at
// the other owner would stay.
func unlinkUnseen(ctx context.Context, l *link, keys [][]byte) (removed int64, ok bool, err error) {
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
	// A node whose memory is full takes no transaction.
	removed, err = l.unlink(ctx, keys)
	return removed, true, err
}

// digests is a script: whether keys have a value, and which.
const digests = `local all = {}
for i, key in ipairs(KEYS) do
  local usage = redis.call('MEMORY', 'USAGE', key)
  if not usage then all[i] = ''
  elseif usage > tonumber(ARGV[1]) then all[i] = 'large'
  else all[i] = redis.sha1hex(redis.call('DUMP', key)) end
end
return all`

// reconcile is for the time after the rings changed, when nobody knows what changed at the donors before this session: what a recipient has of a
// moving key stays only if the donor has the same.
func (s *session) reconcile(ctx context.Context) error {
	s.become(bridging)
	group, ctx := errgroup.WithContext(ctx)
	for to, l := range s.links {
		group.Go(func() error {
			return scan(ctx, l, func(keys [][]byte) error {
				byDonor := map[int][][]byte{}
				for _, k := range keys {
					if m, moves := s.arcs.moves(k); moves && m.to == to {
						byDonor[m.from] = append(byDonor[m.from], k)
					}
				}
				for from, part := range byDonor {
					for some := range slices.Chunk(part, batchKeys) {
						if err := s.compare(ctx, s.links[from], l, some); err != nil {
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

// compare removes at both owners what they have different values of, or what only the recipient has.
func (s *session) compare(ctx context.Context, donor, recipient *link, keys [][]byte) error {
	if err := s.pace.wait(ctx, len(keys), 0); err != nil {
		return err
	}
	var values [2][]any
	group, asking := errgroup.WithContext(ctx)
	for i, l := range []*link{donor, recipient} {
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
	for _, l := range []*link{donor, recipient} {
		n, err := l.unlink(ctx, differ)
		s.count.unlinked.Add(n)
		if err != nil {
			return err
		}
	}
	return nil
}
