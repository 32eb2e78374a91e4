// Package workingset finds out what a region reads most in each hour of the day, by sampling its shards, and keeps it on them, for plans that load an
// hour's keys ahead.
//
// A Recorder watches each shard for some 20 ms of a second with MONITOR, on a connection of its own, unless another agent does: it sees the
// commands of all clients, and no request takes longer for it. Of each shard it keeps, under keys that applications cannot reach:
//
//	cachemesh:workingset:HH      sorted set: KEY → how often it was seen to be read in the hour HH of UTC, at most MaxKeys; of the same hour of
//	                             the days before, half as much a day
//	cachemesh:workingset:HH:day  the day that was counted last
//	cachemesh:workingset:by      which agent watches, for a while
//
// It counts commands that read one key, as Envoy sends them; what agents read themselves it does not count.
package workingset

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/warming/place"
)

const (
	// MaxKeys is how many keys of an hour a shard keeps.
	MaxKeys = 5000

	// A shard is watched for watchFor every watchEvery, and what was seen is kept every keepEvery.
	watchEvery = time.Second
	watchFor   = 20 * time.Millisecond
	keepEvery  = 5 * time.Second
	// turn is how long an agent that says no more is the one that watches.
	turn = 10 * time.Second
	// maxSeen bounds the keys between two times that they are kept, and maxKey a key, in bytes. Others are not counted.
	maxSeen = 20_000
	maxKey  = 1024
	timeout = time.Second
)

// Key is where a shard keeps an hour.
func Key(hour int) string { return fmt.Sprintf("%s%02d", prefix, hour) }

const prefix = mesh.ReservedPrefix + "workingset:"

// Recorder watches a region's shards.
type Recorder struct {
	agent string
	log   *slog.Logger
	now   func() time.Time
	at    atomic.Pointer[place.Map] // nil is that nothing is to be watched
	wake  chan struct{}
}

// New watches nothing before Update and Run.
func New(agent string, log *slog.Logger) *Recorder {
	return &Recorder{agent: agent, log: log, now: time.Now, wake: make(chan struct{}, 1)}
}

// Update says where the shards are, and whether any plan wants to know what is read.
func (r *Recorder) Update(t *mesh.Topology) {
	var m *place.Map
	if t.WorkingSets {
		var err error
		if m, err = place.New(t); err != nil {
			r.log.Error("what is read is not recorded", "error", err)
		}
	}
	r.at.Store(m)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run records until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		inner, stop := context.WithCancel(ctx)
		var work sync.WaitGroup
		if m := r.at.Load(); m != nil {
			for _, s := range m.Shards {
				if s.Address != "" {
					work.Go(func() { r.shard(inner, s) })
				}
			}
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
		}
		stop()
		work.Wait()
	}
	return nil
}

// shard watches one shard, whenever it is this agent's turn.
func (r *Recorder) shard(ctx context.Context, s *place.Shard) {
	client := node.Primary(s.Address, s.Epoch, s.Access, timeout)
	defer client.Close()
	seen, kept, mine := map[string]int{}, time.Now(), time.Time{}
	hour := r.now().UTC().Truncate(time.Hour)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if time.Since(mine) > turn/3 {
			if !r.turn(ctx, client) {
				clear(seen)
				continue
			}
			mine = time.Now()
		}
		now := r.now().UTC().Truncate(time.Hour)
		if len(seen) > 0 && (now != hour || time.Since(kept) > keepEvery) {
			if err := keep(ctx, client, hour, seen); err != nil && ctx.Err() == nil {
				r.log.Debug("what is read is not kept", "shard", s.Name, "error", err)
			}
			clear(seen)
			kept = time.Now()
		}
		hour = now
		if err := watch(ctx, s, seen); err != nil && ctx.Err() == nil {
			r.log.Debug("what is read is not seen", "shard", s.Name, "error", err)
		}
	}
}

// turn says whether it is this agent that watches the shard.
func (r *Recorder) turn(ctx context.Context, client *redis.Client) bool {
	has, err := turnScript.Run(ctx, client, []string{prefix + "by"}, r.agent, turn.Milliseconds()).Int()
	return err == nil && has == 1
}

// turnScript takes the agent, and for how long it is its turn.
var turnScript = redis.NewScript(lookups.Lua + `
local has = look('GET', KEYS[1])
if has and has ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

// keep adds what was seen in an hour to what is kept of it.
func keep(ctx context.Context, client *redis.Client, hour time.Time, seen map[string]int) error {
	args := []any{hour.Format(time.DateOnly), MaxKeys}
	for key, n := range seen {
		args = append(args, key, n)
	}
	key := Key(hour.Hour())
	return keepScript.Run(ctx, client, []string{key, key + ":day"}, args...).Err()
}

// keepScript takes the day, how many keys are kept, and keys with how often they were seen. It is not run on a node whose memory is full.
var keepScript = redis.NewScript(lookups.Lua + `
if look('GET', KEYS[2]) ~= ARGV[1] then
  if look('EXISTS', KEYS[1]) then
    redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', 0.5)
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(0.5')
  end
  redis.call('SET', KEYS[2], ARGV[1])
end
for i = 3, #ARGV, 2 do redis.call('ZINCRBY', KEYS[1], ARGV[i + 1], ARGV[i]) end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
redis.call('EXPIRE', KEYS[1], 172800)
redis.call('EXPIRE', KEYS[2], 172800)
return 1`)
