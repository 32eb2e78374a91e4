package warming

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// costLimit bounds the work of one expression on one event.
	costLimit = 100_000
	// maxKey is the longest key that a template may make.
	maxKey = 1024
)

// Event is what an application tells, one JSON object.
type Event map[string]any

// ParseEvent reads an event. Numbers without a fraction stay exact.
func ParseEvent(data []byte) (Event, error) {
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.UseNumber()
	var e map[string]any
	if err := decoder.Decode(&e); err != nil {
		return nil, fmt.Errorf("an event is one JSON object: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("an event is one JSON object, and something follows it")
	}
	if e == nil {
		return nil, errors.New("an event is one JSON object, not null")
	}
	return exact(e).(map[string]any), nil
}

// exact replaces JSON's numbers by those of CEL.
func exact(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			v[name] = exact(value)
		}
	case []any:
		for i, value := range v {
			v[i] = exact(value)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if n, err := strconv.ParseUint(string(v), 10, 64); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return v
}

// rule is one that was understood.
type rule struct {
	when    cel.Program
	regions cel.Program
	keys    []template
	route   string
	all     map[string][]string // what regions is in expressions
}

func (c *compiler) rule(field string, spec mesh.Rule, route string, m *mesh.Mesh) *rule {
	r := &rule{route: route, all: map[string][]string{"all": m.RegionNames()}}
	env, err := environment(m)
	if err != nil {
		c.add(field, "report this", "CEL: %v", err)
		return r
	}
	r.when = c.expression(env, field+".when", spec.When, 0, cel.BoolType)
	r.regions = c.expression(env, field+".regions", spec.Regions, 0, cel.ListType(cel.StringType))
	for i, text := range spec.Keys {
		r.keys = append(r.keys, c.template(env, fmt.Sprintf("%s.keys[%d]", field, i), text, route))
	}
	if len(c.problems) > 0 {
		return r
	}
	// What depends on no event is known now.
	if names, err := r.named(Event{}); err == nil {
		for _, name := range names {
			if _, ok := m.Region(name); !ok {
				c.add(field+".regions", "name some of "+strings.Join(m.RegionNames(), ", "), "there is no region %q", name)
			}
		}
	}
	return r
}

func environment(m *mesh.Mesh) (*cel.Env, error) {
	regions := cel.MapType(cel.StringType, cel.ListType(cel.StringType))
	options := []cel.EnvOption{
		cel.Variable("event", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("regions", regions),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(16 << 10),
	}
	if m.Located() {
		options = append(options, cel.Function("near", cel.MemberOverload("regions_near_place", []*cel.Type{regions, cel.DynType}, cel.ListType(cel.StringType),
			cel.BinaryBinding(func(_, place ref.Val) ref.Val {
				at, err := location(place)
				if err != nil {
					return types.WrapErr(err)
				}
				return types.DefaultTypeAdapter.NativeToValue([]string{Near(at, m.Regions)})
			}))))
	}
	return cel.NewEnv(options...)
}

// location reads a place out of an event: latitude and longitude, or lat and lon.
func location(v ref.Val) (mesh.Location, error) {
	native, err := v.ConvertToNative(jsonObject)
	if err != nil {
		return mesh.Location{}, errors.New("a place is an object of latitude and longitude")
	}
	place := native.(map[string]any)
	number := func(names ...string) (float64, error) {
		for _, name := range names {
			switch n := place[name].(type) {
			case int64:
				return float64(n), nil
			case float64:
				return n, nil
			}
		}
		return 0, fmt.Errorf("a place has a number named %s", strings.Join(names, " or "))
	}
	latitude, err := number("latitude", "lat")
	if err != nil {
		return mesh.Location{}, err
	}
	longitude, err := number("longitude", "lon", "lng")
	if err != nil {
		return mesh.Location{}, err
	}
	if math.Abs(latitude) > 90 || math.Abs(longitude) > 180 {
		return mesh.Location{}, fmt.Errorf("%v, %v is no place on earth", latitude, longitude)
	}
	return mesh.Location{Latitude: latitude, Longitude: longitude}, nil
}

// expression compiles one that is of a type. from is where it begins in the field.
func (c *compiler) expression(env *cel.Env, field, text string, from int, want *cel.Type) cel.Program {
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		for _, e := range issues.Errors() {
			remedy := "mend the CEL expression; the event's fields are event.NAME"
			if strings.Contains(e.Message, "'near'") {
				remedy = "give every region of the mesh a location, and write regions.near(event.PLACE)"
			}
			at := fmt.Sprintf("column %d", from+e.Location.Column()+1)
			if e.Location.Line() > 1 {
				at = fmt.Sprintf("line %d, column %d", e.Location.Line(), e.Location.Column()+1)
			}
			c.add(field, remedy, "%s of the expression: %s", at, strings.TrimSpace(e.Message))
		}
		return nil
	}
	if out := ast.OutputType(); want != nil && !out.IsExactType(want) && !out.IsExactType(cel.DynType) && !out.IsExactType(cel.ListType(cel.DynType)) {
		c.add(field, "write an expression that yields a "+want.String(), "column %d of the expression: it yields a %s", from+1, out)
		return nil
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(costLimit))
	if err != nil {
		c.add(field, "mend the CEL expression", "column %d of the expression: %v", from+1, err)
	}
	return program
}

// errNoField says that an event lacks a field that an expression asks for.
var errNoField = errors.New("no such field")

func (r *rule) eval(p cel.Program, e Event) (ref.Val, error) {
	v, _, err := p.Eval(map[string]any{"event": map[string]any(e), "regions": r.all})
	if err != nil && strings.Contains(err.Error(), "no such key") {
		return nil, fmt.Errorf("%w: %w", errNoField, err)
	}
	return v, err
}

// Match returns the keys that an event has loaded in a region; none if the rule does not concern it.
func (p *Plan) Match(region string, e Event) ([]string, error) {
	if p.rule == nil || !p.Warms(region) {
		return nil, nil
	}
	r := p.rule
	v, err := r.eval(r.when, e)
	switch yes, ok := v.(types.Bool); {
	case errors.Is(err, errNoField):
		return nil, nil // another kind of event
	case err != nil:
		return nil, fmt.Errorf("rule.when: %w", err)
	case !ok:
		return nil, fmt.Errorf("rule.when: it yields a %s, not true or false", v.Type().TypeName())
	case !bool(yes):
		return nil, nil
	}
	names, err := r.named(e)
	if err != nil {
		return nil, fmt.Errorf("rule.regions: %w", err)
	}
	if !slices.Contains(names, region) {
		return nil, nil
	}
	var keys []string
	for i, t := range r.keys {
		key, err := t.fill(r, e)
		if err == nil && !strings.HasPrefix(key, p.Keys.Prefix) {
			err = fmt.Errorf("%q does not begin with %q", key, p.Keys.Prefix)
		}
		if err != nil {
			return nil, fmt.Errorf("rule.keys[%d]: %w", i, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// named are the regions that the rule wants an event's keys in.
func (r *rule) named(e Event) ([]string, error) {
	v, err := r.eval(r.regions, e)
	if err != nil {
		return nil, err
	}
	names, err := v.ConvertToNative(stringList)
	if err != nil {
		return nil, errors.New("it yields no list of regions' names")
	}
	return names.([]string), nil
}
