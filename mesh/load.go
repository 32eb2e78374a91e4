package mesh

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Problem is one thing that is wrong with a mesh.yaml.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`   // from 1; 0 where the file has no such place
	Column  int    `json:"column"` // from 1
	Field   string `json:"field"`  // such as pools[0].routes[1].prefix
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if p.Field != "" {
		fmt.Fprintf(&b, ": %s", p.Field)
	}
	fmt.Fprintf(&b, ": %s", p.Message)
	if p.Remedy != "" {
		fmt.Fprintf(&b, ": %s", p.Remedy)
	}
	return b.String()
}

// Problems is the error that Load returns: everything that is wrong, in the file's order.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// Load parses and validates a mesh.yaml and fills in its defaults. file is its name, for errors, which
// are of type Problems.
func Load(file string, data []byte) (*Mesh, error) {
	m := new(Mesh)
	at, err := decode(file, data, m)
	if err != nil {
		return nil, err
	}
	m.at = at
	m.setDefaults()
	if problems := m.validate(); len(problems) > 0 {
		return nil, at.all(problems)
	}
	return m, nil
}

// decode parses a file, holds it against the part of the schema that is for a location, and fills v.
func decode(file string, data []byte, v any, location ...string) (located, error) {
	begin := "apiVersion: " + APIVersion
	if len(location) > 0 {
		begin = "plans:"
	}
	tree, err := parser.ParseBytes(data, 0)
	if err != nil {
		return located{}, Problems{syntaxProblem(file, err)}
	}
	if len(tree.Docs) == 0 || tree.Docs[0].Body == nil || len(bytes.TrimSpace(data)) == 0 {
		return located{}, Problems{{File: file, Message: "the file is empty", Remedy: "start it with " + begin}}
	}
	if len(tree.Docs) > 1 {
		second := Problem{File: file, Message: "a second YAML document", Remedy: "keep one mesh a file"}
		if start := tree.Docs[1].Start; start != nil {
			second.Line, second.Column = start.Position.Line, start.Position.Column
		}
		return located{}, Problems{second}
	}
	at := located{file: file, tree: tree}
	if len(location) > 0 {
		at.within = strings.Join(location, ".") + "."
	}
	if problems := checkSchema(data, location); len(problems) > 0 {
		return located{}, at.all(problems)
	}
	if err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(v); err != nil {
		return located{}, Problems{syntaxProblem(file, err)}
	}
	return at, nil
}

// located knows where in a file its fields are.
type located struct {
	file   string
	tree   *ast.File
	within string // begins the fields of a file that is a part of a mesh.yaml
}

func (l located) one(p Problem) Problem {
	p.File, p.Field = l.file, strings.TrimPrefix(p.Field, l.within)
	if l.tree != nil {
		p.Line, p.Column = position(l.tree, p.Field)
	}
	return p
}

// all are in the file's order.
func (l located) all(problems Problems) Problems {
	for i := range problems {
		problems[i] = l.one(problems[i])
	}
	slices.SortFunc(problems, func(a, b Problem) int {
		return cmp.Or(a.Line-b.Line, a.Column-b.Column, strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	return problems
}

// Locate says where in the mesh's file a problem's field is.
func (m *Mesh) Locate(p Problem) Problem { return m.at.one(p) }

func (m *Mesh) setDefaults() {
	if m.OpTimeout == 0 {
		m.OpTimeout = DefaultOpTimeout
	}
	if m.Transactions == "" {
		m.Transactions = TransactionsRefused
	}
	m.Health.setDefaults()
	for i := range m.Pools {
		if m.Pools[i].Failover == "" {
			m.Pools[i].Failover = Manage
		}
		h := &m.Pools[i].Hashing
		if h.Algorithm == "" {
			h.Algorithm = Maglev
		}
		if h.Size == 0 {
			h.Size = 65537
			if h.Algorithm == RingHash {
				h.Size = 65536
			}
		}
		for j := range m.Pools[i].Routes {
			m.Pools[i].Routes[j].setDefaults(m.Transactions)
		}
	}
	for i := range m.Regions {
		if r := &m.Regions[i]; r.Datacenter == "" {
			r.Datacenter = r.Name
		}
		for j := range m.Regions[i].Shards {
			if s := &m.Regions[i].Shards[j]; s.Weight == 0 {
				s.Weight = 1
			}
		}
	}
	if m.Warming != nil {
		for i := range m.Warming.Plans {
			m.Warming.Plans[i].SetDefaults()
		}
	}
}

// syntaxProblem is the first thing at which the YAML library stopped.
func syntaxProblem(file string, err error) Problem {
	p := Problem{File: file, Message: err.Error(), Remedy: "mend the YAML here"}
	var located yaml.Error
	if errors.As(err, &located) {
		p.Message = located.GetMessage()
		if t := located.GetToken(); t != nil {
			p.Line, p.Column = t.Position.Line, t.Position.Column
		}
	}
	return p
}

// position finds a field in the file; a field that is missing is where its closest parent is.
func position(tree *ast.File, field string) (line, column int) {
	for field != "" {
		if path, err := yaml.PathString("$." + field); err == nil {
			if node, err := path.FilterFile(tree); err == nil && node != nil {
				if t := node.GetToken(); t != nil {
					return t.Position.Line, t.Position.Column
				}
			}
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			break
		}
		field = field[:cut]
	}
	return 1, 1
}
