// Package warming says when which keys are loaded into a region's shards before anyone asks for them, and what one such load, a Run, is. It is pure:
// control planes ask it what is due, and agents carry runs out with warming/queue, warming/source and warming/load.
package warming

import (
	"errors"
	"fmt"
	"time"
)

// Run is one time that a plan is carried out in one region. The leading control plane writes it down and gives it to the region's agents, which
// load its keys.
type Run struct {
	ID     string    `json:"id"` // unique, and safe in keys and paths
	Plan   string    `json:"plan"`
	Region string    `json:"region"` // whose shards are loaded
	Pool   string    `json:"pool"`   // on one of whose shards the run's queue is
	Route  string    `json:"route"`  // with which all of its keys begin; "" is any
	Keys   Keys      `json:"keys"`
	Source Source    `json:"source"`
	Budget Budget    `json:"budget"`
	Spread float64   `json:"spread"` // by up to which part of itself a time to live is shortened, at random
	Begun  time.Time `json:"begun"`
	State  State     `json:"state"`
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

// Keys are what a run loads. Exactly one field counts.
type Keys struct {
	List   []string `json:"list,omitempty"`   // at most MaxList
	Prefix *string  `json:"prefix,omitempty"` // all keys of the source that begin so
	File   string   `json:"file,omitempty"`   // a key a line; where the agents are
	Hour   *int     `json:"hour,omitempty"`   // what the region itself read most in this hour of the day, of UTC
	Query  bool     `json:"query,omitempty"`  // what the source's query returns
}

// MaxList bounds the keys that a run names, so that a run fits into what agents are told.
const MaxList = 10_000

// Source is where values come from. Exactly one field counts.
type Source struct {
	Region string  `json:"region,omitempty"` // a sibling, over the link
	Loader *Loader `json:"loader,omitempty"`
	SQL    *SQL    `json:"sql,omitempty"`
	File   string  `json:"file,omitempty"` // a line of JSON an item, see docs/loader.md; where the agents are
}

// Origin says that what it costs is work of the application's database.
func (s Source) Origin() bool { return s.Loader != nil || s.SQL != nil }

// Loader is the application's HTTP endpoint, see docs/loader.md.
type Loader struct {
	URL       string `json:"url"`
	TokenFile string `json:"token_file,omitempty"`
}

// SQL is a database, and a query whose columns are key, value and, if there is a third, the time to live in seconds. With a parameter, it is given
// keys; without, it says itself which keys there are.
type SQL struct {
	Driver  string `json:"driver"` // postgres or sqlite
	DSNFile string `json:"dsn_file,omitempty"`
	DSNEnv  string `json:"dsn_env,omitempty"`
	Query   string `json:"query"`
}

// Budget bounds a run, over all agents together.
type Budget struct {
	KeysPerSecond   float64 `json:"keys_per_second"`   // 0 is DefaultKeysPerSecond
	BytesPerSecond  float64 `json:"bytes_per_second"`  // of keys and values; 0 is DefaultBytesPerSecond
	OriginPerSecond float64 `json:"origin_per_second"` // keys that a loader or a database is asked for; 0 is DefaultOriginPerSecond
	Concurrency     int     `json:"concurrency"`       // chunks at once; 0 is DefaultConcurrency
}

// What a plan that says nothing may take.
const (
	DefaultKeysPerSecond   = 25_000
	DefaultBytesPerSecond  = 32 << 20
	DefaultOriginPerSecond = 500
	DefaultConcurrency     = 4
)

// WithDefaults fills in what is not said.
func (b Budget) WithDefaults() Budget {
	if b.KeysPerSecond == 0 {
		b.KeysPerSecond = DefaultKeysPerSecond
	}
	if b.BytesPerSecond == 0 {
		b.BytesPerSecond = DefaultBytesPerSecond
	}
	if b.OriginPerSecond == 0 {
		b.OriginPerSecond = DefaultOriginPerSecond
	}
	if b.Concurrency == 0 {
		b.Concurrency = DefaultConcurrency
	}
	return b
}

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

// Validate says what keeps agents from carrying the run out.
func (r *Run) Validate() error {
	keys, sources := 0, 0
	for _, is := range []bool{len(r.Keys.List) > 0, r.Keys.Prefix != nil, r.Keys.File != "", r.Keys.Hour != nil, r.Keys.Query} {
		if is {
			keys++
		}
	}
	for _, is := range []bool{r.Source.Region != "", r.Source.Loader != nil, r.Source.SQL != nil, r.Source.File != ""} {
		if is {
			sources++
		}
	}
	switch {
	case r.ID == "" || r.Plan == "" || r.Pool == "" || r.Region == "":
		return errors.New("a run has an ID, a plan, a region and a pool")
	case keys != 1:
		return fmt.Errorf("run %s: it has %d kinds of keys, and is to have one", r.ID, keys)
	case sources != 1:
		return fmt.Errorf("run %s: it has %d sources, and is to have one", r.ID, sources)
	case len(r.Keys.List) > MaxList:
		return fmt.Errorf("run %s: it names %d keys and may name %d", r.ID, len(r.Keys.List), MaxList)
	case r.Keys.Hour != nil && (*r.Keys.Hour < 0 || *r.Keys.Hour > 23):
		return fmt.Errorf("run %s: there is no hour %d", r.ID, *r.Keys.Hour)
	case r.Spread < 0 || r.Spread >= 1:
		return fmt.Errorf("run %s: a spread of %v is not between 0 and 1", r.ID, r.Spread)
	}
	return nil
}
