package handoff

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/resp"
)

// sampleKeys is how many keys of a donor are looked at.
const sampleKeys = 2000

// sampled is what a sample says of a donor.
type sampled struct {
	keys  int64 // that move
	bytes int64 // of them
	cold  int64
	ages  []int // of those that were looked at
}

// sampleDonor looks at some of a donor's keys: those with which a scan begins, whose order has nothing to do with their use.
func sampleDonor(ctx context.Context, a *arcs, donor int, l *link) (sampled, error) {
	reply, err := ask(ctx, l, resp.AppendCommand(nil, "DBSIZE"))
	if err != nil {
		return sampled{}, err
	}
	size, _ := reply.(int64)
	var all int
	var keys [][]byte
	err = scan(ctx, l, func(some [][]byte) error {
		all += len(some)
		for _, k := range some {
			if m, moves := a.moves(k); moves && m.from == donor {
				keys = append(keys, k)
			}
		}
		if all >= sampleKeys {
			return errEnough
		}
		return nil
	})
	if err != nil && err != errEnough {
		return sampled{}, err
	}
	var s sampled
	if all == 0 {
		return s, nil
	}
	times := float64(size) / float64(all)
	var bytes, large int64
	for part := range slices.Chunk(keys, batchKeys) {
		var out []byte
		for _, k := range part {
			out = appendLook(out, k, l.lfu)
		}
		replies, err := l.do(ctx, lookups.AppendMarks(out, len(part)), 2*len(part)+1)
		if err != nil {
			return s, err
		}
		for i := range part {
			n, _ := replies[2*i].(int64)
			bytes += n
			if n > maxWhole {
				large++
			}
			s.ages = append(s.ages, age(replies[2*i+1], l.lfu))
		}
	}
	s.keys, s.bytes, s.cold = int64(times*float64(len(keys))), int64(times*float64(bytes)), int64(times*float64(large))
	return s, nil
}

var errEnough = errors.New("enough keys were looked at")

// Estimate looks at the donors and says what a handoff would move. It changes nothing.
func Estimate(ctx context.Context, s Spec) (Plan, error) {
	m, err := New(s)
	if err != nil {
		return Plan{}, err
	}
	donors := m.arcs.from.shards
	all := make([]sampled, len(donors))
	writes := make([]float64, len(donors))
	addresses := m.primaries()
	group, ctx := errgroup.WithContext(ctx)
	for i, donor := range donors {
		group.Go(func() error {
			name := m.arcs.names[donor]
			l, err := dialLink(ctx, name, addresses[name], s.Access, nil)
			if err != nil {
				return err
			}
			defer l.close(errClosed)
			if writes[i], err = l.writesPerSecond(ctx); err != nil {
				return err
			}
			all[i], err = sampleDonor(ctx, m.arcs, donor, l)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Plan{}, err
	}
	var p Plan
	p.Share, p.Ideal = m.arcs.share()
	var busiest int64
	changed := 0.0
	for i, d := range all {
		p.Keys, p.Bytes, p.Cold = p.Keys+d.keys, p.Bytes+d.bytes, p.Cold+d.cold
		p.Donors = append(p.Donors, Donor{m.arcs.names[donors[i]], d.keys, d.bytes})
		busiest = max(busiest, d.keys)
		changed += writes[i] * p.Share
	}
	limits := m.spec.Limits
	seconds := max(float64(p.Keys)/float64(limits.KeysPerSecond), float64(p.Bytes)/float64(limits.BytesPerSecond))
	p.Took = time.Duration(seconds * float64(time.Second)).Round(time.Millisecond)
	// What is written while the rings change is removed at the other owner.
	p.Misses = p.Cold + int64(changed*flip.Seconds())
	if seconds > 0 {
		p.DonorCPU = float64(busiest) * cpuPerKey.Seconds() / seconds
	}
	return p, nil
}

const (
	// flip is about how long it takes from the end of copying until all sidecars go to the recipients.
	flip = 200 * time.Millisecond
	// cpuPerKey is what a donor uses for a key of about 200 bytes.
	cpuPerKey = 8 * time.Microsecond
)

// writesPerSecond is how many keys a node's clients have changed a second, of late.
func (l *link) writesPerSecond(ctx context.Context) (float64, error) {
	const during = 200 * time.Millisecond
	count := func() (float64, error) {
		reply, err := ask(ctx, l, resp.AppendCommand(nil, "INFO", "persistence"))
		n, _ := strconv.ParseFloat(node.Field(text(reply), "rdb_changes_since_last_save"), 64)
		return n, err
	}
	first, err := count()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := sleep(ctx, during); err != nil {
		return 0, err
	}
	last, err := count()
	return max(0, last-first) / time.Since(began).Seconds(), err
}
