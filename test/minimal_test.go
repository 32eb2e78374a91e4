package test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
)

// smallest is the mesh.yaml with which the README begins.
func smallest(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "```yaml\n")
	text, _, ended := strings.Cut(rest, "```")
	if !found || !ended {
		t.Fatal("the README has no mesh.yaml")
	}
	return text
}

func TestSmallestMeshServesAPlainClient(t *testing.T) {
	t.Parallel()
	text := smallest(t)
	if n := strings.Count(text, "\n"); n > 12 {
		t.Errorf("it has %d lines, want at most 12", n)
	}
	spec, err := mesh.Load("README.md", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(spec.Regions) != 1 || len(spec.Pools) != 1 {
		t.Errorf("it has %d regions and %d pools, want one of each", len(spec.Regions), len(spec.Pools))
	}
	m := newMesh(t)
	for _, shard := range spec.Regions[0].Shards {
		if len(shard.Nodes) != 1 {
			t.Errorf("shard %s has %d nodes, want no replica", shard.Name, len(shard.Nodes))
		}
		// The README's ports may be taken on this machine.
		text = strings.ReplaceAll(text, shard.Nodes[0], m.startNode(t, 0))
	}
	m.replace(t, text)
	c := m.startControlplane(t)
	s := m.newSidecar(t, "here-0", c)
	for i, arg := range s.args {
		if arg == region {
			s.args[i] = spec.Regions[0].Name
		}
	}
	s.start(t)
	for name, options := range map[string]*redis.Options{
		"RESP2":           {Addr: s.redis, Protocol: 2},
		"RESP3 (default)": {Addr: s.resp3},
	} {
		// Nothing else is set: this is the client as applications have it.
		client := redis.NewClient(options)
		defer client.Close()
		ctx := t.Context()
		for i, key := range []string{"a", "user:1", "{tag}b", ""} {
			if err := client.Set(ctx, key, i, time.Minute).Err(); err != nil {
				t.Errorf("%s: SET %q: %v", name, key, err)
			}
			if got, err := client.Get(ctx, key).Int(); err != nil || got != i {
				t.Errorf("%s: GET %q: %d, %v", name, key, got, err)
			}
		}
		if n, err := client.Incr(ctx, "count-"+name).Result(); err != nil || n != 1 {
			t.Errorf("%s: INCR: %d, %v", name, n, err)
		}
		if all, err := client.HSet(ctx, "hash-"+name, "f", "v").Result(); err != nil || all != 1 {
			t.Errorf("%s: HSET: %d, %v", name, all, err)
		}
		if all, err := client.HGetAll(ctx, "hash-"+name).Result(); err != nil || all["f"] != "v" {
			t.Errorf("%s: HGETALL: %v, %v", name, all, err)
		}
		if all, err := client.MGet(ctx, "a", "user:1", "absent").Result(); err != nil || len(all) != 3 || all[0] != "0" || all[2] != nil {
			t.Errorf("%s: MGET: %v, %v", name, all, err)
		}
		if err := client.Get(ctx, "absent").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("%s: GET of an absent key: %v", name, err)
		}
	}
}
