package load

import (
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/warming"
)

// windows are when runs were loading. Redis takes the attempt to load what is there for an access, so what was accessed last at such a
// time was not read for certain.
type windows struct {
	mu  sync.Mutex
	all map[string]*window // by run
}

type window struct {
	pool     string
	from, to time.Time // to is zero while it loads
}

// unknownEnd is how long a run is taken to have loaded that was over when this agent began.
const unknownEnd = 10 * time.Minute

// update takes in which runs there are.
func (w *windows) update(runs []warming.Run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.all
	w.all = map[string]*window{}
	for _, r := range runs {
		known := before[r.ID]
		if known == nil {
			known = &window{pool: r.Pool, from: r.Begun}
			if r.State.Over() {
				known.to = r.Begun.Add(unknownEnd)
			}
		}
		if r.State.Over() && known.to.IsZero() {
			known.to = time.Now()
		}
		w.all[r.ID] = known
	}
}

// within says whether another run than one was loading a pool at a time.
func (w *windows) within(run, pool string, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, o := range w.all {
		if id != run && o.pool == pool && at.After(o.from.Add(-clockTick)) && (o.to.IsZero() || at.Before(o.to.Add(clockTick))) {
			return true
		}
	}
	return false
}
