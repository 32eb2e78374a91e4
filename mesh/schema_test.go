package mesh

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/invopop/jsonschema"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestSchemaIsGenerated(t *testing.T) {
	r := jsonschema.Reflector{FieldNameTag: "yaml", ExpandedStruct: true, Anonymous: true}
	if err := r.AddGoComments("github.com/cachemesh/cachemesh", "./", jsonschema.WithFullComment()); err != nil {
		t.Fatal(err)
	}
	// The comments are found by package path; this test runs inside the package's folder.
	for name, comment := range r.CommentMap {
		r.CommentMap["github.com/cachemesh/cachemesh/mesh"+name[len("github.com/cachemesh/cachemesh"):]] = comment
	}
	r.Mapper = func(typ reflect.Type) *jsonschema.Schema {
		if typ == reflect.TypeFor[time.Duration]() {
			return &jsonschema.Schema{Type: "string"}
		}
		return nil
	}
	schema := r.Reflect(&Mesh{})
	schema.Title = "mesh.yaml"
	want, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("mesh.schema.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(want, Schema) {
		t.Error("mesh.schema.json is stale: run `go test ./mesh -update`")
	}
}
