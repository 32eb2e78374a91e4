package handoff

import (
	"context"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/resp"
)

// sweepShare is the part of the time for which a sweep keeps a node busy, as one in so many.
const sweepShare = 3

// unlinkAtOnce is how many keys one command removes.
const unlinkAtOnce = 256

// scan goes through a node's keys once.
func scan(ctx context.Context, l *link, each func(keys [][]byte) error) error {
	return scanned(ctx, l, func(cursor string) []byte {
		return resp.AppendCommand(nil, "SCAN", cursor, "COUNT", strconv.Itoa(scanAtOnce))
	}, func(found []any) error {
		keys := make([][]byte, 0, len(found))
		for _, v := range found {
			if k, is := v.([]byte); is {
				keys = append(keys, k)
			}
		}
		return each(keys)
	})
}

func unlinkAll(ctx context.Context, l *link, keys [][]byte) (removed int64, err error) {
	for part := range slices.Chunk(keys, unlinkAtOnce) {
		n, err := l.unlink(ctx, part)
		removed += n
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// sweep removes from a node the keys that are foreign there. It keeps the node busy for one part in share of the time.
func sweep(ctx context.Context, l *link, share int, foreign func(key []byte) bool) (removed int64, err error) {
	last := time.Now()
	err = scan(ctx, l, func(keys [][]byte) error {
		n, err := unlinkAll(ctx, l, slices.DeleteFunc(keys, func(k []byte) bool { return !foreign(k) }))
		removed += n
		if err != nil {
			return err
		}
		err = sleep(ctx, min(time.Since(last), time.Second)*time.Duration(share-1))
		last = time.Now()
		return err
	})
	return removed, err
}

// sweepAll removes from all shards what is not at home there.
func (s *session) sweepAll(ctx context.Context, home func(moving) int) (removed int64, err error) {
	counts := make([]int64, len(s.links))
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range s.links {
		group.Go(func() (err error) {
			counts[i], err = sweep(ctx, l, sweepShare, func(k []byte) bool {
				m, ok := s.arcs.owners(k)
				return ok && home(m) != i
			})
			s.count.removed.Add(counts[i])
			return err
		})
	}
	err = group.Wait()
	for _, n := range counts {
		removed += n
	}
	return removed, err
}

// Clear removes from a node of a shard what is not in both rings the shard's: what another owner may have newer. A node that is promoted
// between Drain's end and Purge's is to be cleared before it is served.
func Clear(ctx context.Context, s Spec, shard, address string) (keys int64, err error) {
	a, err := newArcs(s)
	if err != nil {
		return 0, err
	}
	here := slices.Index(a.names, shard)
	l, err := dialLink(ctx, shard, address, s.Access, nil)
	if err != nil {
		return 0, err
	}
	defer l.close(errClosed)
	return sweep(ctx, l, 1, func(k []byte) bool {
		m, ok := a.owners(k)
		return ok && (m.from != here || m.to != here)
	})
}
