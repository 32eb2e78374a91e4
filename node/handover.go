package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	// waitingPause is for how long the old primary holds writes after it was told so last: if nobody tells it more, it goes on.
	waitingPause = 400 * time.Millisecond
	// finalPause is that from when the new primary has all writes: also if this program is slow, the old one has become a replica before.
	finalPause = time.Second
	// catchUp is how long the new primary may take to have all writes.
	catchUp = 200 * time.Millisecond
	// promotion is how long it may take to become primary, well before the pause ends.
	promotion = 250 * time.Millisecond
)

// handover makes this node the primary in place of From, without losing a write that From has acknowledged. After an error From goes on as
// the primary, at the latest when its pause ends.
func (c *Client) handover(ctx context.Context, a shards.Action) (shards.Node, error) {
	from := New(a.From, c.access, c.timeout)
	defer from.Close()
	// Requests are held: both at once.
	var asking sync.WaitGroup
	var old shards.Node
	var silent error
	asking.Go(func() { old, silent = from.Probe(ctx) })
	to, err := c.probe(ctx)
	asking.Wait()
	if err != nil {
		return to, undone(err)
	}
	if to.Role != mesh.Primary || to.Epoch != a.Epoch {
		switch {
		case silent != nil:
			return to, undone(silent)
		case old.Epoch > a.Epoch:
			return to, fmt.Errorf("%w at %s: %d, and this is of %d", shards.ErrEpoch, a.From, old.Epoch, a.Epoch)
		case old.Role != mesh.Primary:
			return to, undone(fmt.Errorf("%s is no primary", a.From))
		case !to.Linked || to.ReplID != old.ReplID:
			return to, undone(fmt.Errorf("it does not replicate %s, or not yet", a.From))
		}
		if err := c.takeOver(ctx, from, a); err != nil {
			return to, err
		}
	}
	// Nobody waits for From if it is gone now. As long as it is none's replica it keeps its pause, so that it acknowledges no write.
	if _, err := from.demote(ctx, shards.Action{Op: shards.Demote, Shard: a.Shard, Node: a.From, Of: a.Node, Epoch: a.Epoch}); err == nil {
		from.unpause(ctx)
	}
	return to, nil
}

// undone is an error after which both nodes are as they were, as far as this action goes.
func undone(err error) error { return fmt.Errorf("%w: %w", shards.ErrUndone, err) }

// takeOver pauses From, waits until this node has all of its writes, and promotes it.
func (c *Client) takeOver(ctx context.Context, from *Client, a shards.Action) error {
	begun := time.Now()
	waiting, cancel := context.WithDeadline(ctx, begun.Add(catchUp))
	defer cancel()
	paused, err := c.follow(waiting, from)
	if err != nil {
		from.unpause(ctx)
		return undone(fmt.Errorf("it has not caught up with %s within %s: %w", a.From, time.Since(begun).Round(time.Millisecond), err))
	}
	promoting, cancel := context.WithDeadline(ctx, paused.Add(promotion))
	defer cancel()
	_, err = c.promote(promoting, a)
	if isReply(err) || errors.Is(err, shards.ErrEpoch) || errors.Is(err, errRestarted) {
		from.unpause(ctx) // it is not the primary; after any other error it may be
	}
	return err
}

// follow waits until this node has all that From has, and returns from when on From has been paused since.
func (c *Client) follow(ctx context.Context, from *Client) (paused time.Time, err error) {
	for missing := int64(0); ; {
		old, err := from.pause(ctx, waitingPause)
		var n shards.Node
		if err == nil {
			n, err = c.probe(ctx)
		}
		has := func() bool { return n.Linked && n.ReplID == old.ReplID && n.Offset >= old.Offset }
		if err == nil && has() {
			// The first pause may have ended meanwhile.
			paused = time.Now()
			if old, err = from.pause(ctx, finalPause); err == nil && has() {
				return paused, nil
			}
		}
		switch {
		case err == nil:
			missing = old.Offset - n.Offset
		case missing == 0 || ctx.Err() == nil && !isTimeout(err):
			return paused, err
		default:
			return paused, fmt.Errorf("%d bytes are missing, and then: %w", missing, err)
		}
		select {
		case <-ctx.Done():
			return paused, fmt.Errorf("%d bytes are missing, or the link is down", missing)
		case <-time.After(time.Millisecond):
		}
	}
}

// pause holds the node's writes, or goes on to hold them, and says what the node is then, without its epoch.
func (c *Client) pause(ctx context.Context, long time.Duration) (n shards.Node, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	pipe := c.redis.Pipeline()
	paused := pipe.Do(ctx, "CLIENT", "PAUSE", long.Milliseconds(), "WRITE")
	n, _, err = c.ask(ctx, pipe, func(p redis.Pipeliner) redis.Cmder { return p.Ping(ctx) })
	if err = cmp.Or(err, paused.Err()); err != nil {
		return n, fmt.Errorf("Redis at %s: %w", c.address, err)
	}
	return n, nil
}

// unpause is for a node that is known to answer; if it does not, its pause ends by itself.
func (c *Client) unpause(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()
	c.redis.ClientUnpause(ctx)
}
