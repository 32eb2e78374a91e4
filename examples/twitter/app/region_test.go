package app

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
	"github.com/cachemesh/cachemesh/process"
)

// region is an app with a server, a database connection and a Redis of its own.
type region struct {
	name  string
	app   *App
	url   string
	store *store.Store
	redis *redis.Client // to look at the cache from outside
	proc  *process.Process
}

type regionOptions struct {
	latency time.Duration
	token   string // for the loader
	events  *Events
	cache   func(address string) *Cache // instead of the usual one
}

// seeded makes a database with a small world in the regions.
func seeded(t *testing.T, regions ...string) (url string) {
	t.Helper()
	url = "sqlite:" + filepath.Join(t.TempDir(), "db")
	db, err := store.Open(t.Context(), url, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w := workload.NewWorld(workload.Parameters{Users: 60, Tweets: 300, Regions: regions, Seed: 1}, time.Now())
	if err := db.Seed(t.Context(), w, func(string, int) {}); err != nil {
		t.Fatal(err)
	}
	return url
}

func startRedis(t *testing.T, args ...string) (*process.Process, string) {
	t.Helper()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	r := process.Redis{Port: ports[0], Dir: t.TempDir(), Args: args}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	proc, err := r.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proc.Stop(time.Second) })
	return proc, r.Address()
}

// startRegions starts an app for each name on the database, as peers of each other.
func startRegions(t *testing.T, db string, o regionOptions, names ...string) []*region {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	peers := make(map[string]*url.URL)
	servers := make([]*httptest.Server, len(names))
	for i, name := range names {
		servers[i] = httptest.NewUnstartedServer(nil)
		peers[name] = &url.URL{Scheme: "http", Host: servers[i].Listener.Addr().String()}
	}
	var regions []*region
	for i, name := range names {
		proc, address := startRedis(t)
		s, err := store.Open(t.Context(), db, o.latency)
		if err != nil {
			t.Fatal(err)
		}
		var cache *Cache
		if o.cache != nil {
			cache = o.cache(address)
		} else if cache, err = OpenCache(CacheOptions{Address: address, AutoPipeline: true, Log: log}); err != nil {
			t.Fatal(err)
		}
		hour := func() time.Duration { return time.Hour }
		a, err := New(t.Context(), Config{Region: name, Peers: peers, Store: s, Cache: cache, Events: o.events, LoaderToken: o.token, TTLs: TTLs{hour, hour, hour}, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		servers[i].Config.Handler = a
		servers[i].Start()
		direct := redis.NewClient(&redis.Options{Addr: address})
		t.Cleanup(func() {
			servers[i].Close()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := a.Close(ctx); err != nil {
				t.Error(err)
			}
			cache.Close()
			direct.Close()
			s.Close()
		})
		regions = append(regions, &region{name: name, app: a, url: servers[i].URL, store: s, redis: direct, proc: proc})
	}
	return regions
}

// do sends a request and returns the status and body.
func (r *region) do(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	return r.doAs(t, "", method, path, body)
}

// doAs sends a request with a bearer token.
func (r *region) doAs(t *testing.T, token, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// get decodes the answer to a GET, which must be 200.
func (r *region) get(t *testing.T, path string, into any) {
	t.Helper()
	status, body := r.do(t, http.MethodGet, path, "")
	if status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, status, body)
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("GET %s: %v in %s", path, err, body)
	}
}

// timeline returns the ids of a timeline as the API answers it.
func (r *region) timeline(t *testing.T, user int64) []int64 {
	t.Helper()
	var answer struct{ Tweets []store.Tweet }
	r.get(t, "/timeline/"+strconv.FormatInt(user, 10), &answer)
	ids := make([]int64, 0)
	for _, tweet := range answer.Tweets {
		ids = append(ids, tweet.ID)
	}
	return ids
}

// post posts a tweet and returns its id.
func (r *region) post(t *testing.T, user int64, text string) int64 {
	t.Helper()
	body, err := json.Marshal(map[string]any{"user": user, "text": text})
	if err != nil {
		t.Fatal(err)
	}
	status, answer := r.do(t, http.MethodPost, "/tweets", string(body))
	var tweet store.Tweet
	if err := json.Unmarshal([]byte(answer), &tweet); status != http.StatusCreated || err != nil {
		t.Fatalf("POST /tweets: %d %s", status, answer)
	}
	return tweet.ID
}

// truth is a timeline in the database.
func (r *region) truth(t *testing.T, user int64) []int64 {
	t.Helper()
	ids, err := r.store.Timeline(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// eventually waits until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// celebrity returns the user with the most followers in all regions, and the followers.
func celebrity(t *testing.T, s *store.Store) (user int64, followers map[string][]int64) {
	t.Helper()
	best := 0
	for id := int64(1); id <= 60; id++ {
		f, err := s.Followers(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(slices.Concat(f["us-east"], f["eu-west"])); n > best {
			user, followers, best = id, f, n
		}
	}
	return user, followers
}
