package test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/commands"
)

func TestKeyThatNoRouteTakesIsAnErrorThatExplainAccountsFor(t *testing.T) {
	t.Parallel()
	m := onePool(t, "user:", 1)
	c := m.startControlplane(t)
	s := m.startSidecar(t, "here-0", c)
	for name, options := range s.over() {
		client := newClient(t, options)
		for _, key := range []string{"tweet:1", "", "user", "cachemesh:", "cachemesh:x"} {
			for _, command := range [][]any{{"get", key}, {"set", key, "v"}, {"del", key}} {
				err := client.Do(t.Context(), command...).Err()
				if err == nil || !strings.Contains(err.Error(), "no upstream host") && command[0] != "del" {
					t.Errorf("%v over %s: error %v, want no upstream host", command, name, err)
				}
			}
		}
		if err := client.Set(t.Context(), "user:1", "v", 0).Err(); err != nil {
			t.Errorf("after errors, over %s: %v", name, err)
		}
	}
	if keys := keysOn(t, m.shards()[0].Nodes[0]); len(keys) != 1 {
		t.Errorf("the shard has the keys %q, want user:1 alone", keys)
	}
	explained := strings.Join(strings.Fields(cachemesh(t, "explain", "no upstream host").want(t, 0).stdout), " ")
	for _, word := range []string{"route", "cachemesh:", "cachemesh where"} {
		if !strings.Contains(explained, word) {
			t.Errorf("the explanation lacks %q: %s", word, explained)
		}
	}
	for key, why := range map[string]string{"tweet:1": "no route takes this key", "cachemesh:x": "belong to cachemesh"} {
		r := cachemesh(t, "where", "--controlplane", c.url, key).want(t, 1)
		if r.stdout != "" || !strings.Contains(r.stderr, why) {
			t.Errorf("where %s prints %q and notes %q, want %q noted", key, r.stdout, r.stderr, why)
		}
	}
}

func TestRefusedCommandsChangeNothing(t *testing.T) {
	t.Parallel()
	m := onePool(t, "", 2)
	s := m.startSidecar(t, "here-0", m.startControlplane(t))
	keys := someKeys("k:", 20)
	setBatch(t, s.client(t), "RESP2", keys)
	var shards []*redis.Client
	for _, shard := range m.shards() {
		client := newClient(t, &redis.Options{Addr: shard.Nodes[0]})
		if err := client.ConfigResetStat(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		shards = append(shards, client)
	}
	refused := commands.Listener{}.Refused()
	if len(refused) < 10 {
		t.Fatalf("only %q are refused", refused)
	}
	for name, options := range s.over() {
		client := newClient(t, options)
		for _, command := range refused {
			if options.Protocol == 3 && !slices.Contains((commands.Listener{RESP3: true}).Refused(), command) {
				continue
			}
			for _, args := range [][]any{{command, "k:1", "k:2"}, {strings.ToUpper(command), "k:1", "1", "k:2"}} {
				if err := client.Do(t.Context(), args...).Err(); err == nil || err.Error() != commands.FaultError {
					t.Errorf("%v over %s: error %v, want %q", args, name, err, commands.FaultError)
				}
			}
			// Envoy may find fault with the missing arguments first.
			if err := client.Do(t.Context(), command).Err(); err == nil || errors.Is(err, redis.Nil) {
				t.Errorf("%s over %s: error %v, want one", command, name, err)
			}
		}
		getBatch(t, client, name, keys)
	}
	for i, shard := range shards {
		stats, err := shard.InfoMap(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range refused {
			// The control plane's probes run INFO.
			if stats["Commandstats"]["cmdstat_"+command] != "" && command != "info" {
				t.Errorf("%s reached shard %d", command, i)
			}
		}
	}
}
