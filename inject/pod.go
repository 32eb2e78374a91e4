package inject

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// podPaths says where each kind of object has the spec of its pods.
var podPaths = map[string][]string{
	"Pod":         {"spec"},
	"Deployment":  {"spec", "template", "spec"},
	"StatefulSet": {"spec", "template", "spec"},
	"DaemonSet":   {"spec", "template", "spec"},
	"ReplicaSet":  {"spec", "template", "spec"},
	"Job":         {"spec", "template", "spec"},
	"CronJob":     {"spec", "jobTemplate", "spec", "template", "spec"},
}

// pod is a pod's spec in a file.
type pod struct {
	where string // file and object, for errors
	spec  *ast.MappingNode
}

// findPods lists the pods of a file's documents.
func findPods(file string, data []byte) ([]pod, error) {
	tree, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, syntaxError(file, err)
	}
	var pods []pod
	for i, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		where := fmt.Sprintf("%s: document %d", file, i+1)
		object, ok := doc.Body.(*ast.MappingNode)
		if !ok {
			if _, comments := doc.Body.(*ast.CommentGroupNode); comments || doc.Body.Type() == ast.NullType {
				continue
			}
			return nil, fmt.Errorf("%s is no Kubernetes object", where)
		}
		kind := scalar(object, "kind")
		if kind == "List" || strings.HasSuffix(kind, "List") && scalar(object, "apiVersion") != "" && value(object, "items") != nil {
			return nil, fmt.Errorf("%s is a %s: write its items as documents of their own, with --- in between", where, kind)
		}
		path, known := podPaths[kind]
		if !known {
			continue
		}
		where = fmt.Sprintf("%s: %s", file, kind)
		if metadata, ok := value(object, "metadata").(*ast.MappingNode); ok {
			where += " " + scalar(metadata, "name")
		}
		spec := object
		for n, key := range path {
			next, ok := value(spec, key).(*ast.MappingNode)
			if !ok {
				return nil, fmt.Errorf("%s has no mapping at %s, which a %s needs", where, strings.Join(path[:n+1], "."), kind)
			}
			spec = next
		}
		pods = append(pods, pod{where, spec})
	}
	return pods, nil
}

func syntaxError(file string, err error) error {
	var located yaml.Error
	if errors.As(err, &located) && located.GetToken() != nil {
		return fmt.Errorf("%s:%d: %s: mend the YAML here", file, located.GetToken().Position.Line, located.GetMessage())
	}
	return fmt.Errorf("%s: %w", file, err)
}

// add records the edits that give the pod what it gets.
func (p pod) add(t *text, a addition) error {
	if scalar(p.spec, "hostNetwork") == "true" {
		return fmt.Errorf("%s: hostNetwork: pods of a node would share the sidecar's ports: run `cachemesh sidecar` on the node instead", p.where)
	}
	containers := entry(p.spec, "containers")
	if containers == nil {
		return fmt.Errorf("%s: the pod has no containers", p.where)
	}
	list, ok := containers.Value.(*ast.SequenceNode)
	if !ok || list.IsFlowStyle || p.spec.IsFlowStyle {
		return p.blockStyle(containers.Key)
	}
	style := column(list.Entries[0].Start) - column(containers.Key.GetToken())
	// What lengthens a block comes before what begins the next one in the same place.
	for _, e := range list.Entries {
		c, ok := e.Value.(*ast.MappingNode)
		if !ok || c.IsFlowStyle {
			return p.blockStyle(e.Value)
		}
		if err := p.ensure(t, c, "volumeMounts", style, nil, a.mount); err != nil {
			return err
		}
	}
	if err := p.ensure(t, p.spec, "volumes", style, nil, a.volumes...); err != nil {
		return err
	}
	return p.ensure(t, p.spec, "initContainers", style, containers, a.sidecar)
}

func (p pod) blockStyle(at ast.Node) error {
	return fmt.Errorf("%s: line %d is written with brackets or by reference: write it as an indented block, where something can be added", p.where, line(at.GetToken())+1)
}

// ensure makes items part of the list at key: in place of those that have their names, else first in the list of init
// containers and last in others. A new list goes before the entry before, or to the mapping's end.
func (p pod) ensure(t *text, m *ast.MappingNode, key string, style int, before *ast.MappingValueNode, items ...item) error {
	at := entry(m, key)
	if at == nil {
		indent := column(m.Values[0].Key.GetToken())
		lines := []string{strings.Repeat(" ", indent) + key + ":"}
		for _, i := range items {
			lines = append(lines, i.list(indent+style)...)
		}
		if before != nil {
			t.insert(t.withComments(line(before.Key.GetToken())), lines)
		} else {
			t.insert(t.end(line(m.Values[0].Key.GetToken()), indent), lines)
		}
		return nil
	}
	keyLine, keyColumn := line(at.Key.GetToken()), column(at.Key.GetToken())
	list, ok := at.Value.(*ast.SequenceNode)
	empty := ok && len(list.Values) == 0 && line(list.End) == keyLine || at.Value.Type() == ast.NullType
	switch {
	case empty:
		lines := []string{t.lines[keyLine][:column(at.Start)+1]}
		for _, i := range items {
			lines = append(lines, i.list(keyColumn+style)...)
		}
		t.replace(keyLine, keyLine+1, lines)
		return nil
	case !ok || list.IsFlowStyle:
		return p.blockStyle(at.Key)
	}
	first := list.Entries[0].Start
	for _, i := range items {
		lines := i.list(column(first))
		if old := named(list, i.name); old != nil {
			t.replace(line(old.Start), t.end(line(old.Start), column(old.Start)+1), lines)
		} else if key == "initContainers" {
			t.insert(keyLine+1, lines)
		} else {
			last := list.Entries[len(list.Entries)-1].Start
			t.insert(t.end(line(last), column(last)+1), lines)
		}
	}
	return nil
}

// named finds the element of a list that has this name.
func named(list *ast.SequenceNode, name string) *ast.SequenceEntryNode {
	for _, e := range list.Entries {
		if m, ok := e.Value.(*ast.MappingNode); ok && scalar(m, "name") == name {
			return e
		}
	}
	return nil
}

func entry(m *ast.MappingNode, key string) *ast.MappingValueNode {
	for _, v := range m.Values {
		if v.Key.GetToken().Value == key {
			return v
		}
	}
	return nil
}

func value(m *ast.MappingNode, key string) ast.Node {
	if v := entry(m, key); v != nil {
		return v.Value
	}
	return nil
}

// scalar is the text of a plain value, "" for none.
func scalar(m *ast.MappingNode, key string) string {
	if v, ok := value(m, key).(ast.ScalarNode); ok {
		return v.GetToken().Value
	}
	return ""
}
