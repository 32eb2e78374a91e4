package queue

import (
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// maxSample is how many of a run's keys are looked at later.
const maxSample = 1000

// sampling says which keys are still worth telling of: those whose hash is below those of the sample.
type sampling struct{ below atomic.Uint64 }

func (s *sampling) set(score string) {
	if f, err := strconv.ParseFloat(score, 64); err == nil {
		s.below.Store(uint64(f) + 1)
	}
}

// Wants says whether a key that was loaded, by a hash of it, is one of the sample.
func (q *Queue) Wants(hash uint64) bool {
	below := q.sampling.below.Load()
	return hash>>hashShift < below || below == 0
}

// hashShift leaves what a float64 holds.
const hashShift = 64 - 52

// seen is what a sample's hash says of a key: when it was loaded, when it ends, in milliseconds since 1970, and what became of it.
func seen(s Sample) string { return seenAs(s, unread) }

func seenAs(s Sample, fate byte) string {
	ends := int64(math.MaxInt64)
	if !s.Ends.IsZero() {
		ends = s.Ends.UnixMilli()
	}
	return strconv.FormatInt(s.Loaded.UnixMilli(), 10) + " " + strconv.FormatInt(ends, 10) + " " + string(fate)
}

// What becomes of a key.
const (
	unread  = '-'
	read    = 'r'
	evicted = 'e'
	expired = 'x' // unread
)

func parseSeen(key, text string) (s Sample, fate byte, ok bool) {
	parts := strings.Split(text, " ")
	if len(parts) != 3 || len(parts[2]) != 1 {
		return s, 0, false
	}
	loaded, err := strconv.ParseInt(parts[0], 10, 64)
	ends, errEnds := strconv.ParseInt(parts[1], 10, 64)
	s = Sample{Key: key, Loaded: time.UnixMilli(loaded)}
	if ends != math.MaxInt64 {
		s.Ends = time.UnixMilli(ends)
	}
	return s, parts[2][0], err == nil && errEnds == nil
}
