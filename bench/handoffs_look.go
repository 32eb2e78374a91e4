package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// look checks what must hold once a handoff has ended.
func (m *handoffMesh) look(ctx context.Context, r *handoffRound) {
	// A parted sidecar may leave keys of local routes where they were, until it is back.
	if err := eventually(ctx, "late sidecars", m.nobodyLate); err != nil {
		r.wrong("%v", err)
	}
	if err := m.placed(ctx); err != nil {
		r.wrong("%v", err)
	}
	if err := m.whole(ctx); err != nil {
		r.wrong("%v", err)
		return
	}
	if r.Undone == (r.Kind == "add") {
		if err := m.left(ctx, r.What); err != nil {
			r.wrong("%v", err)
		}
	}
	there, err := m.quiet(ctx, r)
	if err != nil {
		r.wrong("%v", err)
	}
	r.Gone = quietKeys - len(there)
	if err := m.routed(ctx); err != nil {
		r.wrong("%v", err)
	}
	if err := m.placed(ctx); err != nil {
		r.wrong("later: %v", err)
	}
}

func (m *handoffMesh) nobodyLate(ctx context.Context) error {
	body, err := ask(ctx, m.region.http, "/v1/status")
	if err != nil {
		return err
	}
	var status struct {
		Sidecars []struct{ Name, State, Reason string }
		Pools    []struct{ Late []string }
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return err
	}
	for _, p := range status.Pools {
		if len(p.Late) > 0 {
			return fmt.Errorf("late are %v", p.Late)
		}
	}
	synced := 0
	for _, s := range status.Sidecars {
		if s.State == "SYNCED" {
			synced++
		}
	}
	if synced < handoffSidecars {
		return fmt.Errorf("sidecars are %+v", status.Sidecars)
	}
	return nil
}

// served is the pool as it is served now, and its ring.
func (m *handoffMesh) served(ctx context.Context) (p mesh.Pool, find func(key string) mesh.Shard, err error) {
	body, err := ask(ctx, m.region.http, "/v1/topology")
	if err != nil {
		return p, nil, err
	}
	var t mesh.Topology
	if err := json.Unmarshal(body, &t); err != nil {
		return p, nil, err
	}
	p = t.Pools[0]
	r, err := envoy.Ring(p)
	if err != nil {
		return p, nil, err
	}
	return p, func(key string) mesh.Shard { return p.Shards[r.Find([]byte(key))] }, nil
}

// eachPrimary asks the primary of each shard that is served.
func (m *handoffMesh) eachPrimary(ctx context.Context, ask func(context.Context, mesh.Shard, *redis.Client) error) error {
	p, _, err := m.served(ctx)
	if err != nil {
		return err
	}
	for _, s := range p.Shards {
		primary, ok := s.Primary()
		if !ok {
			return fmt.Errorf("%s has no primary", s.Name)
		}
		client := patientClient(primary.Address)
		err := ask(ctx, s, client)
		client.Close()
		if err != nil {
			return fmt.Errorf("%s at %s: %w", s.Name, primary.Address, err)
		}
	}
	return nil
}

// errPlaced is that of a key that is where it must not be.
var errPlaced = errors.New("is where the ring does not place it")

// placed is nil when each key is at its owner and nowhere else. A shard whose primary fails just now is asked again.
func (m *handoffMesh) placed(ctx context.Context) error {
	var wrong error
	err := eventually(ctx, "look where keys are", func(ctx context.Context) error {
		_, find, err := m.served(ctx)
		if err != nil {
			return err
		}
		err = m.eachPrimary(ctx, func(ctx context.Context, s mesh.Shard, client *redis.Client) error {
			keys, err := client.Keys(ctx, "*").Result()
			if err != nil {
				return err
			}
			var strange []string
			for _, k := range keys {
				if !strings.HasPrefix(k, mesh.ReservedPrefix) && find(k).Name != s.Name {
					strange = append(strange, k)
				}
			}
			if len(strange) > 0 {
				return fmt.Errorf("%d keys, %.100q: %w", len(strange), strange, errPlaced)
			}
			return nil
		})
		if errors.Is(err, errPlaced) {
			wrong = err
			return nil
		}
		return err
	})
	return errors.Join(err, wrong)
}

// left is nil when the node that was the primary of the shard that is on no ring has no keys. One that failed before may have been replaced, and
// is then of no shard any more with all that it has.
func (m *handoffMesh) left(ctx context.Context, failed string) error {
	for _, n := range m.spare.nodes {
		if strings.HasSuffix(failed, n.redis.Address()) {
			continue
		}
		keys, err := n.direct.Keys(ctx, "*").Result()
		if err != nil {
			continue // it is a replica that has lost its primary, or down
		}
		info, err := n.direct.InfoMap(ctx, "replication").Result()
		if err != nil || info["Replication"]["role"] != "master" {
			continue
		}
		for _, k := range keys {
			if !strings.HasPrefix(k, mesh.ReservedPrefix) {
				return fmt.Errorf("%s has key %q, and %d more, and is on no ring", n.redis.Address(), k, len(keys)-1)
			}
		}
	}
	return nil
}

// quiet reads at their owners the keys that nobody changes, and says which are there.
func (m *handoffMesh) quiet(ctx context.Context, r *handoffRound) (there map[string]bool, err error) {
	_, find, err := m.served(ctx)
	if err != nil {
		return nil, err
	}
	there = map[string]bool{}
	err = m.eachPrimary(ctx, func(ctx context.Context, s mesh.Shard, client *redis.Client) error {
		names, err := client.Keys(ctx, "quiet:*").Result()
		if err != nil {
			return err
		}
		at := map[string]bool{}
		for _, name := range names {
			at[name] = true
		}
		pipe := client.Pipeline()
		var checks []func() error
		for i := range quietKeys {
			if k := quietKey(i); at[k] && find(k).Name == s.Name {
				there[k] = true
				checks = append(checks, readQuiet(ctx, pipe, i))
			}
		}
		_, _ = pipe.Exec(ctx) // each check has its own error
		for _, check := range checks {
			if err := check(); err != nil && r != nil {
				r.wrong("%s: %v", s.Name, err)
			}
		}
		return brief(ctx, client)
	})
	return there, err
}

// brief is nil when keys that expire still do.
func brief(ctx context.Context, client *redis.Client) error {
	names, err := client.Keys(ctx, "brief:*").Result()
	if err != nil {
		return err
	}
	for _, name := range names {
		left, err := client.PTTL(ctx, name).Result()
		if err != nil {
			return err
		}
		if left == -1 || left > briefExpiry { // -2 is gone
			return fmt.Errorf("key %q lives for %v", name, left)
		}
	}
	return nil
}

// routedKeys are read and written through each sidecar.
const routedKeys = 60

// routed is nil when each sidecar reads and writes where the ring places keys.
func (m *handoffMesh) routed(ctx context.Context) error {
	for _, client := range m.plain {
		var wrong error
		err := eventually(ctx, "go through a sidecar", func(ctx context.Context) error {
			p, find, err := m.served(ctx)
			if err != nil {
				return err
			}
			wrong, err = goesBy(ctx, client, find)
			if wrong == nil || err != nil {
				return err
			}
			// A machine as busy as this may just now have a failover of its own.
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
			if now, _, err := m.served(ctx); err != nil || !reflect.DeepEqual(now.Shards, p.Shards) {
				return errors.Join(wrong, err)
			}
			return nil
		})
		if err := errors.Join(err, wrong); err != nil {
			return err
		}
	}
	return nil
}

// goesBy says whether a sidecar goes by a ring: wrong is that it does not.
func goesBy(ctx context.Context, sidecar *redis.Client, find func(string) mesh.Shard) (wrong, err error) {
	for i := range routedKeys {
		read, written, value := quietKey(6*i+1), fmt.Sprintf("probe:%d", i), fmt.Sprint(time.Now().UnixNano())
		found, err := sidecar.Exists(ctx, read).Result()
		if err != nil {
			return nil, err
		}
		if err := sidecar.Set(ctx, written, value, 0).Err(); err != nil {
			return nil, err
		}
		for _, k := range []string{read, written} {
			primary, _ := find(k).Primary()
			owner := patientClient(primary.Address)
			got, err := owner.Get(ctx, k).Result()
			owner.Close()
			switch {
			case err != nil && !errors.Is(err, redis.Nil):
				return nil, err
			case k == read && (err == nil) != (found == 1):
				return fmt.Errorf("%s finds %q %d times, and %s has %q", sidecar.Options().Addr, k, found, find(k).Name, got), nil
			case k == written && got != value:
				return fmt.Errorf("what %s writes to %q is not at %s", sidecar.Options().Addr, k, find(k).Name), nil
			}
		}
	}
	return nil, nil
}
