package journal

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node/lookups"
)

const reserved = mesh.ReservedPrefix

const cursorsKey = reserved + "cursors"

// The bounds of a journal, when a region reads it no further.
const (
	MaxAge    = 10 * time.Minute
	MaxLength = 1_000_000
	MaxBytes  = 64 << 20
)

// Shard is what a shard's primary of one epoch keeps. Several goroutines may use it.
type Shard struct {
	redis *redis.Client
	epoch uint64
}

// Open does not connect yet. The client stays the caller's.
func Open(client *redis.Client, epoch uint64) *Shard { return &Shard{redis: client, epoch: epoch} }

// Epoch is that of the shard's primary.
func (s *Shard) Epoch() uint64 { return s.epoch }

// make makes an epoch's journal once: a lost one must be seen. It is the script of lanes.
var makeOnce = redis.NewScript(allowOOM + `if redis.call('SET', KEYS[1], '1', 'NX') then redis.call('XADD', KEYS[2], '*', 'e', ARGV[1]) end`)

// remake makes a journal of which it is known that it was lost.
var remake = redis.NewScript(allowOOM + `if not redis.call('MEMORY', 'USAGE', KEYS[2], 'SAMPLES', '1') then redis.call('SET', KEYS[1], '1') redis.call('XADD', KEYS[2], '*', 'e', ARGV[1]) end`)

func (s *Shard) make(ctx context.Context, how *redis.Script) error {
	key := Key(s.epoch)
	err := how.Run(ctx, s.redis, []string{key + ":made", key}, Append(nil, nil)).Err()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return s.failed("make the journal", err)
}

var beat = redis.NewScript(allowOOM + `redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', 'e', ARGV[1])
return redis.call('TIME')`)

// Beat writes an entry that says that the journal is alive, if there is a journal, and returns how far the shard's clock is ahead of this host's.
func (s *Shard) Beat(ctx context.Context) (ahead time.Duration, err error) {
	asked := time.Now()
	reply, err := beat.Run(ctx, s.redis, []string{Key(s.epoch)}, Append(nil, nil)).StringSlice()
	if err != nil {
		return 0, s.failed("write into the journal", err)
	}
	if len(reply) == 2 {
		seconds, errS := strconv.ParseInt(reply[0], 10, 64)
		micros, errM := strconv.ParseInt(reply[1], 10, 64)
		if errS == nil && errM == nil {
			half := time.Since(asked) / 2
			return time.Unix(seconds, micros*1000).Sub(asked.Add(half)), nil
		}
	}
	return 0, s.failed("read its clock", fmt.Errorf("%q is no time", reply))
}

// Write appends an entry of the operator's, and returns where it is.
func (s *Shard) Write(ctx context.Context, removals []Removal) (Cursor, error) {
	if err := s.make(ctx, makeOnce); err != nil {
		return Cursor{}, err
	}
	text, err := s.redis.XAdd(ctx, &redis.XAddArgs{Stream: Key(s.epoch), NoMkStream: true, Values: []any{"e", AppendRemovals(nil, removals)}}).Result()
	if err != nil {
		return Cursor{}, s.failed("write into the journal", err)
	}
	id, err := ParseID(text)
	return Cursor{Epoch: s.epoch, ID: id}, err
}

// Cursors are how far regions are, by region. One that cannot be read is left out.
func (s *Shard) Cursors(ctx context.Context) (map[string]Cursor, error) {
	values, err := s.hash(ctx, cursorsKey)
	if err != nil {
		return nil, s.failed("read the cursors", err)
	}
	all := map[string]Cursor{}
	for region, value := range values {
		if c, err := ParseCursor(value); err == nil {
			all[region] = c
		}
	}
	return all, nil
}

// advance sets a cursor unless it is further: of two that read a journal, the slower one must not undo what the other did.
var advance = redis.NewScript(allowOOM + lookups.Lua + `
local function parts(text)
  local e, m, s = string.match(text or '', '^(%d+) (%d+)-(%d+) %d+$')
  return {tonumber(e or -1), tonumber(m or -1), tonumber(s or -1)}
end
local old, new = parts(look('HGET', KEYS[1], ARGV[1]) or ''), parts(ARGV[2])
for i = 1, 3 do
  if new[i] < old[i] then return 0 end
  if new[i] > old[i] then break end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1`)

// Advance keeps how far a region is.
func (s *Shard) Advance(ctx context.Context, region string, c Cursor) error {
	return s.failed("keep a cursor", advance.Run(ctx, s.redis, []string{cursorsKey}, region, c.String()).Err())
}

var gapped = redis.NewScript(allowOOM + `redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])`)

// trimScript removes entries before the slowest cursor, and what is beyond the bounds. It returns the length that is left.
var trimScript = redis.NewScript(lookups.Lua + `
local key, slowest, oldest, length, bytes = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if not redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '1') then return 0 end
if slowest ~= '' then redis.call('XTRIM', key, 'MINID', slowest) end
redis.call('XTRIM', key, 'MINID', oldest)
redis.call('XTRIM', key, 'MAXLEN', length)
for i = 1, 10 do
  local left, used = look('XLEN', key), redis.call('MEMORY', 'USAGE', key)
  if used <= bytes or left <= 1 then break end
  redis.call('XTRIM', key, 'MAXLEN', math.max(1, math.floor(left * bytes / used)))
end
return look('XLEN', key)`)

// Trim removes what all regions have, and what is older or more than the bounds allow. ahead is what Beat returned.
func (s *Shard) Trim(ctx context.Context, regions []string, ahead time.Duration) error {
	return s.trim(ctx, regions, ahead, MaxLength, MaxBytes)
}

func (s *Shard) trim(ctx context.Context, regions []string, ahead time.Duration, length, bytes int) error {
	cursors, err := s.Cursors(ctx)
	if err != nil {
		return err
	}
	slowest := Cursor{Epoch: s.epoch + 1}
	for _, r := range regions {
		if c := cursors[r]; c.Compare(slowest) < 0 {
			slowest = c
		}
	}
	oldest := ID{Milliseconds: uint64(max(0, time.Now().Add(ahead-MaxAge).UnixMilli()))}
	// Journals of epochs that nobody reads any more go. There is seldom one.
	const back = 8
	for epoch := max(slowest.Epoch, back) - back; epoch < min(slowest.Epoch, s.epoch); epoch++ {
		if err := s.redis.Unlink(ctx, Key(epoch), Key(epoch)+":made").Err(); err != nil {
			return s.failed("remove an old journal", err)
		}
	}
	for epoch := max(slowest.Epoch, s.epoch-min(back, s.epoch)); epoch <= s.epoch; epoch++ {
		minID := ""
		if slowest.Epoch == epoch && len(regions) > 0 {
			minID = slowest.ID.String()
		}
		if err := trimScript.Run(ctx, s.redis, []string{Key(epoch)}, minID, oldest.String(), length, bytes).Err(); err != nil {
			return s.failed("trim the journal", err)
		}
	}
	return nil
}

// Length is how many entries the current journal ever had, 0 if there is none.
func (s *Shard) Length(ctx context.Context) (uint64, error) {
	info, err := s.redis.XInfoStream(ctx, Key(s.epoch)).Result()
	if isNoKey(err) {
		return 0, nil
	}
	if err != nil {
		return 0, s.failed("look at the journal", err)
	}
	return uint64(info.EntriesAdded), nil
}

// hash is one's fields; none if there is no such key.
func (s *Shard) hash(ctx context.Context, key string) (map[string]string, error) {
	flat, err := lookups.Hash.Run(ctx, s.redis, []string{key}).StringSlice()
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string, len(flat)/2)
	for i := 0; i+1 < len(flat); i += 2 {
		fields[flat[i]] = flat[i+1]
	}
	return fields, nil
}

const pausedKey = reserved + "paused"

var setPaused = redis.NewScript(allowOOM + `return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])`)

// Pause has nothing sent to the region until it is resumed: its journals grow within their bounds.
func (s *Shard) Pause(ctx context.Context, region string, paused bool) error {
	if !paused {
		return s.failed("resume a region", s.redis.HDel(ctx, pausedKey, region).Err())
	}
	return s.failed("pause a region", setPaused.Run(ctx, s.redis, []string{pausedKey}, region, time.Now().UTC().Format(time.RFC3339)).Err())
}

// Paused are the regions that are.
func (s *Shard) Paused(ctx context.Context) (map[string]bool, error) {
	values, err := s.hash(ctx, pausedKey)
	all := map[string]bool{}
	for region := range values {
		all[region] = true
	}
	return all, s.failed("read which regions are paused", err)
}
