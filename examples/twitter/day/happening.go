package day

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

// Celebrity is that the user posts whom most follow; Match that people post from a stadium whose home is far away.
const (
	Celebrity = "celebrity"
	Match     = "match"
)

// When they happen, since the day's start. It is no morning anywhere then.
const (
	matchAt     = 16*time.Hour + 30*time.Minute
	celebrityAt = 19 * time.Hour
)

const (
	matchTweets = 12
	matchEvery  = 3 * time.Minute
	talkLasts   = time.Hour
	talkMost    = 0.4 // of the requests
)

// stadium is in Lyon.
var stadium = map[string]float64{"latitude": 45.765, "longitude": 4.982}

// Posted says that a tweet was posted of which people will talk.
type Posted struct {
	Kind      string    `json:"kind"` // posted
	Happening string    `json:"happening"`
	Tweet     int64     `json:"tweet"`
	Author    int64     `json:"author"`
	Home      string    `json:"home"`
	Followers int       `json:"followers"`
	At        time.Time `json:"at"`   // by the day's clock
	Real      time.Time `json:"real"` // by everybody else's
}

// Read says how often a tweet was read.
type Read struct {
	Kind      string         `json:"kind"` // read
	Tweet     int64          `json:"tweet"`
	Regions   map[string]int `json:"regions"`
	Hundredth time.Time      `json:"hundredth"` // read, of all regions, by everybody else's clock; zero if there was none
}

// watched counts the reads of one tweet.
type watched struct {
	mu    sync.Mutex
	read  Read
	part  []byte // of an answer that has it
	total int
}

func (w *watched) begin(tweet int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.read = Read{Kind: "read", Tweet: tweet, Regions: map[string]int{}}
	w.part = fmt.Appendf(nil, `"id":%d,`, tweet)
}

// answered is called for every answer: a tweet is read alone or in a timeline.
func (w *watched) answered(region string, r workload.Request, answer []byte, at time.Time) {
	if r.Method != http.MethodGet || r.Thing != workload.TweetOf && r.Thing != workload.Timeline {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.part == nil || !bytes.Contains(answer, w.part) {
		return
	}
	w.read.Regions[region]++
	if w.total++; w.total == 100 {
		w.read.Hundredth = at
	}
}

func (w *watched) end() Read {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part = nil
	return w.read
}

// happen lets the day's happenings happen.
func (r *runner) happen(ctx context.Context, homes map[int64]string) error {
	client := &http.Client{Timeout: 10 * time.Second}
	if err := r.match(ctx, client, homes); err != nil {
		return fmt.Errorf("%s: %w", Match, err)
	}
	if err := r.celebrity(ctx, client); err != nil {
		return fmt.Errorf("%s: %w", Celebrity, err)
	}
	return nil
}

// match has users post from the stadium whose home is another region, and the users of the region that is nearest read of it.
func (r *runner) match(ctx context.Context, client *http.Client, homes map[int64]string) error {
	away, near := r.Regions[0], r.sources[len(r.sources)-1]
	var authors []int64
	for _, id := range slices.Sorted(maps.Keys(homes)) {
		if homes[id] == away.Name && len(authors) < matchTweets {
			authors = append(authors, id)
		}
	}
	var tweets []int64
	for i, author := range authors {
		if !r.wait(ctx, matchAt+time.Duration(i)*matchEvery) {
			return nil
		}
		p, err := r.post(ctx, client, Match, away, map[string]any{"user": author, "text": fmt.Sprintf("minute %d, what a match #lyon", 3*i), "geo": stadium})
		if err != nil {
			return err
		}
		tweets = append(tweets, p.Tweet)
		near.talk.Store(&talk{tweets: slices.Clone(tweets), begins: r.real(matchAt), end: r.real(matchAt + talkLasts), most: talkMost})
	}
	return nil
}

// celebrity has the user post whom most follow, and everybody talk of it.
func (r *runner) celebrity(ctx context.Context, client *http.Client) error {
	author, err := r.db.BestKnown(ctx)
	if err != nil {
		return err
	}
	if !r.wait(ctx, celebrityAt) {
		return nil
	}
	i := slices.IndexFunc(r.Regions, func(region Region) bool { return region.Name == author.Home })
	if i < 0 {
		return fmt.Errorf("user %d lives in %s, which is not loaded", author.ID, author.Home)
	}
	p, err := r.post(ctx, client, Celebrity, r.Regions[i], map[string]any{"user": author.ID, "text": "good evening, everybody"})
	if err != nil {
		return err
	}
	r.watched.begin(p.Tweet)
	for _, s := range r.sources {
		s.talk.Store(&talk{tweets: []int64{p.Tweet}, begins: r.real(celebrityAt), end: r.real(celebrityAt + talkLasts), most: talkMost})
	}
	r.wait(ctx, celebrityAt+talkLasts)
	r.say(r.watched.end())
	return nil
}

func (r *runner) real(sinceStart time.Duration) time.Time {
	return r.Clock.When(r.Clock.Start.Add(sinceStart))
}

// wait says whether the time of the day has come.
func (r *runner) wait(ctx context.Context, sinceStart time.Duration) bool {
	select {
	case <-time.After(time.Until(r.real(sinceStart))):
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *runner) post(ctx context.Context, client *http.Client, happening string, home Region, tweet map[string]any) (Posted, error) {
	body, err := json.Marshal(tweet)
	if err != nil {
		return Posted{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, home.Targets[0]+"/tweets", bytes.NewReader(body))
	if err != nil {
		return Posted{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return Posted{}, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return Posted{}, err
	}
	if resp.StatusCode != http.StatusCreated {
		return Posted{}, fmt.Errorf("POST /tweets: %s: %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	var t store.Tweet
	if err := json.Unmarshal(answer, &t); err != nil {
		return Posted{}, err
	}
	followers, err := r.db.Followers(ctx, t.User)
	if err != nil {
		return Posted{}, err
	}
	now := time.Now()
	p := Posted{Kind: "posted", Happening: happening, Tweet: t.ID, Author: t.User, Home: home.Name, At: r.Clock.At(now), Real: now}
	for _, ids := range followers {
		p.Followers += len(ids)
	}
	r.say(p)
	return p, nil
}
