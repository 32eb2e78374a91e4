package handoff

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/regions/holdoff"
)

// carryMarks lets recipients know which moving keys are in a hold-off. Lanes and appliers that coexist mark both owners; this is for what was
// marked before.
func (s *session) carryMarks(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, donor := range s.arcs.from.shards {
		group.Go(func() error { return s.carryFrom(ctx, donor) })
	}
	return group.Wait()
}

func (s *session) carryFrom(ctx context.Context, donor int) error {
	from := s.links[donor]
	reply, err := ask(ctx, from, holdoff.AppendPrefixes(nil))
	if err != nil {
		return err
	}
	prefixes, _ := reply.([]any)
	if len(prefixes) > 0 {
		for to, l := range s.links {
			if to == donor {
				continue
			}
			if _, err := ask(ctx, l, holdoff.AppendCarryPrefixes(nil, pairs(prefixes))); err != nil {
				return err
			}
		}
	}
	scan := func(cursor string) []byte { return holdoff.AppendScan(nil, cursor) }
	return scanned(ctx, from, scan, func(members []any) error {
		byRecipient := map[int][]holdoff.Carried{}
		for _, mark := range pairs(members) {
			if m, moves := s.arcs.moves(mark.Key); moves && m.from == donor {
				byRecipient[m.to] = append(byRecipient[m.to], mark)
			}
		}
		for to, marks := range byRecipient {
			if _, err := ask(ctx, s.links[to], holdoff.AppendCarry(nil, marks)); err != nil {
				return err
			}
		}
		return nil
	})
}

// pairs are members of a sorted set with their scores. RESP3 may nest them.
func pairs(reply []any) (all []holdoff.Carried) {
	var flat []any
	for _, v := range reply {
		if pair, nested := v.([]any); nested {
			flat = append(flat, pair...)
		} else {
			flat = append(flat, v)
		}
	}
	for i := 0; i+1 < len(flat); i += 2 {
		all = append(all, holdoff.Carried{Key: []byte(text(flat[i])), Score: text(flat[i+1])})
	}
	return all
}
