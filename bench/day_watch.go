package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/demo"
)

// watch notes when each region's cache has a tweet, until all have or ctx ends. It looks at the shards' nodes themselves, with a command that counts
// as no use of the key. A node that does not answer is another one's replica, or will be.
func (d *dayRun) watch(ctx context.Context, mesh demo.Endpoints, tweet int64) {
	nodes := map[string][]*redis.Client{}
	for _, region := range mesh.Regions {
		for _, shard := range region.Shards {
			for _, n := range shard.Nodes {
				client := patientClient(n.Address)
				defer client.Close()
				nodes[region.Name] = append(nodes[region.Name], client)
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
				if ttl, err := client.PTTL(ctx, key).Result(); err == nil && ttl != -2 { // there is such a key
					d.arrived[region] = time.Now()
					break
				}
			}
		}
		if sleep(ctx, 10*time.Millisecond) != nil {
			return
		}
	}
}

// address is the host and port of a URL that a program has written.
func address(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	return u.Host
}
