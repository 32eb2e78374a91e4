package warming

import (
	"fmt"
	"strings"
)

// query finds what no database would take: anything but one SELECT, and quotes, comments and brackets that do not end. Tables and columns are for
// the database to judge, which agents ask before the first row.
func (c *compiler) query(field, text string) {
	const remedy = "write one SELECT, without a semicolon"
	bad := func(at int, format string, args ...any) {
		line, column := 1+strings.Count(text[:at], "\n"), at-strings.LastIndex(text[:at], "\n")
		c.add(field, remedy, "line %d, column %d of the query: %s", line, column, fmt.Sprintf(format, args...))
	}
	var open []int // offsets of brackets
	first := true
	for at := 0; at < len(text); {
		n := token(text[at:])
		switch {
		case n < 0:
			bad(at, "what begins with %q does not end", text[at:min(at+2, len(text))])
			return
		case skipped(text[at : at+n]):
		case first:
			if word := strings.ToUpper(text[at : at+n]); word != "SELECT" && word != "WITH" && word != "VALUES" {
				bad(at, "%q is no SELECT", text[at:at+n])
				return
			}
			first = false
		case text[at] == ';':
			bad(at, "there is more than one statement")
			return
		case text[at] == '(':
			open = append(open, at)
		case text[at] == ')' && len(open) == 0:
			bad(at, "this bracket was not opened")
			return
		case text[at] == ')':
			open = open[:len(open)-1]
		}
		at += n
	}
	switch {
	case first:
		bad(0, "it is empty")
	case len(open) > 0:
		bad(open[len(open)-1], "this bracket is not closed")
	}
}

// skipped says whether a token means nothing.
func skipped(t string) bool {
	return strings.TrimSpace(t) == "" || strings.HasPrefix(t, "--") || strings.HasPrefix(t, "/*")
}

// token is the length of the first token of SQL, -1 if it does not end.
func token(text string) int {
	until := func(from int, end string) int {
		if i := strings.Index(text[from:], end); i >= 0 {
			return from + i + len(end)
		}
		return -1
	}
	word := func(from int) int {
		for from < len(text) && (letter(text[from]) || digit(text[from])) {
			from++
		}
		return from
	}
	switch b := text[0]; {
	case strings.HasPrefix(text, "--"):
		if n := until(2, "\n"); n > 0 {
			return n
		}
		return len(text)
	case strings.HasPrefix(text, "/*"):
		return until(2, "*/")
	case b == '\'' || b == '"':
		return until(1, string(b)) // a doubled quote is two tokens, which comes to the same
	case b == '$':
		if n := word(1); n < len(text) && text[n] == '$' && (n == 1 || !digit(text[1])) {
			return until(n+1, text[:n+1]) // $tag$ ... $tag$ of Postgres
		} else {
			return n
		}
	case letter(b):
		return word(1)
	}
	return 1
}

func letter(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b == '_' || b >= 0x80
}
func digit(b byte) bool { return b >= '0' && b <= '9' }
