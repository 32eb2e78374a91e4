// Package cachemesh has only this test: it holds the imports to the direction that ARCHITECTURE.md draws.
package cachemesh

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cachemesh/cachemesh"

// allowed lists, for each package, the packages of ours that it may import. A package that is missing here fails the
// test, so that a new one is thought about.
var allowed = map[string][]string{
	"":                          {},
	"mesh":                      {},
	"ring":                      {},
	"ring/record":               {"process", "ring"},
	"commands":                  {},
	"process":                   {},
	"process/redistest":         {"process"},
	"certs":                     {},
	"envoy":                     {"commands", "mesh", "ring"},
	"handoff":                   {"mesh", "node", "node/lookups", "regions/holdoff", "resp", "ring"},
	"consul":                    {"mesh"},
	"shards":                    {"mesh"},
	"node":                      {"certs", "mesh", "node/lookups", "resp", "shards"},
	"node/lookups":              {"resp"},
	"regions/holdoff":           {"mesh", "node/lookups"},
	"regions/writers":           {"mesh", "node/lookups"},
	"regions":                   {"handoff", "mesh", "node", "regions/holdoff", "regions/journal", "regions/writers", "resp", "ring"},
	"regions/journal":           {"mesh", "node/lookups"},
	"reports":                   {},
	"resp":                      {},
	"warming":                   {"mesh"},
	"warming/place":             {"mesh", "ring"},
	"warming/queue":             {"mesh", "node", "node/lookups", "warming", "warming/place"},
	"warming/source":            {"mesh", "node", "regions", "resp", "warming", "warming/place", "warming/workingset"},
	"warming/workingset":        {"mesh", "node", "node/lookups", "resp", "warming/place"},
	"warming/load":              {"mesh", "node", "node/lookups", "regions/holdoff", "resp", "warming", "warming/place", "warming/queue", "warming/source"},
	"lane":                      {"commands", "handoff", "mesh", "node", "regions/holdoff", "regions/writers", "resp", "ring", "sidecar/null"},
	"sim":                       {"mesh", "shards"},
	"sim/mutants":               {},
	"controlplane/xds":          {"envoy"},
	"controlplane":              {"certs", "consul", "controlplane/xds", "envoy", "handoff", "mesh", "node", "node/lookups", "regions/holdoff", "regions/journal", "reports", "shards", "warming", "warming/place", "warming/queue"},
	"sidecar":                   {"certs", "commands", "envoy", "handoff", "lane", "mesh", "node", "process", "regions", "regions/journal", "regions/writers", "reports", "ring", "shards", "sidecar/null", "warming", "warming/load", "warming/place", "warming/workingset"},
	"sidecar/null":              {"resp"},
	"inject":                    {},
	"demo":                      {"certs", "consul", "mesh", "node/lookups", "observability", "process"},
	"cmd/cachemesh":             {"certs", "commands", "consul", "controlplane", "controlplane/xds", "demo", "envoy", "inject", "mesh", "process", "ring", "shards", "sidecar", "warming"},
	"examples/twitter":          {"examples/twitter/app", "examples/twitter/day", "examples/twitter/load", "examples/twitter/store", "examples/twitter/workload"},
	"examples/twitter/app":      {"examples/twitter/store", "examples/twitter/workload"},
	"examples/twitter/day":      {"examples/twitter/app", "examples/twitter/load", "examples/twitter/store", "examples/twitter/workload"},
	"examples/twitter/load":     {"examples/twitter/app", "examples/twitter/store", "examples/twitter/workload"},
	"examples/twitter/store":    {},
	"examples/twitter/workload": {"examples/twitter/store"},
	"bench":                     {"bench/aside", "bench/chart", "bench/checker", "bench/delay", "bench/pubsub", "controlplane/xds", "demo", "envoy", "examples/twitter/workload", "mesh", "node", "process", "ring", "warming"},
	"bench/aside":               {"examples/twitter/workload"},
	"bench/chart":               {},
	"bench/delay":               {},
	"bench/checker":             {"bench/pubsub"},
	"bench/pubsub":              {},
	"observability":             {},
	"observability/dashboards":  {},
	"test":                      {},
}

// only lists packages outside that one package of ours, or a few, may import: they are its business.
var only = map[string][]string{
	"github.com/envoyproxy/go-control-plane/envoy/config/":     {"envoy", "controlplane/xds", "sidecar", "bench"},
	"github.com/envoyproxy/go-control-plane/envoy/extensions/": {"envoy"},
	"github.com/spf13/cobra":                                   {"cmd/cachemesh", "bench", "examples/twitter"},
	"github.com/hashicorp/consul/api":                          {"consul"},
	"github.com/grafana/grafana-foundation-sdk/":               {"observability/dashboards"},
	"github.com/fsnotify/fsnotify":                             {"controlplane"},
	"github.com/spiffe/go-spiffe/":                             {"certs"},
	"github.com/goccy/go-yaml":                                 {"mesh", "demo", "cmd/cachemesh", "inject"},
}

func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		may, known := allowed[name]
		if !known {
			t.Errorf("package %s is not in arch_test.go: say there what it may import", name)
			continue
		}
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module+"/"); ok && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s, which it may not", name, ours)
			}
			for prefix, who := range only {
				if strings.HasPrefix(i, prefix) && !slices.Contains(who, name) {
					t.Errorf("%s imports %s, which is the business of %v", name, i, who)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d packages were found", seen)
	}
}
