package day

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

// source draws a region's requests: those of every day, and those for what everybody talks about right now.
type source struct {
	gen *workload.Generator
	rng *rand.Rand
	now func() time.Time // by the day's clock, where the users are
	// settling are read in between, once: caches that have been there for days hold what does not change.
	settling []workload.Request
	popular  atomic.Pointer[[]int64]
	talk     atomic.Pointer[talk]
}

// settlingShare is how many of the requests settle, as long as there are any.
const settlingShare = 0.7

// settle has every timeline of the region's users read, and every profile.
func (s *source) settle(homes map[int64]string) {
	for user, home := range homes {
		s.settling = append(s.settling, workload.Request{Method: http.MethodGet, Path: fmt.Sprintf("/users/%d", user), Thing: workload.Profile, ID: user})
		if home == s.gen.Region {
			s.settling = append(s.settling, workload.Request{Method: http.MethodGet, Path: fmt.Sprintf("/timeline/%d", user), Thing: workload.Timeline, ID: user})
		}
	}
}

// talk is about some tweets, more and more from when it begins until it ends.
type talk struct {
	tweets      []int64
	begins, end time.Time
	most        float64 // share of the requests in the end
}

// Next implements load.Source.
func (s *source) Next() workload.Request {
	if n := len(s.settling); n > 0 && s.rng.Float64() < settlingShare {
		r := s.settling[n-1]
		s.settling = s.settling[:n-1]
		return r
	}
	if t := s.talk.Load(); t != nil {
		now := time.Now()
		if now.Before(t.end) && s.rng.Float64() < t.most*float64(now.Sub(t.begins))/float64(t.end.Sub(t.begins)) {
			return readTweet(t.tweets[s.rng.IntN(len(t.tweets))])
		}
	}
	now := s.now()
	if ids := s.popular.Load(); ids != nil && len(*ids) > 0 {
		s.gen.Popular = *ids
		if s.rng.Float64() < catchingUp(now) {
			return readTweet((*ids)[s.rng.IntN(len(*ids))])
		}
	}
	for {
		if r := s.gen.Next(); r.Method != http.MethodPost || s.rng.Float64() < between(posting, now) {
			return r
		}
	}
}

func readTweet(id int64) workload.Request {
	return workload.Request{Method: http.MethodGet, Path: fmt.Sprintf("/tweets/%d", id), Thing: workload.TweetOf, ID: id}
}
