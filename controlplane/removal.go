package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/regions/journal"
)

const (
	// removeTimeout bounds each round trip to a node.
	removeTimeout = 2 * time.Second
	// replicasWithin is how long a removal waits for the replicas.
	replicasWithin = 500 * time.Millisecond
	// removeAtOnce is how many keys a shard looks at or removes in one command: under a millisecond.
	removeAtOnce = 1000
	// removePause bounds how long a shard is left alone between two commands. It is as long as the first took, so that a sweep has at
	// most half of the shard's time.
	removePause = 20 * time.Millisecond
)

// removal is what one shard is to remove.
type removal struct {
	pool    mesh.Pool
	shard   mesh.Shard
	keys    [][]byte          // these; nil is all that begin with prefix
	prefix  []byte            // empty is every key
	marks   []holdoff.Mark    // of those of the keys that have a hold-off
	entries []journal.Removal // for the shard's journal first; nil is none
}

// planRemovals says what each shard of a region is to remove. Its errors name what is wrong with the invalidation.
func planRemovals(t mesh.Topology, i Invalidation) ([]removal, error) {
	given := 0
	for _, is := range []bool{len(i.Keys) > 0, len(i.Prefix) > 0, i.Everything} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("say what to remove: one of keys, prefix and everything")
	}
	if i.Everything && i.Pool == "" {
		return nil, errors.New("everything is of a pool: name it")
	}
	if len(i.Keys) > 0 {
		return planKeys(t, i)
	}
	pools, err := poolsOf(t, i)
	if err != nil {
		return nil, err
	}
	var all []removal
	for _, p := range pools {
		members := p.Members()
		if len(members) == 0 {
			return nil, fmt.Errorf("pool %q has no shard", p.Name)
		}
		teller := max(0, slices.IndexFunc(members, answered)) // of a prefix, which is the pool's: other regions need be told once
		for n, s := range members {
			r := removal{pool: p, shard: s, prefix: i.Prefix}
			switch {
			case !i.Journal || !coherent(p):
			case i.Everything:
				r.entries = []journal.Removal{{Op: journal.RemoveAll}}
			case n == teller:
				r.entries = []journal.Removal{{Op: journal.RemovePrefix, Key: i.Prefix}}
			}
			all = append(all, r)
		}
	}
	return all, nil
}

func planKeys(t mesh.Topology, i Invalidation) ([]removal, error) {
	var all []removal
	at := map[string]int{} // in all, by shard
	find := map[string]func([]byte) int{}
	pairs := map[string]*handoff.Pair{}
	add := func(pool mesh.Pool, shard mesh.Shard, key []byte, holdOff time.Duration) *removal {
		n, ok := at[shard.Name]
		if !ok {
			n = len(all)
			at[shard.Name] = n
			all = append(all, removal{pool: pool, shard: shard})
		}
		r := &all[n]
		r.keys = append(r.keys, key)
		if holdOff > 0 {
			r.marks = append(r.marks, holdoff.Mark{Key: key, For: holdOff})
		}
		return r
	}
	for _, key := range i.Keys {
		pool, route, err := t.Route(key)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", key, err)
		}
		if i.Pool != "" && pool.Name != i.Pool {
			return nil, fmt.Errorf("key %q is of pool %q, not of %q", key, pool.Name, i.Pool)
		}
		if find[pool.Name] == nil {
			ring, err := envoy.Ring(pool)
			if err != nil {
				return nil, fmt.Errorf("pool %q: %w", pool.Name, err)
			}
			find[pool.Name] = ring.Find
			if pairs[pool.Name], err = pairs[pool.Name].Of(pool); err != nil {
				return nil, err
			}
		}
		shard := pool.Shards[find[pool.Name](key)]
		r := add(pool, shard, key, holdoff.Of(&route))
		if i.Journal && coherent(pool) {
			r.entries = append(r.entries, journal.Removal{Op: journal.RemoveKey, Key: key})
		}
		if pair := pairs[pool.Name]; pair.Moves(key) {
			from, to := pair.Owners(key)
			for _, other := range pool.Members() {
				if other.Name != shard.Name && (other.Name == from || other.Name == to) {
					add(pool, other, key, holdoff.Of(&route))
				}
			}
		}
	}
	return all, nil
}

// poolsOf are those that may have keys that begin so, or the one that is named.
func poolsOf(t mesh.Topology, i Invalidation) ([]mesh.Pool, error) {
	if bytes.HasPrefix(i.Prefix, []byte(mesh.ReservedPrefix)) {
		return nil, mesh.ErrReserved
	}
	whole, _, _ := t.Route(i.Prefix) // of the keys that no longer route takes; without one, none
	var pools []mesh.Pool
	for _, p := range t.Pools {
		switch {
		case i.Pool == p.Name:
			return []mesh.Pool{p}, nil
		case i.Pool != "":
			continue
		}
		takes := p.Name == whole.Name
		for _, r := range p.Routes {
			takes = takes || strings.HasPrefix(r.Prefix, string(i.Prefix))
		}
		if takes {
			pools = append(pools, p)
		}
	}
	switch {
	case i.Pool != "":
		return nil, fmt.Errorf("there is no pool %q", i.Pool)
	case len(pools) == 0:
		return nil, fmt.Errorf("prefix %q: %w", i.Prefix, mesh.ErrNoRoute)
	}
	return pools, nil
}

// coherent says whether other regions read the journals of a pool.
func coherent(p mesh.Pool) bool {
	for _, r := range p.Routes {
		if r.Coherence == mesh.Invalidate {
			return true
		}
	}
	return false
}

// answered says whether a node answers for a shard.
func answered(s mesh.Shard) bool {
	_, ok := s.Primary()
	return ok && s.StandIn != mesh.Null
}

// begin is an answer of the shard before it was asked.
func (r removal) begin(region string) ShardRemoval {
	s := ShardRemoval{Region: region, Pool: r.pool.Name, Shard: r.shard.Name, Epoch: r.shard.Epoch, Of: uint64(len(r.keys))}
	if answered(r.shard) {
		primary, _ := r.shard.Primary()
		s.Node = primary.Address
	}
	return s
}

// run removes what is to be removed. Whenever the answer s has changed, it calls show.
func (r removal) run(ctx context.Context, s *ShardRemoval, show func()) error {
	if s.Node == "" {
		if r.entries == nil {
			return nil // what no node holds is not there
		}
		return errors.New("no node of it is left: nothing of it is served here, but other regions do not hear of this")
	}
	client := redis.NewClient(node.Options(s.Node, r.pool.Redis, removeTimeout))
	defer client.Close()
	witness := node.New(s.Node, r.pool.Redis, removeTimeout)
	defer witness.Close()
	runID, err := r.recognize(ctx, witness)
	if err != nil {
		return err
	}
	if r.entries != nil {
		at, err := journal.Open(client, r.shard.Epoch).Write(ctx, r.entries)
		if err != nil {
			return fmt.Errorf("nothing was removed: %w", err)
		}
		s.Journal = fmt.Sprintf("%d %s", at.Epoch, at.ID)
	}
	if r.keys != nil {
		err = r.unlink(ctx, client, s, show)
	} else {
		err = r.sweep(ctx, client, s, show)
	}
	if replicas := len(r.shard.Nodes) - 1; err == nil && replicas > 0 {
		// Who takes over from here on is not to have them either. Without an answer in time, the primary alone is what there is.
		err = client.Do(ctx, "WAIT", replicas, replicasWithin.Milliseconds()).Err()
	}
	if err != nil {
		return fmt.Errorf("not all was removed: %w: ask again", err)
	}
	witness.Forget()
	after, err := r.recognize(ctx, witness)
	if err == nil && after != runID {
		err = errors.New("the node restarted meanwhile")
	}
	if err != nil {
		return fmt.Errorf("%w: ask again", err)
	}
	return nil
}

// recognize says which process the primary is, or why it is not the shard's primary.
func (r removal) recognize(ctx context.Context, witness *node.Client) (runID string, err error) {
	n, err := witness.Probe(ctx)
	switch {
	case err != nil:
		return "", err
	case n.Role != mesh.Primary:
		return "", fmt.Errorf("%s is no primary any more", n.Address)
	case n.Epoch != 0 && r.shard.Epoch != 0 && n.Epoch != r.shard.Epoch:
		return "", fmt.Errorf("%s has epoch %d, and the shard has %d", n.Address, n.Epoch, r.shard.Epoch)
	}
	return n.RunID, nil
}

func (r removal) unlink(ctx context.Context, client *redis.Client, s *ShardRemoval, show func()) error {
	if err := hold(ctx, client, holdoff.Note{Removed: r.marks}); err != nil {
		return err
	}
	for part := range slices.Chunk(r.keys, removeAtOnce) {
		names := make([]string, len(part))
		for i, k := range part {
			names[i] = string(k)
		}
		n, err := client.Unlink(ctx, names...).Result()
		if err != nil {
			return err
		}
		s.Seen, s.Removed = s.Seen+uint64(len(part)), s.Removed+uint64(n)
		show()
	}
	return nil
}

// hold makes refills suspect: who fills a key again may have read what was before.
func hold(ctx context.Context, client *redis.Client, n holdoff.Note) error {
	if n.Link = true; n.Empty() { // it is of no journal that a lane writes
		return nil
	}
	return client.Do(ctx, n.Args()...).Err()
}

// holds are those of a sweep's keys.
func (r removal) holds() (n holdoff.Note) {
	var longest time.Duration
	for i := range r.pool.Routes {
		longest = max(longest, holdoff.Of(&r.pool.Routes[i]))
	}
	if longest > 0 {
		n.Prefixes = []holdoff.Mark{{Key: r.prefix, For: longest}}
	}
	return n
}

// sweep looks at every key. Those that are written meanwhile may stay.
func (r removal) sweep(ctx context.Context, client *redis.Client, s *ShardRemoval, show func()) error {
	total, err := client.DBSize(ctx).Result()
	if err != nil {
		return err
	}
	s.Of = uint64(total)
	if err := hold(ctx, client, r.holds()); err != nil {
		return err
	}
	pattern := ""
	if len(r.prefix) > 0 {
		pattern = globEscape.Replace(string(r.prefix)) + "*"
	}
	for cursor, first := uint64(0), true; first || cursor != 0; first = false {
		began := time.Now()
		var keys []string
		if keys, cursor, err = client.Scan(ctx, cursor, pattern, removeAtOnce).Result(); err != nil {
			return err
		}
		var ours []string
		for _, k := range keys {
			if !strings.HasPrefix(k, mesh.ReservedPrefix) {
				ours = append(ours, k)
			}
		}
		if len(ours) > 0 {
			n, err := client.Unlink(ctx, ours...).Result()
			if err != nil {
				return err
			}
			s.Removed += uint64(n)
		}
		s.Seen = min(s.Seen+removeAtOnce, s.Of)
		show()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(time.Since(began), removePause)):
		}
	}
	s.Seen = s.Of
	return hold(ctx, client, r.holds())
}

// globEscape makes of a text the pattern that fits it alone.
var globEscape = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)
