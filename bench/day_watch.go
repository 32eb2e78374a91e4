package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/demo"
)

// watch notes when each region's cache has a tweet. It looks at the shards themselves, with a command that counts as no use of the key.
func (d *dayRun) watch(ctx context.Context, mesh demo.Endpoints, tweet int64) error {
	nodes := map[string][]*redis.Client{}
	for _, region := range mesh.Regions {
		for _, shard := range region.Shards {
			for _, n := range shard.Nodes {
				if n.Role == "primary" {
					client := patientClient(n.Address)
					defer client.Close()
					nodes[region.Name] = append(nodes[region.Name], client)
				}
			}
		}
	}
	key := fmt.Sprintf("tweet:%d", tweet)
	for len(d.arrived) < len(nodes) {
		for region, clients := range nodes {
			if !d.arrived[region].IsZero() {
				continue
			}
			for _, client := range clients {
				ttl, err := client.PTTL(ctx, key).Result()
				if ctx.Err() != nil {
					return nil // it never came
				}
				if err != nil {
					return fmt.Errorf("look for %s in %s: %w", key, region, err)
				}
				if ttl != -2 { // there is such a key
					d.arrived[region] = time.Now()
					break
				}
			}
		}
		if waitFor(ctx, 10*time.Millisecond) != nil {
			return nil
		}
	}
	return nil
}

// address is the host and port of a URL that a program has written.
func address(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	return u.Host
}
