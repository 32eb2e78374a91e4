package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/reports"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/queue"
)

const (
	// warmEvery is how often it is looked what is due: also when the clock is set, within that time.
	warmEvery = 200 * time.Millisecond
	// readProgress is how often the queues of runs are read, and readUse those of runs that are over, for as long as usedFor.
	readProgress = 500 * time.Millisecond
	readUse      = 10 * time.Second
	usedFor      = 24 * time.Hour
	usedRuns     = 50
	queueTimeout = time.Second
	// maxWaiting is how many events may wait for the rules.
	maxWaiting = 4096
	// madeAgain is how often the queue of one run may be lost.
	madeAgain = 5
)

// warmer carries plans out: it decides what is due, writes runs down, makes their queues, tells agents of them, and reads how far they are. It
// never sees a value. Only the control plane that leads does; its loop owns all state but what is said below.
type warmer struct {
	region string
	leads  func() error
	keeps  shelf
	now    func() time.Time // by which plans' times are due
	hand   func(runs []byte)
	log    *slog.Logger

	events  chan []byte
	counted eventCounts
	orders  chan order
	wake    chan struct{}
	read    chan []queueReading
	shown   atomic.Pointer[WarmingStatus]
	place   atomic.Pointer[place.Map]

	mu       sync.Mutex // guards what others say
	mesh     *mesh.Mesh
	returned map[string]time.Time // pools whose shards have lost what they had, since when
	nodes    map[string]string    // run ID of the process at an address

	leading  bool
	compiled *mesh.Mesh // of which plans were compiled
	book     warming.Book
	plans    map[string]*warming.Plan
	problems mesh.Problems
	queues   map[string]*queue.Queue // by run
	named    map[string][]string     // keys of runs that wait for their queues
	pending  map[string]*pendingKeys // by plan
	told     map[string]string       // what was logged of plans that cannot begin
	reading  bool
	lastRead time.Time
	lastUse  time.Time
	handed   []byte
	matched  map[string]uint64 // events, by plan
	failed   map[string]uint64 // events on which a rule failed, by plan
	missed   map[string]uint64 // times, by plan
	totals   map[string]*PlanTotals
	problem  error // why nothing can be begun
}

// eventCounts are since the control plane runs. Agents count what they drop themselves.
type eventCounts struct{ taken, dropped, bad, keysDropped atomic.Uint64 }

// order is what somebody wants to be done in the loop.
type order struct {
	do   func(ctx context.Context) error
	done chan error
}

// pendingKeys are those that a rule wants loaded and that no run has yet.
type pendingKeys struct {
	keys []string
	has  map[string]bool
}

func newWarmer(config Config, keeps shelf, leads func() error, hand func([]byte)) *warmer {
	now := config.Now
	if now == nil {
		now = time.Now
	}
	w := &warmer{region: config.Region, leads: leads, keeps: keeps, now: now, hand: hand, log: config.Logger,
		events: make(chan []byte, maxWaiting), orders: make(chan order), wake: make(chan struct{}, 1), read: make(chan []queueReading, 1),
		returned: map[string]time.Time{}, nodes: map[string]string{}, plans: map[string]*warming.Plan{}, queues: map[string]*queue.Queue{}, pending: map[string]*pendingKeys{}, named: map[string][]string{}, told: map[string]string{},
		matched: map[string]uint64{}, failed: map[string]uint64{}, missed: map[string]uint64{}, totals: map[string]*PlanTotals{}}
	w.shown.Store(&WarmingStatus{Region: config.Region})
	return w
}

// configure takes in what mesh.yaml says.
func (w *warmer) configure(m *mesh.Mesh) {
	w.mu.Lock()
	w.mesh = m
	w.mu.Unlock()
	signal(w.wake)
}

// update takes in where the region's shards are.
func (w *warmer) update(t mesh.Topology) {
	m, err := place.New(&t)
	if err != nil {
		w.log.Error("runs of warming stay where they are", "error", err)
		return
	}
	w.place.Store(m)
	signal(w.wake)
}

// take takes in events that agents tell of. It does not wait: of a flood it drops what is too much, and counts it.
func (w *warmer) take(events [][]byte) {
	for _, e := range events {
		select {
		case w.events <- e:
			w.counted.taken.Add(1)
		default:
			w.counted.dropped.Add(1)
		}
	}
}

// run works until ctx ends.
func (w *warmer) run(ctx context.Context) error {
	ticker := time.NewTicker(warmEvery)
	defer ticker.Stop()
	defer w.close()
	w.step(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-w.wake:
		case e := <-w.events:
			w.match(e)
			for range len(w.events) { // those that wait already; more come in the next round
				w.match(<-w.events)
			}
			if len(w.pending) == 0 {
				continue // most events are none of the rules' business
			}
		case o := <-w.orders:
			o.done <- w.obey(ctx, o)
		case all := <-w.read:
			w.reading = false
			w.progressed(ctx, all)
		}
		w.step(ctx)
	}
}

func (w *warmer) close() {
	for _, q := range w.queues {
		q.Close()
	}
}

func (w *warmer) obey(ctx context.Context, o order) error {
	if err := w.leads(); err != nil {
		return err
	}
	w.lead(ctx)
	if !w.leading {
		return fmt.Errorf("what was kept of warming cannot be read: %w", w.problem)
	}
	w.compile()
	return o.do(ctx)
}

// order has something done in the loop.
func (w *warmer) order(ctx context.Context, do func(ctx context.Context) error) error {
	o := order{do, make(chan error, 1)}
	select {
	case w.orders <- o:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		signal(w.wake)
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// step does what is due.
func (w *warmer) step(ctx context.Context) {
	if w.leads() != nil {
		w.resign()
		return
	}
	if w.lead(ctx); !w.leading {
		w.show()
		return
	}
	w.compile()
	w.schedule(ctx)
	w.notice(ctx)
	w.refill(ctx)
	w.drain(ctx)
	w.make(ctx)
	w.tell()
	w.look(ctx)
	w.show()
}

// resign leaves all to who leads now.
func (w *warmer) resign() {
	w.mu.Lock()
	clear(w.returned) // who leads has noticed, too
	w.mu.Unlock()
	if !w.leading {
		return
	}
	w.leading, w.book = false, warming.Book{}
	w.close()
	clear(w.queues)
	clear(w.pending)
	clear(w.named)
	w.tell()
	w.show()
}

// lead takes over what the leader before has written down.
func (w *warmer) lead(ctx context.Context) {
	if w.leading {
		return
	}
	data, err := w.keeps.load(ctx)
	var book warming.Book
	if err == nil && data != nil {
		err = json.Unmarshal(data, &book)
	}
	if w.problemIs(err); err != nil {
		return
	}
	w.leading, w.book, w.compiled = true, book, nil
	for i := range book.Runs {
		if r := &book.Runs[i]; !r.State.Over() {
			w.log.Info("a run of warming goes on", "run", r.ID, "state", r.State)
		}
	}
}

// problemIs logs a problem once.
func (w *warmer) problemIs(err error) {
	if err != nil && fmt.Sprint(err) != fmt.Sprint(w.problem) {
		w.log.Error("warming", "error", err)
	}
	w.problem = err
}

// change changes the book, and writes it down. If either fails, nothing is changed.
func (w *warmer) change(ctx context.Context, f func(*warming.Book) error) error {
	next := w.book
	next.Runs, next.Applied = slices.Clone(w.book.Runs), slices.Clone(w.book.Applied)
	if err := f(&next); err != nil {
		return err
	}
	data, err := json.Marshal(next)
	if err == nil {
		err = w.save(ctx, data)
	}
	if w.problemIs(err); err != nil {
		return fmt.Errorf("it cannot be written down: %w", err)
	}
	w.book = next
	return nil
}

func (w *warmer) save(ctx context.Context, data []byte) error {
	err := w.keeps.save(ctx, data)
	if err == nil || errors.Is(err, errNotLeading) {
		return err
	}
	// A write that seemed to fail may have been done, or what was kept was lost: this control plane leads, so what it knows counts.
	if _, failed := w.keeps.load(ctx); failed != nil {
		return err
	}
	return w.keeps.save(ctx, data)
}

// compile understands the plans when they are others than before.
func (w *warmer) compile() {
	w.mu.Lock()
	m := w.mesh
	w.mu.Unlock()
	if m == nil || m == w.compiled {
		return
	}
	w.compiled = m
	var all []*warming.Plan
	all, w.problems = warming.Compile(m)
	w.plans = map[string]*warming.Plan{}
	for _, p := range all {
		w.plans[p.Name] = p
	}
	for _, spec := range w.book.Applied {
		if w.plans[spec.Name] != nil {
			w.problems = append(w.problems, mesh.Problem{Field: "applied plan " + spec.Name, Message: "mesh.yaml has a plan of this name, which counts", Remedy: "remove one of them"})
			continue
		}
		if err := m.CheckPlan(spec); err != nil {
			w.problems = append(w.problems, problemsIn("applied plan "+spec.Name, err)...)
			continue
		}
		p, problems := warming.CompilePlan(spec, m)
		if len(problems) > 0 {
			w.problems = append(w.problems, problemsIn("applied plan "+spec.Name, problems)...)
			continue
		}
		w.plans[p.Name] = p
	}
	for _, p := range w.problems {
		w.log.Error("a plan of warming is not used", "problem", p.String())
	}
}

func problemsIn(what string, err error) mesh.Problems {
	var problems mesh.Problems
	if !errors.As(err, &problems) {
		return mesh.Problems{{Field: what, Message: err.Error(), Remedy: "apply it anew"}}
	}
	for i := range problems {
		problems[i].Field = strings.TrimSuffix(what+": "+problems[i].Field, ": ")
	}
	return problems
}

// names are the plans that may warm this region, in order.
func (w *warmer) names() []string {
	var all []string
	for name, p := range w.plans {
		if p.Warms(w.region) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// slotOf is under which a plan's times are settled: other times begin anew.
func slotOf(p *warming.Plan) string { return p.Name + " " + p.When() }

// schedule begins what is due by the clock.
func (w *warmer) schedule(ctx context.Context) {
	now := w.now()
	slots := maps.Clone(w.book.Slots)
	if slots == nil {
		slots = map[string]time.Time{}
	}
	known := map[string]bool{}
	for _, name := range w.names() {
		p := w.plans[name]
		if !p.Timed() {
			continue
		}
		key := slotOf(p)
		known[key] = true
		slot, seen := slots[key]
		if !seen {
			slots[key] = now.UTC().Round(0)
			continue
		}
		d := p.Due(w.region, slot, now, w.took(name))
		if d.Slot.Equal(slot) {
			continue
		}
		w.missed[name] += uint64(d.Missed)
		if d.Missed > 0 {
			w.log.Warn("times of a plan went by without a run", "plan", name, "missed", d.Missed)
		}
		switch {
		case d.Run && w.book.Active(name) != nil:
			w.missed[name]++
			w.log.Warn("a plan is due, and its run before is not over", "plan", name, "run", w.book.Active(name).ID)
		case d.Run:
			r := p.Run(w.region, time.Now())
			if hour, ok := p.Hour(d.Slot); ok {
				r.Keys.Hour = &hour
			}
			if err := w.begin(ctx, r, p.Trigger(), d.Slot, nil); err != nil {
				w.refused(name, err)
				if w.problem != nil {
					continue // its time is not settled
				}
			}
		}
		slots[key] = d.Slot.UTC()
	}
	maps.DeleteFunc(slots, func(key string, _ time.Time) bool { return !known[key] })
	if !maps.Equal(slots, w.book.Slots) {
		w.change(ctx, func(b *warming.Book) error { b.Slots = slots; return nil }) // else in the next round
	}
}

// took is how long the plan's last run took by the clock that plans go by.
func (w *warmer) took(plan string) time.Duration {
	if r := w.book.Last(plan); r != nil {
		return r.Lasted
	}
	return 0
}

// begin writes a run down, and makes its queue.
func (w *warmer) begin(ctx context.Context, r warming.Run, trigger string, slot time.Time, keys []string) error {
	for w.book.Find(r.ID) != nil {
		r.Begun = r.Begun.Add(time.Millisecond)
		r.ID = warming.NewID(r.Plan, r.Begun)
	}
	record := warming.Record{Run: r, Trigger: trigger, Slot: slot.UTC().Round(0), Clock: w.now().UTC().Round(0), Total: uint64(len(keys))}
	if err := w.change(ctx, func(b *warming.Book) error { return b.Begin(record) }); err != nil {
		return err
	}
	delete(w.told, r.Plan)
	w.log.Info("a run of warming begins", "run", r.ID, "trigger", trigger, "keys", len(keys))
	if keys != nil {
		w.named[r.ID] = keys
	}
	w.make(ctx)
	w.tell()
	return nil
}

// refused says once why a plan that is due does not begin.
func (w *warmer) refused(plan string, err error) {
	if w.told[plan] != err.Error() {
		w.told[plan] = err.Error()
		w.log.Error("a plan of warming is due and cannot begin", "plan", plan, "error", err)
	}
}

// queue is a run's.
func (w *warmer) queue(r *warming.Record) *queue.Queue {
	q := w.queues[r.ID]
	if q == nil {
		q = queue.New(r.Pool, r.ID, w.place.Load)
		w.queues[r.ID] = q
	}
	return q
}

// make makes the queues of runs that wait for one.
func (w *warmer) make(ctx context.Context) {
	for i := range w.book.Runs {
		r := &w.book.Runs[i]
		if r.State != warming.Waiting {
			continue
		}
		keys := w.named[r.ID]
		if r.Keys.Named && keys == nil {
			w.end(ctx, r.ID, warming.Failed, "the control plane that knew its keys is gone")
			continue
		}
		limited, cancel := context.WithTimeout(ctx, queueTimeout)
		err := w.queue(r).Create(limited, &r.Run, keys)
		cancel()
		if err != nil {
			r.Problem = err.Error() // it is tried again
			continue
		}
		delete(w.named, r.ID)
		r.State, r.Problem = warming.Running, ""
	}
}

// end writes down that a run is over.
func (w *warmer) end(ctx context.Context, id string, to warming.State, problem string) {
	err := w.change(ctx, func(b *warming.Book) error {
		b.Find(id).End(to, problem, time.Now(), w.now())
		return nil
	})
	if err != nil {
		return // it is tried again with the next look at its queue
	}
	r := w.book.Find(id)
	w.ended(r)
	w.log.Info("a run of warming is over", "run", id, "state", to, "loaded", r.Counts.Loaded, "there", r.Counts.There, "missing", r.Counts.Missing, "problem", problem)
	delete(w.named, id)
}

// tell tells agents which runs there are: also of those that are over, whose keys are looked at.
func (w *warmer) tell() {
	runs := []warming.Run{}
	used := 0
	for i := range slices.Backward(w.book.Runs) {
		switch r := &w.book.Runs[i]; {
		case !r.State.Over() && r.State != warming.Waiting:
			runs = append(runs, r.Run)
		case w.looked(r) && used < usedRuns:
			used++
			runs = append(runs, r.Run)
		}
	}
	slices.Reverse(runs)
	if len(runs) == 0 && w.handed == nil {
		return // agents need not know of warming
	}
	data, err := json.Marshal(runs)
	if err != nil || len(data) > reports.MaxWarming {
		w.log.Error("agents are not told of runs", "bytes", len(data), "error", err)
		return
	}
	if !bytes.Equal(data, w.handed) {
		w.handed = data
		w.hand(data)
	}
}

// looked says whether the keys of a run that is over are still looked at.
func (w *warmer) looked(r *warming.Record) bool {
	return r.State == warming.Done && r.Counts.Loaded > 0 && time.Since(r.Ended) < usedFor
}
