package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// redisNode is a Redis that is killed, stopped and started again.
type redisNode struct {
	redis   process.Redis
	running *process.Process
	direct  *redis.Client
}

func startNode(ctx context.Context, r process.Redis) (*redisNode, error) {
	started, err := r.Start(ctx)
	if err != nil {
		return nil, err
	}
	return &redisNode{redis: r, running: started, direct: failoverClient(r.Address())}, nil
}

func (n *redisNode) stop() {
	n.direct.Close()
	n.running.Stop(15 * time.Second)
}

// inflict is a fault.
func (n *redisNode) inflict(fault string) error {
	if fault == "kill" {
		n.running.Kill()
		return nil
	}
	return n.running.Signal(syscall.SIGSTOP)
}

// resume lets a process that hangs go on.
func (n *redisNode) resume(fault string) error {
	if fault == "kill" {
		return nil
	}
	return n.running.Signal(syscall.SIGCONT)
}

// replicaSet is a primary and a replica of the same data.
type replicaSet struct {
	name  string
	nodes []*redisNode
}

// synced returns the primary, the run id of its process and its replica, once the replica has all data.
func (s replicaSet) synced(ctx context.Context) (primary *redisNode, runID string, replica *redisNode, err error) {
	ids := map[*redisNode]string{}
	replication := map[*redisNode]map[string]string{}
	for _, n := range s.nodes {
		info, err := n.direct.InfoMap(ctx, "server", "replication").Result()
		if err != nil {
			return nil, "", nil, fmt.Errorf("%s %s: %w", s.name, n.redis.Address(), err)
		}
		ids[n], replication[n] = info["Server"]["run_id"], info["Replication"]
		switch role := info["Replication"]["role"]; {
		case role == "slave":
			replica = n
		case primary != nil:
			return nil, "", nil, fmt.Errorf("%s has two primaries", s.name)
		default:
			primary = n
		}
	}
	if primary == nil || replica == nil {
		return nil, "", nil, fmt.Errorf("%s lacks a primary or a replica", s.name)
	}
	of, at := replication[replica], replication[primary]
	switch {
	case net.JoinHostPort(of["master_host"], of["master_port"]) != primary.redis.Address():
		return nil, "", nil, fmt.Errorf("%s: the replica follows %s:%s, not the primary", s.name, of["master_host"], of["master_port"])
	case of["master_link_status"] != "up" || of["master_sync_in_progress"] != "0":
		return nil, "", nil, fmt.Errorf("%s: the replica's link to the primary is not up", s.name)
	case at["master_replid"] != of["master_replid"]:
		return nil, "", nil, fmt.Errorf("%s: the replica has another history than the primary", s.name)
	}
	return primary, ids[primary], replica, nil
}

const settleTimeout = time.Minute

// eventually asks again until there is no error.
func eventually(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (%w)", what, err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

const clientTimeout = 500 * time.Millisecond

// manyConnections is more than a round has requests: go-redis stops dialing for a second after as many failures as its pool is large.
const manyConnections = 1 << 15

// failoverClient gives up after the time that the sidecar's Envoy gives a shard, and tries nothing again.
func failoverClient(address string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: address, Protocol: 2, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, PoolSize: manyConnections,
		DialTimeout: clientTimeout, ReadTimeout: clientTimeout, WriteTimeout: clientTimeout, PoolTimeout: clientTimeout, ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10,
		PipelinePoolSize: -1})
}

// warm opens connections before they are needed, so that a fault is not followed by hundreds of handshakes, which other requests would
// wait for on a machine of few cores.
func warm(ctx context.Context, clients []*redis.Client, connections int) error {
	for _, client := range clients {
		held := make([]*redis.Conn, connections/len(clients))
		for i := range held {
			held[i] = client.Conn()
			defer held[i].Close() // gives it to the pool
			if err := held[i].Ping(ctx).Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

func closeClients(clients []*redis.Client) error {
	var errs []error
	for _, c := range clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
