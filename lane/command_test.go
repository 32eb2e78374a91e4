package lane

import (
	"context"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/commands"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/resp"
)

func parse(t *testing.T, args ...string) command {
	t.Helper()
	raw := appendCommand(nil, args...)
	var s resp.Scanner
	if n, err := s.Next(raw, maxArgs); n != len(raw) || err != nil {
		t.Fatal(n, err)
	}
	return command{raw, s.Args}
}

// A lane takes what the listeners let through, and nothing else.
func TestSpecsAreThoseOfTheCatalogue(t *testing.T) {
	passed := map[string]bool{}
	for _, c := range commands.All() {
		usable := c.Verdict == commands.VerdictWorks || c.Verdict == commands.VerdictCareful
		carried := c.Kind == commands.KindRead || c.Kind == commands.KindWrite || c.Kind == commands.KindSplit
		if usable && carried {
			passed[c.Name] = true
			if _, known := specs[c.Name]; !known {
				t.Errorf("%s passes Envoy, and no lane", c.Name)
			}
		}
	}
	for name := range specs {
		if !passed[name] {
			t.Errorf("%s passes lanes, and is not let through", name)
		}
	}
}

// Redis itself says how many arguments a command takes, where its keys are, and whether it writes.
func TestSpecsAreThoseOfRedis(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	known, err := node.Command(context.Background()).Result()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for name, s := range specs {
		c := known[name]
		if c == nil {
			continue // of newer Redis, or a module
		}
		checked++
		newer := name == "zrank" || name == "zrevrank" || name == "object" // take one more since 7.2; one that only helps takes one less
		if int(c.Arity) != s.arity && !newer {
			t.Errorf("%s: arity %d, and Redis says %d", name, s.arity, c.Arity)
		}
		writes := false
		for _, f := range c.Flags {
			writes = writes || f == "write"
		}
		if writes && s.effect == reads {
			t.Errorf("%s writes", name)
		}
		if !writes && s.effect != reads && s.effect != scripted {
			t.Errorf("%s does not write", name)
		}
		want := [3]int8{1, 1, 1}
		switch s.place {
		case each:
			want = [3]int8{1, -1, 1}
		case pairs:
			want = [3]int8{1, -1, 2}
		case counted, second:
			want = [3]int8{0, 0, 0} // Redis looks into the arguments
		}
		if got := [3]int8{c.FirstKeyPos, c.LastKeyPos, c.StepCount}; got != want {
			t.Errorf("%s: keys at %v, and Redis says %v", name, want, got)
		}
	}
	if checked < 100 {
		t.Errorf("Redis knows only %d of %d", checked, len(specs))
	}
}

func TestOutcomes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want effect
	}{
		{[]string{"GET", "k"}, reads}, {[]string{"SET", "k", "v"}, fills}, {[]string{"DEL", "k"}, removes}, {[]string{"HDEL", "k", "f"}, removes},
		{[]string{"EXPIRE", "k", "0"}, removes}, {[]string{"EXPIRE", "k", "-1"}, removes}, {[]string{"EXPIRE", "k", "1"}, fills}, {[]string{"EXPIRE", "k", "x"}, fills},
		{[]string{"EXPIREAT", "k", "1"}, removes}, {[]string{"EXPIREAT", "k", "99999999999"}, fills},
		{[]string{"PEXPIREAT", "k", "1000"}, removes}, {[]string{"PEXPIREAT", "k", "99999999999999"}, fills},
		{[]string{"SORT", "k"}, reads}, {[]string{"SORT", "k", "store", "l"}, fills}, {[]string{"EVAL", "return 1", "1", "k"}, removes},
	} {
		cmd := parse(t, c.args...)
		if got := specs[string(cmd.name(new([24]byte)))].outcome(cmd, 0); got != c.want {
			t.Errorf("%q: %d, want %d", c.args, got, c.want)
		}
	}
	// The clock that counts is Redis's.
	soon := parse(t, "EXPIREAT", "k", "2000000000")
	if got := specs["expireat"].outcome(soon, 50*365*24*time.Hour); got != removes {
		t.Error("a moment that is over for Redis is still to come here")
	}
}
