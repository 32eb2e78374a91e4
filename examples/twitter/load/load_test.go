package load

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/examples/twitter/app"
	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
	"github.com/cachemesh/cachemesh/process"
)

// service is a running app of one region, which is the whole world.
type service struct {
	url   string
	db    *store.Store // for the checks
	redis *redis.Client
	gen   *workload.Generator
}

func start(t *testing.T) *service {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	url := "sqlite:" + filepath.Join(t.TempDir(), "db")
	var stores [2]*store.Store
	for i := range stores {
		s, err := store.Open(t.Context(), url, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		stores[i] = s
	}
	w := workload.NewWorld(workload.Parameters{Users: 60, Tweets: 300, Regions: []string{"us-east"}, Seed: 1}, time.Now())
	if err := stores[0].Seed(t.Context(), w, func(string, int) {}); err != nil {
		t.Fatal(err)
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	r := process.Redis{Port: ports[0], Dir: t.TempDir()}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	proc, err := r.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proc.Stop(time.Second) })
	cache, err := app.OpenCache(app.CacheOptions{Address: r.Address(), AutoPipeline: true, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	hour := func() time.Duration { return time.Hour }
	a, err := app.New(t.Context(), app.Config{Region: "us-east", Store: stores[0], Cache: cache, TTLs: app.TTLs{Timeline: hour, Profile: hour, Tweet: hour}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(a)
	client := redis.NewClient(&redis.Options{Addr: r.Address()})
	t.Cleanup(func() {
		server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := a.Close(ctx); err != nil {
			t.Error(err)
		}
		cache.Close()
		client.Close()
	})
	homes, err := stores[1].Homes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gen, err := workload.NewGenerator(workload.Default, workload.Population{Homes: homes, Region: "us-east", Newest: 300}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return &service{url: server.URL, db: stores[1], redis: client, gen: gen}
}

func TestLoadOfAServiceThatIsRight(t *testing.T) {
	s := start(t)
	var sum Interval
	total := Run(t.Context(), Config{
		Targets: []string{s.url}, Rate: 100, For: 3 * time.Second, Check: 1, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Report: func(i Interval) {
			sum.Requests += i.Requests
			sum.Checked += i.Checked
		},
	}, s.gen, s.db)
	// 300 arrivals are expected; six standard deviations are 104.
	if total.Requests < 196 || total.Requests > 404 || total.Errors != 0 || total.Wrong != 0 || !total.Final {
		t.Errorf("total %+v, want about 300 requests, none wrong", total)
	}
	if total.Checked == 0 || total.P50 <= 0 || total.P99 < total.P50 {
		t.Errorf("total %+v, want answers checked, and latencies", total)
	}
	if sum.Requests == 0 || sum.Requests > total.Requests || sum.Checked > total.Checked {
		t.Errorf("the intervals add up to %+v, the total is %+v", sum, total)
	}
}

// The age of a planted value is found, however the database went on.
func TestStaleProfilesAreFound(t *testing.T) {
	s := start(t)
	request := workload.Request{Method: "GET", Path: "/users/5", Thing: workload.Profile, ID: 5}
	get := func() ([]byte, time.Time) {
		asked := time.Now()
		answer, err := ask(t.Context(), http.DefaultClient, s.url, request, true)
		if err != nil {
			t.Fatal(err)
		}
		return answer, asked
	}
	c := &checker{db: s.db, client: http.DefaultClient}
	answer, asked := get()
	if age, err := c.age(t.Context(), request, asked, answer, time.Second); age != 0 || err != nil {
		t.Errorf("the current profile is %s old, %v", age, err)
	}
	// Nobody tells the cache.
	for _, bio := range []string{"one", "two"} {
		if err := s.db.SetBio(t.Context(), 5, bio); err != nil {
			t.Fatal(err)
		}
	}
	answer, asked = get()
	asked = asked.Add(3 * time.Second)
	if age, err := c.age(t.Context(), request, asked, answer, 10*time.Second); age < 3*time.Second || age > 9*time.Second || err != nil {
		t.Errorf("a profile that was replaced 3 s ago is %s old, %v", age, err)
	}
	var wrong *wrongAnswer
	if _, err := c.age(t.Context(), request, asked, answer, 2*time.Second); !errors.As(err, &wrong) {
		t.Errorf("older than allowed: %v", err)
	}
	for _, never := range []string{"no JSON", strings.Replace(string(answer), `"version":1`, `"version":2`, 1), strings.Replace(string(answer), `"version":1`, `"version":7`, 1)} {
		if _, err := c.age(t.Context(), request, asked, []byte(never), time.Minute); !errors.As(err, &wrong) {
			t.Errorf("%s: %v", never, err)
		}
	}
}

func TestPlantedWrongAnswersAreFound(t *testing.T) {
	s := start(t)
	c := &checker{db: s.db, client: http.DefaultClient}
	for _, planted := range []struct {
		request workload.Request
		key     string
		plant   func(key string) error
	}{
		{workload.Request{Method: "GET", Path: "/users/5", Thing: workload.Profile, ID: 5}, "user:5", func(key string) error {
			value, err := s.redis.Get(t.Context(), key).Result()
			return errors.Join(err, s.redis.Set(t.Context(), key, strings.Replace(value, `"bio":"`, `"bio":"x`, 1), time.Hour).Err())
		}},
		{workload.Request{Method: "GET", Path: "/tweets/9", Thing: workload.TweetOf, ID: 9}, "tweet:9", func(key string) error {
			return s.redis.Set(t.Context(), key, "no JSON", time.Hour).Err()
		}},
		{workload.Request{Method: "GET", Path: "/timeline/3", Thing: workload.Timeline, ID: 3}, "timeline:3", func(key string) error {
			return s.redis.ZRemRangeByRank(t.Context(), key, -1, -1).Err()
		}},
	} {
		for range 2 { // from the database, then from the cache
			answer, err := ask(t.Context(), http.DefaultClient, s.url, planted.request, true)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.check(t.Context(), s.url, planted.request, answer); err != nil {
				t.Errorf("before anything was planted: %v", err)
			}
		}
		if err := planted.plant(planted.key); err != nil {
			t.Fatal(err)
		}
		answer, err := ask(t.Context(), http.DefaultClient, s.url, planted.request, true)
		if err != nil {
			t.Fatal(err)
		}
		var wrong *wrongAnswer
		if err := c.check(t.Context(), s.url, planted.request, answer); !errors.As(err, &wrong) || wrong.key != planted.key {
			t.Errorf("planted in %s: %v, want a wrong answer that names it", planted.key, err)
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	s := start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	total := Run(t.Context(), Config{
		Targets: []string{"http://" + l.Addr().String()}, Rate: 100, For: time.Second, Fixed: true,
		Report: func(Interval) {}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}, s.gen, s.db)
	if total.Requests != 99 || total.Errors != 99 {
		t.Errorf("total %+v, want 99 requests, all errors", total)
	}
}

func TestBetween(t *testing.T) {
	tweets := func(ids ...int64) content {
		var c content
		for _, id := range ids {
			c.tweets = append(c.tweets, store.Tweet{ID: id, Text: "t"})
		}
		return c
	}
	run := func(from, to int64) content { // newest first
		var ids []int64
		for id := from; id >= to; id-- {
			ids = append(ids, id)
		}
		return tweets(ids...)
	}
	user := func(version int64, bio string) content {
		return content{user: store.User{ID: 1, Version: version, Bio: bio}}
	}
	forged := tweets(9, 8)
	forged.tweets[1].Text = "forged"
	for _, c := range []struct {
		name                  string
		thing                 workload.Thing
		before, answer, after content
		want                  bool
	}{
		{"same", workload.Timeline, tweets(9, 8), tweets(9, 8), tweets(9, 8), true},
		{"empty", workload.Timeline, tweets(), tweets(), tweets(), true},
		{"old", workload.Timeline, tweets(9, 8), tweets(9, 8), tweets(10, 9, 8), true},
		{"new", workload.Timeline, tweets(9, 8), tweets(10, 9, 8), tweets(10, 9, 8), true},
		{"one of two arrivals", workload.Timeline, tweets(9), tweets(11, 9), tweets(11, 10, 9), true},
		{"pushed out", workload.Timeline, run(20, 1), run(21, 2), run(22, 3), true},
		{"not pushed out", workload.Timeline, run(20, 1), run(21, 1), run(22, 3), false},
		{"lacks one", workload.Timeline, tweets(9, 8), tweets(9), tweets(9, 8), false},
		{"never there", workload.Timeline, tweets(9, 8), tweets(10, 9, 8), tweets(9, 8), false},
		{"wrong order", workload.Timeline, tweets(9, 8), tweets(8, 9), tweets(9, 8), false},
		{"twice", workload.Timeline, tweets(9), tweets(9, 9), tweets(9), false},
		{"forged text", workload.Timeline, tweets(9, 8), forged, tweets(9, 8), false},
		{"tweet", workload.TweetOf, tweets(9), tweets(9), tweets(9), true},
		{"another tweet", workload.TweetOf, tweets(9), tweets(8), tweets(9), false},
		{"profile before", workload.Profile, user(1, "a"), user(1, "a"), user(2, "b"), true},
		{"profile after", workload.Profile, user(1, "a"), user(2, "b"), user(2, "b"), true},
		{"profile in between", workload.Profile, user(1, "a"), user(2, "b"), user(3, "c"), true},
		{"older profile", workload.Profile, user(2, "b"), user(1, "a"), user(2, "b"), false},
		{"forged profile", workload.Profile, user(2, "b"), user(2, "x"), user(2, "b"), false},
	} {
		if got := between(c.thing, c.before, c.answer, c.after); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
