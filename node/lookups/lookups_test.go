package lookups_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
)

func TestOurLookupsAreNotCounted(t *testing.T) {
	n := redistest.Start(t, process.Redis{})
	ctx := t.Context()
	ok := func(c redis.Cmder) {
		t.Helper()
		if err := c.Err(); err != nil && !errors.Is(err, redis.Nil) {
			t.Fatalf("%v: %v", c.Args(), err)
		}
	}
	ok(n.Set(ctx, "key", "value", 0))
	ok(n.HSet(ctx, "hash", "field", "value"))
	ok(n.XAdd(ctx, &redis.XAddArgs{Stream: "stream", ID: "1-1", Values: []any{"e", "1"}}))
	var hits, misses int64
	want := func(what string, moreHits, moreMisses int64) {
		t.Helper()
		info, err := n.InfoMap(ctx, lookups.Sections...).Result()
		if err != nil {
			t.Fatal(err)
		}
		hits, misses = hits+moreHits, misses+moreMisses
		if gotHits, gotMisses := lookups.Of(info); gotHits != hits || gotMisses != misses {
			t.Errorf("%s: %d hits and %d misses, want %d and %d", what, gotHits, gotMisses, hits, misses)
			hits, misses = gotHits, gotMisses
		}
	}
	// Hits of an application, more than there could be marks by mistake.
	for range 10 {
		ok(n.Get(ctx, "key"))
		ok(n.Get(ctx, "nothing"))
	}
	want("an application's", 10, 10)

	if got, err := lookups.Hash.Run(ctx, n, []string{"hash"}).StringSlice(); err != nil || len(got) != 2 || got[1] != "value" {
		t.Errorf("the hash is %q, %v", got, err)
	}
	want("a hash", 0, 0)
	if got, err := lookups.Hash.Run(ctx, n, []string{"nothing"}).StringSlice(); err != nil || len(got) != 0 {
		t.Errorf("a hash that is not there is %q, %v", got, err)
	}
	want("no hash", 0, 0)

	read := func(after string, block time.Duration) {
		t.Helper()
		ok(n.XRead(ctx, &redis.XReadArgs{Streams: []string{"stream", after}, Block: block}))
	}
	read("0", -1)
	want("a stream", 0, 0)
	read("1-1", -1)
	want("a stream without anything new", 0, 0)
	read("1-1", 10*time.Millisecond)
	want("a stream that was waited for in vain", 0, 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		read("1-1", 10*time.Second)
	}()
	for blocked := false; !blocked; {
		info, err := n.InfoMap(ctx, "clients").Result()
		if err != nil {
			t.Fatal(err)
		}
		blocked = info["Clients"]["blocked_clients"] == "1"
	}
	ok(n.XAdd(ctx, &redis.XAddArgs{Stream: "stream", ID: "2-1", Values: []any{"e", "1"}}))
	<-done
	want("a stream that was waited for", 0, 0)
	ok(n.XGroupCreate(ctx, "stream", "group", "0"))
	for range 3 {
		ok(n.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "group", Consumer: "c", Streams: []string{"stream", ">"}, Count: 1, Block: -1}))
	}
	want("a group of a stream", 0, 0)
	ok(n.XInfoStream(ctx, "stream"))
	want("how a stream is", 0, 0)
	pipe := n.Pipeline()
	pipe.Get(ctx, "key")
	pipe.Echo(ctx, "")
	if _, err := pipe.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	want("a key", 0, 0)
	conn, err := net.Dial("tcp", n.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	keys := strings.Repeat("*2\r\n$4\r\nDUMP\r\n$3\r\nkey\r\n", 12)
	if _, err := conn.Write(lookups.AppendMarks([]byte(keys), 12)); err != nil {
		t.Fatal(err)
	}
	// After them, Redis answers that it knows of nothing of the kind.
	reply := bufio.NewReader(conn)
	for line := ""; line != "$-1\r\n"; {
		if line, err = reply.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	want("many keys", 0, 0)

	ok(n.ConfigResetStat(ctx))
	hits, misses = 0, 0
	want("after a reset", 0, 0)
	ok(n.Get(ctx, "key"))
	want("an application's after a reset", 1, 0)
}

func TestWithoutTheRightToMarkScriptsWork(t *testing.T) {
	n := redistest.Start(t, process.Redis{})
	ctx := context.Background()
	if err := errors.Join(n.HSet(ctx, "hash", "field", "value").Err(),
		n.Do(ctx, "ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@hash", "+@scripting", "+memory|usage", "+hello", "+client").Err()); err != nil {
		t.Fatal(err)
	}
	narrow := redis.NewClient(&redis.Options{Addr: n.Address(), Username: "narrow", Password: "secret"})
	t.Cleanup(func() { narrow.Close() })
	if got, err := lookups.Hash.Run(ctx, narrow, []string{"hash"}).StringSlice(); err != nil || len(got) != 2 {
		t.Errorf("the hash is %q, %v", got, err)
	}
}
