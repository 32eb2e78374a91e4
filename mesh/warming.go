package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // regions' time zones are known on hosts without a database of them, too
)

// Warming is what is loaded into the regions' shards before anybody asks for it.
type Warming struct {
	// The plans. One that cannot be used, because of its cron, CEL expression or query, is named and left out; the others run.
	Plans []Plan `yaml:"plans,omitempty" json:"plans" jsonschema:"maxItems=1000"`
}

// Plan is a warming plan: when, which keys, from where, into which regions, at what speed. It has one trigger of schedule, followSun, rule,
// onReturn and manual.
type Plan struct {
	// Name of the plan, such as morning-trending.
	Name string `yaml:"name" json:"name" jsonschema:"pattern=^[a-z0-9]([a-z0-9-]{0\\,61}[a-z0-9])?$"`
	// Regions that are warmed (default: all; with a rule, those that it names).
	Regions []string `yaml:"regions,omitempty" json:"regions,omitempty"`

	// Trigger: at times of the target region's time zone.
	Schedule *Schedule `yaml:"schedule,omitempty" json:"schedule,omitempty"`
	// Trigger: before each hour, what the region read most in that hour of the day before.
	FollowSun *FollowSun `yaml:"followSun,omitempty" json:"followSun,omitempty"`
	// Trigger: an event of the application.
	Rule *Rule `yaml:"rule,omitempty" json:"rule,omitempty"`
	// Trigger: a region's shards come back empty.
	OnReturn bool `yaml:"onReturn,omitempty" json:"onReturn,omitempty"`
	// No trigger: the plan runs by `cachemesh warm run` only.
	Manual bool `yaml:"manual,omitempty" json:"manual,omitempty"`

	// The keys.
	Keys Keys `yaml:"keys" json:"keys"`
	// Where their values are from.
	Source Source `yaml:"source" json:"source"`
	// How much of each region's shards and of the source a run may take.
	Budget Budget `yaml:"budget,omitempty" json:"budget,omitzero"`
	// How far apart keys expire that were loaded together, in percent: 10 (the default) takes up to 10 % from each one's time to live. 0 keeps it.
	TTLSpread *int `yaml:"ttlSpread,omitempty" json:"ttlSpread,omitempty" jsonschema:"minimum=0,maximum=90"`
}

// Schedule is a plan's times, as cron expressions of five fields or as HH:MM of each day. It has one of cron and finishBy.
type Schedule struct {
	// When a run begins, such as "0 7 * * MON-FRI" or "07:00".
	Cron string `yaml:"cron,omitempty" json:"cron,omitempty" jsonschema:"maxLength=200"`
	// When a run is to be over, such as "08:00": it begins as early as its size, and the speed of runs before it, ask for.
	FinishBy string `yaml:"finishBy,omitempty" json:"finishBy,omitempty" jsonschema:"maxLength=200"`
	// Begin up to so much later, the same for the same plan, region and time, so that plans and regions do not begin at once.
	Jitter time.Duration `yaml:"jitter,omitempty" json:"jitter_ns,omitempty" jsonschema:"type=string,pattern=^[0-9]+(ms|s|m|h)$,example=2m"`
	// What becomes of times at which no control plane ran: skip (the default), or run, which makes up for the last of them.
	Missed Missed `yaml:"missed,omitempty" json:"missed,omitempty" jsonschema:"enum=skip,enum=run"`
}

// Missed is what becomes of times at which no control plane ran.
type Missed string

// MissedSkip waits for the next time; MissedRun makes up for the last.
const (
	MissedSkip Missed = "skip"
	MissedRun  Missed = "run"
)

// FollowSun loads a region's working set of the coming hour.
type FollowSun struct {
	// How long before the hour (default 15m).
	Ahead time.Duration `yaml:"ahead,omitempty" json:"ahead_ns,omitempty" jsonschema:"type=string,pattern=^[0-9]+(s|m)$,example=15m"`
}

// Rule loads keys when the application tells of an event.
type Rule struct {
	// CEL expression over event: true is to load, such as event.type == "tweet.created" && event.author.followers > 1000000.
	When string `yaml:"when" json:"when" jsonschema:"minLength=1,maxLength=4096"`
	// The keys, with fields of the event in double braces, such as "tweet:{{event.id}}".
	Keys []string `yaml:"keys" json:"keys" jsonschema:"minItems=1,maxItems=64"`
	// CEL expression of the regions, such as regions.near(event.geo), regions.all (the default), or ["us-east"].
	Regions string `yaml:"regions,omitempty" json:"regions,omitempty" jsonschema:"maxLength=4096"`
}

// Keys are the keys of a plan. They are of one route.
type Keys struct {
	// Prefix of the route in pools, such as "tweet:".
	Route string `yaml:"route" json:"route"`
	// Only keys of the route that begin so.
	Prefix string `yaml:"prefix,omitempty" json:"prefix,omitempty" jsonschema:"maxLength=256"`
	// Path of a file of keys, one a line, on the hosts of the region's agents. Without it the source says which keys there are.
	File string `yaml:"file,omitempty" json:"file,omitempty"`
}

// Source is where values are from. It has one of region, loader, sql and file.
type Source struct {
	// A sibling region's cache: its name, or nearest.
	Region string `yaml:"region,omitempty" json:"region,omitempty"`
	// An HTTP endpoint of the application.
	Loader *Loader `yaml:"loader,omitempty" json:"loader,omitempty"`
	// A database.
	SQL *SQL `yaml:"sql,omitempty" json:"sql,omitempty"`
	// Path of a file of JSON lines, each with key, value and ttl, on the hosts of the region's agents.
	File string `yaml:"file,omitempty" json:"file,omitempty"`
}

// Nearest is the source region that is nearest to the target.
const Nearest = "nearest"

// Loader is an HTTP endpoint that says what values keys have.
type Loader struct {
	// http or https URL that takes batches of keys by POST, see docs/loader.md.
	URL string `yaml:"url" json:"url" jsonschema:"maxLength=2048"`
	// File with the bearer token, on the hosts of the region's agents.
	TokenFile string `yaml:"tokenFile,omitempty" json:"tokenFile,omitempty"`
}

// SQL is a query of keys, values and seconds to live. It has one of dsnFile and dsnEnv.
type SQL struct {
	// postgres or sqlite.
	Driver Driver `yaml:"driver" json:"driver" jsonschema:"enum=postgres,enum=sqlite"`
	// File with the connection string, on the hosts of the region's agents.
	DSNFile string `yaml:"dsnFile,omitempty" json:"dsnFile,omitempty"`
	// Environment variable of the agents with the connection string.
	DSNEnv string `yaml:"dsnEnv,omitempty" json:"dsnEnv,omitempty"`
	// One SELECT of the columns key, value and, if keys are to expire, seconds to live.
	Query string `yaml:"query" json:"query" jsonschema:"minLength=1,maxLength=16384"`
}

// Driver is a kind of database.
type Driver string

// The drivers of SQL sources.
const (
	Postgres Driver = "postgres"
	SQLite   Driver = "sqlite"
)

// Budget bounds what one run takes in one region, all agents together. What is left out has a default.
type Budget struct {
	// Keys a second (default 5000).
	KeysPerSecond int `yaml:"keysPerSecond,omitempty" json:"keysPerSecond,omitempty" jsonschema:"minimum=1,maximum=10000000"`
	// Bytes of keys and values a second (default 50000000).
	BytesPerSecond int `yaml:"bytesPerSecond,omitempty" json:"bytesPerSecond,omitempty" jsonschema:"minimum=1024,maximum=10000000000"`
	// Keys a second that are read from a loader or a database (default 1000).
	OriginPerSecond int `yaml:"originPerSecond,omitempty" json:"originPerSecond,omitempty" jsonschema:"minimum=1,maximum=10000000"`
	// Chunks that are loaded at a time (default 4).
	Concurrency int `yaml:"concurrency,omitempty" json:"concurrency,omitempty" jsonschema:"minimum=1,maximum=256"`
}

// The defaults of plans.
const (
	DefaultAhead           = 15 * time.Minute
	DefaultKeysPerSecond   = 5_000
	DefaultBytesPerSecond  = 50_000_000
	DefaultOriginPerSecond = 1_000
	DefaultConcurrency     = 4
	DefaultTTLSpread       = 10

	maxAhead  = time.Hour
	maxJitter = 6 * time.Hour
)

// SetDefaults fills in what a plan does not say.
func (p *Plan) SetDefaults() {
	if s := p.Schedule; s != nil && s.Missed == "" {
		s.Missed = MissedSkip
	}
	if f := p.FollowSun; f != nil && f.Ahead == 0 {
		f.Ahead = DefaultAhead
	}
	if r := p.Rule; r != nil && r.Regions == "" {
		r.Regions = "regions.all"
	}
	if p.Keys.Prefix == "" {
		p.Keys.Prefix = p.Keys.Route
	}
	p.Budget = p.Budget.Or(Budget{DefaultKeysPerSecond, DefaultBytesPerSecond, DefaultOriginPerSecond, DefaultConcurrency})
	if p.TTLSpread == nil {
		spread := DefaultTTLSpread
		p.TTLSpread = &spread
	}
}

// Or is a budget with what it leaves out from another.
func (b Budget) Or(other Budget) Budget {
	return Budget{cmp.Or(b.KeysPerSecond, other.KeysPerSecond), cmp.Or(b.BytesPerSecond, other.BytesPerSecond), cmp.Or(b.OriginPerSecond, other.OriginPerSecond),
		cmp.Or(b.Concurrency, other.Concurrency)}
}

// Location is a place on earth.
type Location struct {
	// Degrees north of the equator.
	Latitude float64 `yaml:"latitude" json:"latitude" jsonschema:"minimum=-90,maximum=90"`
	// Degrees east of Greenwich.
	Longitude float64 `yaml:"longitude" json:"longitude" jsonschema:"minimum=-180,maximum=180"`
}

// LoadPlans parses a file of plans, as under warming in mesh.yaml, and returns the mesh with these plans instead of its own. Its errors are of
// type Problems.
func (m *Mesh) LoadPlans(file string, data []byte) (*Mesh, error) {
	w := new(Warming)
	at, err := decode(file, data, w, "warming")
	if err != nil {
		return nil, err
	}
	for i := range w.Plans {
		w.Plans[i].SetDefaults()
	}
	with := m.WithPlans(w.Plans)
	with.at = at
	v := &validation{where: map[string]string{}}
	v.warming(with)
	if len(v.problems) > 0 {
		return nil, at.all(v.problems)
	}
	return with, nil
}

// CheckPlan validates a plan that is in no file beside the mesh. Its error is of type Problems.
func (m *Mesh) CheckPlan(p Plan) error {
	v := &validation{where: map[string]string{}}
	v.plan("plan", p, m)
	if len(v.problems) == 0 {
		return nil
	}
	for i := range v.problems {
		v.problems[i].Field = strings.TrimPrefix(strings.TrimPrefix(v.problems[i].Field, "plan"), ".")
	}
	return v.problems
}

// WithPlans is the mesh with other plans.
func (m *Mesh) WithPlans(plans []Plan) *Mesh {
	with := *m
	with.Warming = &Warming{Plans: plans}
	return &with
}

func (v *validation) warming(m *Mesh) {
	if m.Warming == nil {
		return
	}
	for i, p := range m.Warming.Plans {
		v.plan(fmt.Sprintf("warming.plans[%d]", i), p, m)
	}
}

// plan checks what can be seen without an understanding of cron, CEL and SQL.
func (v *validation) plan(field string, p Plan, m *Mesh) {
	v.once("plan", p.Name, field+".name", "rename or remove one of them")
	for i, r := range p.Regions {
		f := fmt.Sprintf("%s.regions[%d]", field, i)
		if _, ok := m.Region(r); !ok {
			v.add(f, "name one of "+strings.Join(m.RegionNames(), ", "), "there is no region %q", r)
		}
		v.once("region of plan "+p.Name, r, f, "name it once")
	}
	v.trigger(field, p)
	v.keys(field, p, m)
	v.source(field, p, m)
}

func (v *validation) trigger(field string, p Plan) {
	var given []string
	for name, is := range map[string]bool{"schedule": p.Schedule != nil, "followSun": p.FollowSun != nil, "rule": p.Rule != nil, "onReturn": p.OnReturn, "manual": p.Manual} {
		if is {
			given = append(given, name)
		}
	}
	slices.Sort(given)
	switch len(given) {
	case 0:
		v.add(field, "add schedule, followSun, rule, onReturn: true or manual: true", "plan %q has no trigger", p.Name)
	case 1:
	default:
		v.add(field, "make a plan of each", "plan %q has several triggers: %s", p.Name, strings.Join(given, ", "))
	}
	if s := p.Schedule; s != nil {
		if (s.Cron == "") == (s.FinishBy == "") {
			v.add(field+".schedule", "write one of cron, which is when a run begins, and finishBy, which is when it is to be over", "is when to begin or when to be over")
		}
		if s.Jitter < 0 || s.Jitter > maxJitter {
			v.add(field+".schedule.jitter", "choose from 0s to 6h", "%s is out of range", s.Jitter)
		}
		if s.FinishBy != "" && s.Jitter != 0 {
			v.add(field+".schedule.jitter", "remove it", "a run that is to be over in time does not begin later")
		}
	}
	if f := p.FollowSun; f != nil && (f.Ahead < time.Second || f.Ahead > maxAhead) {
		v.add(field+".followSun.ahead", "choose from 1s to 60m", "%s is out of range", f.Ahead)
	}
}

func (v *validation) keys(field string, p Plan, m *Mesh) {
	if m.PoolOf(p.Keys.Route) == "" {
		v.add(field+".keys.route", "write the prefix of a route in pools", "no route has the prefix %q", p.Keys.Route)
	}
	if !strings.HasPrefix(p.Keys.Prefix, p.Keys.Route) {
		v.add(field+".keys.prefix", "begin it with "+p.Keys.Route, "keys that begin with %q are not of route %q", p.Keys.Prefix, p.Keys.Route)
	}
	if p.Keys.File != "" && (p.Source.SQL != nil || p.Source.File != "") {
		v.add(field+".keys.file", "remove it, or take the values from a region or a loader", "this source says itself which keys there are")
	}
	if p.Keys.File != "" && (p.Rule != nil || p.FollowSun != nil) {
		v.add(field+".keys.file", "remove it", "this trigger says itself which keys are loaded")
	}
	if (p.Rule != nil || p.FollowSun != nil) && (p.Source.SQL != nil || p.Source.File != "") {
		v.add(field+".source", "take the values from a region or a loader", "this trigger says which keys are loaded, and the source cannot be asked for single keys")
	}
}

func (v *validation) source(field string, p Plan, m *Mesh) {
	given := 0
	for _, is := range []bool{p.Source.Region != "", p.Source.Loader != nil, p.Source.SQL != nil, p.Source.File != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		v.add(field+".source", "write one of region, loader, sql and file", "plan %q takes its values from one place", p.Name)
	}
	switch _, known := m.Region(p.Source.Region); {
	case p.Source.Region == "":
	case p.Source.Region != Nearest && !known:
		v.add(field+".source.region", "name one of "+strings.Join(m.RegionNames(), ", ")+", or nearest", "there is no region %q", p.Source.Region)
	case len(m.Regions) < 2:
		v.add(field+".source.region", "take the values from a loader, sql or a file", "there is no other region")
	case p.Source.Region == Nearest && len(m.Regions) > 2 && !m.Located():
		v.add(field+".source.region", "give every region a location", "what is nearest is not known")
	}
	if s := p.Source.SQL; s != nil && (s.DSNFile == "") == (s.DSNEnv == "") {
		v.add(field+".source.sql", "write one of dsnFile and dsnEnv", "how to reach the database is in a file or in the environment of the agents")
	}
}

// PoolOf is the pool that has the route of that prefix, "" if there is none.
func (m *Mesh) PoolOf(route string) string {
	for _, p := range m.Pools {
		if slices.ContainsFunc(p.Routes, func(r Route) bool { return r.Prefix == route }) {
			return p.Name
		}
	}
	return ""
}

// Located says whether every region has a location.
func (m *Mesh) Located() bool {
	return !slices.ContainsFunc(m.Regions, func(r RegionSpec) bool { return r.Location == nil })
}

// place checks where a region is, and its time zone.
func (v *validation) place(field string, r RegionSpec) {
	if _, err := time.LoadLocation(r.Timezone); err != nil || r.Timezone == "Local" {
		v.add(field+".timezone", "write a name of the IANA database, such as Europe/Berlin", "there is no time zone %q", r.Timezone)
	}
}

// Zone is the region's time zone, UTC unless the mesh says another.
func (r RegionSpec) Zone() *time.Location {
	zone, err := time.LoadLocation(r.Timezone)
	if err != nil {
		return time.UTC // validated
	}
	return zone
}

// fromRegions says whether a plan takes values from another region.
func (m *Mesh) fromRegions() bool {
	return m.Warming != nil && slices.ContainsFunc(m.Warming.Plans, func(p Plan) bool { return p.Source.Region != "" })
}

// followsSun says whether a plan needs to know what is read in each hour.
func (m *Mesh) followsSun() bool {
	return m.Warming != nil && slices.ContainsFunc(m.Warming.Plans, func(p Plan) bool { return p.FollowSun != nil })
}
