package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/reports"
	placement "github.com/cachemesh/cachemesh/warming/place"
)

const (
	// eventsGroup is the consumer group by which agents share a stream of events.
	eventsGroup = "cachemesh"
	// eventField is the field of an entry that holds the event. An entry without it is itself one, all of whose fields are text.
	eventField       = "event"
	eventsAtOnce     = 100
	eventsBlock      = time.Second
	eventsAbandoned  = 30 * time.Second
	eventsRetry      = time.Second
	eventsFullPause  = 100 * time.Millisecond
	eventsReadWithin = 3 * time.Second
)

// eventStream reads events that the application adds to a Redis Stream, whose key a route takes as it takes others. Several agents share it.
type eventStream struct {
	key    string
	agent  string
	events *events
	at     func() *placement.Map
	log    *slog.Logger
}

// run reads until ctx ends.
func (s *eventStream) run(ctx context.Context) error {
	told := ""
	for ctx.Err() == nil {
		err := s.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != told {
			told = err.Error()
			s.log.Warn("the stream of events is not read", "key", s.key, "reason", err)
		}
		select {
		case <-time.After(eventsRetry):
		case <-ctx.Done():
		}
	}
	return nil
}

// read reads from the shard that has the key now, until that is another, and returns why it ended.
func (s *eventStream) read(ctx context.Context) error {
	shard, err := s.shard()
	if err != nil {
		return err
	}
	client := node.Primary(shard.Address, shard.Epoch, shard.Access, eventsReadWithin)
	defer client.Close()
	err = client.XGroupCreateMkStream(ctx, s.key, eventsGroup, "$").Err()
	if err != nil && !redis.HasErrorPrefix(err, "BUSYGROUP") {
		return err
	}
	taken := time.Time{}
	for {
		now, err := s.shard()
		if err != nil {
			return err
		}
		if now.Address != shard.Address || now.Epoch != shard.Epoch {
			return errors.New("its shard has another primary")
		}
		if time.Since(taken) > eventsAbandoned {
			taken = time.Now()
			left, _, err := client.XAutoClaim(ctx, &redis.XAutoClaimArgs{Stream: s.key, Group: eventsGroup, Consumer: s.agent, MinIdle: eventsAbandoned, Start: "0", Count: eventsAtOnce}).Result()
			if err != nil {
				return err
			}
			if err := s.pass(ctx, client, left); err != nil {
				return err
			}
		}
		new, err := client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: eventsGroup, Consumer: s.agent, Streams: []string{s.key, ">"}, Count: eventsAtOnce, Block: eventsBlock}).Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return err
		}
		for _, stream := range new {
			if err := s.pass(ctx, client, stream.Messages); err != nil {
				return err
			}
		}
	}
}

func (s *eventStream) shard() (*placement.Shard, error) {
	m := s.at()
	if m == nil {
		return nil, errors.New("the region's shards are not known yet")
	}
	shard, _ := m.Find([]byte(s.key))
	if shard == nil {
		return nil, errors.New("no route takes its key: choose one that begins as a route does")
	}
	if shard.Address == "" {
		return nil, fmt.Errorf("shard %s has no primary now", shard.Name)
	}
	return shard, nil
}

// pass passes entries on, and waits while there are too many: they stay in the stream.
func (s *eventStream) pass(ctx context.Context, client *redis.Client, entries []redis.XMessage) error {
	for _, entry := range entries {
		if event, err := eventOf(entry.Values); err != nil {
			s.events.drop(1)
			s.log.Debug("what is no event is dropped", "key", s.key, "entry", entry.ID, "reason", err)
		} else {
			for s.events.add([][]byte{event}, false) == 0 {
				select {
				case <-time.After(eventsFullPause):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			s.events.tell(event)
		}
		if err := client.XAck(ctx, s.key, eventsGroup, entry.ID).Err(); err != nil {
			return err
		}
	}
	return nil
}

func eventOf(fields map[string]any) ([]byte, error) {
	if text, ok := fields[eventField].(string); ok {
		all, err := parseEvents([]byte(text))
		if err == nil && len(all) != 1 {
			err = errors.New("it is several events")
		}
		if err != nil {
			return nil, err
		}
		return all[0], nil
	}
	event, err := json.Marshal(fields)
	if err == nil && len(event) > reports.MaxEvent {
		err = fmt.Errorf("it has %d bytes and may have %d", len(event), reports.MaxEvent)
	}
	return event, err
}
