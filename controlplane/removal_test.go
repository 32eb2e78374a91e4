package controlplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/regions/journal"
)

// twoPools are one with a coherent route and one without, of shards at the addresses.
func twoPools(addresses ...string) mesh.Topology {
	shard := func(name, address string) mesh.Shard {
		return mesh.Shard{Name: name, Weight: 1, Epoch: 3, Nodes: []mesh.Node{{Address: address, Role: mesh.Primary}}}
	}
	hashing := mesh.Hashing{Algorithm: "ring_hash", Size: 1024}
	return mesh.Topology{Region: "here", Pools: []mesh.Pool{
		{Name: "users", Hashing: hashing, Routes: []mesh.Route{{Prefix: "user:", Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: time.Minute}, {Prefix: "user:log:"}},
			Shards: []mesh.Shard{shard("users-0", addresses[0]), shard("users-1", addresses[1])}},
		{Name: "rest", Hashing: hashing, Routes: []mesh.Route{{Prefix: ""}, {Prefix: "u"}}, Shards: []mesh.Shard{shard("rest-0", addresses[2])}},
	}}
}

// planned is a removal as a line.
func planned(r removal) string {
	var entries []string
	for _, e := range r.entries {
		entries = append(entries, fmt.Sprintf("%d%q", e.Op, e.Key))
	}
	return fmt.Sprintf("%s %s%q journal %s", r.shard.Name, map[bool]string{true: "keys ", false: "prefix "}[r.keys != nil],
		map[bool]any{true: r.keys, false: r.prefix}[r.keys != nil], strings.Join(entries, ","))
}

func TestRemovalsArePlannedWhereTheKeysAre(t *testing.T) {
	topology := twoPools("a", "b", "c")
	for name, c := range map[string]struct {
		Invalidation
		want []string
	}{
		"keys": {Invalidation{Keys: [][]byte{[]byte("user:1"), []byte("x"), []byte("user:2"), []byte("user:5")}, Journal: true}, []string{
			`users-0 keys ["user:1" "user:2"] journal 1"user:1",1"user:2"`, `rest-0 keys ["x"] journal `, `users-1 keys ["user:5"] journal 1"user:5"`}},
		"keys without journal": {Invalidation{Keys: [][]byte{[]byte("user:1")}}, []string{`users-0 keys ["user:1"] journal `}},
		"a prefix of one pool": {Invalidation{Prefix: []byte("user:log:"), Journal: true}, []string{
			`users-0 prefix "user:log:" journal 2"user:log:"`, `users-1 prefix "user:log:" journal `}},
		"a prefix of several": {Invalidation{Prefix: []byte("us"), Journal: true}, []string{
			`users-0 prefix "us" journal 2"us"`, `users-1 prefix "us" journal `, `rest-0 prefix "us" journal `}},
		"a prefix, of one of them": {Invalidation{Prefix: []byte("us"), Pool: "rest", Journal: true}, []string{`rest-0 prefix "us" journal `}},
		"everything": {Invalidation{Everything: true, Pool: "users", Journal: true}, []string{
			`users-0 prefix "" journal 3""`, `users-1 prefix "" journal 3""`}},
		"everything of here": {Invalidation{Everything: true, Pool: "users"}, []string{`users-0 prefix "" journal `, `users-1 prefix "" journal `}},
	} {
		all, err := planRemovals(topology, c.Invalidation)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, r := range all {
			got = append(got, planned(r))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	moving := twoPools("a", "b", "c")
	users := &moving.Pools[0]
	to := slices.Clone(users.Shards)
	users.Shards = users.Shards[:1]
	users.Handoff = &mesh.Handoff{ID: 1, Generation: 1, Step: mesh.Preparing, From: users.Shards, To: to}
	for _, c := range []struct {
		Invalidation
		want []string
	}{
		{Invalidation{Keys: [][]byte{[]byte("user:1"), []byte("user:5")}, Journal: true}, []string{
			`users-0 keys ["user:1" "user:5"] journal 1"user:1",1"user:5"`, `users-1 keys ["user:5"] journal `}},
		{Invalidation{Prefix: []byte("user:"), Journal: true}, []string{
			`users-0 prefix "user:" journal 2"user:"`, `users-1 prefix "user:" journal `}},
	} {
		all, err := planRemovals(moving, c.Invalidation)
		var got []string
		for _, r := range all {
			got = append(got, planned(r))
		}
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("while keys move: %s, %v", diff, err)
		}
	}
	topology.Pools[0].Shards[0].StandIn = mesh.Null
	if all, err := planRemovals(topology, Invalidation{Prefix: []byte("user:"), Journal: true}); err != nil || all[0].entries != nil || all[1].entries == nil {
		t.Errorf("a prefix is told by a shard that has no node: %+v, %v", all, err)
	}
}

func TestRemovalsThatMakeNoSenseAreRefused(t *testing.T) {
	topology := twoPools("a", "b", "c")
	empty := topology
	empty.Pools = slices.Clone(topology.Pools)
	empty.Pools[1].Shards = nil
	onlyUsers := mesh.Topology{Pools: topology.Pools[:1]}
	for name, c := range map[string]struct {
		topology mesh.Topology
		Invalidation
		want string
	}{
		"nothing":                 {topology, Invalidation{}, "one of"},
		"two":                     {topology, Invalidation{Keys: [][]byte{[]byte("k")}, Prefix: []byte("k")}, "one of"},
		"everything of all":       {topology, Invalidation{Everything: true}, "pool"},
		"no such pool":            {topology, Invalidation{Everything: true, Pool: "other"}, `"other"`},
		"a key of another pool":   {topology, Invalidation{Keys: [][]byte{[]byte("k")}, Pool: "users"}, `"rest"`},
		"a reserved key":          {topology, Invalidation{Keys: [][]byte{[]byte("cachemesh:epoch")}}, "belong to cachemesh"},
		"a reserved prefix":       {topology, Invalidation{Prefix: []byte("cachemesh:j")}, "belong to cachemesh"},
		"a key of no route":       {onlyUsers, Invalidation{Keys: [][]byte{[]byte("k")}}, "no route"},
		"a prefix of no route":    {onlyUsers, Invalidation{Prefix: []byte("k")}, "no route"},
		"a pool without shards":   {empty, Invalidation{Everything: true, Pool: "rest"}, "no shard"},
		"a key without any shard": {empty, Invalidation{Keys: [][]byte{[]byte("k")}}, `"rest"`},
	} {
		if all, err := planRemovals(c.topology, c.Invalidation); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v, want an error with %q", name, all, err, c.want)
		}
	}
}

// removing is the API over real shards.
type removing struct {
	topology mesh.Topology
	clients  []*redis.Client // of its shards
	leads    error
	handler  http.Handler
}

func newRemoving(t *testing.T) *removing {
	t.Helper()
	ports, err := process.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	r := &removing{}
	var addresses []string
	for _, port := range ports {
		server := process.Redis{Port: port, Dir: t.TempDir()}
		p, err := server.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop(time.Second) })
		client := redis.NewClient(node.Options(server.Address(), nil, time.Second))
		t.Cleanup(func() { client.Close() })
		if err := client.Set(t.Context(), node.EpochKey, 3, 0).Err(); err != nil {
			t.Fatal(err)
		}
		addresses, r.clients = append(addresses, server.Address()), append(r.clients, client)
	}
	r.topology = twoPools(addresses...)
	mux := http.NewServeMux()
	invalidateAPI{commandAPI: commandAPI{topology: func() mesh.Topology { return r.topology }}, region: "here", leads: func() error { return r.leads }, log: quiet}.register(mux)
	r.handler = mux
	return r
}

// ask returns the last answer of each shard.
func (r *removing) ask(t *testing.T, i Invalidation) map[string]ShardRemoval {
	t.Helper()
	body, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, command("POST", "/v1/regions/invalidate", string(body)))
	if w.Code != http.StatusOK {
		t.Fatalf("answers %d %s", w.Code, w.Body)
	}
	last := map[string]ShardRemoval{}
	for line := range strings.Lines(w.Body.String()) {
		var s ShardRemoval
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		last[s.Shard] = s
	}
	return last
}

func TestKeysAreRemovedAndJournaled(t *testing.T) {
	r := newRemoving(t)
	fill := func(shard int, keys ...string) {
		for _, k := range keys {
			if err := r.clients[shard].Set(t.Context(), k, "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	left := func(shard int) (keys []string) {
		for _, k := range r.clients[shard].Keys(t.Context(), "*").Val() {
			if !strings.HasPrefix(k, mesh.ReservedPrefix) {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		return keys
	}
	fill(0, "user:1", "user:5", "user:9\xff\n", "u*er:1")
	fill(2, "x")
	answers := r.ask(t, Invalidation{Keys: [][]byte{[]byte("user:1"), []byte("user:9\xff\n"), []byte("user:2"), []byte("x")}, Journal: true})
	first := answers["users-0"]
	if first.Removed+answers["users-1"].Removed < 1 || answers["rest-0"].Removed != 1 || answers["rest-0"].Journal != "" {
		t.Errorf("answers %+v", answers)
	}
	for _, a := range answers {
		if !a.Done || a.Error != "" || a.Seen != a.Of || a.Epoch != 3 || a.Region != "here" || a.Node == "" {
			t.Errorf("the answer %+v is not whole", a)
		}
	}
	entries, err := r.clients[0].XRange(t.Context(), journal.Key(3), "-", "+").Result()
	if err != nil || len(entries) == 0 {
		t.Fatalf("journal %v, %v", entries, err)
	}
	last := entries[len(entries)-1]
	removals, err := journal.Decode(nil, []byte(last.Values["e"].(string)))
	if err != nil || first.Journal != "3 "+last.ID || uint64(len(removals)) != first.Of || removals[0].Op != journal.RemoveKey {
		t.Errorf("the journal says %+v at %s, %v; the answer %+v", removals, last.ID, err, first)
	}

	held := func(shard int, key string) []string {
		return r.clients[shard].ZRange(t.Context(), mesh.ReservedPrefix+key, 0, -1).Val()
	}
	if got := held(0, "held"); !slices.Contains(got, "user:1") {
		t.Errorf("%q are held, want user:1 among them", got)
	}
	if got := held(2, "held"); len(got) > 0 {
		t.Errorf("%q of a route without a hold-off are held", got)
	}

	// A pattern's characters are only themselves, and what is ours stays.
	fill(0, "u*er:1", "user:5", "c1")
	if answers = r.ask(t, Invalidation{Prefix: []byte("u*"), Pool: "users"}); answers["users-0"].Removed != 1 || answers["users-0"].Journal != "" {
		t.Errorf("the prefix u* removes %+v", answers)
	}
	many := make([]string, 3500)
	for i := range many {
		many[i] = fmt.Sprint("user:many:", i)
	}
	fill(1, many...)
	if answers = r.ask(t, Invalidation{Prefix: []byte("user:many:")}); answers["users-1"].Removed != 3500 || answers["users-1"].Seen != answers["users-1"].Of {
		t.Errorf("3500 keys of a prefix: %+v", answers)
	}
	if answers = r.ask(t, Invalidation{Prefix: []byte("c"), Pool: "users"}); answers["users-0"].Removed != 1 {
		t.Errorf("the prefix c removes %+v", answers)
	}
	if got := left(0); !slices.Contains(got, "user:5") {
		t.Errorf("%q are left, want user:5 among them", got)
	}
	answers = r.ask(t, Invalidation{Everything: true, Pool: "users", Journal: true})
	if len(left(0))+len(left(1)) > 0 || len(answers) != 2 || answers["users-0"].Journal == "" || answers["users-1"].Journal == "" {
		t.Errorf("everything leaves %q and %q: %+v", left(0), left(1), answers)
	}
	if got := held(1, "held:prefixes"); !slices.Contains(got, "user:many:") || !slices.Contains(got, "") {
		t.Errorf("the prefixes %q are held, want user:many: and everything", got)
	}
	if epoch := r.clients[0].Get(t.Context(), node.EpochKey).Val(); epoch != "3" {
		t.Errorf("the epoch is %q after that", epoch)
	}
}

func TestAShardThatCannotRemoveSaysSo(t *testing.T) {
	r := newRemoving(t)
	r.topology.Pools[0].Shards[0].Nodes[0].Address = "127.0.0.1:1"
	r.topology.Pools[0].Shards[1].Epoch = 4
	answers := r.ask(t, Invalidation{Everything: true, Pool: "users"})
	if a := answers["users-0"]; a.Done || !strings.Contains(a.Error, "127.0.0.1:1") {
		t.Errorf("a node that is gone: %+v", a)
	}
	if a := answers["users-1"]; a.Done || !strings.Contains(a.Error, "epoch") {
		t.Errorf("a node of another epoch: %+v", a)
	}
	r.topology.Pools[0].Shards[0].StandIn = mesh.Null
	if a := r.ask(t, Invalidation{Everything: true, Pool: "users"})["users-0"]; !a.Done || a.Node != "" {
		t.Errorf("a shard without a node, here only: %+v", a)
	}
	if a := r.ask(t, Invalidation{Everything: true, Pool: "users", Journal: true})["users-0"]; a.Done || !strings.Contains(a.Error, "other regions") {
		t.Errorf("a shard without a node, everywhere: %+v", a)
	}
	if err := r.clients[2].Do(t.Context(), "REPLICAOF", "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if a := r.ask(t, Invalidation{Everything: true, Pool: "rest"})["rest-0"]; a.Done || !strings.Contains(a.Error, "no primary") {
		t.Errorf("a replica: %+v", a)
	}
}

func TestWhoMayNotInvalidate(t *testing.T) {
	r := newRemoving(t)
	for name, c := range map[string]struct {
		change func(*http.Request)
		leads  error
		body   string
		code   int
		want   string
	}{
		"another host": {change: func(r *http.Request) { r.RemoteAddr = "10.1.2.3:4" }, code: 403, want: "--http-client-auth"},
		"nonsense":     {body: `{}`, code: 400, want: "one of"},
		"not base64":   {body: `{"keys": ["!"]}`, code: 400, want: "body"},
		"too much":     {body: `{"prefix": "` + strings.Repeat("A", maxInvalidationBytes) + `"}`, code: 413},
		"nobody leads": {leads: notLeading{"", errors.New("nobody")}, code: 503, want: "nobody"},
		"another one":  {leads: notLeading{"http://10.0.0.1:1", errors.New("another")}, code: 307},
	} {
		request := command("POST", "/v1/regions/invalidate", c.body)
		if c.body == "" {
			request = command("POST", "/v1/regions/invalidate", `{"everything": true, "pool": "rest"}`)
		}
		if c.change != nil {
			c.change(request)
		}
		r.leads = c.leads
		code, body, header := answer1(r.handler, request)
		if code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %d with %q", name, code, body, c.code, c.want)
		}
		if at := header.Get("Location"); c.code == 307 && at != "http://10.0.0.1:1/v1/regions/invalidate" {
			t.Errorf("%s: sent on to %q", name, at)
		}
	}
}
