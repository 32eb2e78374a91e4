package null

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/resp"
)

func set(out *resp.Writer, args [][]byte) {
	get, exists := false, false
	for i := 3; i < len(args); i++ {
		switch strings.ToLower(string(args[i])) {
		case "get":
			get = true
		case "xx":
			exists = true
		case "nx", "keepttl":
		case "ex", "px", "exat", "pxat":
			i++
			if i == len(args) {
				out.Error(syntaxError)
				return
			}
		default:
			out.Error(syntaxError)
			return
		}
	}
	if get || exists {
		out.Null()
		return
	}
	out.Simple("OK")
}

func setRange(out *resp.Writer, args [][]byte) {
	offset, err := strconv.ParseInt(string(args[2]), 10, 64)
	switch {
	case err != nil:
		out.Error(notAnInteger)
	case offset < 0:
		out.Error("ERR offset is out of range")
	case len(args[3]) == 0:
		out.Integer(0)
	case offset > math.MaxInt32:
		out.Error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
	default:
		out.Integer(offset + int64(len(args[3])))
	}
}

// increment answers with the amount, which is at an index.
func increment(at int) answer {
	return func(out *resp.Writer, args [][]byte) {
		by, err := strconv.ParseInt(string(args[at]), 10, 64)
		if err != nil {
			out.Error(notAnInteger)
			return
		}
		if is(args[0], "decrby") {
			if by == math.MinInt64 {
				out.Error("ERR decrement would overflow")
				return
			}
			by = -by
		}
		out.Integer(by)
	}
}

func incrementFloat(at int, write func(*resp.Writer, string)) answer {
	return func(out *resp.Writer, args [][]byte) {
		by, err := strconv.ParseFloat(string(args[at]), 64)
		if err != nil || math.IsNaN(by) || math.IsInf(by, 0) {
			out.Error(notAFloat)
			return
		}
		write(out, strconv.FormatFloat(by, 'f', -1, 64))
	}
}

func hashSet(out *resp.Writer, args [][]byte) {
	if len(args)%2 != 0 {
		out.Error(wrongArguments("hset"))
		return
	}
	out.Integer(distinct(args[2:], 2))
}

func sortedAdd(out *resp.Writer, args [][]byte) {
	exists, incr := false, false
	pairs := args[2:]
flags:
	for ; len(pairs) > 0; pairs = pairs[1:] {
		switch strings.ToLower(string(pairs[0])) {
		case "xx":
			exists = true
		case "incr":
			incr = true
		case "nx", "gt", "lt", "ch":
		default:
			break flags
		}
	}
	if len(pairs) == 0 || len(pairs)%2 != 0 {
		out.Error(syntaxError)
		return
	}
	if incr && len(pairs) > 2 {
		out.Error("ERR INCR option supports a single increment-element pair")
		return
	}
	score, members := 0.0, pairs[1:]
	for i := 0; i < len(pairs); i += 2 {
		var err error
		if score, err = strconv.ParseFloat(string(pairs[i]), 64); err != nil || math.IsNaN(score) {
			out.Error(notAFloat)
			return
		}
	}
	switch {
	case incr && exists:
		out.Null()
	case incr:
		out.Double(score)
	case exists:
		out.Integer(0)
	default:
		out.Integer(distinct(members, 2))
	}
}

func sortedIncrement(out *resp.Writer, args [][]byte) {
	by, err := strconv.ParseFloat(string(args[2]), 64)
	if err != nil || math.IsNaN(by) {
		out.Error(notAFloat)
		return
	}
	out.Double(by)
}

func geoAdd(out *resp.Writer, args [][]byte) {
	exists := false
	places := args[2:]
	for len(places) > 0 && (is(places[0], "nx") || is(places[0], "xx") || is(places[0], "ch")) {
		exists = exists || is(places[0], "xx")
		places = places[1:]
	}
	switch {
	case len(places) == 0 || len(places)%3 != 0:
		out.Error(syntaxError)
	case exists:
		out.Integer(0)
	default:
		out.Integer(distinct(places[2:], 3))
	}
}

// streamAdd answers with the id that the entry would have had as the stream's first.
func streamAdd(out *resp.Writer, args [][]byte) {
	rest := args[2:]
	exists := false
options:
	for len(rest) > 0 {
		switch strings.ToLower(string(rest[0])) {
		case "nomkstream":
			exists, rest = true, rest[1:]
		case "maxlen", "minid":
			rest = rest[1:]
			if len(rest) > 0 && (is(rest[0], "~") || is(rest[0], "=")) {
				rest = rest[1:]
			}
			rest = rest[min(1, len(rest)):]
		case "limit":
			rest = rest[min(2, len(rest)):]
		default:
			break options
		}
	}
	if len(rest) < 3 || len(rest)%2 == 0 {
		out.Error(wrongArguments("xadd"))
		return
	}
	id, problem := firstID(string(rest[0]), time.Now())
	switch {
	case problem != "":
		out.Error(problem)
	case exists:
		out.Null()
	default:
		out.Bulk(id)
	}
}

func firstID(asked string, now time.Time) (id, problem string) {
	if asked == "*" {
		return fmt.Sprintf("%d-0", now.UnixMilli()), ""
	}
	const invalid = "ERR Invalid stream ID specified as stream command argument"
	before, after, _ := strings.Cut(asked, "-")
	ms, err := strconv.ParseUint(before, 10, 64)
	if err != nil {
		return "", invalid
	}
	sequence := uint64(0)
	switch {
	case after == "*" && ms == 0:
		sequence = 1
	case after != "" && after != "*":
		if sequence, err = strconv.ParseUint(after, 10, 64); err != nil {
			return "", invalid
		}
	}
	if ms == 0 && sequence == 0 {
		return "", "ERR The ID specified in XADD must be greater than 0-0"
	}
	return fmt.Sprintf("%d-%d", ms, sequence), ""
}

// fieldsFrom answers for each field of a hash that is not there: after FIELDS and their number.
func fieldsFrom(at int) answer {
	return func(out *resp.Writer, args [][]byte) {
		for i := at; i < len(args)-1; i++ {
			if !is(args[i], "fields") {
				continue
			}
			if n, err := strconv.Atoi(string(args[i+1])); err == nil && n > 0 && n == len(args)-i-2 {
				repeat(out, n, func(out *resp.Writer) { out.Integer(-2) })
				return
			}
		}
		out.Error(syntaxError)
	}
}

func bloomInsert(out *resp.Writer, args [][]byte) {
	for i, a := range args {
		if is(a, "items") && i > 1 {
			if has(args[2:i], "nocreate") {
				out.Error("ERR not found")
				return
			}
			repeat(out, len(args)-i-1, func(out *resp.Writer) { out.Bool(true) })
			return
		}
	}
	out.Error(syntaxError)
}
