package app

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

func TestAnswersAndBadInput(t *testing.T) {
	r := startRegions(t, seeded(t, "us-east", "mars"), regionOptions{}, "us-east")[0]
	for _, c := range []struct {
		method, path, body string
		status             int
		answer             string // part of it
	}{
		{"GET", "/users/1", "", 200, `"name":"user1","home":"us-east"`},
		{"GET", "/tweets/7", "", 200, `"id":7`},
		{"GET", "/timeline/1", "", 200, `{"user":1,"tweets":[`},
		{"GET", "/trending", "", 200, `"minutes":10`},
		{"GET", "/healthz", "", 200, `ok`},
		{"PATCH", "/users/1", `{"bio":""}`, 204, ``},
		{"POST", "/tweets", `{"user":1,"text":"` + strings.Repeat("é", 280) + `"}`, 201, `"user":1`},

		{"GET", "/users/61", "", 404, `no user 61`},
		{"GET", "/tweets/99999", "", 404, `no tweet 99999`},
		{"GET", "/timeline/0", "", 400, `positive number`},
		{"GET", "/timeline/1x", "", 400, `positive number`},
		{"GET", "/tweets/99999999999999999999", "", 400, `positive number`},
		{"DELETE", "/tweets/7", "", 404, `no DELETE /tweets/7`},
		{"POST", "/tweets", `{"user":1,"text":"` + strings.Repeat("é", 281) + `"}`, 400, `281 characters: at most 280`},
		{"POST", "/tweets", `{"user":1,"text":" \n"}`, 400, `must not be empty`},
		{"POST", "/tweets", `{"user":1,"text":"a\u0000b"}`, 400, `NUL`},
		{"POST", "/tweets", `{"text":"hello"}`, 400, `\"user\" must be`},
		{"POST", "/tweets", `{"user":"1","text":"hello"}`, 400, `user`},
		{"POST", "/tweets", `{"user":1,"text":"hello","when":1}`, 400, `when`},
		{"POST", "/tweets", `{"user":1,"text":"hello"}{}`, 400, `one JSON object`},
		{"POST", "/tweets", `{"user":1,`, 400, `JSON object`},
		{"POST", "/tweets", ``, 400, `JSON object`},
		{"POST", "/tweets", `{"user":1,"text":"` + strings.Repeat("a", maxBody) + `"}`, 413, `larger than`},
		{"POST", "/tweets", `{"user":500,"text":"hello"}`, 404, `no user 500`},
		{"POST", "/tweets", `{"user":1,"text":"hello","geo":{"latitude":91,"longitude":0}}`, 400, `latitude of -90 to 90`},
		{"POST", loaderPath, `{"keys":["tweet:7"]}`, 404, `no POST`},
		{"PATCH", "/users/1", `{}`, 400, `missing`},
		{"PATCH", "/users/1", `{"bio":"` + strings.Repeat("a", 301) + `"}`, 400, `at most 300`},
		{"POST", fanOutPath, `{"tweet":{"id":1,"user":1,"text":"x","at":1},"followers":[]}`, 400, `followers`},
		{"GET", "/timeline/2", "", 503, `--peers`}, // at home on mars
	} {
		status, answer := r.do(t, c.method, c.path, c.body)
		if status != c.status || !strings.Contains(answer, c.answer) {
			t.Errorf("%s %s %.60s: %d %.200s, want %d with %s", c.method, c.path, c.body, status, answer, c.status, c.answer)
		}
	}
	var stats Stats
	r.get(t, "/stats", &stats)
	if stats.Region != "us-east" || stats.Errors != 1 || stats.Requests != 29 || stats.DBWrites != 2 {
		t.Errorf("stats %+v, want 29 requests, 1 error, 2 writes", stats)
	}
}

func TestFanOutReachesCachedTimelinesInBothRegions(t *testing.T) {
	regions := startRegions(t, seeded(t, "us-east", "eu-west"), regionOptions{}, "us-east", "eu-west")
	author, followers := celebrity(t, regions[0].store)
	if len(followers["us-east"]) == 0 || len(followers["eu-west"]) == 0 {
		t.Fatalf("the best known user has followers in one region only: %v", followers)
	}
	cached := func(r *region, user int64) bool {
		n, err := r.redis.Exists(t.Context(), timelineKey(user)).Result()
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	}
	for i, r := range regions {
		for _, user := range followers[r.name][1:] {
			if diff := cmp.Diff(r.truth(t, user), r.timeline(t, user)); diff != "" {
				t.Errorf("timeline of user %d (-database +answer):\n%s", user, diff)
			}
			r.timeline(t, user)
			if !cached(r, user) || cached(regions[1-i], user) {
				t.Errorf("timeline of user %d is not cached in its home region alone", user)
			}
			// Asked for in the other region, it comes from the home region.
			if diff := cmp.Diff(r.truth(t, user), regions[1-i].timeline(t, user)); diff != "" || cached(regions[1-i], user) {
				t.Errorf("timeline of user %d by the other region:\n%s", user, diff)
			}
		}
	}
	// More posts than a timeline keeps, through either app.
	for n := range store.TimelineLength + 5 {
		regions[n%2].post(t, author, "tweet "+strconv.Itoa(n))
	}
	for _, r := range regions {
		for _, user := range followers[r.name][1:] {
			eventually(t, "a timeline with the new tweets", func() bool {
				ids, found := r.app.Cache.timeline(t.Context(), timelineKey(user))
				return found == hit && slices.Equal(ids, r.truth(t, user))
			})
			if n, err := r.redis.ZCard(t.Context(), timelineKey(user)).Result(); err != nil || n != store.TimelineLength+1 {
				t.Errorf("timeline of user %d has %d members in the cache, %v, want %d and the sentinel", user, n, err, store.TimelineLength)
			}
			if diff := cmp.Diff(r.truth(t, user), r.timeline(t, user)); diff != "" {
				t.Errorf("timeline of user %d (-database +answer):\n%s", user, diff)
			}
		}
		if cached(r, followers[r.name][0]) {
			t.Errorf("fan-out cached the timeline of user %d, who never asked", followers[r.name][0])
		}
	}
}

func TestProfileChangesAreSeenEverywhere(t *testing.T) {
	regions := startRegions(t, seeded(t, "us-east", "eu-west"), regionOptions{}, "us-east", "eu-west")
	for n, user := range []string{"1", "2", "1", "2"} {
		var u store.User
		for _, r := range regions {
			r.get(t, "/users/"+user, &u)
		}
		bio := "bio " + strconv.Itoa(n)
		if status, answer := regions[0].do(t, http.MethodPatch, "/users/"+user, `{"bio":"`+bio+`"}`); status != http.StatusNoContent {
			t.Fatalf("PATCH: %d %s", status, answer)
		}
		for _, r := range regions {
			if r.get(t, "/users/"+user, &u); u.Bio != bio || u.Version != int64(2+n/2) {
				t.Errorf("user %s in %s: %+v, want %q", user, r.name, u, bio)
			}
		}
	}
}

func TestPassingOnEndsAtTheSecondApp(t *testing.T) {
	r := startRegions(t, seeded(t, "us-east", "eu-west"), regionOptions{}, "us-east")[0]
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/timeline/2", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(forwardedBy, "eu-west")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("status %d, want 421", resp.StatusCode)
	}
}

func TestEmptyTimelineHits(t *testing.T) {
	r := startRegions(t, seeded(t, "us-east"), regionOptions{}, "us-east")[0]
	var lonely int64
	for user := int64(1); user <= 60 && lonely == 0; user++ {
		if len(r.truth(t, user)) == 0 {
			lonely = user
		}
	}
	if lonely == 0 {
		t.Fatal("everybody in the world follows somebody")
	}
	r.timeline(t, lonely)
	r.app.confirms.Wait()
	reads := r.store.Reads()
	if ids := r.timeline(t, lonely); len(ids) != 0 || r.store.Reads() != reads {
		t.Errorf("second read of an empty timeline: %v, %d database reads", ids, r.store.Reads()-reads)
	}
}

// before runs a function once, before the first command with this name and this argument goes to Redis.
type before struct {
	name string
	arg  any
	run  func()
	once sync.Once
}

func (b *before) DialHook(next redis.DialHook) redis.DialHook { return next }

func (b *before) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (b *before) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == b.name && cmd.Args()[1] == b.arg {
			b.once.Do(b.run)
		}
		return next(ctx, cmd)
	}
}

func hooked(t *testing.T, hook redis.Hook) regionOptions {
	return regionOptions{cache: func(address string) *Cache {
		client := redis.NewClient(redisOptions(CacheOptions{Address: address}))
		client.AddHook(hook)
		return newCache(client, client.Close, slog.New(slog.NewTextHandler(t.Output(), nil)))
	}}
}

// A post that comes after a refill has read the database and before it has filled the cache finds nothing to update.
func TestRefillRaceWithPost(t *testing.T) {
	hook := &before{name: "eval", arg: fillScript}
	r := startRegions(t, seeded(t, "us-east"), hooked(t, hook), "us-east")[0]
	author, followers := celebrity(t, r.store)
	reader := followers["us-east"][0]
	var posted int64
	hook.run = func() {
		tweet, _, err := r.store.Post(t.Context(), author, "in between", time.Now())
		if err != nil {
			t.Error(err)
		}
		r.app.applyFanOut(t.Context(), fanOut{tweet, followers["us-east"]}, true)
		posted = tweet.ID
	}
	if old := r.timeline(t, reader); slices.Contains(old, posted) || posted == 0 {
		t.Fatalf("the answer %v is not from before tweet %d: the race did not happen", old, posted)
	}
	r.app.confirms.Wait()
	if got := r.timeline(t, reader); !slices.Contains(got, posted) {
		t.Errorf("timeline %v lacks tweet %d", got, posted)
	}
}

// Whatever order posts, fan-outs and refills come in, in the end the caches say what the database says.
func TestTimelinesConverge(t *testing.T) {
	regions := startRegions(t, seeded(t, "us-east", "eu-west"), regionOptions{}, "us-east", "eu-west")
	author, _ := celebrity(t, regions[0].store)
	for range 8 {
		var requests sync.WaitGroup
		for i, r := range regions {
			if err := r.redis.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			requests.Go(func() {
				for range 10 {
					r.post(t, author, "hello")
				}
			})
			for worker := range 4 {
				requests.Go(func() {
					for user := int64(1 + i + 2*worker); user <= 60; user += 8 {
						r.timeline(t, user)
					}
				})
			}
		}
		requests.Wait()
		for _, r := range regions {
			r.app.fanOuts.Wait()
			r.app.confirms.Wait()
		}
		for user := int64(1); user <= 60; user++ {
			r := regions[(user-1)%2]
			if diff := cmp.Diff(r.truth(t, user), r.timeline(t, user)); diff != "" {
				t.Errorf("timeline of user %d (-database +answer):\n%s", user, diff)
			}
		}
		for _, r := range regions {
			r.app.confirms.Wait()
		}
	}
	for _, r := range regions {
		if s := r.app.Stats(); s.CacheErrors+s.FanOutErrors+s.Errors != 0 {
			t.Errorf("%s: stats %+v, want no error", r.name, s)
		}
	}
}

func TestRefillRaceWithProfileChange(t *testing.T) {
	hook := &before{name: "set", arg: profileKey(1)}
	r := startRegions(t, seeded(t, "us-east"), hooked(t, hook), "us-east")[0]
	hook.run = func() {
		if status, answer := r.do(t, http.MethodPatch, "/users/1", `{"bio":"new"}`); status != http.StatusNoContent {
			t.Errorf("PATCH: %d %s", status, answer)
		}
	}
	var u store.User
	if r.get(t, "/users/1", &u); u.Bio == "new" {
		t.Fatal("the answer is from after the change: the race did not happen")
	}
	r.app.confirms.Wait()
	if r.get(t, "/users/1", &u); u.Bio != "new" {
		t.Errorf("profile %+v, want the new bio", u)
	}
}

func TestConcurrentMissesReadTheDatabaseOnce(t *testing.T) {
	r := startRegions(t, seeded(t, "us-east"), regionOptions{latency: time.Second}, "us-east")[0]
	reads := r.store.Reads()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if tweets, err := r.app.tweets(t.Context(), []int64{7}); err != nil || len(tweets) != 1 {
				t.Errorf("tweet 7: %v, %v", tweets, err)
			}
		})
	}
	wg.Wait()
	if n := r.store.Reads() - reads; n != 1 {
		t.Errorf("100 concurrent misses made %d database reads, want 1", n)
	}
	if s := r.app.Stats(); s.CacheHits != 0 || s.CacheMisses != 100 {
		t.Errorf("stats %+v, want 100 misses", s)
	}
}

func TestStatsAgreeWithRedis(t *testing.T) {
	regions := startRegions(t, seeded(t, "us-east", "eu-west"), regionOptions{}, "us-east", "eu-west")
	homes, err := regions[0].store.Homes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, r := range regions {
		gen, err := workload.NewGenerator(workload.Default, workload.Population{Homes: homes, Region: r.name, Newest: 300}, uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		requests := make(chan workload.Request)
		wg.Go(func() {
			defer close(requests)
			for range 1000 {
				requests <- gen.Next()
			}
		})
		for range 8 {
			wg.Go(func() {
				for request := range requests {
					if status, answer := r.do(t, request.Method, request.Path, string(request.Body)); status/100 != 2 {
						t.Errorf("%s %s: %d %s", request.Method, request.Path, status, answer)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, r := range regions {
		if err := r.app.fanOuts.Wait(); err != nil {
			t.Error(err)
		}
		info, err := r.redis.InfoMap(t.Context(), "stats").Result()
		if err != nil {
			t.Fatal(err)
		}
		s := r.app.Stats()
		got := []string{strconv.FormatInt(s.CacheHits, 10), strconv.FormatInt(s.CacheMisses, 10)}
		want := []string{info["Stats"]["keyspace_hits"], info["Stats"]["keyspace_misses"]}
		if diff := cmp.Diff(want, got); diff != "" || s.CacheErrors != 0 {
			t.Errorf("%s: hits and misses (-Redis +app):\n%s%+v", r.name, diff, s)
		}
		if rate := float64(s.CacheHits) / float64(s.CacheHits+s.CacheMisses); rate < 0.7 {
			t.Errorf("%s: hit rate %.2f: the cache is hardly used", r.name, rate)
		}
	}
}

func TestWithoutRedisTheDatabaseAnswers(t *testing.T) {
	for _, autoPipeline := range []bool{true, false} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		nobody := l.Addr().String()
		l.Close()
		o := regionOptions{cache: func(string) *Cache {
			c, err := OpenCache(CacheOptions{Address: nobody, AutoPipeline: autoPipeline, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}}
		r := startRegions(t, seeded(t, "us-east"), o, "us-east")[0]
		if diff := cmp.Diff(r.truth(t, 1), r.timeline(t, 1)); diff != "" {
			t.Errorf("timeline (-database +answer):\n%s", diff)
		}
		var u store.User
		r.get(t, "/users/1", &u)
		r.post(t, 1, "hello #there")
		if status, answer := r.do(t, http.MethodPatch, "/users/1", `{"bio":"new"}`); status != http.StatusNoContent {
			t.Errorf("PATCH: %d %s", status, answer)
		}
		if r.get(t, "/users/1", &u); u.Bio != "new" {
			t.Errorf("profile %+v, want the new bio", u)
		}
		if s := r.app.Stats(); s.Errors != 0 || s.CacheErrors == 0 || s.CacheHits+s.CacheMisses != 0 {
			t.Errorf("stats %+v, want errors of the cache alone", s)
		}
	}
}

// What could not be updated while Redis hung is removed before it is read again.
func TestUpdatesMissedByAHungRedisAreRepaired(t *testing.T) {
	r := startRegions(t, seeded(t, "us-east"), regionOptions{}, "us-east")[0]
	author, followers := celebrity(t, r.store)
	reader := followers["us-east"][0]
	r.timeline(t, reader)
	r.app.confirms.Wait()
	if err := r.proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	posted := r.post(t, author, "while Redis hangs")
	r.app.fanOuts.Wait()
	if got := r.timeline(t, reader); !slices.Contains(got, posted) {
		t.Errorf("while Redis hangs, timeline %v lacks tweet %d", got, posted)
	}
	if err := r.proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the timeline is cached again", func() bool {
		if got := r.timeline(t, reader); !slices.Contains(got, posted) {
			t.Fatalf("after Redis hung, timeline %v lacks tweet %d", got, posted)
		}
		_, found := r.app.Cache.timeline(t.Context(), timelineKey(reader))
		return found == hit
	})
}

func TestSocketAndPassword(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "redis.sock")
	_, address := startRedis(t, "--unixsocket", socket)
	admin := redis.NewClient(&redis.Options{Addr: address})
	defer admin.Close()
	if err := admin.ConfigSet(t.Context(), "requirepass", "secret").Err(); err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]outcome{"secret": hit, "wrong": unavailable, "": unavailable} {
		for _, autoPipeline := range []bool{true, false} {
			c, err := OpenCache(CacheOptions{
				Address: "unix:" + socket, Password: password, AutoPipeline: autoPipeline, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			c.fill(t.Context(), "user:1", "value", time.Minute)
			if _, got := c.get(t.Context(), "user:1"); got != want {
				t.Errorf("password %q, automatic pipelining %v: outcome %d, want %d", password, autoPipeline, got, want)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
