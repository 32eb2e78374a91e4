package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

const (
	sentinelCount  = 3
	sentinelQuorum = 2
	sentinelMaster = "bench"
	// sentinelFailoverTimeout is far below Sentinel's default of 3 minutes, so that an election that nobody won costs it six seconds
	// and not six minutes.
	sentinelFailoverTimeout = 3 * time.Second
)

// sentinels watch a primary and its replica.
type sentinels struct {
	set     replicaSet
	ports   []int
	clients []*redis.SentinelClient
	mended  time.Time
}

// startSentinels runs a primary, its replica and three Sentinels that call the primary down after the time that cachemesh does.
func startSentinels(ctx context.Context, running *programs, dir string, downAfter time.Duration) (*sentinels, error) {
	ports, err := process.FreePorts(2 + sentinelCount)
	if err != nil {
		return nil, err
	}
	s := &sentinels{set: replicaSet{name: "sentinel"}, ports: ports[2:]}
	for i, port := range ports[:2] {
		r := process.Redis{Port: port, Dir: dir}
		if i > 0 {
			r.ReplicaOf = ports[0]
		}
		n, err := startNode(ctx, r)
		if err != nil {
			return nil, err
		}
		s.set.nodes = append(s.set.nodes, n)
	}
	path, err := process.Find("redis-server")
	if err != nil {
		return nil, err
	}
	for _, port := range s.ports {
		file := filepath.Join(dir, fmt.Sprintf("sentinel-%d.conf", port))
		config := fmt.Sprintf("port %[1]d\nbind 127.0.0.1\ndir %[2]q\nsentinel monitor %[3]s 127.0.0.1 %[4]d %[7]d\nsentinel down-after-milliseconds %[3]s %[5]d\nsentinel failover-timeout %[3]s %[6]d\n",
			port, dir, sentinelMaster, ports[0], downAfter.Milliseconds(), sentinelFailoverTimeout.Milliseconds(), sentinelQuorum)
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			return nil, err
		}
		client := redis.NewSentinelClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", port), MaxRetries: -1})
		s.clients = append(s.clients, client)
		if _, err := running.start(ctx, process.Spec{
			Name: fmt.Sprintf("sentinel-%d", port), Path: path, Args: []string{file, "--sentinel"}, Log: filepath.Join(dir, fmt.Sprintf("sentinel-%d.log", port)),
			Ready: func(ctx context.Context, _ int) error { return client.Ping(ctx).Err() },
		}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *sentinels) stop() {
	for _, c := range s.clients {
		c.Close()
	}
	for _, n := range s.set.nodes {
		n.stop()
	}
}

// connect makes the client of an application: one that asks the Sentinels and hears of their failovers.
func (s *sentinels) connect() []*redis.Client {
	addresses := make([]string, len(s.ports))
	for i, port := range s.ports {
		addresses[i] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return []*redis.Client{redis.NewFailoverClient(&redis.FailoverOptions{MasterName: sentinelMaster, SentinelAddrs: addresses, Protocol: 2, MaxRetries: -1, DialerRetries: 1,
		DisableIdentity: true, PoolSize: manyConnections, DialTimeout: clientTimeout, ReadTimeout: clientTimeout, WriteTimeout: clientTimeout, PoolTimeout: clientTimeout,
		ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10, PipelinePoolSize: -1})}
}

// settled is nil when the replica has all data and every Sentinel knows that, and the other two. A Sentinel begins no failover within
// twice its timeout of another; with so short a time until a primary is down, one that found nobody often follows the one that was due.
func (s *sentinels) settled(ctx context.Context) error {
	if wait := 2*sentinelFailoverTimeout + time.Second; time.Since(s.mended) < wait {
		return fmt.Errorf("the last failover is not %s ago", wait)
	}
	primary, _, replica, err := s.set.synced(ctx)
	if err != nil {
		return err
	}
	for i, c := range s.clients {
		master, err := c.Master(ctx, sentinelMaster).Result()
		if err != nil {
			return err
		}
		if master["port"] != strconv.Itoa(primary.redis.Port) || master["flags"] != "master" || master["num-other-sentinels"] != strconv.Itoa(sentinelCount-1) {
			return fmt.Errorf("sentinel %d has a primary at port %s that is %s, and %s others", i, master["port"], master["flags"], master["num-other-sentinels"])
		}
		replicas, err := c.Replicas(ctx, sentinelMaster).Result()
		if err != nil {
			return err
		}
		known := false
		for _, r := range replicas {
			if r["port"] == strconv.Itoa(replica.redis.Port) {
				known = r["flags"] == "slave" && r["master-link-status"] == "ok"
			}
		}
		if !known {
			return fmt.Errorf("sentinel %d knows no good replica at port %d: %s", i, replica.redis.Port, strings.ReplaceAll(fmt.Sprint(replicas), "map", ""))
		}
	}
	return nil
}

// restore makes the node that was killed or hung the replica of the present primary, which Sentinel would do some ten seconds later.
func (s *sentinels) restore(ctx context.Context, n *redisNode, fault string) error {
	s.mended = time.Now()
	var other *redisNode
	for _, candidate := range s.set.nodes {
		if candidate != n {
			other = candidate
		}
	}
	if fault != "kill" {
		return n.direct.ReplicaOf(ctx, "127.0.0.1", strconv.Itoa(other.redis.Port)).Err()
	}
	n.redis.ReplicaOf = other.redis.Port
	started, err := n.redis.Start(ctx)
	if err == nil {
		n.running = started
	}
	return err
}
