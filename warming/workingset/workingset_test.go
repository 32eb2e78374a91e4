package workingset

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
)

func TestWhatMonitorShows(t *testing.T) {
	for line, want := range map[string]string{
		`+1339518083.107412 [0 127.0.0.1:60866] "get" "tweet:1"`:                "tweet:1",
		`+1339518083.107412 [0 [::1]:60866] "HGETALL" "a\"b\\c\n\x00\xff] \"d"`: "a\"b\\c\n\x00\xff] \"d",
		`+1.1 [0 unix:/tmp/x] "lrange" "timeline:7" "0" "20"`:                   "timeline:7",
		`+1.1 [0 lua] "get" "tweet:1"`:                                          "",
		`+1.1 [0 127.0.0.1:1] "set" "tweet:1" "x"`:                              "",
		`+1.1 [0 127.0.0.1:1] "mget" "tweet:1" "tweet:2"`:                       "",
		`+1.1 [0 127.0.0.1:1] "get" "cachemesh:epoch"`:                          "",
		`+1.1 [0 127.0.0.1:1] "get"`:                                            "",
		`+1.1 [0 127.0.0.1:1] "get" "tweet:1\`:                                  "",
		`+1.1 [0 127.0.0.1:1] "get" "tweet:\xg0"`:                               "",
		`+OK`: "",
		``:    "",
	} {
		if key, ok := readKey([]byte(line)); key != want && ok || ok != (want != "") {
			t.Errorf("%s: %q %v, want %q", line, key, ok, want)
		}
	}
}

func TestAnHourIsRecordedByOneAgent(t *testing.T) {
	node := redistest.Start(t, process.Redis{})
	client := node.Client
	topology := &mesh.Topology{WorkingSets: true, Pools: []mesh.Pool{{Name: "all", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 65537}, Routes: []mesh.Route{{Prefix: ""}},
		Shards: []mesh.Shard{{Name: "all-0", Nodes: []mesh.Node{{Address: node.Address(), Role: mesh.Primary}}}}}}}
	noon := time.Date(2026, 7, 1, 12, 30, 0, 0, time.UTC)
	began := time.Now()
	for i := range 2 {
		r := New(fmt.Sprint("agent-", i), slog.New(slog.NewTextHandler(t.Output(), nil)))
		r.now = func() time.Time { return noon }
		r.Update(topology)
		done := make(chan error, 1)
		go func() { done <- r.Run(t.Context()) }()
		t.Cleanup(func() { <-done })
	}
	// What was read the day before counts half.
	client.ZAdd(t.Context(), Key(12), redis.Z{Member: "yesterday", Score: 100_000}, redis.Z{Member: "long ago", Score: 0.6})
	client.Set(t.Context(), Key(12)+":day", "2026-06-30", 0)
	for {
		for i := range 100 {
			client.Get(t.Context(), "hot")
			if i%10 == 0 {
				client.Get(t.Context(), "warm")
			}
		}
		all, err := client.ZRevRangeWithScores(t.Context(), Key(12), 0, -1).Result()
		if err == nil && len(all) == 3 && all[0].Member == "yesterday" && all[0].Score == 50_000 && all[1].Member == "hot" && all[2].Member == "warm" && all[1].Score > all[2].Score {
			break
		}
		if time.Since(began) > 40*time.Second {
			t.Fatalf("%v %v is kept", all, err)
		}
	}
	if client.Get(t.Context(), prefix+"by").Val() == "" || client.TTL(t.Context(), Key(12)).Val() <= 0 {
		t.Error("nobody watches, or what is kept stays for ever")
	}
	var watched int
	fmt.Sscanf(client.InfoMap(t.Context(), "commandstats").Val()["Commandstats"]["cmdstat_monitor"], "calls=%d", &watched)
	if most := int(time.Since(began)/watchEvery) + 1; watched == 0 || watched > most {
		t.Errorf("it was watched %d times, and one agent does so %d times at most", watched, most)
	}
}

func TestAnHourIsBounded(t *testing.T) {
	client := redistest.Start(t, process.Redis{}).Client
	for round := range 3 {
		seen := map[string]int{"hot": 100}
		for i := range MaxKeys {
			seen[fmt.Sprint(round, "-", i)] = round + 1
		}
		if err := keep(t.Context(), client, time.Unix(0, 0).UTC(), seen); err != nil {
			t.Fatal(err)
		}
	}
	first, err := client.ZRangeArgs(t.Context(), redis.ZRangeArgs{Key: Key(0), Start: 0, Stop: 1, Rev: true}).Result()
	if n := client.ZCard(t.Context(), Key(0)).Val(); err != nil || n != MaxKeys || first[0] != "hot" {
		t.Errorf("%d keys are kept, and %d may be; the first are %v", n, MaxKeys, first)
	}
}
