package app

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

const (
	loaderPath    = "/internal/cache"
	maxLoaderBody = 1 << 20
	maxLoaderKeys = 512
)

// trendingList names the tweets that most timelines of a region hold: what its users are about to read.
const trendingList = "trending"

const (
	// maxTrending is about what a region's users read in an hour.
	maxTrending = 4000
	// trendingTimelines is in how many timelines a tweet is at least: one that few could read is mostly read by none.
	trendingTimelines = 2
)

// loaderRequest is a batch of keys whose values a cache wants, or a wish to know of which keys it might want them.
type loaderRequest struct {
	Keys   []string `json:"keys"`
	Prefix string   `json:"prefix"`
	Region string   `json:"region"`
	Cursor string   `json:"cursor"`
}

type loaderEntry struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	TTL   int64  `json:"ttlMs"`
}

// postLoader is for whoever fills caches ahead. It answers what the app itself would fill in after a miss.
func (a *App) postLoader(w http.ResponseWriter, r *http.Request) error {
	if !sameToken(r.Header.Get("Authorization"), "Bearer "+a.LoaderToken) {
		return apiError{http.StatusUnauthorized, "the loader wants its bearer token"}
	}
	var in loaderRequest
	if err := decode(w, r, maxLoaderBody, &in); err != nil {
		return err
	}
	if len(in.Keys) > maxLoaderKeys {
		return apiError{http.StatusBadRequest, fmt.Sprintf("%d keys: at most %d", len(in.Keys), maxLoaderKeys)}
	}
	if len(in.Keys) == 0 {
		keys, err := a.list(r.Context(), r.URL.Query().Get("list"), in)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, map[string]any{"keys": keys, "cursor": ""})
		return nil
	}
	entries, err := a.load(r.Context(), in.Keys)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"entries": entries})
	return nil
}

func sameToken(given, wanted string) bool {
	g, w := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(wanted))
	return subtle.ConstantTimeCompare(g[:], w[:]) == 1
}

func (a *App) list(ctx context.Context, name string, in loaderRequest) ([]string, error) {
	if name != trendingList || in.Prefix != tweetPrefix {
		return nil, apiError{http.StatusBadRequest, fmt.Sprintf("there is no list %q of keys that begin with %q: ask for ?list=%s and prefix %s", name, in.Prefix, trendingList, tweetPrefix)}
	}
	if in.Region == "" {
		return nil, apiError{http.StatusBadRequest, `"region" is missing`}
	}
	a.loaderReads.Add(1)
	ids, err := a.Store.Spread(ctx, in.Region, trendingTimelines, maxTrending)
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = tweetKey(id)
	}
	return keys, nil
}

// load leaves out keys that the database knows nothing of, and timelines: they are in no one value.
func (a *App) load(ctx context.Context, keys []string) ([]loaderEntry, error) {
	var tweets, users []int64
	for _, key := range keys {
		if id, ok := keyID(key, tweetPrefix); ok {
			tweets = append(tweets, id)
		} else if id, ok := keyID(key, profilePrefix); ok {
			users = append(users, id)
		}
	}
	entries := []loaderEntry{}
	for batch := range slices.Chunk(tweets, store.Many) {
		a.loaderReads.Add(1)
		rows, err := a.Store.Tweets(ctx, batch)
		if err != nil {
			return nil, err
		}
		for _, t := range rows {
			entries = append(entries, loaderEntry{tweetKey(t.ID), encodeTweet(t), a.TTLs.Tweet().Milliseconds()})
		}
	}
	for batch := range slices.Chunk(users, store.Many) {
		a.loaderReads.Add(1)
		rows, err := a.Store.Users(ctx, batch)
		if err != nil {
			return nil, err
		}
		for _, u := range rows {
			data, err := json.Marshal(u)
			if err != nil {
				return nil, err
			}
			entries = append(entries, loaderEntry{profileKey(u.ID), string(data), a.TTLs.Profile().Milliseconds()})
		}
	}
	return entries, nil
}

func keyID(key, prefix string) (int64, bool) {
	text, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseInt(text, 10, 64)
	return id, err == nil && id > 0
}
