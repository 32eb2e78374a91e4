package mesh

import (
	"bytes"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// Schema is the JSON Schema of mesh.yaml, generated from Mesh: `go test ./mesh -update`.
//
//go:embed mesh.schema.json
var Schema []byte

var compiledSchema = sync.OnceValue(func() *jsonschema.Schema {
	const url = "mesh.schema.json"
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		panic(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(url, document); err != nil {
		panic(err)
	}
	return c.MustCompile(url)
})

// checkSchema holds a YAML document that parses against the part of the schema that is for a location: types, missing and unknown fields, names
// and ranges.
func checkSchema(data []byte, base []string) Problems {
	var document any
	if err := yaml.Unmarshal(data, &document); err != nil {
		return Problems{syntaxProblem("", err)}
	}
	part, _ := schemaAt(base)
	err := part.Validate(document)
	invalid, ok := err.(*jsonschema.ValidationError)
	if !ok {
		if err != nil {
			return Problems{{Message: err.Error()}}
		}
		return nil
	}
	var problems Problems
	var walk func(*jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		for _, cause := range e.Causes {
			walk(cause)
		}
		if len(e.Causes) == 0 {
			problems = append(problems, schemaProblems(e, base)...)
		}
	}
	walk(invalid)
	return problems
}

func schemaProblems(e *jsonschema.ValidationError, base []string) Problems {
	at := e.InstanceLocation
	describe := func(location []string) string {
		_, description := schemaAt(slices.Concat(base, location))
		return strings.ReplaceAll(description, "\n", " ")
	}
	within := func(name string) []string { return append(at[:len(at):len(at)], name) }
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		var problems Problems
		for _, name := range k.Missing {
			problems = append(problems, Problem{Field: fieldOf(within(name)), Message: "is missing", Remedy: describe(within(name))})
		}
		return problems
	case *kind.AdditionalProperties:
		var problems Problems
		for _, name := range k.Properties {
			known := strings.Join(propertiesOf(slices.Concat(base, at)), ", ")
			problems = append(problems, Problem{Field: fieldOf(within(name)), Message: "is no field that exists", Remedy: "the fields here are " + known})
		}
		return problems
	case *kind.Pattern:
		if strings.Contains(k.Want, "61") {
			return Problems{{Field: fieldOf(at), Message: fmt.Sprintf("%q is no name", k.Got), Remedy: "use 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends"}}
		}
		return Problems{{Field: fieldOf(at), Message: fmt.Sprintf("%q does not fit", k.Got), Remedy: describe(at)}}
	}
	return Problems{{Field: fieldOf(at), Message: e.ErrorKind.LocalizedString(message.NewPrinter(language.English)), Remedy: describe(at)}}
}

// fieldOf writes a location as a field: pools, 0, name is pools[0].name.
func fieldOf(location []string) string {
	var b strings.Builder
	for i, step := range location {
		switch {
		case step != "" && strings.Trim(step, "0123456789") == "":
			fmt.Fprintf(&b, "[%s]", step)
		case i > 0:
			b.WriteString("." + step)
		default:
			b.WriteString(step)
		}
	}
	return b.String()
}

// schemaAt is the part of the schema that describes a location, nil if there is none.
func schemaAt(location []string) (part *jsonschema.Schema, description string) {
	part = compiledSchema()
	description = "start the file with apiVersion: " + APIVersion
	for _, step := range location {
		if part.Ref != nil {
			part = part.Ref
		}
		next, ok := part.Properties[step]
		if !ok {
			next, ok = part.Items2020, part.Items2020 != nil
		}
		if !ok {
			return nil, ""
		}
		part, description = next, next.Description
	}
	if part.Ref != nil {
		part = part.Ref
	}
	return part, description
}

func propertiesOf(location []string) []string {
	part, _ := schemaAt(location)
	if part == nil {
		return nil
	}
	names := make([]string, 0, len(part.Properties))
	for name := range part.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
