package warming

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

var (
	jsonObject = reflect.TypeFor[map[string]any]()
	stringList = reflect.TypeFor[[]string]()
)

// template makes a key of an event: text and expressions take turns.
type template struct {
	text   []string // one more than values
	values []cel.Program
}

func (c *compiler) template(env *cel.Env, field, text, route string) (t template) {
	rest, from := text, 0
	for {
		before, after, found := strings.Cut(rest, "{{")
		t.text = append(t.text, before)
		if !found {
			break
		}
		from += len(before) + 2
		expression, after, closed := strings.Cut(after, "}}")
		if !closed {
			c.add(field, `write a field of the event in double braces, such as "tweet:{{event.id}}"`, "column %d: these braces are not closed", from-1)
			return t
		}
		t.values = append(t.values, c.expression(env, field, expression, from, nil))
		rest, from = after, from+len(expression)+2
	}
	if !strings.HasPrefix(t.text[0], route) {
		c.add(field, fmt.Sprintf("begin it with %s, which is keys.route, or name another route there", route), "column 1: keys like %q are not of route %q", text, route)
	}
	return t
}

func (t template) fill(r *rule, e Event) (string, error) {
	var b strings.Builder
	for i, text := range t.text {
		b.WriteString(text)
		if i == len(t.values) {
			break
		}
		v, err := r.eval(t.values[i], e)
		if err != nil {
			return "", err
		}
		switch v := v.(type) {
		case types.String:
			b.WriteString(string(v))
		case types.Int:
			b.WriteString(strconv.FormatInt(int64(v), 10))
		case types.Uint:
			b.WriteString(strconv.FormatUint(uint64(v), 10))
		case types.Double:
			b.WriteString(strconv.FormatFloat(float64(v), 'f', -1, 64))
		case types.Bool:
			b.WriteString(strconv.FormatBool(bool(v)))
		default:
			return "", fmt.Errorf("a %s cannot be part of a key", v.Type().TypeName())
		}
		if b.Len() > maxKey {
			return "", fmt.Errorf("the key has more than %d bytes", maxKey)
		}
	}
	return b.String(), nil
}
