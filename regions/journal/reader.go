package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// checkEvery is how often a journal that says nothing unexpected is looked at as a whole.
	checkEvery = time.Second
	// Entries are read so many at a time that they make about batchBytes.
	batchBytes = 256 << 10
	maxCount   = 1024
)

// Batch is what Reader.Next found.
type Batch struct {
	From, To Cursor // after the one, up to the other
	Removals []Removal
	Entries  int
	// Gap is why something may be missing before To; "" is nothing. The fence is kept already.
	Gap   Reason
	Fence string // its ID
	// Written is when the last entry was written, by the shard's clock; zero without entries.
	Written time.Time
	// Behind is how many entries were left in To's journal, when that was last known.
	Behind uint64
}

// Reader follows a shard's journals for one region, from epoch to epoch. One goroutine uses it.
type Reader struct {
	shard  *Shard
	redis  *redis.Client // of its own, since it waits
	region string

	at      Cursor
	started bool
	past    bool
	checked time.Time
	count   int64
	inexact bool   // at.Read is not known for sure until the journal's end is reached: there was a gap
	added   uint64 // entries that the journal ever had, when it was last looked at
}

// NewReader reads over a connection of its own, which stays the caller's. past says that the shard may have journals that the region has read, or
// should have: without a cursor of it there is a gap then.
func NewReader(s *Shard, own *redis.Client, region string, past bool) *Reader {
	return &Reader{shard: s, redis: own, region: region, past: past, count: 64}
}

// Next waits for entries for at most a second, and returns a batch that may have none. What the journal lacks, it has a fence kept for before
// it goes on. An error means that nothing was read and Next may be called again.
func (r *Reader) Next(ctx context.Context) (Batch, error) {
	if !r.started {
		return r.start(ctx)
	}
	if r.at.Epoch == r.shard.epoch && time.Since(r.checked) < checkEvery {
		return r.wait(ctx)
	}
	return r.look(ctx)
}

// start finds where the region is.
func (r *Reader) start(ctx context.Context) (Batch, error) {
	cursors, err := r.shard.Cursors(ctx)
	if err != nil {
		return Batch{}, err
	}
	if at, ok := cursors[r.region]; ok && at.Epoch <= r.shard.epoch {
		r.at, r.started = at, true
		return Batch{From: at, To: at}, nil
	}
	_, odd := cursors[r.region]
	if err := r.shard.make(ctx, makeOnce); err != nil {
		return Batch{}, err
	}
	if !odd && !r.past {
		// The first that the region hears of this shard. Should its journal not be whole, look will see.
		at := Cursor{Epoch: r.shard.epoch}
		if err := r.shard.Advance(ctx, r.region, at); err != nil {
			return Batch{}, err
		}
		r.at, r.started = at, true
		return Batch{From: at, To: at}, nil
	}
	info, err := r.redis.XInfoStream(ctx, Key(r.shard.epoch)).Result()
	if isNoKey(err) {
		return r.remake(ctx)
	}
	if err != nil {
		return Batch{}, r.shard.failed("look at the journal", err)
	}
	last, err := ParseID(info.LastGeneratedID)
	if err != nil {
		return Batch{}, err
	}
	return r.gap(ctx, Forgotten, Batch{To: Cursor{r.shard.epoch, last, uint64(info.EntriesAdded)}})
}

// gap has a fence kept, and the batch's end with it, before what the batch says may count as read.
func (r *Reader) gap(ctx context.Context, why Reason, b Batch) (Batch, error) {
	now := time.Now()
	f := Fence{ID: fmt.Sprintf("%d-%d", r.shard.epoch, now.UnixNano()), Reason: why, Since: now.UTC()}
	value, err := json.Marshal(f)
	if err != nil {
		return Batch{}, err
	}
	// The entries of the batch are still to be sent: the cursor that is kept is where they begin.
	kept := b.To
	if b.Entries > 0 {
		kept = b.From
	}
	err = gapped.Run(ctx, r.shard.redis, []string{cursorsKey, fencesKey}, r.region, kept.String(), r.region+" "+f.ID, value).Err()
	if err != nil && !errors.Is(err, redis.Nil) {
		return Batch{}, r.shard.failed("keep a fence", err)
	}
	r.at, r.started = b.To, true
	b.Gap, b.Fence = why, f.ID
	return b, nil
}

// remake begins a journal anew that was lost.
func (r *Reader) remake(ctx context.Context) (Batch, error) {
	if err := r.shard.make(ctx, remake); err != nil {
		return Batch{}, err
	}
	return r.gap(ctx, Lost, Batch{From: r.at, To: Cursor{Epoch: r.shard.epoch}})
}

// wait waits for entries of the current journal.
func (r *Reader) wait(ctx context.Context) (Batch, error) {
	streams, err := r.redis.XRead(ctx, &redis.XReadArgs{Streams: []string{Key(r.at.Epoch), r.at.ID.String()}, Count: r.count, Block: checkEvery}).Result()
	if errors.Is(err, redis.Nil) {
		return Batch{From: r.at, To: r.at}, nil
	}
	if err != nil {
		return Batch{}, r.shard.failed("read the journal", err)
	}
	if len(streams) != 1 {
		return Batch{}, fmt.Errorf("%d journals were read in place of one", len(streams))
	}
	b, bad := r.batch(r.at, streams[0].Messages)
	if bad != nil {
		return r.gap(ctx, Unreadable, b)
	}
	r.at = b.To
	return b, nil
}

// look reads entries and compares the journal with what was read of it.
func (r *Reader) look(ctx context.Context) (Batch, error) {
	key := Key(r.at.Epoch)
	// No transaction, since a full node refuses any.
	pipe := r.redis.Pipeline()
	made := pipe.MemoryUsage(ctx, key+":made") // EXISTS would be a hit of the cache
	stream := pipe.XInfoStream(ctx, key)
	entries := pipe.XRead(ctx, &redis.XReadArgs{Streams: []string{key, r.at.ID.String()}, Count: r.count, Block: -1})
	_, err := pipe.Exec(ctx)
	missing := isNoKey(stream.Err())
	if missing || errors.Is(err, redis.Nil) {
		err = cmp.Or(unlessNil(made.Err()), unlessNil(entries.Err()))
		if !missing {
			err = cmp.Or(err, stream.Err())
		}
	}
	if err != nil {
		return Batch{}, r.shard.failed("look at the journal", err)
	}
	current := r.at.Epoch == r.shard.epoch
	if missing {
		lost := r.at.ID != ID{} || made.Val() > 0
		switch {
		case current && lost:
			return r.remake(ctx)
		case current:
			return Batch{From: r.at, To: r.at}, r.shard.make(ctx, makeOnce)
		case lost:
			return r.gap(ctx, Lost, Batch{From: r.at, To: Cursor{Epoch: r.at.Epoch + 1}})
		default:
			return r.next(), nil
		}
	}
	info := stream.Val()
	if info.EntriesAdded == 0 || info.RecordedFirstEntryID == "" {
		return Batch{}, r.shard.failed("look at the journal", errors.New("this Redis does not count a stream's entries: coherent routes need Redis 7 or newer"))
	}
	last, err := ParseID(info.LastGeneratedID)
	if err != nil {
		return Batch{}, err
	}
	added, removed := uint64(info.EntriesAdded), uint64(info.EntriesAdded-info.Length)
	r.added = added
	if last.Compare(r.at.ID) < 0 {
		if current {
			return r.gap(ctx, Replaced, Batch{From: r.at, To: Cursor{Epoch: r.at.Epoch}})
		}
		return r.next(), nil // a replica that took over had less of it than the region
	}
	// What came after the journal was looked at is for the next time.
	var all []redis.XMessage
	if streams := entries.Val(); len(streams) == 1 {
		all = streams[0].Messages
	}
	seen := slices.IndexFunc(all, func(m redis.XMessage) bool {
		id, err := ParseID(m.ID)
		return err == nil && id.Compare(last) > 0
	})
	end := seen >= 0 || len(all) < int(r.count)
	if seen >= 0 {
		all = all[:seen]
	}
	from := r.at
	why := Reason("")
	if removed > from.Read {
		why, from.Read = Trimmed, removed
	}
	b, bad := r.batch(from, all)
	if end {
		switch {
		case why != "" || r.inexact:
		case added > b.To.Read:
			why = Trimmed
		case added < b.To.Read:
			return r.gap(ctx, Replaced, Batch{From: r.at, To: Cursor{Epoch: r.at.Epoch}})
		}
		// Whoever reads from here again is to miss nothing any more.
		b.From.Read += added - b.To.Read
		b.To.Read = added
	}
	r.inexact = !end && (r.inexact || why != "")
	if why == "" && bad != nil {
		why = Unreadable
	}
	b.Behind = added - min(added, b.To.Read)
	if end {
		r.checked = time.Now()
	}
	if why != "" {
		return r.gap(ctx, why, b)
	}
	r.at = b.To
	if end && !current && b.Entries == 0 {
		return r.next(), nil
	}
	return b, nil
}

// next goes on to the journal of the next epoch.
func (r *Reader) next() Batch {
	before := r.at
	r.at = Cursor{Epoch: r.at.Epoch + 1}
	return Batch{From: before, To: r.at}
}

// batch decodes entries. The error is of one that cannot be read; the others are in the batch.
func (r *Reader) batch(from Cursor, messages []redis.XMessage) (Batch, error) {
	b := Batch{From: from, To: from, Entries: len(messages)}
	var bad error
	size := 0
	for _, m := range messages {
		id, err := ParseID(m.ID)
		if err != nil {
			bad = err
			continue
		}
		b.To.ID, b.To.Read = id, b.To.Read+1
		entry, ok := m.Values["e"].(string)
		if !ok || len(m.Values) != 1 {
			bad = ErrEntry
			continue
		}
		size += len(entry)
		if b.Removals, err = Decode(b.Removals, []byte(entry)); err != nil {
			bad = err
		}
	}
	if len(messages) > 0 {
		b.Written = time.UnixMilli(int64(b.To.ID.Milliseconds))
		each := size/len(messages) + 1
		r.count = int64(min(maxCount, max(1, batchBytes/each), 2*int(r.count)))
	}
	b.Behind = r.added - min(r.added, b.To.Read)
	return b, bad
}

// unlessNil is an error, but not that there is nothing.
func unlessNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

func isNoKey(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && strings.HasPrefix(err.Error(), "ERR no such key")
}
