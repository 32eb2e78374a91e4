package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// attemptsOf reads a line of attempts, one a millisecond: a letter is the node that acknowledged it, x a failure, . nothing.
func attemptsOf(start time.Time, line string) (attempts []attempt) {
	for i, c := range line {
		a := attempt{done: start.Add(time.Duration(i) * time.Millisecond), key: i, number: int64(i + 1), node: string(c)}
		switch c {
		case '.':
			continue
		case 'x':
			a.node, a.err = "", errors.New("failed")
		}
		attempts = append(attempts, a)
	}
	return attempts
}

func TestOutage(t *testing.T) {
	start := time.Now()
	for _, test := range []struct {
		name, line      string
		epoch           int // ended in that millisecond; 0 is not known
		from, to, other int // milliseconds; -1 is never
		failures, wrong int
	}{
		{name: "killed", line: "oooxxxxxnnnn", from: 2, to: 8, other: 8, failures: 5},
		{name: "one that was held fails after others were answered", line: "ooo...nnxnnx.nn", from: 2, to: 13, other: 6, failures: 2},
		{name: "nothing fails", line: "ooo....nnnn", from: 2, to: 7, other: 7},
		{name: "it never ends", line: "oooxxxx", from: 2, to: -1, other: -1, failures: 4},
		{name: "the last is a failure", line: "oooxxnnnx", from: 2, to: -1, other: 5, failures: 3},
		{name: "the old primary answers after the new one", line: "oooxxnnoonn", from: 2, to: 5, other: 5, failures: 2, wrong: 2},
		{name: "the old primary answers after its epoch", line: "oooxoonn", epoch: 4, from: 2, to: 4, other: 6, failures: 1, wrong: 1},
		{name: "two failovers", line: "ooxnnxmmn", from: 1, to: 6, other: 3, failures: 2, wrong: 1},
	} {
		var epoch time.Time
		if test.epoch > 0 {
			epoch = start.Add(time.Duration(test.epoch) * time.Millisecond)
		}
		o := outageOf(attemptsOf(start, test.line), "o", epoch)
		for _, moment := range []struct {
			name string
			got  time.Time
			want int
		}{{"from", o.from, test.from}, {"to", o.to, test.to}, {"other", o.other, test.other}} {
			got := -1
			if !moment.got.IsZero() {
				got = int(moment.got.Sub(start).Milliseconds())
			}
			if got != moment.want {
				t.Errorf("%s: %s is %d, want %d", test.name, moment.name, got, moment.want)
			}
		}
		if o.failures != test.failures || o.wrong != test.wrong {
			t.Errorf("%s: %d failures and %d wrong, want %d and %d", test.name, o.failures, o.wrong, test.failures, test.wrong)
		}
	}
}

func TestLost(t *testing.T) {
	attempts := attemptsOf(time.Now(), "oooxnn") // numbers 1 to 6 of keys 0 to 5
	if n := lost(attempts, []int64{1, 2, 0, 0, 5, 9}); n != 1 {
		t.Errorf("%d lost, want the third only: the fourth was not acknowledged, the last written again", n)
	}
}

func TestQuantile(t *testing.T) {
	values := make([]float64, 100)
	for i := range values {
		values[i] = float64(100 - i)
	}
	if got := quantile(values, 0.99); got != 99 {
		t.Errorf("p99 of 1 to 100 is %v", got)
	}
	if got := quantile([]float64{3}, 0.99); got != 3 {
		t.Errorf("p99 of one value is %v", got)
	}
}

func TestEpochEnded(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := failoverEvent{Time: at, Steps: []failoverStep{{"detected", 300}, {"promoted", 320.5}, {"acknowledged", 330}}}
	if ended, ok := e.ended(); !ok || at.Sub(ended) != 9500*time.Microsecond {
		t.Errorf("ended %v, %v", ended, ok)
	}
	e.Steps = e.Steps[:1]
	if _, ok := e.ended(); ok {
		t.Error("an epoch ended without a promotion")
	}
}

func TestFailoverQuick(t *testing.T) {
	printed := quick(t, "failover")
	for _, field := range []string{"unavailable_ms_p99", "unavailable_ms_p50", "ratio_vs_sentinel"} {
		values, _ := printed[field].(map[string]any)
		for _, fault := range []string{"kill", "hang"} {
			positive(t, field+" "+fault, values[fault])
		}
	}
	positive(t, "others_p99_ratio", printed["others_p99_ratio"])
	positive(t, "keys_checked", printed["keys_checked"])
	positive(t, "acked_writes", printed["acked_writes"])
	for _, field := range []string{"keys_moved", "wrong_primary_writes", "others_failures"} {
		if n, ok := printed[field].(float64); !ok || n != 0 {
			t.Errorf("%s is %v, want 0", field, printed[field])
		}
	}
	if _, ok := printed["lost_acked_writes"].(float64); !ok {
		t.Errorf("lost_acked_writes is %v, want a number", printed["lost_acked_writes"])
	}
}

func TestFailoverMarkdown(t *testing.T) {
	r := newFailoverResult(header{Bench: "failover"}, failoverQuick)
	for name, factor := range map[string]float64{"cachemesh": 1, "sentinel": 4} {
		for i, fault := range faults {
			f := r.Contenders[name][fault]
			f.Rounds = []float64{400 * factor, 500 * factor * float64(i+1)}
			f.failures = []float64{7}
			if name == "cachemesh" {
				f.OthersRatios = []float64{1.1}
			}
		}
	}
	r.summarize()
	var b bytes.Buffer
	r.markdown(&b)
	for _, want := range []string{"| kill | cachemesh | 2 | 450 | 500 | 0.25 | 7 | 0 | 0 |", "| hang | sentinel | 2 | 2800 | 4000 |  | 7 | 0 | 0 |", "| pause | cachemesh |", "p99 is 1.10 of before"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %q:\n%s", want, b.String())
		}
	}
}
