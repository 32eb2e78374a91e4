package load

import (
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Interval is what happened in a second or, if Final, in all. Latencies are those of the answers without error.
type Interval struct {
	T        float64 `json:"t"` // seconds since the start
	Requests int64   `json:"requests"`
	Errors   int64   `json:"errors"`  // dropped requests included
	Dropped  int64   `json:"dropped"` // not sent, as too many were under way
	RPS      float64 `json:"rps"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Mean     float64 `json:"mean_ms"`
	Checked  int64   `json:"checked"`
	Wrong    int64   `json:"wrong"`
	Stalest  float64 `json:"stalest_ms"` // how old the oldest profile was, if that is looked at
	Final    bool    `json:"final,omitempty"`
}

// meter counts what the requests came to.
type meter struct {
	log   *slog.Logger
	start time.Time

	mu        sync.Mutex
	since     time.Time
	now       Interval // of this second, without rates and latencies
	latencies *hdrhistogram.Histogram
	all       Interval
	overall   *hdrhistogram.Histogram
}

// logged is how many errors a second are logged.
const logged = 5

func newMeter(start time.Time, log *slog.Logger) *meter {
	histogram := func() *hdrhistogram.Histogram { // microseconds
		return hdrhistogram.New(1, (10 * requestTimeout).Microseconds(), 3)
	}
	return &meter{log: log, start: start, since: start, latencies: histogram(), overall: histogram()}
}

func (m *meter) answered(latency time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Requests++
	m.latencies.RecordValue(min(max(latency.Microseconds(), 1), m.latencies.HighestTrackableValue()))
}

func (m *meter) failed(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Requests++
	m.now.Errors++
	if m.now.Errors <= logged {
		m.log.Error("request failed", "error", err)
	}
}

func (m *meter) dropped() {
	m.failed(errors.New("dropped: too many requests are under way"))
	m.mu.Lock()
	m.now.Dropped++
	m.mu.Unlock()
}

func (m *meter) checked(right bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Checked++
	if !right {
		m.now.Wrong++
	}
}

// stale takes how long before a profile was asked for it had been replaced.
func (m *meter) stale(by time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Stalest = max(m.now.Stalest, round(by.Seconds()*1000))
}

// interval ends a second and returns it.
func (m *meter) interval(now time.Time) Interval {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.now
	i.T = math.Round(now.Sub(m.start).Seconds())
	i.RPS = round(float64(i.Requests) / now.Sub(m.since).Seconds())
	i.setLatencies(m.latencies)
	m.all.Requests += i.Requests
	m.all.Errors += i.Errors
	m.all.Dropped += i.Dropped
	m.all.Checked += i.Checked
	m.all.Wrong += i.Wrong
	m.all.Stalest = max(m.all.Stalest, i.Stalest)
	m.overall.Merge(m.latencies)
	m.latencies.Reset()
	m.now, m.since = Interval{}, now
	return i
}

// total returns everything up to now.
func (m *meter) total(now time.Time) Interval {
	m.interval(now)
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.all
	i.Final = true
	i.T = round(now.Sub(m.start).Seconds())
	i.RPS = round(float64(i.Requests) / now.Sub(m.start).Seconds())
	i.setLatencies(m.overall)
	return i
}

func (i *Interval) setLatencies(h *hdrhistogram.Histogram) {
	i.P50 = float64(h.ValueAtQuantile(50)) / 1000
	i.P99 = float64(h.ValueAtQuantile(99)) / 1000
	i.Mean = round(h.Mean() / 1000)
}

func round(f float64) float64 { return math.Round(f*1000) / 1000 }
