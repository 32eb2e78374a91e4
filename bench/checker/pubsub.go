package checker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// channel is where applications publish the keys that they have changed.
	channel = "invalidate"
	// silence is how long a subscriber hears nothing before it asks whether somebody is there, and then before it connects anew. Who never
	// asks is deaf for a quarter of an hour after a peer has gone without a word, for so long does TCP try.
	silence = 2 * time.Second
)

// subscriber hears of the changes of another region. What is published while it is not connected, nobody tells it; so it is with
// Pub/Sub. (It might forget the whole cache whenever it connects. Few do, and then have none.)
type subscriber struct {
	client *redis.Client
	pubsub *redis.PubSub
}

func subscribe(ctx context.Context, address string) (*subscriber, error) {
	s := &subscriber{client: redis.NewClient(&redis.Options{Addr: address, Protocol: 2, DisableIdentity: true})}
	s.pubsub = s.client.Subscribe(ctx, channel)
	if _, err := s.pubsub.Receive(ctx); err != nil {
		return nil, fmt.Errorf("subscribe at %s: %w", address, errors.Join(err, s.close()))
	}
	return s, nil
}

func (s *subscriber) close() error { return errors.Join(s.pubsub.Close(), s.client.Close()) }

// hear calls with each key, until ctx ends.
func (s *subscriber) hear(ctx context.Context, changed func(key string)) {
	asked := false
	for ctx.Err() == nil {
		message, err := s.pubsub.ReceiveTimeout(ctx, silence)
		var timeout net.Error
		switch {
		case err == nil:
			asked = false
			if m, ok := message.(*redis.Message); ok {
				changed(m.Payload)
			}
		case errors.As(err, &timeout) && timeout.Timeout() && !asked:
			asked = true
			s.pubsub.Ping(ctx) // its answer, or silence, tells
		case errors.As(err, &timeout) && timeout.Timeout():
			asked = false
			s.pubsub.Close()
			s.pubsub = s.client.Subscribe(ctx, channel)
		default: // the client connects and subscribes again
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// hear removes from a region's cache what others have changed.
func (c *checker) hear(ctx context.Context, region int, s *subscriber) {
	defer s.close()
	turn := 0
	s.hear(ctx, func(key string) {
		if strings.HasPrefix(key, c.Prefix) {
			turn++
			client := c.clients[region][turn%len(c.clients[region])]
			c.until(ctx, func() error { return client.Del(ctx, key).Err() })
		}
	})
}
