// Package load is an agent's part of warming: it claims chunks of the runs that control planes give it, asks the source for values and puts them
// into the region's shards, where nothing is in their place.
//
// It never writes over a value, never writes a key that is in a hold-off, and never makes a shard evict. Whatever its source does costs
// a run time and nobody else. It starts no run and ends none, but for want of room; it keeps nothing: another agent goes on where it was
// killed.
package load

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/source"
)

// Config is what an agent's Loader is.
type Config struct {
	Region, Agent, Version string
	// Dial opens a connection to an agent of another region. It does not wait until there is one.
	Dial func(region, address string) (*grpc.ClientConn, error)
	Log  *slog.Logger
}

// Loader works on runs. Several goroutines may use it.
type Loader struct {
	config   Config
	topology atomic.Pointer[mesh.Topology]
	at       atomic.Pointer[place.Map]
	rooms    rooms
	windows  windows
	wake     chan struct{}

	mu     sync.Mutex
	runs   []warming.Run
	counts warming.Counts // of all runs, since the agent began
}

// New works on nothing before Update, Follow and Run.
func New(c Config) *Loader {
	return &Loader{config: c, wake: make(chan struct{}, 1)}
}

// Update says what the region is like from now on.
func (l *Loader) Update(t *mesh.Topology) {
	m, err := place.New(t)
	if err != nil {
		l.config.Log.Error("nothing is warmed", "error", err)
		return
	}
	l.topology.Store(t)
	l.at.Store(m)
}

// At is where the region's keys are; nil before the first Update.
func (l *Loader) At() *place.Map { return l.at.Load() }

// Follow says which runs there are. Those that are over are looked at once in a while, to see whether what they loaded is read.
func (l *Loader) Follow(runs []warming.Run) {
	l.mu.Lock()
	l.runs = runs
	l.mu.Unlock()
	l.windows.update(runs)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Runs are those that there are.
func (l *Loader) Runs() []warming.Run {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.runs)
}

// Counts are what became of the keys that this agent has worked on since it began.
func (l *Loader) Counts() warming.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

func (l *Loader) count(n warming.Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Add(n)
}

func (l *Loader) sources() source.Config {
	return source.Config{Region: l.config.Region, Agent: l.config.Agent, Version: l.config.Version, Dial: l.config.Dial, At: l.at.Load,
		Links: func(region string) []string {
			if t := l.topology.Load(); t != nil {
				return t.Links[region]
			}
			return nil
		}}
}

// Run works until ctx ends.
func (l *Loader) Run(ctx context.Context) error {
	type at struct {
		run  warming.Run
		stop context.CancelFunc
		done chan struct{}
	}
	jobs := map[string]*at{}
	var work sync.WaitGroup
	defer work.Wait()
	for {
		wanted := map[string]warming.Run{}
		for _, r := range l.Runs() {
			if r.Region == l.config.Region {
				wanted[r.ID] = r
			}
		}
		for id, a := range jobs {
			if r, ok := wanted[id]; !ok || !same(a.run, r) {
				a.stop()
				<-a.done
				delete(jobs, id)
			}
		}
		for id, r := range wanted {
			if jobs[id] != nil {
				continue
			}
			if err := r.Validate(); err != nil {
				l.config.Log.Error("a run is not carried out by this agent", "error", err)
				continue
			}
			inner, stop := context.WithCancel(ctx)
			a := &at{r, stop, make(chan struct{})}
			jobs[id] = a
			work.Go(func() {
				defer close(a.done)
				defer stop()
				newJob(l, r).run(inner)
			})
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// same says whether nothing has to be done otherwise. A run that pauses does so in its queue.
func same(a, b warming.Run) bool {
	live := func(s warming.State) bool { return !s.Over() }
	return live(a.State) == live(b.State) && reflect.DeepEqual(a.Source, b.Source) && reflect.DeepEqual(a.Keys, b.Keys) && a.Budget == b.Budget && a.Spread == b.Spread
}
