package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// Do does what an action says, whose Node this client's is, and returns what a probe sees afterwards (after Restart: before). Done
// twice is done once. An error that is shards.ErrEpoch comes with the Node as it was, with the newer epoch.
//
// Any other error may mean that the action was done and only its answer was lost.
func (c *Client) Do(ctx context.Context, a shards.Action) (shards.Node, error) {
	do := map[shards.Op]func(context.Context, shards.Action) (shards.Node, error){
		shards.Promote: c.promote, shards.Handover: c.handover, shards.Demote: c.demote, shards.Mirror: c.mirror, shards.Restart: c.restart,
	}[a.Op]
	if do == nil {
		return shards.Node{Address: c.address}, fmt.Errorf("nobody can %q a node", a.Op)
	}
	c.Forget()
	seen, err := do(ctx, a)
	if err != nil {
		return seen, fmt.Errorf("%s Redis at %s: %w", a.Op, c.address, err)
	}
	if a.Op == shards.Restart {
		return seen, nil
	}
	return c.Probe(ctx)
}

// errRestarted is why nobody is promoted in a process's place.
var errRestarted = errors.New("it has restarted, and has lost its data")

// promote writes the epoch last: a node that has it has become what the epoch says.
func (c *Client) promote(ctx context.Context, a shards.Action) (shards.Node, error) {
	return c.fenced(ctx, a, func(n shards.Node, tx *redis.Tx) error {
		if n.Role == mesh.Primary && n.Epoch == a.Epoch {
			return nil
		}
		if a.RunID != "" && n.RunID != a.RunID {
			return errRestarted
		}
		if n.Role == mesh.Replica && n.Epoch == a.Epoch {
			return fmt.Errorf("%w: it has %d as a replica, so another was given that", shards.ErrEpoch, n.Epoch)
		}
		if err := replicate(ctx, tx, "NO", "ONE"); err != nil {
			return err
		}
		if a.Fresh {
			// In the background: the memory of a large node takes longer than a failover to give back.
			if err := tx.FlushAllAsync(ctx).Err(); err != nil {
				return err
			}
		}
		return writeEpoch(ctx, tx, a.Epoch)
	})
}

func (c *Client) demote(ctx context.Context, a shards.Action) (shards.Node, error) {
	host, port, err := net.SplitHostPort(a.Of)
	if err != nil {
		return shards.Node{Address: c.address}, err
	}
	return c.fenced(ctx, a, func(n shards.Node, tx *redis.Tx) error {
		if n.Role == mesh.Replica && n.Of == a.Of {
			return nil
		}
		return replicate(ctx, tx, host, port)
	})
}

func (c *Client) mirror(ctx context.Context, a shards.Action) (shards.Node, error) {
	return c.fenced(ctx, a, func(n shards.Node, tx *redis.Tx) error {
		if n.Epoch == a.Epoch {
			return nil
		}
		return writeEpoch(ctx, tx, a.Epoch)
	})
}

func (c *Client) restart(ctx context.Context, a shards.Action) (shards.Node, error) {
	return c.fenced(ctx, a, func(n shards.Node, tx *redis.Tx) error {
		if n.Role != mesh.Replica {
			return errors.New("it is a primary: switch its shard to another node first")
		}
		err := tx.Do(ctx, "SHUTDOWN", "NOSAVE").Err()
		if err == nil || isReply(err) || isTimeout(err) {
			return fmt.Errorf("it does not end: %w", err)
		}
		return nil // it closed the connection, as it does at its end
	})
}

// fenced does something to a node that has not seen a newer epoch than the action's.
func (c *Client) fenced(ctx context.Context, a shards.Action, do func(shards.Node, *redis.Tx) error) (shards.Node, error) {
	seen := shards.Node{Address: c.address}
	err := c.redis.Watch(ctx, func(tx *redis.Tx) error {
		n, hidden, err := c.look(ctx, tx)
		if err != nil {
			return err
		}
		if hidden {
			if n.Epoch, err = hiddenEpoch(ctx, tx); err != nil {
				return err
			}
		}
		seen = n
		if n.Epoch > a.Epoch {
			return fmt.Errorf("%w: %d, and this is of %d", shards.ErrEpoch, n.Epoch, a.Epoch)
		}
		return do(n, tx)
	}, EpochKey)
	if errors.Is(err, redis.TxFailedErr) {
		err = errors.New("its epoch changed meanwhile")
	}
	return seen, err
}

// hiddenEpoch reads the epoch of a node that answers MASTERDOWN. Redis takes the three commands one after the other, so that nobody else
// reads what is hidden.
func hiddenEpoch(ctx context.Context, tx *redis.Tx) (uint64, error) {
	const hide = "replica-serve-stale-data"
	pipe := tx.Pipeline()
	pipe.ConfigSet(ctx, hide, "yes")
	epoch := pipe.Get(ctx, EpochKey)
	hidden := pipe.ConfigSet(ctx, hide, "no")
	_, _ = pipe.Exec(ctx) // each command has its own error
	if err := hidden.Err(); err != nil {
		return 0, err
	}
	if err := epoch.Err(); err != nil && !isReply(err) {
		return 0, err
	}
	return parseEpoch(epoch), nil
}

// replicate sends REPLICAOF, unless the watched epoch has changed.
func replicate(ctx context.Context, tx *redis.Tx, host, port string) error {
	err := unlessChanged(ctx, tx, func(r redis.Cmdable) *redis.StatusCmd { return r.ReplicaOf(ctx, host, port) })
	if redis.IsOOMError(err) {
		return tx.ReplicaOf(ctx, host, port).Err() // a full node refuses all transactions
	}
	return err
}

// writeEpoch writes the epoch, unless a watched one has changed.
func writeEpoch(ctx context.Context, tx *redis.Tx, epoch uint64) error {
	value := strconv.FormatUint(epoch, 10)
	err := unlessChanged(ctx, tx, func(r redis.Cmdable) *redis.StatusCmd { return r.Set(ctx, EpochKey, value, 0) })
	if redis.IsOOMError(err) {
		// A full node that evicts nothing must not be without an epoch. Redis 7 lets a script write nevertheless.
		const script = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], ARGV[1])"
		return tx.Eval(ctx, script, []string{EpochKey}, value).Err()
	}
	return err
}

// unlessChanged does one command in a transaction.
func unlessChanged(ctx context.Context, tx *redis.Tx, command func(redis.Cmdable) *redis.StatusCmd) error {
	var reply *redis.StatusCmd
	_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
		reply = command(p)
		return nil
	})
	return cmp.Or(reply.Err(), err) // its own says why the transaction was discarded
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
