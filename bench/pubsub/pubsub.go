// Package pubsub invalidates the caches of other regions over Redis Pub/Sub as one writes it who has nothing else: whoever changes a key
// publishes its name, and a subscriber in every other region removes it from the cache there. It is the peer that benchmarks and the
// checker compare with.
//
// What is published while a subscriber is not connected, nobody tells it. It might empty the whole cache whenever it connects; few do,
// and then have no cache.
package pubsub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	channel = "invalidate"
	// Silence is how long a subscriber hears nothing before it asks whether somebody is there, and then before it connects anew. Who never
	// asks is deaf for a quarter of an hour after a peer has gone without a word, for so long does TCP try.
	Silence = 2 * time.Second
)

// Publish tells the subscribers of a Redis that a key has changed.
func Publish(ctx context.Context, client *redis.Client, key string) error {
	return client.Publish(ctx, channel, key).Err()
}

// Subscriber hears of the changes that are published on one Redis.
type Subscriber struct {
	client *redis.Client
	pubsub *redis.PubSub
}

// Subscribe returns once the Redis at HOST:PORT has confirmed.
func Subscribe(ctx context.Context, address string) (*Subscriber, error) {
	s := &Subscriber{client: redis.NewClient(&redis.Options{Addr: address, Protocol: 2, DisableIdentity: true})}
	s.pubsub = s.client.Subscribe(ctx, channel)
	if _, err := s.pubsub.Receive(ctx); err != nil {
		return nil, fmt.Errorf("subscribe at %s: %w", address, errors.Join(err, s.Close()))
	}
	return s, nil
}

// Close ends the subscription.
func (s *Subscriber) Close() error { return errors.Join(s.pubsub.Close(), s.client.Close()) }

// Hear calls with each key until ctx ends.
func (s *Subscriber) Hear(ctx context.Context, changed func(key string)) {
	asked := false
	for ctx.Err() == nil {
		message, err := s.pubsub.ReceiveTimeout(ctx, Silence)
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
