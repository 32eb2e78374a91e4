package app

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

// entry says how one key is read cache-aside.
type entry[T any] struct {
	key    string
	lookup func(ctx context.Context) (T, outcome)
	load   func(ctx context.Context) (T, error)
	fill   func(ctx context.Context, value T)
	// equal compares two loads; nil for what may be out of date for as long as it lives.
	equal func(a, b T) bool
}

// read returns an entry from the cache or loads it, once for all who miss it at the same time.
//
// A write that comes between load and fill finds nothing to update in the cache, and the old value would stay: so
// after the fill it is loaded again, and removed if it changed.
func read[T any](ctx context.Context, a *App, e entry[T]) (T, error) {
	if a.Cache == nil {
		return e.load(ctx)
	}
	value, found := e.lookup(ctx)
	if found == hit {
		return value, nil
	}
	shared, err, _ := a.flights.Do(e.key, func() (any, error) {
		// The one who came first may leave; the others stay.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backgroundTimeout)
		defer cancel()
		value, err := e.load(ctx)
		if err == nil && found == miss {
			e.fill(ctx, value)
			if e.equal != nil {
				a.confirms.Go(func() { confirm(a, e, value) })
			}
		}
		return value, err
	})
	if err != nil {
		return value, err
	}
	return shared.(T), nil
}

// confirm removes a filled entry unless the database still says the same.
func confirm[T any](a *App, e entry[T], filled T) {
	ctx, cancel := context.WithTimeout(a.stop, backgroundTimeout)
	defer cancel()
	value, err := e.load(ctx)
	if err != nil || !e.equal(value, filled) {
		a.Cache.invalidate(ctx, e.key)
	}
}

// forget makes a changed key be loaded anew: by readers from now on too, though a load is under way.
func (a *App) forget(ctx context.Context, key string) {
	if a.Cache == nil {
		return
	}
	a.flights.Forget(key)
	a.Cache.invalidate(ctx, key)
}

const (
	timelinePrefix = "timeline:"
	profilePrefix  = "user:"
	tweetPrefix    = "tweet:"
)

func timelineKey(user int64) string { return timelinePrefix + strconv.FormatInt(user, 10) }
func profileKey(user int64) string  { return profilePrefix + strconv.FormatInt(user, 10) }
func tweetKey(id int64) string      { return tweetPrefix + strconv.FormatInt(id, 10) }

// timeline returns the ids of a user's timeline, newest first.
func (a *App) timeline(ctx context.Context, user int64) ([]int64, error) {
	key := timelineKey(user)
	return read(ctx, a, entry[[]int64]{
		key:    key,
		lookup: func(ctx context.Context) ([]int64, outcome) { return a.Cache.timeline(ctx, key) },
		load:   func(ctx context.Context) ([]int64, error) { return a.Store.Timeline(ctx, user) },
		fill:   func(ctx context.Context, ids []int64) { a.Cache.fillTimeline(ctx, key, ids, a.TTLs.Timeline()) },
		equal:  slices.Equal[[]int64],
	})
}

// text is an entry that is cached as the JSON that the API answers.
func (a *App) text(key string, ttl func() time.Duration, load func(ctx context.Context) (any, error)) entry[string] {
	return entry[string]{
		key:    key,
		lookup: func(ctx context.Context) (string, outcome) { return a.Cache.get(ctx, key) },
		load: func(ctx context.Context) (string, error) {
			value, err := load(ctx)
			if err != nil {
				return "", err
			}
			data, err := json.Marshal(value)
			return string(data), err
		},
		fill: func(ctx context.Context, value string) { a.Cache.fill(ctx, key, value, ttl()) },
	}
}

// profile returns a user's profile as JSON.
func (a *App) profile(ctx context.Context, user int64) (string, error) {
	e := a.text(profileKey(user), a.TTLs.Profile, func(ctx context.Context) (any, error) { return a.Store.User(ctx, user) })
	e.equal = func(a, b string) bool { return a == b }
	return read(ctx, a, e)
}

const (
	trendingMinutes = 10
	trendingTags    = 10
	trendingTTL     = 5 * time.Second
)

// trending returns the hashtags of the last minutes as JSON.
func (a *App) trending(ctx context.Context) (string, error) {
	key := fmt.Sprintf("trend:%dm", trendingMinutes)
	ttl := func() time.Duration { return trendingTTL }
	return read(ctx, a, a.text(key, ttl, func(ctx context.Context) (any, error) {
		trends, err := a.Store.Trending(ctx, time.Now().Add(-trendingMinutes*time.Minute), trendingTags)
		return map[string]any{"minutes": trendingMinutes, "trends": trends}, err
	}))
}

// tweets returns tweets as JSON in the order of ids, at most store.TimelineLength; unknown ones are left out.
func (a *App) tweets(ctx context.Context, ids []int64) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	if a.Cache == nil {
		loaded, err := a.loadTweets(ctx, ids)
		return pick(ids, loaded), err
	}
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = tweetKey(id)
	}
	values, outcomes := a.Cache.multiGet(ctx, keys)
	found := make(map[int64]string, len(ids))
	var absent []int64
	var absentKeys []string
	fill := make(map[int64]bool)
	for i, id := range ids {
		if outcomes[i] == hit {
			found[id] = values[i]
			continue
		}
		absent, absentKeys = append(absent, id), append(absentKeys, keys[i])
		fill[id] = outcomes[i] == miss
	}
	if len(absent) == 0 {
		return values, nil
	}
	shared, err, _ := a.flights.Do(strings.Join(absentKeys, " "), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backgroundTimeout)
		defer cancel()
		loaded, err := a.loadTweets(ctx, absent)
		fills := make(map[string]string)
		for id, tweet := range loaded {
			if fill[id] {
				fills[tweetKey(id)] = tweet
			}
		}
		if len(fills) > 0 {
			a.Cache.set(ctx, fills, a.TTLs.Tweet)
		}
		return loaded, err
	})
	if err != nil {
		return nil, err
	}
	for id, tweet := range shared.(map[int64]string) {
		found[id] = tweet
	}
	return pick(ids, found), nil
}

func (a *App) loadTweets(ctx context.Context, ids []int64) (map[int64]string, error) {
	tweets, err := a.Store.Tweets(ctx, ids)
	if err != nil {
		return nil, err
	}
	loaded := make(map[int64]string, len(tweets))
	for _, t := range tweets {
		loaded[t.ID] = encodeTweet(t)
	}
	return loaded, nil
}

func encodeTweet(t store.Tweet) string {
	data, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return string(data)
}

func pick(ids []int64, from map[int64]string) []string {
	picked := make([]string, 0, len(ids))
	for _, id := range ids {
		if v, ok := from[id]; ok {
			picked = append(picked, v)
		}
	}
	return picked
}
