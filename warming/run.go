// Package warming says when which keys are loaded into a region's shards before anyone asks for them, and what one such load, a Run, is. It is pure:
// control planes ask it what is due, and agents carry runs out with warming/queue, warming/source and warming/load.
package warming

import (
	"errors"
	"fmt"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// Run is one time that a plan is carried out in one region. The leading control plane writes it down and gives it to the region's agents, which
// load its keys.
type Run struct {
	ID     string      `json:"id"` // unique, and safe in keys and paths
	Plan   string      `json:"plan"`
	Region string      `json:"region"` // whose shards are loaded
	Pool   string      `json:"pool"`   // on one of whose shards the run's queue is
	Route  string      `json:"route"`  // its prefix
	Keys   Keys        `json:"keys"`
	Source mesh.Source `json:"source"` // a region's name is never mesh.Nearest
	Budget mesh.Budget `json:"budget"` // nothing is left out
	Spread float64     `json:"spread"` // by up to which part of itself a time to live is shortened, at random
	Begun  time.Time   `json:"begun"`
	State  State       `json:"state"`
}

// NewID is that of a plan's run that begins now.
func NewID(plan string, now time.Time) string {
	return plan + "-" + now.UTC().Format("20060102T150405.000Z")
}

// State is where a run is in its life.
type State string

// A run waits, runs, perhaps pauses, and ends in one of the last three.
const (
	Waiting   State = "waiting"
	Running   State = "running"
	Paused    State = "paused"
	Done      State = "done"
	Cancelled State = "cancelled"
	Failed    State = "failed"
)

// Over says that the run has ended.
func (s State) Over() bool { return s == Done || s == Cancelled || s == Failed }

// Keys are what a run loads. Without File, Hour and Named, the source says which keys there are.
type Keys struct {
	Prefix string `json:"prefix"`          // with which all of them begin; "" is any
	File   string `json:"file,omitempty"`  // a key a line; where the agents are
	Hour   *int   `json:"hour,omitempty"`  // what the region itself read most in this hour of the day, of UTC
	Named  bool   `json:"named,omitempty"` // they were named when the run began, and are in its queue
}

// MaxNamed bounds the keys that a run may name.
const MaxNamed = 10_000

// Counts are what became of a run's keys. Each key is in one of them, once.
type Counts struct {
	Loaded  uint64 `json:"loaded"`
	There   uint64 `json:"there"`   // something was there already
	Refused uint64 `json:"refused"` // in a hold-off, or changed since the load began
	Missing uint64 `json:"missing"` // the source has none
	Failed  uint64 `json:"failed"`  // the source or the shard gave an error, more than once
	Memory  uint64 `json:"memory"`  // the shard has no room
	Bytes   uint64 `json:"bytes"`   // of keys and values that were loaded
}

// Keys are all that were counted.
func (c Counts) Keys() uint64 {
	return c.Loaded + c.There + c.Refused + c.Missing + c.Failed + c.Memory
}

// Add adds.
func (c *Counts) Add(d Counts) {
	c.Loaded += d.Loaded
	c.There += d.There
	c.Refused += d.Refused
	c.Missing += d.Missing
	c.Failed += d.Failed
	c.Memory += d.Memory
	c.Bytes += d.Bytes
}

// Results are the numbers of keys by what became of them, for metrics.
func (c Counts) Results() map[string]uint64 {
	return map[string]uint64{"loaded": c.Loaded, "there": c.There, "refused": c.Refused, "missing": c.Missing, "failed": c.Failed, "memory": c.Memory}
}

// Since are the counts that came to earlier ones of the same run.
func (c Counts) Since(d Counts) Counts {
	return Counts{c.Loaded - d.Loaded, c.There - d.There, c.Refused - d.Refused, c.Missing - d.Missing, c.Failed - d.Failed, c.Memory - d.Memory, c.Bytes - d.Bytes}
}

// Use is what a sample of the keys that a run loaded tells of their use so far.
type Use struct {
	Sampled uint64 `json:"sampled"` // keys that were looked at
	Read    uint64 `json:"read"`    // of them, at least once since
	Evicted uint64 `json:"evicted"` // of them, gone before their time and unread
}

// Ratio is the part of what was loaded that was read, 0 as long as nothing is known.
func (u Use) Ratio() float64 {
	if u.Sampled == 0 {
		return 0
	}
	return float64(u.Read) / float64(u.Sampled)
}

// ReadsOrigin says whether the run's values are read from the application's database.
func (r *Run) ReadsOrigin() bool { return r.Source.Loader != nil || r.Source.SQL != nil }

// Validate says what keeps agents from carrying the run out.
func (r *Run) Validate() error {
	given := 0
	for _, is := range []bool{r.Keys.File != "", r.Keys.Hour != nil, r.Keys.Named} {
		if is {
			given++
		}
	}
	whole := r.Source.SQL != nil || r.Source.File != "" // sources that cannot be asked for single keys
	switch b := r.Budget; {
	case r.ID == "" || r.Plan == "" || r.Pool == "" || r.Region == "":
		return errors.New("a run has an ID, a plan, a region and a pool")
	case given > 1:
		return fmt.Errorf("run %s: it says in %d ways which keys it loads, and may in one", r.ID, given)
	case given == 1 && whole:
		return fmt.Errorf("run %s: its source cannot be asked for single keys: take the values from a region or a loader", r.ID)
	case r.Source == (mesh.Source{}) || r.Source.Region == r.Region || r.Source.Region == mesh.Nearest:
		return fmt.Errorf("run %s: it has no source that is not region %q itself", r.ID, r.Region)
	case r.Keys.Hour != nil && (*r.Keys.Hour < 0 || *r.Keys.Hour > 23):
		return fmt.Errorf("run %s: there is no hour %d", r.ID, *r.Keys.Hour)
	case b.KeysPerSecond < 1 || b.BytesPerSecond < 1 || b.OriginPerSecond < 1 || b.Concurrency < 1:
		return fmt.Errorf("run %s: its budget is not complete", r.ID)
	case r.Spread < 0 || r.Spread >= 1:
		return fmt.Errorf("run %s: a spread of %v is not between 0 and 1", r.ID, r.Spread)
	}
	return nil
}
