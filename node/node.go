// Package node is one Redis node as who watches and manages it sees it: Client probes it in one round trip (Probe) and does to
// it what a shards.Action says (Do). Control planes and witnessing agents call it.
//
// It decides nothing, keeps nothing that it saw, and never retries: who calls it asks again.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// EpochKey holds, on each node, the epoch of the shard that its data is of, as a decimal number.
const EpochKey = mesh.ReservedPrefix + "epoch"

// epochEvery is how often probes read the epoch of a node that is what it was. More often would be seen in the node's hit rate.
const epochEvery = 10 * time.Second

// Client has one connection to a node, made when it is needed. It may be used by several goroutines, which take turns.
type Client struct {
	address string
	access  *mesh.RedisAccess
	timeout time.Duration
	redis   *redis.Client

	mu   sync.Mutex
	last shards.Node // when its epoch was read
	read time.Time   // when that was
}

// New does not connect yet. timeout bounds each dial and each round trip.
func New(address string, access *mesh.RedisAccess, timeout time.Duration) *Client {
	return &Client{address: address, access: access, timeout: timeout, redis: redis.NewClient(Options(address, access, timeout))}
}

// Close ends the connection.
func (c *Client) Close() { c.redis.Close() }

// Probe asks the node what it is, in one round trip, two if it has become something else. A node that has no data to serve (MASTERDOWN)
// or still loads it is alive; one that gives no answer within the timeout, or refuses INFO, is not. With an error the Node has its
// address only. The epoch of a node that has not changed may be ten seconds old.
func (c *Client) Probe(ctx context.Context) (shards.Node, error) {
	n, err := c.probe(ctx)
	if err != nil {
		return n, fmt.Errorf("Redis at %s: %w", c.address, err)
	}
	return n, nil
}

// Forget makes the next probe read the epoch.
func (c *Client) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = time.Time{}
}

func (c *Client) probe(ctx context.Context) (shards.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	c.mu.Lock()
	last, known := c.last, time.Since(c.read) < epochEvery
	c.mu.Unlock()
	if known {
		n, hidden, err := c.ask(ctx, c.redis, func(p redis.Pipeliner) redis.Cmder { return p.Ping(ctx) })
		if err != nil || hidden || n.Loading {
			return n, err
		}
		if n.RunID == last.RunID && n.Role == last.Role && n.ReplID == last.ReplID {
			n.Epoch = last.Epoch
			return n, nil
		}
	}
	began := time.Now()
	n, _, err := c.look(ctx, c.redis)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last, c.read = n, began
	}
	return n, err
}

// look is a probe over r that reads the epoch. hidden says that the node has no data to serve, its epoch neither.
func (c *Client) look(ctx context.Context, r redis.Cmdable) (n shards.Node, hidden bool, err error) {
	var epoch *redis.StringCmd
	n, hidden, err = c.ask(ctx, r, func(p redis.Pipeliner) redis.Cmder {
		epoch = p.Get(ctx, EpochKey)
		p.Echo(ctx, "") // see lookups
		return epoch
	})
	if err == nil {
		n.Epoch = parseEpoch(epoch)
	}
	return n, hidden, err
}

// ask sends INFO and a command that a node without data to serve refuses.
func (c *Client) ask(ctx context.Context, r redis.Cmdable, command func(redis.Pipeliner) redis.Cmder) (n shards.Node, hidden bool, err error) {
	n.Address = c.address
	// Two commands, since INFO takes several sections only from Redis 7 on.
	pipe := r.Pipeline()
	server, replication, reply := pipe.Info(ctx, "server"), pipe.Info(ctx, "replication"), command(pipe)
	_, failed := pipe.Exec(ctx)
	if err = cmp.Or(server.Err(), replication.Err()); err == nil && !isReply(reply.Err()) {
		err = reply.Err()
	}
	if err == nil && reply.Err() == nil && server.Val() == "" {
		err = failed // of a login that was refused no command knows
	}
	if err != nil {
		return n, false, err
	}
	n.Loading, hidden = redis.IsLoadingError(reply.Err()), redis.IsMasterDownError(reply.Err())
	n.RunID = Field(server.Val(), "run_id")
	if n.RunID == "" {
		return shards.Node{Address: c.address}, false, errors.New("INFO has no run_id: is this a Redis?")
	}
	info := replication.Val()
	n.ReplID = Field(info, "master_replid")
	offset := "master_repl_offset"
	n.Role = mesh.Primary
	if Field(info, "role") != "master" {
		n.Role, offset = mesh.Replica, "slave_repl_offset"
		n.Of = net.JoinHostPort(Field(info, "master_host"), Field(info, "master_port"))
		n.Linked = Field(info, "master_link_status") == "up"
	}
	n.Offset, _ = strconv.ParseInt(Field(info, offset), 10, 64)
	return n, hidden, nil
}

// parseEpoch is 0 for a node without one, or with something else under its key.
func parseEpoch(reply *redis.StringCmd) uint64 {
	epoch, err := strconv.ParseUint(reply.Val(), 10, 64)
	if err != nil {
		return 0
	}
	return epoch
}

// isReply says whether the node itself answered with this error.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// Field reads a line "name:value" of INFO, "" if there is none.
func Field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// silent is how many seconds without a word make a replica one that nobody would promote before the others.
const silent = 10

// Replicated is the offset that all replicas have, of those that are online, as INFO of their primary says; ok is false if none is.
func Replicated(info string) (offset int64, ok bool) {
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if _, err := strconv.Atoi(strings.TrimPrefix(name, "slave")); err != nil || !strings.HasPrefix(name, "slave") {
			continue
		}
		fields := map[string]string{}
		for pair := range strings.SplitSeq(value, ",") {
			k, v, _ := strings.Cut(pair, "=")
			fields[k] = v
		}
		at, err := strconv.ParseInt(fields["offset"], 10, 64)
		lag, errLag := strconv.Atoi(fields["lag"])
		if err != nil || errLag != nil || fields["state"] != "online" || lag > silent {
			continue
		}
		if !ok || at < offset {
			offset, ok = at, true
		}
	}
	return offset, ok
}
