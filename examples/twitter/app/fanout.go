package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

const (
	// fanOutBatch is how many timelines are updated at once, so that other requests get their turn in between.
	fanOutBatch = 250
	// fanOutPatience is how long a peer that does not answer is asked again. Its timelines then lack the tweet until
	// they expire.
	fanOutPatience = 30 * time.Second
)

// fanOut is the message between the apps of two regions.
type fanOut struct {
	Tweet     store.Tweet `json:"tweet"`
	Followers []int64     `json:"followers"`
}

// startFanOut brings a new tweet to the cached timelines of the author's followers, after the answer to the author. If
// the app is killed meanwhile, the timelines lack the tweet until they expire.
func (a *App) startFanOut(t store.Tweet, followers []int64) {
	a.fanOuts.Go(func() error {
		homes := make(map[string][]int64)
		for _, user := range followers {
			home, err := a.home(a.stop, user)
			if err != nil {
				a.fanOutErrors.Add(1)
				a.Log.Error("fan-out failed", "tweet", t.ID, "follower", user, "error", err)
				continue
			}
			homes[home] = append(homes[home], user)
		}
		var regions sync.WaitGroup
		for region, users := range homes {
			regions.Go(func() { a.fanOutTo(region, t, users) })
		}
		regions.Wait()
		return nil
	})
}

func (a *App) fanOutTo(region string, t store.Tweet, users []int64) {
	for batch := range slices.Chunk(users, fanOutBatch) {
		if region == a.Region {
			a.applyFanOut(a.stop, fanOut{t, batch}, true)
			continue
		}
		if err := a.sendFanOut(region, fanOut{t, batch}); err != nil {
			a.fanOutErrors.Add(1)
			a.Log.Error("fan-out failed", "tweet", t.ID, "region", region, "followers", len(batch), "error", err)
		}
	}
}

// applyFanOut updates the cached ones of the followers' timelines and, if asked to, caches the tweet, which they are about to read.
func (a *App) applyFanOut(ctx context.Context, f fanOut, ahead bool) {
	if a.Cache == nil {
		return
	}
	if ahead {
		a.Cache.set(ctx, map[string]string{tweetKey(f.Tweet.ID): encodeTweet(f.Tweet)}, a.TTLs.Tweet)
	}
	keys := make([]string, len(f.Followers))
	for i, user := range f.Followers {
		keys[i] = timelineKey(user)
	}
	a.Cache.push(ctx, keys, f.Tweet.ID)
}

func (a *App) sendFanOut(region string, f fanOut) error {
	peer := a.Peers[region]
	if peer == nil {
		return fmt.Errorf("no peer answers for region %s: name it with --peers", region)
	}
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	_, err = backoff.Retry(a.stop, func() (struct{}, error) {
		return struct{}{}, a.sendOnce(peer.JoinPath(fanOutPath), body)
	}, backoff.WithMaxElapsedTime(fanOutPatience))
	return err
}

func (a *App) sendOnce(to *url.URL, body []byte) error {
	req, err := http.NewRequestWithContext(a.stop, http.MethodPost, to.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s answered %s: %s", to, resp.Status, answer)
	}
	return nil
}
