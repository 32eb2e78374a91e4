package dashboards

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write the dashboards")

const folder = "../grafana/dashboards"

func TestDashboardsAreAsTheCodeSays(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		path := filepath.Join(folder, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s is stale: run make golden", path)
		}
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(slices.Collect(maps.Keys(files)), e.Name()) {
			t.Errorf("%s is not made by the code: remove it", e.Name())
		}
	}
}

func TestPagesFillTheirRows(t *testing.T) {
	for _, p := range []page{overview, routing, shards, regions} {
		for _, r := range p.rows {
			var used uint32
			for _, panel := range r.panels {
				if used%24+panel.width > 24 {
					t.Errorf("%s: %q does not fit into its line of row %q", p.uid, panel.title, r.title)
				}
				used += panel.width
				if panel.unit == "" || len(panel.queries) == 0 {
					t.Errorf("%s: %q has no unit or asks nothing", p.uid, panel.title)
				}
			}
		}
	}
}
