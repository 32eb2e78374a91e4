package pubsub

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

func TestASubscriberHearsAgainAfterARestart(t *testing.T) {
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	server := process.Redis{Port: ports[0], Dir: t.TempDir()}
	running, err := server.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { running.Stop(5 * time.Second) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Subscribe(ctx, server.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	heard := make(chan string, 1000)
	go s.Hear(ctx, func(key string) { heard <- key })
	client := redis.NewClient(&redis.Options{Addr: server.Address(), Protocol: 2, MaxRetries: -1, PoolSize: 1000})
	defer client.Close()
	// until publishes the key until it is heard: what is published while nobody is connected is lost.
	until := func(key string) {
		t.Helper()
		for {
			Publish(ctx, client, key) // fails while the server is away
			select {
			case got := <-heard:
				if got == key {
					return
				}
			case <-ctx.Done():
				t.Fatalf("%s is not heard", key)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	until("before")
	running.Kill()
	if running, err = server.Start(ctx); err != nil {
		t.Fatal(err)
	}
	until("after")
}

func TestNobodyToSubscribeTo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if s, err := Subscribe(ctx, "127.0.0.1:1"); err == nil {
		s.Close()
		t.Error("no error")
	}
}
