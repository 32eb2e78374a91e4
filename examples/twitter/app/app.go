// Package app is the Twitter example's service: an HTTP API over the database, with a cache beside it.
//
// The database is the source of truth. Reads go cache-aside through a Redis that the app knows by its address only;
// whatever goes wrong there is counted and answered from the database. Timelines are computed ahead: a post is written
// into the followers' timelines in the database, then into those that a cache holds (fan-out on write).
//
// Each user has a home region, whose app alone answers for the user's timeline and profile, so that one region's cache
// holds them. (Profiles are answered for in every region if their caches are Coherent.) The app never writes to another region's cache: it asks that region's app.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

// Config is what an App works with.
type Config struct {
	Region string
	// Coherent says that what is removed from one region's cache is removed from all. Then profiles may be in each of them.
	Coherent bool
	Peers    map[string]*url.URL // the app of each other region
	Store    *store.Store
	Cache    *Cache // nil answers everything from the database
	// Events takes what happens here; nil is nobody. Whoever takes them decides which tweets other regions' caches hold ahead; else a follower's
	// region holds each.
	Events      *Events
	LoaderToken string // of those who may ask for what a cache is to hold; "" is nobody
	TTLs        TTLs
	Log         *slog.Logger
}

// TTLs draw the lifetime of a cached entry.
type TTLs struct{ Timeline, Profile, Tweet func() time.Duration }

// App is the service of one region.
type App struct {
	Config
	handler http.Handler
	client  *http.Client // for fan-out to peers
	proxies map[string]*httputil.ReverseProxy

	homesMu sync.RWMutex
	homes   map[int64]string // a home never changes

	flights  singleflight.Group
	confirms sync.WaitGroup
	// fanOuts has a limit, at which posts wait: a bound for the memory, far above what runs at a time.
	fanOuts errgroup.Group
	stop    context.Context // ends what runs in the background
	cancel  context.CancelFunc

	requests, errors, fanOutErrors, loaderReads atomic.Int64
}

const (
	fanOutLimit = 1000
	// backgroundTimeout bounds what is done for several requests or for none.
	backgroundTimeout = 10 * time.Second
)

// New makes an App. It reads the users' homes, and warns of regions that nobody answers for.
func New(ctx context.Context, c Config) (*App, error) {
	homes, err := c.Store.Homes(ctx)
	if err != nil {
		return nil, err
	}
	a := &App{Config: c, homes: homes, proxies: make(map[string]*httputil.ReverseProxy)}
	a.stop, a.cancel = context.WithCancel(context.Background())
	a.fanOuts.SetLimit(fanOutLimit)
	transport := &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: 5 * time.Second}
	a.client = &http.Client{Transport: transport, Timeout: 5 * time.Second}
	for region, peer := range c.Peers {
		a.proxies[region] = a.newProxy(region, peer, transport)
	}
	unknown := make(map[string]bool)
	for _, home := range homes {
		if home != c.Region && a.Peers[home] == nil && !unknown[home] {
			unknown[home] = true
			c.Log.Warn("users live in a region without a peer: name it with --peers", "region", home)
		}
	}
	a.handler = a.routes()
	return a, nil
}

// ServeHTTP answers the API.
func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }

// Close finishes what posts and refills left to do, until ctx ends. No request may be under way.
func (a *App) Close(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		a.fanOuts.Wait()
		a.confirms.Wait()
		close(done)
	}()
	defer a.cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fan-outs were left unfinished: %w", ctx.Err())
	}
}

// Stats are counts since the start, as GET /stats shows them.
type Stats struct {
	Region       string `json:"region"`
	Requests     int64  `json:"requests"` // of the API; a request that a peer passed on counts in both apps
	Errors       int64  `json:"errors"`   // answers of 500 and above
	CacheHits    int64  `json:"cache_hits"`
	CacheMisses  int64  `json:"cache_misses"` // one for each key that was looked up, as Redis counts
	CacheErrors  int64  `json:"cache_errors"`
	DBReads      int64  `json:"db_reads"` // read queries, those for the loader among them
	LoaderReads  int64  `json:"loader_reads"`
	DBWrites     int64  `json:"db_writes"`     // writing transactions
	FanOutErrors int64  `json:"fanout_errors"` // batches that another region never got
	EventsSent   int64  `json:"events_sent"`
	EventsLost   int64  `json:"events_lost"` // as too many were waiting, or nobody took them
}

// Stats returns the counts.
func (a *App) Stats() Stats {
	s := Stats{
		Region: a.Region, Requests: a.requests.Load(), Errors: a.errors.Load(),
		DBReads: a.Store.Reads(), LoaderReads: a.loaderReads.Load(), DBWrites: a.Store.Writes(), FanOutErrors: a.fanOutErrors.Load(),
	}
	if a.Events != nil {
		s.EventsSent, s.EventsLost = a.Events.sent.Load(), a.Events.lost.Load()
	}
	if a.Cache != nil {
		s.CacheHits, s.CacheMisses, s.CacheErrors = a.Cache.hits.Load(), a.Cache.misses.Load(), a.Cache.errors.Load()
	}
	return s
}

// home returns a user's home region, or store.ErrNotFound.
func (a *App) home(ctx context.Context, user int64) (string, error) {
	a.homesMu.RLock()
	home, ok := a.homes[user]
	a.homesMu.RUnlock()
	if ok {
		return home, nil
	}
	home, err := a.Store.Home(ctx, user)
	if errors.Is(err, store.ErrNotFound) {
		return "", apiError{http.StatusNotFound, fmt.Sprintf("there is no user %d", user)}
	}
	if err != nil {
		return "", err
	}
	a.homesMu.Lock()
	a.homes[user] = home
	a.homesMu.Unlock()
	return home, nil
}
