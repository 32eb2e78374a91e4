package warming

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// Plan is a plan that can be carried out: its cron, its CEL expressions, its key templates and its query were understood.
type Plan struct {
	mesh.Plan
	pool    string
	spread  float64
	regions map[string]*time.Location // that it may warm
	sources map[string]string         // by region, the sibling whose values it takes; "" is none
	times   *times                    // nil is none
	rule    *rule                     // nil is none
}

// Compile understands a mesh's plans. Those that have a problem are left out, which concerns no other.
func Compile(m *mesh.Mesh) ([]*Plan, mesh.Problems) {
	if m.Warming == nil {
		return nil, nil
	}
	var plans []*Plan
	var all mesh.Problems
	for i, spec := range m.Warming.Plans {
		p, problems := CompilePlan(spec, m)
		if len(problems) == 0 {
			plans = append(plans, p)
		}
		for _, problem := range problems {
			problem.Field = fmt.Sprintf("warming.plans[%d].%s", i, problem.Field)
			all = append(all, m.Locate(problem))
		}
	}
	return plans, all
}

// CompilePlan understands one plan of a mesh, which has validated it. The fields of the problems are those of the plan.
func CompilePlan(spec mesh.Plan, m *mesh.Mesh) (*Plan, mesh.Problems) {
	p := &Plan{Plan: spec, pool: m.PoolOf(spec.Keys.Route), spread: float64(*spec.TTLSpread) / 100, regions: map[string]*time.Location{}, sources: map[string]string{}}
	for _, r := range m.Regions {
		if len(spec.Regions) > 0 && !slices.Contains(spec.Regions, r.Name) || spec.Source.Region == r.Name {
			continue // a region does not warm itself
		}
		p.regions[r.Name] = r.Zone()
		p.sources[r.Name] = spec.Source.Region
		if spec.Source.Region == mesh.Nearest {
			p.sources[r.Name] = nearest(r, m.Regions)
		}
	}
	var c compiler
	if s := spec.Schedule; s != nil {
		p.times = c.times("schedule", *s)
	}
	if r := spec.Rule; r != nil {
		p.rule = c.rule("rule", *r, spec.Keys.Route, m)
	}
	if s := spec.Source.SQL; s != nil {
		c.query("source.sql.query", s.Query)
	}
	return p, c.problems
}

// compiler collects what is wrong with a plan.
type compiler struct{ problems mesh.Problems }

func (c *compiler) add(field, remedy, format string, args ...any) {
	c.problems = append(c.problems, mesh.Problem{Field: field, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// Warms says whether the plan may warm a region.
func (p *Plan) Warms(region string) bool { return p.regions[region] != nil }

// Pool is that of the plan's keys.
func (p *Plan) Pool() string { return p.pool }

// Trigger is what begins runs of the plan, as mesh.yaml names it.
func (p *Plan) Trigger() string {
	switch {
	case p.times != nil && p.times.finish:
		return "finishBy"
	case p.times != nil:
		return "cron"
	case p.FollowSun != nil:
		return "followSun"
	case p.rule != nil:
		return "rule"
	case p.OnReturn:
		return "onReturn"
	}
	return "manual"
}

// When is the trigger with what it says, for people.
func (p *Plan) When() string {
	switch {
	case p.Schedule != nil:
		return p.Trigger() + " " + p.Schedule.Cron + p.Schedule.FinishBy
	case p.FollowSun != nil:
		return "followSun, " + p.FollowSun.Ahead.String() + " ahead"
	case p.Rule != nil:
		return "rule " + p.Rule.When
	}
	return p.Trigger()
}

// Run is one of the plan in a region that begins now. The hour of one that follows the sun is the caller's to say, see Hour.
func (p *Plan) Run(region string, now time.Time) Run {
	r := Run{ID: NewID(p.Name, now), Plan: p.Name, Region: region, Pool: p.pool, Route: p.Keys.Route, Spread: p.spread, Begun: now.UTC().Round(0), State: Waiting,
		Budget: p.Budget, Source: p.Source, Keys: Keys{Prefix: p.Keys.Prefix, File: p.Keys.File, Named: p.Rule != nil}}
	r.Source.Region = p.sources[region]
	return r
}

// CopyPlan is the name of Copy's plans, which no plan of a file can have.
const CopyPlan = "Copy"

// Copy is a plan that nobody has written down: all keys of a route, from one region to another.
func Copy(m *mesh.Mesh, from, to, route string) (*Plan, error) {
	if m.PoolOf(route) == "" {
		return nil, fmt.Errorf("no route has the prefix %q: see `cachemesh validate`", route)
	}
	for _, r := range []string{from, to} {
		if _, ok := m.Region(r); !ok {
			return nil, fmt.Errorf("there is no region %q: the mesh has %s", r, strings.Join(m.RegionNames(), ", "))
		}
	}
	if from == to {
		return nil, fmt.Errorf("region %q cannot be copied to itself", from)
	}
	spec := mesh.Plan{Name: CopyPlan, Regions: []string{to}, Manual: true, Keys: mesh.Keys{Route: route}, Source: mesh.Source{Region: from}}
	spec.SetDefaults()
	p, problems := CompilePlan(spec, m)
	if len(problems) > 0 {
		return nil, problems
	}
	return p, nil
}
