package load

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/resp"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/queue"
)

const (
	// What a run loaded is looked at every lookFirst, later less often: one in lookShare of its age, at least every lookLast.
	lookFirst = 5 * time.Second
	lookLast  = 5 * time.Minute
	lookShare = 20
	// A node's clock of accesses ticks once a second.
	clockTick = 2 * time.Second
	// startFrequency is what a node that counts accesses begins a key with.
	startFrequency = 5
)

// look finds out which keys of the run's sample were read, until ctx ends. OBJECT, with which it asks, is no access.
func (j *job) look(ctx context.Context) {
	for {
		every := max(lookFirst, min(lookLast, time.Since(j.r.Begun)/lookShare))
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return
		}
		if err := j.lookOnce(ctx, every*9/10); err != nil && ctx.Err() == nil {
			j.log.Debug("what was loaded is not looked at", "error", err) // it is with the next look
		}
	}
}

// lookOnce looks, unless another agent has done so within every.
func (j *job) lookOnce(ctx context.Context, every time.Duration) error {
	samples, err := j.queue.Samples(ctx, j.loader.config.Agent, every)
	if err != nil || len(samples) == 0 {
		return err
	}
	shards := map[*place.Shard][]int{}
	m := j.loader.at.Load()
	for i, s := range samples {
		if shard, _ := m.Find([]byte(s.Key)); shard != nil && s.Fate == queue.Unread {
			shards[shard] = append(shards[shard], i)
		}
	}
	var changed []queue.Sample
	for shard, at := range shards {
		if err := j.lookAt(ctx, shard, samples, at); err != nil {
			return fmt.Errorf("shard %s: %w", shard.Name, err)
		}
		for _, i := range at {
			changed = append(changed, samples[i])
		}
	}
	read, evicted := 0, 0
	for _, s := range samples {
		switch s.Fate {
		case queue.Read:
			read++
		case queue.Evicted:
			evicted++
		}
	}
	return j.queue.Looked(ctx, changed, len(samples), read, evicted)
}

// lookAt asks a shard about samples, and notes what it says of them.
func (j *job) lookAt(ctx context.Context, shard *place.Shard, samples []queue.Sample, at []int) error {
	pipe, err := node.OpenPipe(ctx, shard.Address, shard.Epoch, shard.Access, shardTimeout)
	if err != nil {
		return err
	}
	defer pipe.Close()
	info, err := memoryInfo(pipe)
	if err != nil {
		return err
	}
	counts := strings.HasSuffix(node.Field(info, "maxmemory_policy"), "-lfu")
	question := "IDLETIME"
	if counts {
		question = "FREQ"
	}
	var out []byte
	for _, i := range at {
		out = resp.AppendCommand(out, "OBJECT", question, samples[i].Key)
	}
	if err := pipe.Send(lookups.AppendMarks(out, len(at))); err != nil {
		return err
	}
	now := time.Now()
	for _, i := range at {
		v, err := pipe.Value()
		if err != nil && !node.Refused(err) {
			return err
		}
		n, there := v.(int)
		s := &samples[i]
		switch age := now.Sub(s.Loaded); {
		case err != nil: // its policy has changed meanwhile
		case !there && !s.Ends.IsZero() && now.After(s.Ends):
			s.Fate = queue.Expired
		case !there:
			s.Fate = queue.Evicted
		case counts:
			// It falls with time, and rises with accesses only.
			if before := s.Frequency; (n > startFrequency || before > 0 && n > before) && !j.loader.windows.within(j.r.ID, j.r.Pool, now) {
				s.Fate = queue.Read
			}
			s.Frequency = n
		case time.Duration(n)*time.Second+clockTick < age && !j.loader.windows.within(j.r.ID, j.r.Pool, now.Add(-time.Duration(n)*time.Second)):
			s.Fate = queue.Read
		}
	}
	return nil
}
