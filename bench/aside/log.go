package aside

import (
	"slices"
	"sync"
	"time"
)

// Second is what was answered in a second.
type Second struct {
	Requests, Errors Counts
	Reads, Hits      int // a hit may be stale
	Stale, Lost      int // reads of what was changed before they began; misses of what was in the cache for certain
	OriginReads      int
	Latencies        []time.Duration // of requests to the cache, since they were due
}

// Counts are of requests that are tried again when they fail, and of those that are not.
type Counts struct {
	Retried int `json:"retries_on"`
	Plain   int `json:"retries_off"`
}

func (c *Counts) add(careful bool) {
	if careful {
		c.Retried++
	} else {
		c.Plain++
	}
}

type log struct {
	began time.Time

	mu       sync.Mutex
	seconds  []Second
	findings []Finding // the first
}

// maxFindings bounds those that are kept.
const maxFindings = 100

func (l *log) finding(f Finding) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.findings) < maxFindings {
		l.findings = append(l.findings, f)
	}
}

// Findings are the first stale reads since they were asked for last.
func (a *App) Findings() []Finding {
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	found := a.log.findings
	a.log.findings = nil
	return found
}

// now is the second that it is. The log is locked.
func (l *log) now() *Second {
	i := int(time.Since(l.began) / time.Second)
	for len(l.seconds) <= i {
		l.seconds = append(l.seconds, Second{})
	}
	return &l.seconds[i]
}

func (l *log) answered(r request, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	s.count(r, err)
	s.Latencies = append(s.Latencies, time.Since(r.due))
}

// filled is a request that was not due: a read that missed led to it.
func (l *log) filled(r request, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now().count(r, err)
}

func (s *Second) count(r request, err error) {
	s.Requests.add(r.careful)
	if err != nil {
		s.Errors.add(r.careful)
	}
}

func (l *log) found(stale bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	s.Reads++
	s.Hits++
	if stale {
		s.Stale++
	}
}

func (l *log) missed(lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now()
	s.Reads++
	s.OriginReads++
	if lost {
		s.Lost++
	}
}

// Figures are of a stretch of time.
type Figures struct {
	Second
	Seconds []Second
}

// Between sums up what was answered from the second of one moment to before that of another.
func (a *App) Between(from, to time.Time) Figures {
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	index := func(t time.Time) int { return min(max(0, int(t.Sub(a.log.began)/time.Second)), len(a.log.seconds)) }
	f := Figures{Seconds: slices.Clone(a.log.seconds[index(from):max(index(from), index(to))])}
	for _, s := range f.Seconds {
		f.Requests.Retried += s.Requests.Retried
		f.Requests.Plain += s.Requests.Plain
		f.Errors.Retried += s.Errors.Retried
		f.Errors.Plain += s.Errors.Plain
		f.Reads += s.Reads
		f.Hits += s.Hits
		f.Stale += s.Stale
		f.Lost += s.Lost
		f.OriginReads += s.OriginReads
		f.Latencies = append(f.Latencies, s.Latencies...)
	}
	return f
}

// Peak is the most database reads in any n seconds on end.
func (f Figures) Peak(n int) int {
	most := 0
	for i := range f.Seconds {
		sum := 0
		for _, s := range f.Seconds[i:min(i+n, len(f.Seconds))] {
			sum += s.OriginReads
		}
		most = max(most, sum)
	}
	return most
}

// Quantile is the latency that the share q of the requests does not exceed; 0 of none.
func (f Figures) Quantile(q float64) time.Duration {
	if len(f.Latencies) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(f.Latencies))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
