package day

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/app"
	"github.com/cachemesh/cachemesh/examples/twitter/load"
)

// Sample is what a region's users and apps have seen.
type Sample struct {
	Kind   string    `json:"kind"` // sample
	Region string    `json:"region"`
	At     time.Time `json:"at"`  // by the day's clock
	Day    float64   `json:"day"` // hours since the day's start
	// Of the second before.
	Requests int64   `json:"requests"`
	Errors   int64   `json:"errors"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Checked  int64   `json:"checked"`
	Wrong    int64   `json:"wrong"`
	// Of all apps of the region since they began.
	Hits        int64 `json:"cache_hits"`
	Misses      int64 `json:"cache_misses"`
	CacheErrors int64 `json:"cache_errors"`
	DBReads     int64 `json:"db_reads"`     // for users
	LoaderReads int64 `json:"loader_reads"` // of the database, for who fills caches ahead
	EventsSent  int64 `json:"events_sent"`
	EventsLost  int64 `json:"events_lost"`
}

// Total ends a region's day.
type Total struct {
	Kind   string `json:"kind"` // total
	Region string `json:"region"`
	load.Interval
}

func (r *runner) sample(ctx context.Context, client *http.Client, region Region, i load.Interval) (Sample, error) {
	at := r.Clock.At(time.Now())
	s := Sample{Kind: "sample", Region: region.Name, At: at, Day: at.Sub(r.Clock.Start).Hours(), Requests: i.Requests, Errors: i.Errors, P50: i.P50, P99: i.P99, Checked: i.Checked, Wrong: i.Wrong}
	for _, target := range region.Targets {
		stats, err := appStats(ctx, client, target)
		if err != nil {
			return s, err
		}
		s.Hits += stats.CacheHits
		s.Misses += stats.CacheMisses
		s.CacheErrors += stats.CacheErrors
		s.DBReads += stats.DBReads - stats.LoaderReads
		s.LoaderReads += stats.LoaderReads
		s.EventsSent += stats.EventsSent
		s.EventsLost += stats.EventsLost
	}
	return s, nil
}

func appStats(ctx context.Context, client *http.Client, target string) (stats app.Stats, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target+"/stats", nil)
	if err != nil {
		return stats, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return stats, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return stats, fmt.Errorf("GET %s/stats: %s", target, resp.Status)
	}
	return stats, json.NewDecoder(resp.Body).Decode(&stats)
}
