package app

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newEvents(t *testing.T, take http.HandlerFunc) *Events {
	t.Helper()
	server := httptest.NewServer(take)
	t.Cleanup(server.Close)
	to, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return NewEvents(to, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func TestPostsAreTold(t *testing.T) {
	told := make(chan []event, 10)
	events := newEvents(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var batch []event
		if err := json.Unmarshal(body, &batch); err != nil {
			t.Errorf("%v in %s", err, body)
		}
		told <- batch
	})
	go events.Run(t.Context())
	regions := startRegions(t, seeded(t, "us-east", "eu-west"), regionOptions{events: events}, "us-east", "eu-west")
	author, followers := celebrity(t, regions[0].store)
	home, other := regions[0], regions[1]
	if homes, err := home.store.Homes(t.Context()); err != nil || homes[author] != home.name {
		home, other = other, home
	}
	reader := followers[other.name][0]
	other.timeline(t, reader)
	id := home.post(t, author, "here")
	status, text := home.do(t, "POST", "/tweets", `{"user":`+strconv.FormatInt(author, 10)+`,"text":"there","geo":{"latitude":45.75,"longitude":4.85}}`)
	if status != http.StatusCreated {
		t.Fatalf("a tweet with a place: %d %s", status, text)
	}
	var got []event
	for len(got) < 2 {
		got = append(got, <-told...)
	}
	if got[0].ID > got[1].ID {
		got[0], got[1] = got[1], got[0]
	}
	count := len(followers["us-east"]) + len(followers["eu-west"])
	want := event{Type: "tweet.created", ID: id, Author: eventAuthor{ID: author, Home: home.name, Followers: count}, At: got[0].At}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&Place{45.75, 4.85}, got[1].Geo); diff != "" {
		t.Errorf("place (-want +got):\n%s", diff)
	}
	// The follower's timeline has it, and the tweet itself is left to who heard of it.
	eventually(t, "a timeline with the new tweet", func() bool { return other.timeline(t, reader)[1] == id })
	if n, err := home.redis.Exists(t.Context(), tweetKey(id)).Result(); n != 1 || err != nil {
		t.Errorf("the author's region does not hold the tweet: %d, %v", n, err)
	}
}

// What nobody takes is dropped, and no post waits for it.
func TestEventsAreBounded(t *testing.T) {
	refuse := make(chan struct{})
	events := newEvents(t, func(w http.ResponseWriter, _ *http.Request) {
		<-refuse
		w.WriteHeader(http.StatusTooManyRequests)
	})
	go events.Run(t.Context())
	const told = 3 * maxEvents
	for i := range told {
		events.tell(event{ID: int64(i)})
	}
	if lost := events.lost.Load(); lost < told-maxEvents-eventsTogether-1 || lost > told-maxEvents {
		t.Errorf("%d of %d events are dropped while %d may wait", lost, told, maxEvents)
	}
	close(refuse)
	eventually(t, "refused events are counted as lost", func() bool { return events.lost.Load() == told })
	if events.sent.Load() != 0 {
		t.Errorf("%d events count as sent", events.sent.Load())
	}
}
