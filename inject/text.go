package inject

import (
	"strings"

	"github.com/goccy/go-yaml/token"
)

// text is a file's lines and what is to become of them. Lines and columns count from 0.
type text struct {
	lines []string
	edits map[int][]edit // by the line that they stand before
}

// edit takes lines out and puts others in.
type edit struct {
	drop  int
	lines []string
}

func (t *text) insert(at int, lines []string) { t.replace(at, at, lines) }

func (t *text) replace(from, to int, lines []string) {
	t.edits[from] = append(t.edits[from], edit{to - from, lines})
}

// apply returns the lines with all edits. Those of one place come in the order in which they were recorded.
func (t *text) apply() []string {
	var out []string
	for i := 0; i <= len(t.lines); i++ {
		drop := 0
		for _, e := range t.edits[i] {
			out = append(out, e.lines...)
			drop += e.drop
		}
		if drop > 0 {
			i += drop - 1
			continue
		}
		if i < len(t.lines) {
			out = append(out, t.lines[i])
		}
	}
	return out
}

// end is the line after the block that starts at a line and whose other lines are indented by at least indent. Comments and
// empty lines after its last line are not part of it.
func (t *text) end(start, indent int) int {
	end := start + 1
	for i := start + 1; i < len(t.lines); i++ {
		trimmed := strings.TrimSpace(t.lines[i])
		if trimmed == "" {
			continue
		}
		indented := len(t.lines[i]) - len(strings.TrimLeft(t.lines[i], " "))
		if indented >= indent {
			end = i + 1
		} else if trimmed[0] != '#' {
			break
		}
	}
	return end
}

// withComments is the first of the comment lines directly above a line, or the line itself.
func (t *text) withComments(at int) int {
	for at > 0 && strings.HasPrefix(strings.TrimSpace(t.lines[at-1]), "#") {
		at--
	}
	return at
}

func line(t *token.Token) int   { return t.Position.Line - 1 }
func column(t *token.Token) int { return t.Position.Column - 1 }
