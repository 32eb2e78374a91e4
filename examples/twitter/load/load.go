// Package load puts an open-loop load on the Twitter example and checks answers against the database. Requests start
// when a schedule says so, however slow the answers are, and latency counts from that moment; so a service that
// stalls looks as bad as its users would find it. The package knows the service's HTTP API and nothing of its cache.
package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

// Config is how to load.
type Config struct {
	Targets []string      // base URLs of the region's apps, asked in turn
	Rate    float64       // requests a second
	For     time.Duration // 0 is until the context ends
	Fixed   bool          // arrivals at a fixed interval; else Poisson
	Check   float64       // share of the answers to check
	// MaxStaleness is how long after its replacement a profile may be answered; 0 lets an answer take a second to be right, and asks again
	// until then.
	MaxStaleness time.Duration
	// Level is what share of the rate there is at a moment; nil is all of it.
	Level func(time.Time) float64
	// Answered is told what a request was answered, and when; nil is nobody.
	Answered func(r workload.Request, answer []byte, at time.Time)
	Report   func(Interval)
	Log      *slog.Logger
}

// Source draws the requests.
type Source interface{ Next() workload.Request }

const (
	// maxInFlight bounds the requests under way; one more is dropped, which is an error.
	maxInFlight = 5000
	// maxConnections bounds the connections to each target; requests beyond wait for one.
	maxConnections = 1024
	// maxChecks bounds the checks under way; an answer beyond is not checked.
	maxChecks      = 64
	requestTimeout = 10 * time.Second
)

type loader struct {
	Config
	client  *http.Client
	checker *checker
	meter   *meter
	rng     *rand.Rand

	inFlight, checks chan struct{}
	running          sync.WaitGroup
}

// Run loads the targets with what gen draws, checks against db, reports each second and returns the totals. It
// returns when the time is over or ctx ends, and the last answer has come.
func Run(ctx context.Context, c Config, gen Source, db *store.Store) Interval {
	client := &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			MaxConnsPerHost: maxConnections, MaxIdleConnsPerHost: maxConnections,
			IdleConnTimeout: time.Minute, DisableCompression: true,
		},
	}
	defer client.CloseIdleConnections()
	l := &loader{
		Config: c, client: client, checker: &checker{db: db, client: client}, meter: newMeter(time.Now(), c.Log),
		rng:      rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		inFlight: make(chan struct{}, maxInFlight), checks: make(chan struct{}, maxChecks),
	}
	stop := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() { l.report(stop) })
	l.dispatch(ctx, gen)
	l.running.Wait()
	close(stop)
	reporter.Wait()
	return l.meter.total(time.Now())
}

func (l *loader) report(stop <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			l.Report(l.meter.interval(now))
		case <-stop:
			return
		}
	}
}

// dispatch starts each request at its time, late ones at once.
func (l *loader) dispatch(ctx context.Context, gen Source) {
	start := time.Now()
	next := start
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		gap := 1.0
		if !l.Fixed {
			gap = l.rng.ExpFloat64()
		}
		rate := l.Rate
		if l.Level != nil {
			rate *= l.Level(next)
		}
		next = next.Add(time.Duration(gap / rate * float64(time.Second)))
		due := next
		if l.For > 0 && due.Sub(start) >= l.For {
			return
		}
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		request, target, check := gen.Next(), l.Targets[n%len(l.Targets)], l.rng.Float64() < l.Check
		select {
		case l.inFlight <- struct{}{}:
			l.running.Go(func() {
				l.send(target, request, due, check)
				<-l.inFlight
			})
		default:
			l.meter.dropped()
		}
	}
}

func (l *loader) send(target string, request workload.Request, due time.Time, check bool) {
	check = check && checkable(request)
	// A request outlives Ctrl-C, for at most its timeout.
	asked := time.Now()
	answer, err := ask(context.Background(), l.client, target, request, check || l.Answered != nil)
	if err != nil {
		l.meter.failed(err)
		return
	}
	l.meter.answered(time.Since(due))
	if l.Answered != nil {
		l.Answered(request, answer, time.Now())
	}
	if !check {
		return
	}
	select {
	case l.checks <- struct{}{}:
		l.running.Go(func() {
			l.check(target, request, asked, answer)
			<-l.checks
		})
	default:
	}
}

func (l *loader) check(target string, request workload.Request, asked time.Time, answer []byte) {
	err := error(nil)
	if l.MaxStaleness > 0 && request.Thing == workload.Profile {
		var age time.Duration
		age, err = l.checker.age(context.Background(), request, asked, answer, l.MaxStaleness)
		l.meter.stale(age)
	} else {
		err = l.checker.check(context.Background(), target, request, answer)
	}
	var wrong *wrongAnswer
	switch {
	case errors.As(err, &wrong):
		l.meter.checked(false)
		l.Log.Error("wrong answer", "key", wrong.key, "got", wrong.got, "want", wrong.want)
	case err != nil:
		l.meter.failed(fmt.Errorf("check an answer: %w", err))
	default:
		l.meter.checked(true)
	}
}

// ask sends a request and returns the body if wanted. What is not 2xx is an error.
func ask(ctx context.Context, client *http.Client, target string, request workload.Request, wanted bool) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, request.Method, target+request.Path, bytes.NewReader(request.Body))
	if err != nil {
		return nil, err
	}
	if len(request.Body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return nil, fmt.Errorf("%s %s%s: %s: %s", request.Method, target, request.Path, resp.Status, bytes.TrimSpace(body))
	}
	if wanted {
		return io.ReadAll(resp.Body)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return nil, err
}
