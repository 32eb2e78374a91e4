package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Reason says why a journal lacks something, or why there is a fence without that.
type Reason string

const (
	Trimmed    Reason = "trimmed"    // entries were removed before the region had them
	Lost       Reason = "lost"       // the journal was evicted, deleted or flushed
	Replaced   Reason = "replaced"   // another journal is in its place
	Unreadable Reason = "unreadable" // an entry is damaged, foreign or newer
	Forgotten  Reason = "forgotten"  // it is not known how far the region was
	Refused    Reason = "refused"    // the shard took a removal and not its entry
	Tail       Reason = "tail"       // a primary was lost, and nobody knows all that was written to it last
	Asked      Reason = "asked"      // no gap: somebody wants keys removed
)

// Fence is that a region removes all keys that begin with Prefix, or, without one, all that the shard may have told it of.
type Fence struct {
	ID     string    `json:"-"` // unique among the shard's
	Reason Reason    `json:"reason"`
	Prefix []byte    `json:"prefix"` // nil is the shard's keys
	Since  time.Time `json:"since"`
}

const fencesKey = reserved + "fences"

// allowOOM lets a script write what is small and must not be lost on a node whose memory is full.
const allowOOM = "#!lua flags=allow-oom\n"

var setFence = redis.NewScript(allowOOM + `return redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])`)

// Fence keeps a fence until the region has confirmed it. One of the same ID stays as it is.
func (s *Shard) Fence(ctx context.Context, region string, f Fence) error {
	value, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return s.failed("keep a fence", setFence.Run(ctx, s.redis, []string{fencesKey}, region+" "+f.ID, value).Err())
}

// Fences are a region's, the oldest first.
func (s *Shard) Fences(ctx context.Context, region string) ([]Fence, error) {
	values, err := s.hash(ctx, fencesKey)
	if err != nil {
		return nil, s.failed("read the fences", err)
	}
	var all []Fence
	for field, value := range values {
		id, ok := strings.CutPrefix(field, region+" ")
		if !ok {
			continue
		}
		var f Fence
		if err := json.Unmarshal([]byte(value), &f); err != nil {
			f = Fence{Reason: Unreadable} // somebody wanted something removed
		}
		f.ID = id
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Fence) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// Confirm forgets fences that the region has carried out.
func (s *Shard) Confirm(ctx context.Context, region string, ids ...string) error {
	fields := make([]string, len(ids))
	for i, id := range ids {
		fields[i] = region + " " + id
	}
	return s.failed("forget a fence", s.redis.HDel(ctx, fencesKey, fields...).Err())
}

func (s *Shard) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s at %s: %w", what, s.redis.Options().Addr, err)
}
