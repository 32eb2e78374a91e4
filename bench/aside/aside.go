// Package aside is an application that keeps values of its database in a cache, as applications do: it looks there first, fills after a
// miss, and writes or deletes what it has changed. It judges every answer: what is there and must not be any more, and what is not there
// and was neither deleted nor never put there. Values do not expire and are not evicted, so that nothing else takes them away.
//
// Requests leave on a schedule that answers do not slow down. A key is changed by one request at a time, so that it is certain what the
// cache must hold; it is read by any number. The database is a counter: it is asked, and counted, and never slow.
package aside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

// Plan is a load.
type Plan struct {
	Keys    int
	Bytes   int     // of a value
	Alpha   float64 // Zipf exponent of the keys' popularity
	Rate    float64 // requests a second
	Writes  float64 // share of the requests; a quarter of them are SET, half DEL, and a quarter DEL of keys that are never there
	Timeout time.Duration
	// Bound is for how long after a change was acknowledged what is older may be read.
	Bound time.Duration
}

// App is the application.
type App struct {
	plan       Plan
	popularity *workload.Zipf
	order      []int // keys by rank
	careful    []*redis.Client
	plain      []*redis.Client
	entries    []entry
	log        log
}

// entry is what the application knows of a key.
type entry struct {
	mu      sync.Mutex
	version uint64 // in the database
	floor   uint64 // what is older must not be read any more
	changes uint64 // begun
	busy    bool   // one is under way
	there   bool   // in the cache, for certain

	acked  []acked   // since the floor, within the bound
	raised time.Time // when what the floor is of was acknowledged
	doubt  []uint64  // versions whose write failed: nobody knows whether and when it is done
}

// New is an application whose requests take the clients in turn: the careful ones try again what fails, the plain ones do not.
func New(p Plan, careful, plain []*redis.Client) *App {
	a := &App{plan: p, popularity: workload.NewZipf(p.Keys, p.Alpha), careful: careful, plain: plain, entries: make([]entry, p.Keys), log: log{began: time.Now()}}
	a.order = rand.New(rand.NewPCG(5, 8)).Perm(p.Keys)
	return a
}

func name(key int) string { return fmt.Sprintf("item:%08d", key) }

func (a *App) value(version uint64) []byte {
	v := strconv.AppendUint(make([]byte, 0, a.plan.Bytes), version, 10)
	v = append(v, ' ')
	return append(v, bytes.Repeat([]byte{'v'}, max(0, a.plan.Bytes-len(v)))...)
}

// Fill puts every key into the cache.
func (a *App) Fill(ctx context.Context) error {
	const together = 500
	for from := 0; from < a.plan.Keys; from += together {
		to := min(from+together, a.plan.Keys)
		if _, err := a.careful[0].Pipelined(ctx, func(p redis.Pipeliner) error {
			for key := from; key < to; key++ {
				p.Set(ctx, name(key), a.value(0), 0)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("fill the cache: %w", err)
		}
		for key := from; key < to; key++ {
			a.entries[key].there = true
		}
	}
	return nil
}

// Run sends requests until ctx ends, and returns when all are answered.
func (a *App) Run(ctx context.Context) {
	var wait sync.WaitGroup
	defer wait.Wait()
	rng := rand.New(rand.NewPCG(13, 21))
	every := time.Duration(float64(time.Second) / a.plan.Rate)
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		due := start.Add(time.Duration(i) * every)
		for ; !due.After(time.Now()); due = due.Add(every) {
			r := a.draw(i, rng)
			r.due = due
			wait.Go(func() { a.do(r) })
			i++
		}
		timer.Reset(time.Until(due))
	}
}

// request is one that is drawn and not yet sent.
type request struct {
	due     time.Time
	key     int
	kind    kind
	careful bool
	client  *redis.Client
}

type kind int

const (
	read kind = iota
	set
	remove
	removeAbsent
)

func (a *App) draw(i int, rng *rand.Rand) request {
	r := request{key: a.order[a.popularity.Draw(rng)], careful: i%2 == 0}
	clients := a.plain
	if r.careful {
		clients = a.careful
	}
	r.client = clients[i/2%len(clients)]
	if rng.Float64() < a.plan.Writes {
		r.kind = []kind{set, remove, remove, removeAbsent}[rng.IntN(4)]
	}
	return r
}

// do is not ended by the end of the run: what is under way is to end by itself.
func (a *App) do(r request) {
	ctx, cancel := context.WithTimeout(context.Background(), a.plan.Timeout)
	defer cancel()
	switch e := &a.entries[r.key]; r.kind {
	case read:
		a.read(ctx, r, e)
	case removeAbsent:
		a.log.answered(r, r.client.Del(ctx, "absent:"+name(r.key)).Err())
	default:
		version, ok := e.begin(true)
		if !ok {
			r.kind = read // somebody changes it already
			a.read(ctx, r, e)
			return
		}
		var err error
		if r.kind == set {
			err = r.client.Set(ctx, name(r.key), a.value(version), 0).Err()
		} else {
			err = r.client.Del(ctx, name(r.key)).Err()
		}
		a.log.answered(r, err)
		e.end(version, r.kind == set, err)
	}
}

func (a *App) read(ctx context.Context, r request, e *entry) {
	e.mu.Lock()
	floor, certain, changes := e.oldest(a.plan.Bound), e.there && !e.busy, e.changes
	raised := e.raised
	e.mu.Unlock()
	text, err := r.client.Get(ctx, name(r.key)).Bytes()
	missed := errors.Is(err, redis.Nil)
	if err != nil && !missed {
		a.log.answered(r, err)
		return
	}
	a.log.answered(r, nil)
	if !missed {
		stale := a.stale(r.key, text, floor, raised, r.client)
		a.log.found(stale)
		return
	}
	e.mu.Lock()
	certain = certain && e.changes == changes
	e.mu.Unlock()
	a.log.missed(certain)
	version, ok := e.begin(false)
	if !ok {
		return
	}
	err = r.client.Set(ctx, name(r.key), a.value(version), 0).Err()
	a.log.filled(r, err)
	e.end(version, true, err)
}

// begin says whether the key may be changed in the cache now, and to which version: the next one, if the database is changed first.
func (e *entry) begin(database bool) (version uint64, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.busy {
		return 0, false
	}
	e.busy = true
	e.changes++
	if database {
		e.version++
	}
	return e.version, true
}

// end takes what has come of a change. Of one that failed, nobody knows whether it was done, or will be.
func (e *entry) end(version uint64, there bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.busy = false
	e.there = there && err == nil
	switch {
	case err == nil:
		e.acked = append(e.acked, acked{version, time.Now()})
	case there:
		e.doubt = append(e.doubt, version)
	}
}
