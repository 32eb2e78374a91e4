package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/cachemesh/cachemesh/commands"
)

// goodFile is the path of a mesh.yaml whose addresses nobody needs to listen on.
func goodFile(t *testing.T) string {
	t.Helper()
	return writeFile(t, `apiVersion: cachemesh.dev/v1
kind: Mesh
opTimeout: 250ms
pools:
  - name: timelines
    routes: [{prefix: "timeline:"}, {prefix: "user:"}]
  - name: content
    hashing: {algorithm: ring_hash}
    routes: [{prefix: "tweet:"}]
regions:
  - name: us-east
    shards:
      - {pool: timelines, name: timelines-0, nodes: ["127.0.0.1:7001"]}
      - {pool: content, name: content-0, nodes: ["127.0.0.1:7002"]}
  - name: eu-west
    shards:
      - {pool: timelines, name: timelines-0, nodes: ["127.0.0.1:7003"]}
      - {pool: content, name: content-0, nodes: ["127.0.0.1:7004"]}
`)
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// Exit status 0 is fine, 1 is failed, 2 is called wrongly. Data is on standard output; notes and errors are not.
func TestExitStatusAndStreams(t *testing.T) {
	t.Parallel()
	good := goodFile(t)
	bad := writeFile(t, "apiVersion: cachemesh.dev/v1\nkind: Mesh\ncolour: red\n")
	gone := "http://" + freeAddresses(t, 1)[0]
	for _, c := range []struct {
		args  string
		code  int
		data  bool   // something is on standard output
		notes string // in standard error; "" is nothing at all
	}{
		{"", 0, true, ""},
		{"--help", 0, true, ""},
		{"--version", 0, true, ""},
		{"version", 0, true, ""},
		{"schema", 0, true, ""},
		{"status --help", 0, true, ""},
		{"bogus", 2, false, "bogus"},
		{"--bogus", 2, false, "--bogus"},
		{"status --bogus", 2, false, "cachemesh status --help"},
		{"status extra", 2, false, "cachemesh status --help"},
		{"status -o xml", 2, false, "table, json or yaml"},
		{"status --controlplane nonsense", 2, false, "http://"},
		{"status --controlplane " + gone, 1, true, "does not answer"},
		{"status --dir no-such-folder", 1, false, "no-such-folder"},
		{"where --controlplane " + gone + " key", 1, false, "does not answer"},
		{"where --file " + good + " user:1", 0, true, ""},
		{"where --file " + good + " user:1 other:1", 1, true, "other:1"},
		{"where --file " + good + " --region mars user:1", 2, false, "us-east, eu-west"},
		{"where --file " + bad + " user:1", 1, false, "colour"},
		{"check --controlplane " + gone, 1, true, "error"},
		{"check --dir no-such-folder", 1, false, "no-such-folder"},
		{"validate", 2, false, "arg"},
		{"validate no-such-file", 1, false, "no-such-file"},
		{"validate " + good, 0, true, "is valid"},
		{"validate " + bad, 1, false, bad + ":3:"},
		{"explain", 0, true, ""},
		{"explain MULTI", 0, true, ""},
		{"explain blpop", 0, true, ""},
		{"explain no-such-command", 1, true, ""},
		{"controlplane", 2, false, "--config"},
		{"controlplane --config no-such-file", 1, false, "no-such-file"},
		{"controlplane --config " + good, 1, false, "--region"},
		{"controlplane --region mars --config " + good, 1, false, "us-east, eu-west"},
		{"controlplane --region us-east --http 0.0.0.0:1 --config " + good, 1, false, "--insecure"},
		{"sidecar", 2, false, "--region"},
		{"sidecar --region us-east", 2, false, "--controlplane"},
		{"sidecar --region us-east --controlplane 127.0.0.1:1 --redis 0.0.0.0:6379", 1, false, "loopback"},
		{"sidecar --region us-east --controlplane 127.0.0.1:1 --redis 127.0.0.1:7 --redis-resp3 127.0.0.1:7", 1, false, "give each its own"},
		{"sidecar --region us-east --controlplane 127.0.0.1:1 --redis-socket a --redis-resp3-socket a", 1, false, "give each its own"},
		{"demo --for -1s", 2, false, "--for"},
		{"demo --port-offset 60000 --dir " + filepath.Join(t.TempDir(), "d"), 1, false, "--port-offset"},
	} {
		r := cachemesh(t, strings.Fields(c.args)...)
		notes := strings.Contains(r.stderr, c.notes) && (c.notes != "" || r.stderr == "")
		if c.notes == "error" { // the findings themselves say it
			notes = true
		}
		if r.code != c.code || (r.stdout != "") != c.data || !notes {
			t.Errorf("cachemesh %s: exit status %d, want %d\nstdout: %s\nstderr: %s", c.args, r.code, c.code, r.stdout, r.stderr)
		}
		if strings.Contains(r.stdout+r.stderr, "\033") {
			t.Errorf("cachemesh %s: colour, and no terminal", c.args)
		}
	}
	if r := cachemesh(t, "check", "--controlplane", gone); !strings.Contains(r.stdout, "FAIL") || !strings.Contains(r.stdout, "cachemesh controlplane") {
		t.Errorf("check shows no remedy:\n%s", r.stdout)
	}
}

func TestJSONAndYAMLSayTheSame(t *testing.T) {
	t.Parallel()
	good := goodFile(t)
	bad := writeFile(t, "apiVersion: cachemesh.dev/v1\nkind: Mesh\ncolour: red\n")
	for _, args := range []string{
		"version", "explain", "explain MULTI", "explain READONLY", "check", "where --file " + good + " user:1 other:1 true 1 null", "validate " + good, "validate " + bad,
	} {
		asJSON := cachemesh(t, append(strings.Fields(args), "-o", "json")...)
		asYAML := cachemesh(t, append(strings.Fields(args), "-o", "yaml")...)
		var fromJSON, fromYAML any
		if err := json.Unmarshal([]byte(asJSON.stdout), &fromJSON); err != nil {
			t.Errorf("%s -o json: %v", args, err)
		}
		converted, err := yaml.YAMLToJSON([]byte(asYAML.stdout))
		if err == nil {
			err = json.Unmarshal(converted, &fromYAML)
		}
		if err != nil {
			t.Errorf("%s -o yaml: %v in:\n%s", args, err, asYAML.stdout)
		}
		if !reflect.DeepEqual(fromJSON, fromYAML) || asJSON.code != asYAML.code {
			t.Errorf("%s: json and yaml differ:\n%s\n%s", args, asJSON.stdout, asYAML.stdout)
		}
	}
}

func TestValidateNamesFileLineFieldAndRemedy(t *testing.T) {
	t.Parallel()
	type validation struct {
		Valid    bool `json:"valid"`
		Problems []struct {
			File, Field, Message, Remedy string
			Line                         int
		} `json:"problems"`
		Routes []struct {
			Prefix, Pool, Coherence, Algorithm string
			Size                               int
			OpTimeout                          string `json:"op_timeout"`
		} `json:"routes"`
	}
	good := goodFile(t)
	v := decode[validation](t, cachemesh(t, "validate", "-o", "json", good).want(t, 0))
	if !v.Valid || len(v.Problems) != 0 || len(v.Routes) != 3 {
		t.Fatalf("a good file: %+v", v)
	}
	if r := v.Routes[0]; r.Prefix != "timeline:" || r.Pool != "timelines" || r.Coherence != "local" || r.Algorithm != "maglev" || r.Size != 65537 || r.OpTimeout != "250ms" {
		t.Errorf("the effective policy of timeline: is %+v", r)
	}
	if r := v.Routes[2]; r.Algorithm != "ring_hash" || r.Size != 65536 {
		t.Errorf("the effective policy of tweet: is %+v", r)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	bad := writeFile(t, strings.Replace(string(data), `nodes: ["127.0.0.1:7002"]`, `nodes: ["127.0.0.1:7001"]`, 1))
	v = decode[validation](t, cachemesh(t, "validate", "-o", "json", bad).want(t, 1))
	if v.Valid || len(v.Problems) != 1 {
		t.Fatalf("a bad file: %+v", v)
	}
	if p := v.Problems[0]; p.File != bad || p.Line != 14 || p.Field != "regions[0].shards[1].nodes[0]" || p.Message == "" || p.Remedy == "" {
		t.Errorf("the problem is %+v", p)
	}
	if r := (invocation{args: []string{"validate", "-"}, stdin: string(data)}).run(t); r.code != 0 {
		t.Errorf("standard input: %+v", r)
	}
}

func TestEveryCommandOfTheCatalogueIsExplained(t *testing.T) {
	t.Parallel()
	names := make(chan string)
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for name := range names {
				r := cachemesh(t, "explain", name)
				if r.code != 0 || r.stderr != "" || !strings.HasPrefix(r.stdout, strings.ToUpper(name)+": ") {
					t.Errorf("explain %s: %+v", name, r)
				}
			}
		})
	}
	for _, c := range commands.All() {
		names <- c.Name
	}
	close(names)
	wait.Wait()
}

func TestCompletions(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := cachemesh(t, "completion", shell).want(t, 0)
		if !strings.Contains(r.stdout, "cachemesh") || r.stderr != "" {
			t.Errorf("completion %s: %+v", shell, r)
		}
		if shell == "bash" {
			parse := exec.CommandContext(t.Context(), "bash", "-n")
			parse.Stdin = strings.NewReader(r.stdout)
			if out, err := parse.CombinedOutput(); err != nil {
				t.Errorf("bash: %v: %s", err, out)
			}
		}
	}
	// What the scripts ask for when Tab is pressed.
	for typed, want := range map[string]string{"sta": "status", "explain mul": "multi", "status -o y": "yaml"} {
		words := strings.Fields(cachemesh(t, append([]string{"__complete"}, strings.Fields(typed)...)...).want(t, 0).stdout)
		if !slices.Contains(words, want) {
			t.Errorf("%q completes to %q, want %s", typed, words, want)
		}
	}
}
