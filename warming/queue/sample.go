package queue

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/node/lookups"
)

// maxSample is how many of a run's keys are looked at later.
const maxSample = 1000

// Sample is a key that was loaded, and what is known of its use.
type Sample struct {
	Key    string
	Hash   uint64 // only of one that is new
	Loaded time.Time
	Ends   time.Time // when it expires; zero is never
	Fate   Fate
	// Frequency is the node's count of accesses when it was last looked at, where it counts them.
	Frequency int
}

// Fate is what became of a key after it was loaded.
type Fate byte

// A key is unread until it has another fate, which stays.
const (
	Unread  Fate = '-'
	Read    Fate = 'r' // at least once
	Evicted Fate = 'e' // gone before its time, unread
	Expired Fate = 'x' // unread
)

// sampling says which keys are still worth telling of: those whose hash is below those of the sample.
type sampling struct{ below atomic.Uint64 }

func (s *sampling) set(score string) {
	var f float64
	if _, err := fmt.Sscan(score, &f); err == nil {
		s.below.Store(uint64(f) + 1)
	}
}

// Wants says whether a key that was loaded, by a hash of it, is one of the sample.
func (q *Queue) Wants(hash uint64) bool {
	below := q.sampling.below.Load()
	return hash>>hashShift < below || below == 0
}

// hashShift leaves what a float64 holds.
const hashShift = 64 - 52

// seen is what Redis keeps of a sample: times in milliseconds since 1970.
func (s Sample) seen() string {
	ends := int64(math.MaxInt64)
	if !s.Ends.IsZero() {
		ends = s.Ends.UnixMilli()
	}
	return fmt.Sprintf("%d %d %c %d", s.Loaded.UnixMilli(), ends, s.Fate, s.Frequency)
}

func parseSeen(key, text string) (s Sample, err error) {
	var loaded, ends int64
	var fate rune
	if _, err := fmt.Sscanf(text, "%d %d %c %d", &loaded, &ends, &fate, &s.Frequency); err != nil {
		return s, fmt.Errorf("a sample of the run is damaged: %w", err)
	}
	s.Key, s.Loaded, s.Fate = key, time.UnixMilli(loaded), Fate(fate)
	if ends != math.MaxInt64 {
		s.Ends = time.UnixMilli(ends)
	}
	return s, nil
}

// Samples are all of the run's, for an agent that is to look at them: one at a time, and not more often than every. For others there are none.
func (q *Queue) Samples(ctx context.Context, agent string, every time.Duration) ([]Sample, error) {
	client, err := q.connect()
	if err != nil {
		return nil, err
	}
	turn, err := client.SetNX(ctx, q.key+":look", agent, every).Result()
	if err != nil || !turn {
		return nil, err
	}
	texts, err := lookups.Hash.Run(ctx, client, []string{q.key + ":seen"}).StringSlice()
	if err != nil {
		return nil, err
	}
	all := make([]Sample, 0, len(texts)/2)
	for i := 0; i+1 < len(texts); i += 2 {
		s, err := parseSeen(texts[i], texts[i+1])
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Looked says what was seen of samples, and what that makes of all of them.
func (q *Queue) Looked(ctx context.Context, changed []Sample, sampled, read, evicted int) error {
	args := []any{sampled, read, evicted}
	for _, s := range changed {
		args = append(args, s.Key, s.seen())
	}
	_, err := q.run(ctx, lookedScript, args...)
	return err
}

// lookedScript takes the numbers of samples, of those that were read and that were evicted, and keys with what is known of them.
var lookedScript = redis.NewScript(lookups.Lua + must + `
redis.call('HSET', KEYS[1], 'sampled', ARGV[1], 'read', ARGV[2], 'evicted', ARGV[3])
for i = 4, #ARGV, 2 do
  if look('HEXISTS', KEYS[4], ARGV[i]) == 1 then redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
end
return {}`)
