package test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
)

// oddMesh has a pool of each algorithm, one with unequal weights, prefixes that are prefixes of each other, and a name that
// an Envoy once had for something else.
func oddMesh(t *testing.T) *testMesh {
	t.Helper()
	m := newMesh(t)
	m.addPool(t, mesh.PoolSpec{Name: "timelines", Hashing: mesh.Hashing{Algorithm: mesh.RingHash},
		Routes: []mesh.Route{{Prefix: "timeline:"}, {Prefix: "user:"}, {Prefix: ""}}}, 1, 1, 1)
	m.addPool(t, mesh.PoolSpec{Name: "xds", Hashing: mesh.Hashing{Algorithm: mesh.Maglev},
		Routes: []mesh.Route{{Prefix: "user:card:"}, {Prefix: "tweet:"}, {Prefix: "{"}, {Prefix: "é"}}}, 1, 2, 5)
	m.write(t)
	return m
}

// oddKeys are n different keys that no two places in the code should see differently.
func oddKeys(n int) []string {
	random := rand.New(rand.NewPCG(1, 2))
	binary := func(length int) string {
		b := make([]byte, length)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return string(b)
	}
	keys := map[string]bool{}
	for _, fixed := range []string{
		"", " ", "\t", "\r", "\n", "\x00", "\x00\x00", "{", "}", "{}", "{}{}", "{}x", "x{}", "x{}y", "{x", "x}", "}{", "}x{", "{{x}}", "{x}{y}", "a{{b}c}d", "a{b}{c}d",
		"{\x00}", "{\xff}", "user", "user:", "user:{}", "user:card", "user:card:", "user:card:{}", "user:car", "use", "USER:", "timeline", "timeline:", "timeline:{user:1}",
		"tweet", "tweet:", "tweet:\x00", "cachemesh", "é", "é{é}", "\xc3", "\xc3\xa9", "e\u0301", "日本", "🦄{🦄}", "\ufeff", "\ufffd", "\xff\xfe", "\xed\xa0\x80", "*", "?", "[a]", "\\", "'", `"`,
		"$3\r\nfoo\r\n", "*1\r\n", "nan", "-1", strings.Repeat("k", 100_000), "user:" + strings.Repeat("\xff", 50_000), "{" + strings.Repeat("t", 9_000) + "}", strings.Repeat("{", 500),
	} {
		keys[fixed] = true
	}
	prefixes := []string{"", "user:", "user", "user:card:", "user:card", "timeline:", "timeline", "tweet:", "{", "é", "{user:", "user:{", "\x00"}
	tags := []string{"{%s}", "%s{a}", "{%s}b", "a{%s}b", "{}%s", "{%s", "%s}", "{{%s}}", "}%s{", "a{}{%s}"}
	for len(keys) < n {
		var core string
		switch random.IntN(4) {
		case 0:
			core = binary(random.IntN(40))
		case 1:
			core = fmt.Sprint(random.IntN(100_000))
		case 2:
			core = strings.Repeat("é日🦄", random.IntN(5)) + fmt.Sprint(random.IntN(1000))
		case 3:
			core = binary(200 + random.IntN(300))
		}
		if random.IntN(3) == 0 {
			core = strings.ReplaceAll(tags[random.IntN(len(tags))], "%s", core)
		}
		key := prefixes[random.IntN(len(prefixes))] + core
		// Standard input can carry a NUL or a line end in a key, whichever does not separate the keys.
		if !strings.Contains(key, "\x00") || !strings.Contains(key, "\n") {
			keys[key] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// whereAll asks for any keys: NUL ends those that have none, a line end the others.
func (c *controlplane) whereAll(t *testing.T, keys []string) map[string]place {
	t.Helper()
	found := map[string]place{}
	for _, separator := range []string{"\x00", "\n"} {
		args := []string{"where", "-o", "json", "--controlplane", c.url}
		var batch []string
		for _, key := range keys {
			if nul := strings.Contains(key, "\x00"); nul == (separator == "\n") {
				batch = append(batch, key)
			}
		}
		if separator == "\x00" {
			args = append(args, "-0")
		}
		r := invocation{args: args, stdin: strings.Join(batch, separator) + separator}.run(t).want(t, 0)
		places := decode[[]place](t, r)
		if len(places) != len(batch) {
			t.Fatalf("%d places for %d keys", len(places), len(batch))
		}
		for i, object := range decode[[]map[string]json.RawMessage](t, r) {
			fields := []string{"key", "pool", "primary", "region", "route", "shard"}
			if !utf8.ValidString(batch[i]) {
				fields = []string{"key", "key_base64", "pool", "primary", "region", "route", "shard"}
			}
			if got := slices.Sorted(maps.Keys(object)); !slices.Equal(got, fields) {
				t.Fatalf("key %q has the fields %v, want %v", batch[i], got, fields)
			}
			if got := keyOf(t, places[i]); got != batch[i] {
				t.Fatalf("place %d is that of %q, want %q", i, got, batch[i])
			}
			found[batch[i]] = places[i]
		}
	}
	return found
}

// keyOf is the key as it was asked for.
func keyOf(t *testing.T, p place) string {
	t.Helper()
	if p.KeyBase64 == "" {
		return p.Key
	}
	key, err := base64.StdEncoding.DecodeString(p.KeyBase64)
	if err != nil {
		t.Fatal(err)
	}
	return string(key)
}

func TestWhereAgreesWithTheRealEnvoyOverEveryListener(t *testing.T) {
	t.Parallel()
	m := oddMesh(t)
	c := m.startControlplane(t)
	s := m.startSidecar(t, "here-0", c)
	keys := oddKeys(10_000)
	said := c.whereAll(t, keys)

	// Each listener sets its share of the keys, and reads what another has set.
	names := slices.Sorted(maps.Keys(s.over()))
	for turn, read := range []bool{false, true} {
		for i, name := range names {
			client := newClient(t, s.over()[name])
			share := every(keys, len(names), (i+turn)%len(names))
			for batch := range slices.Chunk(share, 250) {
				if read {
					getBatch(t, client, name, batch)
				} else {
					setBatch(t, client, name, batch)
				}
			}
		}
	}

	lies := map[string]string{} // key to the primary that has it
	for _, shard := range m.shards() {
		for _, key := range keysOn(t, shard.Nodes[0]) {
			if before, twice := lies[key]; twice {
				t.Errorf("key %q lies on %s and on %s", key, before, shard.Nodes[0])
			}
			lies[key] = shard.Nodes[0]
		}
	}
	if len(lies) != len(keys) {
		t.Errorf("%d keys lie on the shards, want %d", len(lies), len(keys))
	}
	wrong, each := 0, map[string]int{}
	for _, key := range keys {
		p := said[key]
		each[p.Shard]++
		if lies[key] != p.Primary {
			if wrong++; wrong <= 5 {
				t.Errorf("key %q lies on %q, and `where` says %s of shard %s", key, lies[key], p.Primary, p.Shard)
			}
		}
	}
	t.Logf("%d of %d keys lie elsewhere than `where` says; by shard %v", wrong, len(keys), each)
	if len(each) != len(m.shards()) {
		t.Errorf("only the shards %v have keys", each)
	}
}

// every returns each n-th key, from the one at start.
func every(keys []string, n, start int) []string {
	var some []string
	for i := start; i < len(keys); i += n {
		some = append(some, keys[i])
	}
	return some
}

func setBatch(t *testing.T, client *redis.Client, name string, keys []string) {
	t.Helper()
	_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for _, key := range keys {
			p.Set(context.Background(), key, valueOf(key), 0)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("SET over %s: %v", name, err)
	}
}

func getBatch(t *testing.T, client *redis.Client, name string, keys []string) {
	t.Helper()
	replies, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for _, key := range keys {
			p.Get(context.Background(), key)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("GET over %s: %v", name, err)
	}
	for i, reply := range replies {
		if got := reply.(*redis.StringCmd).Val(); got != valueOf(keys[i]) {
			t.Errorf("GET %q over %s: %q, want %q", keys[i], name, got, valueOf(keys[i]))
		}
	}
}

// valueOf makes the value of one key differ from that of any other.
func valueOf(key string) string { return fmt.Sprintf("%x", key[max(0, len(key)-60):]) }

// keysOn reads all keys of a node from the node itself.
func keysOn(t *testing.T, address string) []string {
	t.Helper()
	client := newClient(t, &redis.Options{Addr: address})
	seen := map[string]bool{}
	for scan := client.Scan(t.Context(), 0, "", 1000).Iterator(); ; {
		if !scan.Next(t.Context()) {
			if err := scan.Err(); err != nil {
				t.Fatal(err)
			}
			return slices.Collect(maps.Keys(seen))
		}
		seen[scan.Val()] = true
	}
}

func TestWhereNamesEachKeyThatNoShardTakes(t *testing.T) {
	t.Parallel()
	m := onePool(t, "user:", 1)
	r := invocation{
		args:  []string{"where", "--file", m.file(), "-0", "-o", "json"},
		stdin: "user:1\x00tweet:1\x00cachemesh:x\x00\xff\x00",
	}.run(t).want(t, 1)
	objects := decode[[]map[string]any](t, r)
	for i, want := range []string{"key pool primary region route shard", "error key", "error key", "error key key_base64"} {
		if got := strings.Join(slices.Sorted(maps.Keys(objects[i])), " "); got != want {
			t.Errorf("element %d has the fields %s, want %s", i, got, want)
		}
	}
	places := decode[[]place](t, r)
	if len(places) != 4 || !strings.Contains(places[1].Error, "no route") || !strings.Contains(places[2].Error, "cachemesh:") ||
		keyOf(t, places[3]) != "\xff" {
		t.Errorf("places %+v", places)
	}
}
