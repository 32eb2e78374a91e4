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
	gen     *workload.Generator
	rng     *rand.Rand
	popular atomic.Pointer[[]int64]
	talk    atomic.Pointer[talk]
}

// talk is about some tweets, more and more from when it begins until it ends.
type talk struct {
	tweets      []int64
	begins, end time.Time
	most        float64 // share of the requests in the end
}

// Next implements load.Source.
func (s *source) Next() workload.Request {
	if t := s.talk.Load(); t != nil {
		now := time.Now()
		if now.Before(t.end) && s.rng.Float64() < t.most*float64(now.Sub(t.begins))/float64(t.end.Sub(t.begins)) {
			id := t.tweets[s.rng.IntN(len(t.tweets))]
			return workload.Request{Method: http.MethodGet, Path: fmt.Sprintf("/tweets/%d", id), Thing: workload.TweetOf, ID: id}
		}
	}
	if ids := s.popular.Load(); ids != nil {
		s.gen.Popular = *ids
	}
	return s.gen.Next()
}
