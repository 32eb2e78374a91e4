package load

import (
	"strconv"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/resp"
)

const (
	// lookEvery is how often a shard is asked how much room it has.
	lookEvery = 250 * time.Millisecond
	// margin is the part of a shard's memory that warming leaves free, as one in so many.
	margin = 20
	// overhead is about what Redis needs for a key beside its bytes.
	overhead = 100
)

// rooms knows how much room shards have: beyond it, they would evict what is being read.
type rooms struct {
	mu  sync.Mutex
	all map[string]*room // by shard
}

type room struct {
	looked  time.Time
	epoch   uint64
	bounded bool
	left    int // bytes
	usual   int // bytes of a key, about as those that were taken
}

// look asks a shard again if it is time.
func (r *rooms) look(s *hand) error {
	r.mu.Lock()
	if r.all == nil {
		r.all = map[string]*room{}
	}
	now := r.all[s.shard.Name]
	if now != nil && now.epoch == s.shard.Epoch && time.Since(now.looked) < lookEvery {
		r.mu.Unlock()
		return nil
	}
	if now != nil {
		now.looked = time.Now() // one asks
	}
	r.mu.Unlock()
	info, err := memoryInfo(s.pipe)
	if err != nil {
		return err
	}
	number := func(field string) int {
		n, _ := strconv.Atoi(node.Field(info, field)) // what an older Redis does not say is 0
		return n
	}
	most := number("maxmemory")
	next := &room{looked: time.Now(), epoch: s.shard.Epoch, bounded: most > 0}
	next.left = most - most/margin - (number("used_memory") - number("mem_not_counted_for_evict"))
	r.mu.Lock()
	if now != nil {
		next.usual = now.usual
	}
	r.all[s.shard.Name] = next
	r.mu.Unlock()
	return nil
}

// memoryInfo is what a node says of its memory.
func memoryInfo(p *node.Pipe) (string, error) {
	if err := p.Send(resp.AppendCommand(nil, "INFO", "memory")); err != nil {
		return "", err
	}
	v, err := p.Value()
	info, _ := v.(string)
	return info, err
}

// take says whether a shard has room for a key, and then it has less.
func (r *rooms) take(shard string, bytes int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.all[shard]
	if now == nil || !now.bounded {
		return true
	}
	if now.left < bytes+overhead {
		return false
	}
	now.left -= bytes + overhead
	now.usual += (bytes - now.usual) / 8
	return true
}

// full says whether a shard has no room for a usual key. Larger ones are refused before that.
func (r *rooms) full(shard string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.all[shard]
	return now != nil && now.bounded && now.left < overhead+2*now.usual
}
