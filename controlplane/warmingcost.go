package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
)

const (
	// A shard is looked at sampleScans times for sampleKeys keys, of which sampleSizes are measured.
	sampleScans = 20
	sampleKeys  = 500
	sampleSizes = 100
	sampleTime  = 5 * time.Second
)

// KeyCount is the answer of GET /v1/warming/keys?route=ROUTE&prefix=PREFIX: about how many keys the region has that begin so, by a sample.
type KeyCount struct {
	Region string `json:"region"`
	Keys   uint64 `json:"keys"`
	Bytes  uint64 `json:"bytes"` // with what Redis needs for them
}

// keysAPI answers what warming from this region would copy. It only reads.
type keysAPI struct {
	region   string
	topology func() mesh.Topology
}

func (a keysAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, prefix := r.URL.Query().Get("route"), r.URL.Query().Get("prefix")
	pool, err := poolOfRoute(a.topology(), route)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), sampleTime)
	defer cancel()
	counts := make([]KeyCount, len(pool.Shards))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(removeShards)
	for i, s := range pool.Shards {
		group.Go(func() (err error) {
			if counts[i], err = countKeys(ctx, pool, s, prefix); err != nil {
				err = fmt.Errorf("shard %s: %w", s.Name, err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		writeError(w, http.StatusServiceUnavailable, err)
		return
	}
	total := KeyCount{Region: a.region}
	for _, c := range counts {
		total.Keys += c.Keys
		total.Bytes += c.Bytes
	}
	writeJSON(w, http.StatusOK, total)
}

func poolOfRoute(t mesh.Topology, route string) (mesh.Pool, error) {
	for _, p := range t.Pools {
		for _, r := range p.Routes {
			if r.Prefix == route {
				return p, nil
			}
		}
	}
	return mesh.Pool{}, fmt.Errorf("no route has the prefix %q", route)
}

// countKeys estimates what a shard has that begins with a prefix.
func countKeys(ctx context.Context, pool mesh.Pool, s mesh.Shard, prefix string) (KeyCount, error) {
	primary, ok := s.Primary()
	if !ok {
		return KeyCount{}, errors.New("it has no primary now")
	}
	client := redis.NewClient(node.Options(primary.Address, pool.Redis, removeTimeout))
	defer client.Close()
	total, err := client.DBSize(ctx).Result()
	if err != nil || total == 0 {
		return KeyCount{}, err
	}
	var looked, found, measured, bytes int64
	var cursor uint64
	for range sampleScans {
		var keys []string
		if keys, cursor, err = client.Scan(ctx, cursor, globEscape.Replace(prefix)+"*", sampleKeys).Result(); err != nil {
			return KeyCount{}, err
		}
		looked, found = looked+sampleKeys, found+int64(len(keys))
		if n := min(len(keys), sampleSizes-int(measured)); n > 0 {
			pipe := client.Pipeline()
			for _, k := range keys[:n] {
				pipe.MemoryUsage(ctx, k)
			}
			answers, err := pipe.Exec(ctx)
			if err != nil && !errors.Is(err, redis.Nil) {
				return KeyCount{}, err
			}
			for _, a := range answers {
				if size, err := a.(*redis.IntCmd).Result(); err == nil { // else it has just expired
					measured, bytes = measured+1, bytes+size
				}
			}
		}
		if cursor == 0 {
			looked = total // all of them
			break
		}
	}
	c := KeyCount{Keys: uint64(found * total / max(looked, 1))}
	if measured > 0 {
		c.Bytes = c.Keys * uint64(bytes/measured)
	}
	return c, nil
}
