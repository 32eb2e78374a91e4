package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

func open(t *testing.T, url string, latency time.Duration) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), url, latency)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// small is a world in which users 2 and 3 follow 1, and 3 also follows 2.
func small(tweets int) store.World {
	w := store.World{Parameters: "small", Follows: []store.Follow{{Follower: 2, Followee: 1}, {Follower: 3, Followee: 1}, {Follower: 3, Followee: 2}}}
	for id := range int64(3) {
		w.Users = append(w.Users, store.User{ID: id + 1, Name: fmt.Sprint("user", id+1), Home: []string{"us-east", "eu-west"}[id%2], Version: 1})
	}
	for id := range int64(tweets) {
		w.Tweets = append(w.Tweets, store.Tweet{ID: id + 1, User: 1 + id%2, Text: "seeded #tag", At: 1000 + id})
	}
	return w
}

func seed(t *testing.T, s *store.Store, w store.World) {
	t.Helper()
	if err := s.Seed(t.Context(), w, func(string, int) {}); err != nil {
		t.Fatal(err)
	}
}

func timeline(t *testing.T, s *store.Store, user int64) []int64 {
	t.Helper()
	ids, err := s.Timeline(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestPostsAndSeedingLeaveTheSameTimelines(t *testing.T) {
	w := small(50)
	seeded := open(t, "sqlite:"+filepath.Join(t.TempDir(), "a%b #c.db"), 0)
	seed(t, seeded, w)
	posted := open(t, "sqlite:"+filepath.Join(t.TempDir(), "db"), 0)
	seed(t, posted, small(0))
	for _, tweet := range w.Tweets {
		got, followers, err := posted.Post(t.Context(), tweet.User, tweet.Text, time.UnixMilli(tweet.At))
		if err != nil {
			t.Fatal(err)
		}
		if got != tweet {
			t.Errorf("posted %+v, want %+v", got, tweet)
		}
		slices.Sort(followers)
		if want := map[int64][]int64{1: {2, 3}, 2: {3}}[tweet.User]; !slices.Equal(followers, want) {
			t.Errorf("followers %v of user %d, want %v", followers, tweet.User, want)
		}
	}
	for user := range int64(4) {
		if diff := cmp.Diff(timeline(t, seeded, user), timeline(t, posted, user)); diff != "" {
			t.Errorf("timeline of user %d (-seeded +posted):\n%s", user, diff)
		}
	}
	if got := timeline(t, posted, 3); len(got) != store.TimelineLength || got[0] != 50 || got[store.TimelineLength-1] != 31 {
		t.Errorf("timeline of user 3: %v, want tweets 50 to 31", got)
	}
	if got := timeline(t, posted, 1); len(got) != 0 {
		t.Errorf("timeline of user 1, who follows nobody: %v", got)
	}
	trends, err := posted.Trending(t.Context(), time.UnixMilli(1030), 3)
	if err != nil || !slices.Equal(trends, []store.Trend{{Tag: "#tag", Tweets: 20}}) {
		t.Errorf("trending %v, %v, want #tag 20 times", trends, err)
	}
}

func TestSeedIsAllOrNothing(t *testing.T) {
	s := open(t, "sqlite:"+filepath.Join(t.TempDir(), "db"), 0)
	w := small(3)
	w.Tweets[2].ID = 1
	if err := s.Seed(t.Context(), w, func(string, int) {}); err == nil {
		t.Fatal("a world with a tweet id twice was accepted")
	}
	if p, err := s.Seeded(t.Context()); p != "" || err != nil {
		t.Errorf("after a failure seeded with %q, %v", p, err)
	}
	seed(t, s, small(3))
	if p, err := s.Seeded(t.Context()); p != "small" || err != nil {
		t.Errorf("seeded with %q, %v, want small", p, err)
	}
}

func TestTwoStoresWriteOneFile(t *testing.T) {
	url := "sqlite:" + filepath.Join(t.TempDir(), "db")
	a := open(t, url, 0)
	seed(t, a, small(0))
	b := open(t, url, 0)
	const posts = 40
	var wg sync.WaitGroup
	for _, s := range []*store.Store{a, b} {
		for range 4 {
			wg.Go(func() {
				for range posts / 8 {
					if _, _, err := s.Post(t.Context(), 1, "hello", time.Now()); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if newest, err := a.NewestTweet(t.Context()); newest != posts || err != nil {
		t.Errorf("newest tweet %d, %v, want %d", newest, err, posts)
	}
	if a.Writes() != posts/2 {
		t.Errorf("counted %d writes, want %d", a.Writes(), posts/2)
	}
}

func TestReads(t *testing.T) {
	s := open(t, "sqlite:"+filepath.Join(t.TempDir(), "db"), time.Millisecond)
	seed(t, s, small(5))
	before := s.Reads()
	tweets, err := s.Tweets(t.Context(), []int64{4, 2, 99})
	if err != nil || len(tweets) != 2 || tweets[0].ID+tweets[1].ID != 6 {
		t.Errorf("tweets 4, 2, 99: %+v, %v", tweets, err)
	}
	many := make([]int64, store.Many)
	for i := range many {
		many[i] = int64(i + 1)
	}
	if tweets, err := s.Tweets(t.Context(), many); err != nil || len(tweets) != 5 {
		t.Errorf("tweets 1 to %d: %+v, %v, want the 5 that there are", store.Many, tweets, err)
	}
	if users, err := s.Users(t.Context(), []int64{2, 1, 99}); err != nil || len(users) != 2 || users[0].Name+users[1].Name != "user1user2" {
		t.Errorf("users 2, 1, 99: %+v, %v", users, err)
	}
	if _, err := s.Tweets(t.Context(), make([]int64, store.Many+1)); err == nil {
		t.Error("more tweets than can be read at once: no error")
	}
	followers, err := s.Followers(t.Context(), 1)
	if diff := cmp.Diff(map[string][]int64{"eu-west": {2}, "us-east": {3}}, followers); diff != "" || err != nil {
		t.Errorf("followers of 1: %v (-want +got):\n%s", err, diff)
	}
	if _, err := s.User(t.Context(), 9); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("user 9: error %v", err)
	}
	if err := s.SetBio(t.Context(), 9, "x"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("bio of user 9: error %v", err)
	}
	if err := s.SetBio(t.Context(), 2, "new"); err != nil {
		t.Error(err)
	}
	user, err := s.User(t.Context(), 2)
	if want := (store.User{ID: 2, Name: "user2", Home: "eu-west", Bio: "new", Version: 2}); user != want || err != nil {
		t.Errorf("user 2: %+v, %v, want %+v", user, err, want)
	}
	if n := s.Reads() - before; n != 6 {
		t.Errorf("counted %d read queries, want 6", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Timeline(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("read of a caller who left: error %v", err)
	}
}

func TestSpread(t *testing.T) {
	s := open(t, "sqlite:"+filepath.Join(t.TempDir(), "db"), 0)
	w := small(4)
	w.Follows = append(w.Follows, store.Follow{Follower: 1, Followee: 2})
	seed(t, s, w)
	for _, c := range []struct {
		region    string
		timelines int
		want      []int64
	}{
		{"us-east", 1, []int64{4, 2, 3, 1}}, // users 1 and 3, who follow 2; 3 follows 1, too
		{"us-east", 2, []int64{4, 2}},
		{"eu-west", 1, []int64{3, 1}},
		{"mars", 1, []int64{}},
	} {
		got, err := s.Spread(t.Context(), c.region, c.timelines, 10)
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("in %d timelines of %s: %v (-want +got):\n%s", c.timelines, c.region, err, diff)
		}
	}
	if got, err := s.Spread(t.Context(), "us-east", 1, 2); len(got) != 2 || err != nil {
		t.Errorf("at most 2: %v, %v", got, err)
	}
}

func TestALaggingReplica(t *testing.T) {
	url := "sqlite:" + filepath.Join(t.TempDir(), "db")
	primary, replica := open(t, url, 0), open(t, url, 0)
	seed(t, primary, small(1))
	replica.Lag(time.Hour)
	bios := func(s *store.Store) string {
		u, err := s.User(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(u.Name, u.Bio, u.Version)
	}
	before := time.Now().Truncate(time.Millisecond)
	for _, bio := range []string{"a", "b"} {
		if err := primary.SetBio(t.Context(), 1, bio); err != nil {
			t.Fatal(err)
		}
	}
	if got := bios(primary); got != "user1b3" {
		t.Errorf("the primary has %s", got)
	}
	if got := bios(replica); got != "user11" {
		t.Errorf("the replica has %s", got)
	}
	replica.Lag(time.Millisecond)
	for end := time.Now().Add(10 * time.Second); bios(replica) != "user1b3"; {
		if time.Now().After(end) {
			t.Fatalf("the replica still has %s", bios(replica))
		}
	}
	bio, at, err := primary.Replaced(t.Context(), 1, 2)
	if err != nil || bio != "a" || at.Before(before) || at.After(time.Now()) {
		t.Errorf("version 2 was %q until %s, %v", bio, at, err)
	}
	if _, _, err := primary.Replaced(t.Context(), 1, 3); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the current version: %v", err)
	}
	if _, err := replica.User(t.Context(), 9); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("user 9 of the replica: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, url := range []string{"", "sqlite:", "twitter.db", "mysql://x"} {
		if s, err := store.Open(t.Context(), url, 0); err == nil {
			s.Close()
			t.Errorf("%q: no error", url)
		}
	}
}

func TestHashtags(t *testing.T) {
	got := store.Hashtags("#Go is #go, not a# or #; #œuvre_1!")
	if diff := cmp.Diff([]string{"#go", "#œuvre_1"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
