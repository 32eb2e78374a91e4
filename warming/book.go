package warming

import (
	"fmt"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// MaxApplied bounds the plans that were applied, and MaxRunning the runs that are not over.
	MaxApplied = 100
	MaxRunning = 32
	// Of runs that are over, so many are kept, and so many of a plan.
	keepRuns   = 200
	keepOfPlan = 25
)

// Book is what a region must not forget of its warming: the plans that were applied to it, how far each plan's times are settled, and its runs.
// Only the leading control plane writes it.
type Book struct {
	Applied []mesh.Plan          `json:"applied,omitempty"`
	Slots   map[string]time.Time `json:"slots,omitempty"`  // by plan and its times, see Due
	Served  map[string]string    `json:"served,omitempty"` // by shard: the process that was its primary, if a plan waits for its return
	Runs    []Record             `json:"runs,omitempty"`   // oldest first
}

// Record is a run with what became of it. Counts and Use are the last that is known.
type Record struct {
	Run
	Trigger string    `json:"trigger"` // cron, finishBy, followSun, rule, onReturn, or manual
	Slot    time.Time `json:"slot,omitzero"`
	Clock   time.Time `json:"clock"` // when it began, by the clock that plans go by
	// Lasted is how long it took, by that clock.
	Lasted  time.Duration `json:"lasted_ns,omitempty"`
	Ended   time.Time     `json:"ended,omitzero"`
	Total   uint64        `json:"total"` // keys; 0 is not known
	Counts  Counts        `json:"counts"`
	Use     Use           `json:"use"`
	Full    bool          `json:"full,omitempty"`    // the shards had no room for the rest
	Problem string        `json:"problem,omitempty"` // why it does not go on, or why it failed
	Again   int           `json:"again,omitempty"`   // how often its queue was lost and made anew
}

// Took is how long a run took that is over.
func (r *Record) Took() time.Duration { return r.Ended.Sub(r.Begun) }

// Begin writes a run down. It refuses a second one of the same plan at a time; copies are of no plan.
func (b *Book) Begin(r Record) error {
	running := 0
	for i := range b.Runs {
		other := &b.Runs[i]
		switch {
		case other.ID == r.ID:
			return fmt.Errorf("there is a run %s already: try again", r.ID)
		case other.State.Over():
			continue
		case other.Plan == r.Plan && (r.Plan != CopyPlan || other.Route == r.Route):
			return fmt.Errorf("plan %s runs already, as %s: wait for its end, or cancel it", r.Plan, other.ID)
		}
		running++
	}
	if running >= MaxRunning {
		return fmt.Errorf("%d runs are not over, and more may not begin: wait for one, or cancel one", running)
	}
	if err := r.Validate(); err != nil {
		return err
	}
	b.Runs = append(b.Runs, r)
	b.trim()
	return nil
}

// Find is the run of that ID, nil if it is not known (any more).
func (b *Book) Find(id string) *Record {
	if i := slices.IndexFunc(b.Runs, func(r Record) bool { return r.ID == id }); i >= 0 {
		return &b.Runs[i]
	}
	return nil
}

// Active is the plan's run that is not over, nil if there is none.
func (b *Book) Active(plan string) *Record {
	if i := slices.IndexFunc(b.Runs, func(r Record) bool { return r.Plan == plan && !r.State.Over() }); i >= 0 {
		return &b.Runs[i]
	}
	return nil
}

// Set pauses, resumes or cancels a run.
func (b *Book) Set(id string, to State, now time.Time) error {
	r := b.Find(id)
	switch {
	case r == nil:
		return fmt.Errorf("there is no run %q: see `cachemesh warm history`", id)
	case r.State.Over():
		return fmt.Errorf("run %s is over: it is %s", id, r.State)
	case to == Running && r.State != Paused:
		return fmt.Errorf("run %s is not paused: it is %s", id, r.State)
	case to == Paused && r.State == Paused:
		return fmt.Errorf("run %s is paused already", id)
	}
	r.State, r.Problem = to, ""
	if to.Over() {
		r.Ended = now.UTC().Round(0)
	}
	return nil
}

// End closes a run. clock is the time by the clock that plans go by.
func (r *Record) End(to State, problem string, at, clock time.Time) {
	r.State, r.Problem, r.Ended, r.Lasted = to, problem, at.UTC().Round(0), clock.Round(0).Sub(r.Clock)
}

// trim forgets the oldest runs that are over.
func (b *Book) trim() {
	over, ofPlan := 0, map[string]int{}
	kept := b.Runs[:0:0]
	for _, r := range slices.Backward(b.Runs) {
		if r.State.Over() {
			if over++; over > keepRuns {
				continue
			}
			if ofPlan[r.Plan]++; ofPlan[r.Plan] > keepOfPlan {
				continue
			}
		}
		kept = append(kept, r)
	}
	slices.Reverse(kept)
	b.Runs = kept
}

// Last is the plan's last run that was done, nil if none is known.
func (b *Book) Last(plan string) *Record {
	for i := range slices.Backward(b.Runs) {
		if r := &b.Runs[i]; r.Plan == plan && r.State == Done {
			return r
		}
	}
	return nil
}

// UseOf is what the samples of a plan's runs tell together.
func (b *Book) UseOf(plan string) (u Use) {
	for i := range b.Runs {
		if r := &b.Runs[i]; r.Plan == plan {
			u.Sampled += r.Use.Sampled
			u.Read += r.Use.Read
			u.Evicted += r.Use.Evicted
		}
	}
	return u
}

// Saved is about how many reads of the origin a run has saved: keys that it loaded and that were read.
func (r *Record) Saved() uint64 { return uint64(r.Use.Ratio() * float64(r.Counts.Loaded)) }

// Apply adds plans, in the place of those of the same name.
func (b *Book) Apply(plans []mesh.Plan) error {
	applied := slices.Clone(b.Applied)
	for _, p := range plans {
		if i := slices.IndexFunc(applied, func(o mesh.Plan) bool { return o.Name == p.Name }); i >= 0 {
			applied[i] = p
		} else {
			applied = append(applied, p)
		}
	}
	if len(applied) > MaxApplied {
		return fmt.Errorf("%d plans would be applied, and %d may: put some into mesh.yaml, or remove some with `cachemesh warm remove`", len(applied), MaxApplied)
	}
	b.Applied = applied
	return nil
}

// Withdraw removes a plan that was applied. Its run that is not over goes on.
func (b *Book) Withdraw(plan string) error {
	n := len(b.Applied)
	b.Applied = slices.DeleteFunc(b.Applied, func(p mesh.Plan) bool { return p.Name == plan })
	if len(b.Applied) == n {
		return fmt.Errorf("no plan %q was applied: plans of mesh.yaml are removed there", plan)
	}
	return nil
}

// Cost is about what a run takes.
type Cost struct {
	Keys        uint64  `json:"keys"`
	Bytes       uint64  `json:"bytes"`
	Seconds     float64 `json:"seconds"`
	OriginReads uint64  `json:"origin_reads"` // keys that a loader or a database is asked for
	Bound       string  `json:"bound"`        // by what the seconds are: keys, bytes, origin, or speed
}

// Estimate says what a run of so many keys and bytes costs. speed is the keys a second of a run before it, 0 if none is known.
func Estimate(r *Run, keys, bytes uint64, speed float64) Cost {
	c := Cost{Keys: keys, Bytes: bytes, Bound: "keys", Seconds: float64(keys) / float64(r.Budget.KeysPerSecond)}
	longer := func(seconds float64, bound string) {
		if seconds > c.Seconds {
			c.Seconds, c.Bound = seconds, bound
		}
	}
	longer(float64(bytes)/float64(r.Budget.BytesPerSecond), "bytes")
	if r.ReadsOrigin() {
		c.OriginReads = keys
		longer(float64(keys)/float64(r.Budget.OriginPerSecond), "origin")
	}
	if speed > 0 {
		longer(float64(keys)/speed, "speed")
	}
	return c
}
