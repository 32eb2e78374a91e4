package handoff_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/process"
)

var steps = []handoff.Task{handoff.Copy, handoff.Drain, handoff.Bridge, handoff.Purge}

func TestAddAndRemove(t *testing.T) {
	four, five := names(1, 2, 3, 4), names(1, 2, 3, 4, 5)
	for name, p := range map[string]*pool{"add": newPool(t, four, five, false), "remove": newPool(t, five, four, true)} {
		t.Run(name, func(t *testing.T) {
			moving := p.fill(20_000)
			p.move()
			for _, task := range steps {
				p.until(task)
			}
			if n := len(p.settled(p.to)); n != 20_000 {
				t.Errorf("%d keys are left of 20000", n)
			}
			now := p.Progress()
			if now.Removed != int64(len(moving)) || now.Copied != int64(len(moving)) || now.Cold != 0 || now.Restarts != 0 || now.Unlinked != 0 {
				t.Errorf("%d keys moved: %+v", len(moving), now)
			}
		})
	}
}

func TestUndoLeavesNothing(t *testing.T) {
	p := newPool(t, names(1, 2, 3), names(1, 2, 3, 4), false)
	p.fill(3_000)
	p.move()
	p.until(handoff.Copy)
	p.until(handoff.Drain)
	p.until(handoff.Undo)
	if n := len(p.settled(p.from)); n != 3_000 || len(p.keys("timelines-4")) != 0 {
		t.Errorf("%d keys are left of 3000, %d of them at the new shard", n, len(p.keys("timelines-4")))
	}
}

// value is a key's, in a way that can be compared.
func (p *pool) value(shard, key string) any {
	switch kind := p.do(shard, "TYPE", key); kind {
	case "string":
		return p.do(shard, "GET", key)
	case "list":
		return p.do(shard, "LRANGE", key, 0, -1)
	case "hash":
		return p.do(shard, "HGETALL", key)
	case "set":
		all := map[any]bool{}
		members, _ := p.do(shard, "SMEMBERS", key).([]any)
		for _, m := range members {
			all[m] = true
		}
		return all
	case "zset":
		return p.do(shard, "ZRANGE", key, 0, -1, "WITHSCORES")
	case "stream":
		return []any{p.do(shard, "XRANGE", key, "-", "+"), p.do(shard, "XINFO", "GROUPS", key)}
	default:
		return kind
	}
}

func TestEveryType(t *testing.T) {
	p := newPool(t, names(1, 2), names(1, 2, 3), false)
	// All keys below share a tag that moves.
	tag := ""
	for i := 0; tag == "" || p.from("timeline:"+tag) == p.to("timeline:"+tag); i++ {
		tag = fmt.Sprintf("{%d}", i)
	}
	donor, recipient := p.from("timeline:"+tag), p.to("timeline:"+tag)
	half := strings.Repeat("x", 512<<10)
	keys := map[string][]any{
		"string": {"SET", "", "a\r\n\x00b"}, "number": {"SET", "", "42"}, "list": {"RPUSH", "", "a", "b"}, "hash": {"HSET", "", "f", "1", "g", "2"},
		"set": {"SADD", "", "a", "b"}, "numbers": {"SADD", "", "1", "2"}, "zset": {"ZADD", "", "1", "a", "2.5", "b"}, "stream": {"XADD", "", "1-1", "f", "v"},
		"hyperloglog": {"PFADD", "", "a", "b"}, "geo": {"GEOADD", "", "13.3", "38.1", "a"}, "empty": {"SET", "", ""},
	}
	for name, command := range keys {
		command[1] = "timeline:" + tag + name
		p.do(donor, command...)
	}
	p.do(donor, "XGROUP", "CREATE", "timeline:"+tag+"stream", "readers", "0")
	big := map[string]func(pipe redis.Pipeliner, key string){
		"bigstring": func(pipe redis.Pipeliner, key string) {
			for range 100 {
				pipe.Append(t.Context(), key, half)
			}
		},
		"biglist": func(pipe redis.Pipeliner, key string) {
			for i := range 20 {
				pipe.RPush(t.Context(), key, fmt.Sprint(i, half), "small")
			}
		},
		"bighash": func(pipe redis.Pipeliner, key string) {
			for i := range 60_000 {
				pipe.HSet(t.Context(), key, fmt.Sprint("field", i), strings.Repeat("y", 80))
			}
		},
		"bigset": func(pipe redis.Pipeliner, key string) {
			for i := range 80_000 {
				pipe.SAdd(t.Context(), key, fmt.Sprint(i, strings.Repeat("z", 50)))
			}
		},
		"bigzset": func(pipe redis.Pipeliner, key string) {
			for i := range 60_000 {
				pipe.ZAdd(t.Context(), key, redis.Z{Score: float64(i) / 3, Member: fmt.Sprint(i, strings.Repeat("w", 50))})
			}
		},
		"bigstream": func(pipe redis.Pipeliner, key string) {
			for range 20 {
				pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"f", half}})
			}
		},
	}
	for name, fill := range big {
		pipe := p.nodes[donor].redis.Pipeline()
		fill(pipe, "timeline:"+tag+name)
		pipe.PExpire(t.Context(), "timeline:"+tag+name, time.Hour)
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(name, err)
		}
		keys[name] = nil
	}
	p.do(donor, "SET", "timeline:"+tag+"short", "v", "PX", 600_000)
	keys["short"] = nil
	// These expire in flight.
	for i := range 500 {
		p.do(donor, "SET", fmt.Sprint("timeline:", tag, "brief", i), "v", "PX", 1+i)
	}
	p.do(donor, "SET", "other:"+tag, "no route takes it")
	p.do(donor, "SET", "cachemesh:mine", "not the application's")

	p.move()
	p.until(handoff.Copy)
	p.until(handoff.Drain)
	for name := range keys {
		key := "timeline:" + tag + name
		want, got := p.value(donor, key), p.value(recipient, key)
		if name == "bigstream" {
			want = "none"
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %.100q, want %.100q", key, fmt.Sprint(got), fmt.Sprint(want))
		}
		was, is := p.do(donor, "PTTL", key).(int64), p.do(recipient, "PTTL", key).(int64)
		if name != "bigstream" && (was < 0) != (is < 0) || is > was+100 || was > 0 && is < was-5_000 && is != -2 {
			t.Errorf("%s lives %d ms, and its copy %d", key, was, is)
		}
	}
	now := p.Progress()
	if now.Cold != 1 || now.Restarts != 0 {
		t.Errorf("%+v, want one cold", now)
	}
	for _, key := range []string{"other:" + tag, "cachemesh:mine"} {
		if p.do(recipient, "EXISTS", key) != int64(0) {
			t.Errorf("%s moved", key)
		}
	}
	p.until(handoff.Bridge)
	p.until(handoff.Purge)
	for key := range p.keys(donor) {
		if strings.Contains(key, tag) && !strings.HasPrefix(key, "other:") {
			t.Errorf("%s is left", key)
		}
	}
	if p.do(donor, "EXISTS", "other:"+tag) != int64(1) {
		t.Error("a key that no route takes is gone")
	}
}

func TestAgeIsKept(t *testing.T) {
	for policy, command := range map[string]string{"allkeys-lru": "IDLETIME", "allkeys-lfu": "FREQ"} {
		p := newPool(t, names(1), names(1, 2), false)
		for _, n := range p.nodes {
			n.redis.ConfigSet(t.Context(), "maxmemory-policy", policy)
		}
		moving := p.fill(100)
		dump, err := p.nodes["timelines-1"].redis.Dump(t.Context(), moving[0]).Result()
		if err != nil {
			t.Fatal(err)
		}
		p.do("timelines-1", "RESTORE", moving[0], 0, dump, "REPLACE", command, 200)
		p.move()
		p.until(handoff.Copy)
		got, _ := p.do("timelines-2", "OBJECT", command, moving[0]).(int64)
		if got < 190 || got > 260 {
			t.Errorf("%s: the copy's %s is %d, want 200", policy, command, got)
		}
	}
}

func TestFullRecipient(t *testing.T) {
	p := newPool(t, names(1, 2), names(1, 2, 3), false)
	full := startNode(t, process.Redis{Args: []string{"--maxmemory", "3mb", "--maxmemory-policy", "noeviction"}})
	p.nodes["timelines-3"] = full
	moving := p.fill(30_000)
	p.move()
	now := p.until(handoff.Copy)
	if now.Cold == 0 || now.Cold >= int64(len(moving)) || !strings.Contains(now.Problem, "timelines-3 refuses") {
		t.Errorf("of %d keys: %+v", len(moving), now)
	}
	// What changes after it was copied must not stay there as it was.
	for _, key := range moving {
		p.do(p.from(key), "SET", key, "new")
	}
	p.until(handoff.Drain)
	for _, key := range moving {
		if v := p.do("timelines-3", "GET", key); v != nil && v != "new" {
			t.Fatalf("%s is stale at the recipient: %q", key, v)
		}
	}
	p.until(handoff.Undo)
	if n := len(p.keys("timelines-3")); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}
