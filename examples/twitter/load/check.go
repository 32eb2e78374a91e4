package load

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

// An update may take travelTime to reach the cache before an answer without it is wrong. As the checker shares its
// machine with what it checks, a second in which all stood still does not count: it asks minAttempts times at least.
const (
	travelTime  = time.Second
	minAttempts = 10
)

// checker compares answers with the database.
type checker struct {
	db     *store.Store
	client *http.Client
}

// wrongAnswer is what the database never said.
type wrongAnswer struct{ key, got, want string }

func (w *wrongAnswer) Error() string {
	return fmt.Sprintf("%s: got %s, want %s", w.key, w.got, w.want)
}

// content is what an answer or the database says: of a timeline or tweet the tweets, of a profile the user.
type content struct {
	tweets []store.Tweet
	user   store.User
}

func checkable(r workload.Request) bool {
	return r.Method == http.MethodGet && r.ID != 0
}

// check returns nil for a right answer, a *wrongAnswer for a wrong one, and another error if it could not tell. An
// answer that differs from the database may have met a change on its way, so it is then asked again, with the database
// read before and after, until the travel time is over.
func (c *checker) check(ctx context.Context, target string, r workload.Request, body []byte) error {
	deadline := time.Now().Add(travelTime)
	before, err := c.truth(ctx, r)
	if err != nil {
		return err
	}
	answer, decodeErr := parse(r.Thing, body)
	after := before
	for attempts := 0; decodeErr != nil || !between(r.Thing, before, answer, after); attempts++ {
		if attempts >= minAttempts && time.Now().After(deadline) {
			got := fmt.Sprintf("%.1000s", body)
			return &wrongAnswer{key: fmt.Sprintf("%s:%d", keyPrefix[r.Thing], r.ID), got: got, want: after.String()}
		}
		time.Sleep(50 * time.Millisecond)
		if before, err = c.truth(ctx, r); err != nil {
			return err
		}
		if body, err = ask(ctx, c.client, target, r, true); err != nil {
			return err
		}
		if after, err = c.truth(ctx, r); err != nil {
			return err
		}
		answer, decodeErr = parse(r.Thing, body)
	}
	return nil
}

// age is how long before it was asked for a profile had been replaced, 0 for the current one. It is a *wrongAnswer beyond most, and for one
// that never was.
func (c *checker) age(ctx context.Context, r workload.Request, asked time.Time, body []byte, most time.Duration) (time.Duration, error) {
	answer, decodeErr := parse(r.Thing, body)
	now, err := c.truth(ctx, r)
	if err != nil || decodeErr == nil && answer.user == now.user {
		return 0, err
	}
	wrong := &wrongAnswer{key: fmt.Sprintf("%s:%d", keyPrefix[r.Thing], r.ID), got: fmt.Sprintf("%.1000s", body), want: now.String()}
	former := now.user
	former.Version = answer.user.Version
	var replaced time.Time
	former.Bio, replaced, err = c.db.Replaced(ctx, r.ID, former.Version)
	if errors.Is(err, store.ErrNotFound) || decodeErr != nil || err == nil && answer.user != former {
		return 0, wrong
	}
	age := max(0, asked.Sub(replaced))
	if err == nil && age > most {
		wrong.want += fmt.Sprintf(", which is so for %s, at most %s before", age.Round(time.Millisecond), most)
		return age, wrong
	}
	return age, err
}

var keyPrefix = map[workload.Thing]string{workload.Timeline: "timeline", workload.Profile: "user", workload.TweetOf: "tweet"}

func (c *checker) truth(ctx context.Context, r workload.Request) (content, error) {
	ids := []int64{r.ID}
	switch r.Thing {
	case workload.Profile:
		user, err := c.db.User(ctx, r.ID)
		return content{user: user}, err
	case workload.Timeline:
		var err error
		if ids, err = c.db.Timeline(ctx, r.ID); err != nil {
			return content{}, err
		}
	}
	tweets, err := c.db.Tweets(ctx, ids)
	newestFirst(tweets)
	return content{tweets: tweets}, err
}

func parse(thing workload.Thing, body []byte) (content, error) {
	var answer content
	switch thing {
	case workload.Profile:
		return answer, json.Unmarshal(body, &answer.user)
	case workload.Timeline:
		var timeline struct {
			Tweets []store.Tweet `json:"tweets"`
		}
		err := json.Unmarshal(body, &timeline)
		answer.tweets = timeline.Tweets
		return answer, err
	case workload.TweetOf:
		answer.tweets = make([]store.Tweet, 1)
		return answer, json.Unmarshal(body, &answer.tweets[0])
	}
	return answer, errors.New("nothing to check in " + string(thing))
}

// between says whether an answer is what the database held before, after, or at a moment in between.
func between(thing workload.Thing, before, answer, after content) bool {
	if thing == workload.Profile {
		return answer.user == before.user || answer.user == after.user ||
			answer.user.ID == before.user.ID && before.user.Version < answer.user.Version && answer.user.Version < after.user.Version
	}
	// Of what came in between, any part may be in the answer; it pushes out the oldest.
	expected := slices.Clone(before.tweets)
	for _, t := range after.tweets {
		if slices.Contains(answer.tweets, t) && !slices.Contains(before.tweets, t) {
			expected = append(expected, t)
		}
	}
	newestFirst(expected)
	return slices.Equal(answer.tweets, expected[:min(len(expected), store.TimelineLength)])
}

func newestFirst(tweets []store.Tweet) {
	slices.SortFunc(tweets, func(a, b store.Tweet) int { return cmp.Compare(b.ID, a.ID) })
}

func (c content) String() string {
	if c.user.ID != 0 {
		return fmt.Sprintf("%+v", c.user)
	}
	ids := make([]int64, len(c.tweets))
	for i, t := range c.tweets {
		ids[i] = t.ID
	}
	return fmt.Sprintf("tweets %v", ids)
}
