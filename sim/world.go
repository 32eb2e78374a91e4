package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	ms = time.Millisecond
	s  = time.Second
)

// world is everything that exists in one run. It is a queue of events in virtual time; all chance comes from random, so a seed
// gives the same run again.
type world struct {
	seed   uint64
	random *rand.Rand
	now    time.Duration
	events queue
	number uint64
	trace  func(string) // nil: nobody reads it
	counts map[string]int

	endpoints int
	names     []string
	cut       []int  // how many partitions keep what goes from one endpoint to another
	keeps     []bool // what is cut off arrives later, as TCP sends again
	storm     int    // how many times slower messages are

	settings settings
	consul   *consul
	planes   []*plane
	nodes    []*node
	byName   map[string]*node
	agents   []*agent
	members  []member
	judge    *judge
	faults   int           // under way
	mended   int           // how often all was mended
	calm     time.Duration // the last fault ended
}

// event is something that happens at a moment.
type event struct {
	at     time.Duration
	number uint64
	do     func()
}

// queue is a heap of events, the next one first. Of two at the same moment that which was made first is first.
type queue []event

func (q queue) before(a, b int) bool {
	return q[a].at < q[b].at || q[a].at == q[b].at && q[a].number < q[b].number
}

func (q *queue) push(e event) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.before(i, parent) {
			break
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

func (q *queue) pop() event {
	h := *q
	first := h[0]
	last := len(h) - 1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	*q = h
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if child+1 < last && h.before(child+1, child) {
			child++
		}
		if !h.before(child, i) {
			break
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
	return first
}

// after has something done so much later.
func (w *world) after(d time.Duration, do func()) {
	w.number++
	w.events.push(event{w.now + d, w.number, do})
}

// every has something done again and again, the first time at a random moment of the interval.
func (w *world) every(interval time.Duration, do func()) {
	var again func()
	again = func() {
		do()
		w.after(interval, again)
	}
	w.after(w.upTo(interval), again)
}

// run lets time pass until end, or until done says so.
func (w *world) run(end time.Duration, done func() bool) {
	for len(w.events) > 0 && w.events[0].at <= end {
		e := w.events.pop()
		w.now = e.at
		e.do()
		if done != nil && done() {
			return
		}
	}
	w.now = max(w.now, end)
}

// upTo is a random duration below the limit.
func (w *world) upTo(limit time.Duration) time.Duration {
	return time.Duration(w.random.Int64N(int64(limit) + 1))
}

func (w *world) between(low, high time.Duration) time.Duration { return low + w.upTo(high-low) }

// chance is true once in n times.
func (w *world) chance(n int) bool { return w.random.IntN(n) == 0 }

// count notes for the summary that something occurred.
func (w *world) count(what string) { w.counts[what]++ }

func (w *world) logf(format string, args ...any) {
	if w.trace != nil {
		w.trace(fmt.Sprintf("%10.3f ", w.now.Seconds()) + fmt.Sprintf(format, args...))
	}
}

// endpoint gives something a place on the network.
func (w *world) endpoint(name string) int {
	w.endpoints++
	w.names = append(w.names, name)
	return w.endpoints - 1
}

// connect makes the network of all endpoints.
func (w *world) connect() {
	w.cut = make([]int, w.endpoints*w.endpoints)
	w.keeps = make([]bool, w.endpoints*w.endpoints)
}

func (w *world) reaches(from, to int) bool { return w.cut[from*w.endpoints+to] == 0 }

// linked says whether both ways are open.
func (w *world) linked(a, b int) bool { return w.reaches(a, b) && w.reaches(b, a) }

// delay is how long a message takes: mostly a millisecond, rarely much more, so that messages overtake each other.
func (w *world) delay() time.Duration {
	d := w.between(ms/5, 2*ms)
	switch n := w.random.IntN(1000); {
	case n < 3:
		d = w.between(20*ms, 400*ms)
	case n < 50:
		d = w.between(2*ms, 20*ms)
	}
	if w.storm > 0 {
		d *= time.Duration(w.storm)
	}
	return d
}

// send has a message arrive, unless the way is cut: then it is lost, or arrives once the way is open again.
func (w *world) send(from, to int, arrive func()) {
	w.after(w.delay(), func() { w.arrive(from, to, 0, arrive) })
}

// stream is a connection: its messages do not overtake each other, and none is lost while it lasts. Who ends it makes what is still
// under way count no more.
type stream struct {
	last    time.Duration
	ready   []func()
	waiting bool
}

func (w *world) sendOn(c *stream, from, to int, arrive func()) {
	c.last = max(c.last, w.now+w.delay())
	w.after(c.last-w.now, func() {
		c.ready = append(c.ready, arrive)
		if !c.waiting {
			w.pump(c, from, to)
		}
	})
}

func (w *world) pump(c *stream, from, to int) {
	for c.waiting = false; len(c.ready) > 0; {
		if !w.reaches(from, to) {
			c.waiting = true
			w.after(20*ms, func() { w.pump(c, from, to) })
			return
		}
		do := c.ready[0]
		c.ready = c.ready[1:]
		do()
	}
}

const patience = 20 * s // of TCP

func (w *world) arrive(from, to int, waited time.Duration, arrive func()) {
	if w.reaches(from, to) {
		arrive()
		return
	}
	if w.keeps[from*w.endpoints+to] && waited < patience {
		w.after(50*ms, func() { w.arrive(from, to, waited+50*ms, arrive) })
	}
}

// partition keeps the messages of one way until the returned function is called.
func (w *world) partition(from, to int) (heal func()) {
	i := from*w.endpoints + to
	w.cut[i]++
	w.keeps[i] = w.chance(2)
	return func() { w.cut[i]-- }
}

// pick chooses one of several.
func pick[T any](w *world, all []T) T { return all[w.random.IntN(len(all))] }
