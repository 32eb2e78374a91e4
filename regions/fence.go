package regions

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/ring"
)

const (
	// scanAtOnce is how many keys a shard is asked for at once.
	scanAtOnce = 1000
	// scanShare is the part of the time for which a fence keeps a shard busy, as one in so many.
	scanShare = 3
)

// Fence removes all keys of a pool that begin with a prefix or, without one (nil), those of coherent routes that the ring places on its shard.
// It returns how many.
func (a *Applier) Fence(ctx context.Context, pool string, prefix []byte, from *Ring) (keys int, err error) {
	v := a.view.Load()
	within := func(key []byte) *routed {
		if r := v.route(key); r != nil && r.pool.Name == pool {
			return r
		}
		return nil
	}
	match := func(key []byte) bool { return bytes.HasPrefix(key, prefix) && within(key) != nil }
	if prefix == nil {
		hosts := make([]ring.Host, len(from.GetHosts()))
		for i, h := range from.GetHosts() {
			hosts[i] = ring.Host{HashKey: h.GetName(), Weight: h.GetWeight()}
		}
		home, err := ring.New(ring.Config{Algorithm: ring.Algorithm(from.GetAlgorithm()), Size: from.GetSize()}, hosts)
		if err != nil {
			return 0, fmt.Errorf("the other region's ring: %w", err)
		}
		match = func(key []byte) bool {
			r := within(key)
			return r != nil && r.Coherence == mesh.Invalidate && home.Find(key) == int(from.GetShard())
		}
	}
	a.mu.Lock()
	var targets []*target
	for _, p := range v.topology.Pools {
		for _, s := range p.Members() {
			if t := a.targets[s.Name]; p.Name == pool && t != nil {
				targets = append(targets, t)
			}
		}
	}
	a.mu.Unlock()
	counts := make([]int, len(targets))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, t := range targets {
		group.Go(func() (err error) {
			counts[i], err = a.fence(ctx, t, match, string(prefix))
			return err
		})
	}
	err = group.Wait()
	for _, n := range counts {
		keys += n
	}
	return keys, err
}

// fence removes keys at one shard, from the beginning whenever its primary changes meanwhile.
func (a *Applier) fence(ctx context.Context, t *target, match func([]byte) bool, prefix string) (keys int, err error) {
	for told := false; ; told = true {
		if err := ctx.Err(); err != nil {
			return keys, err
		}
		if t.ctx.Err() != nil {
			return keys, nil // the shard is no more
		}
		now := t.place.Load()
		if now.standIn == mesh.Null {
			return keys, nil
		}
		n := 0
		if now.standIn != mesh.Hold {
			n, err = a.sweep(ctx, now, match, prefix)
			keys += n
			if err == nil && t.place.Load() == now {
				return keys, nil
			}
			if err != nil && !told {
				a.log.Warn("a fence waits for a shard", "shard", t.shard, "error", err)
			}
		}
		t.pause(ctx)
	}
}

// sweep removes the keys at a shard's primary.
func (a *Applier) sweep(ctx context.Context, now *place, match func([]byte) bool, prefix string) (keys int, err error) {
	v := a.view.Load()
	client := dialPrimary(now)
	defer client.Close()
	pattern := ""
	if prefix != "" {
		pattern = globEscaper.Replace(prefix) + "*"
	}
	// Who fills such a key again, from now until a while after the end, may still have read what was before.
	hold := func() error {
		if d := v.holdOff(); d > 0 {
			note := holdoff.Note{Link: true, Prefixes: []holdoff.Mark{{Key: []byte(prefix), For: d}}}
			return client.Do(ctx, note.Args()...).Err()
		}
		return nil
	}
	if err := hold(); err != nil {
		return 0, err
	}
	var cursor uint64
	for {
		began := time.Now()
		var found []string
		if found, cursor, err = client.Scan(ctx, cursor, pattern, scanAtOnce).Result(); err != nil {
			return keys, err
		}
		stale := found[:0]
		for _, k := range found {
			if !strings.HasPrefix(k, mesh.ReservedPrefix) && match([]byte(k)) {
				stale = append(stale, k)
			}
		}
		if len(stale) > 0 {
			if err := client.Unlink(ctx, stale...).Err(); err != nil {
				return keys, err
			}
			keys += len(stale)
			a.removed.Add(uint64(len(stale)))
		}
		if cursor == 0 {
			break
		}
		select {
		case <-time.After(time.Since(began) * (scanShare - 1)):
		case <-ctx.Done():
			return keys, ctx.Err()
		}
	}
	if err := hold(); err != nil {
		return keys, err
	}
	if now.replicas > 0 {
		// Who takes over from here on is not to have them either. Without an answer in time, the primary alone is what there is.
		if err := client.Do(ctx, "WAIT", now.replicas, replicasWithin.Milliseconds()).Err(); err != nil {
			return keys, err
		}
	}
	return keys, nil
}

// holdOff is the longest of any route.
func (v *view) holdOff() (longest time.Duration) {
	for i := range v.routes {
		longest = max(longest, holdoff.Of(&v.routes[i].Route))
	}
	return longest
}

// globEscaper makes a prefix of a pattern.
var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)
