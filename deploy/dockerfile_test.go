package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// stages reads the Dockerfile as docker build does. What its linter warns of is an error.
func stages(t *testing.T) []instructions.Stage {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parsed, err := parser.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Errorf("Dockerfile: %s", w.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, message string, at []parser.Range) {
		t.Errorf("Dockerfile:%d: %s: %s", at[0].Start.Line, rule, message)
	}})
	all, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ignored reads .dockerignore.
func ignored(t *testing.T) *patternmatcher.PatternMatcher {
	t.Helper()
	f, err := os.Open(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return matcher
}

func TestDockerfile(t *testing.T) {
	all := stages(t)
	names := map[string]bool{}
	for _, stage := range all {
		checkImage(t, "stage "+stage.Name, stage.BaseName)
		for _, command := range stage.Commands {
			copied, ok := command.(*instructions.CopyCommand)
			if !ok {
				continue
			}
			if copied.From != "" {
				if !names[copied.From] {
					t.Errorf("COPY --from=%s names no stage before it", copied.From)
				}
				continue
			}
			for _, source := range copied.SourcePaths {
				if _, err := os.Stat(filepath.Join(root, source)); err != nil {
					t.Errorf("COPY: %v", err)
				}
				if hidden, err := ignored(t).MatchesOrParentMatches(source); err != nil || hidden {
					t.Errorf("COPY %s: .dockerignore leaves it out (%v)", source, err)
				}
			}
		}
		names[stage.Name] = true
	}
}

func TestFinalImage(t *testing.T) {
	all := stages(t)
	last := all[len(all)-1]
	var user string
	var entrypoint, programs []string
	for _, command := range last.Commands {
		switch c := command.(type) {
		case *instructions.UserCommand:
			user = c.User
		case *instructions.EntrypointCommand:
			if c.PrependShell {
				t.Error("ENTRYPOINT runs a shell, which would keep signals from the program")
			}
			entrypoint = c.CmdLine
		case *instructions.CopyCommand:
			for _, source := range c.SourcePaths {
				programs = append(programs, filepath.Join(c.DestPath, filepath.Base(source)))
			}
		case *instructions.EnvCommand, *instructions.ArgCommand:
			t.Errorf("%s: the final stage needs no variables, and they are no place for secrets", command.Name())
		}
	}
	if user != "65532:65532" {
		t.Errorf("USER %q, want the one that the Kubernetes manifests name", user)
	}
	if len(entrypoint) != 1 || entrypoint[0] != "/usr/local/bin/cachemesh" {
		t.Errorf("ENTRYPOINT %v", entrypoint)
	}
	for _, p := range []string{"cachemesh", "twitter", "envoy"} {
		// The sidecar looks for Envoy beside itself.
		if !slices.Contains(programs, "/usr/local/bin/"+p) {
			t.Errorf("the image lacks /usr/local/bin/%s: %v", p, programs)
		}
	}
}

// The build needs every file of the programs and no secret.
func TestDockerIgnore(t *testing.T) {
	matcher := ignored(t)
	for path, want := range map[string]bool{
		".env": true, ".demo/us-east/tls.key": true, "certs-dev/ca.pem": true, ".git/config": true, "bin/cachemesh": true, "deploy/go.mod": true,
		"go.mod": false, "go.sum": false, "cmd/cachemesh/main.go": false, "mesh/mesh.schema.json": false, "examples/twitter/workload/facts.csv": false,
		"inject/sidecar.yaml": false, "observability/prometheus/alerts.yml": false, "tools/requirements.txt": false, "certs/source.go": false,
	} {
		if got, err := matcher.MatchesOrParentMatches(path); err != nil || got != want {
			t.Errorf(".dockerignore leaves %s out: %v, want %v (%v)", path, got, want, err)
		}
	}
	embedded := embeddedFiles(t)
	if len(embedded) < 2 {
		t.Errorf("only %v are embedded in the programs", embedded)
	}
	for _, path := range embedded {
		if hidden, err := matcher.MatchesOrParentMatches(path); err != nil || hidden {
			t.Errorf(".dockerignore leaves %s out, which is part of a program (%v)", path, err)
		}
	}
}

// embeddedFiles lists what go:embed brings into the programs.
func embeddedFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, line := range strings.Split(goList(t, `{{if not .Standard}}{{$path := .ImportPath}}{{range .EmbedFiles}}{{$path}}/{{.}}{{"\n"}}{{end}}{{end}}`), "\n") {
		if file, ours := strings.CutPrefix(strings.TrimSpace(line), "github.com/cachemesh/cachemesh/"); ours {
			files = append(files, file)
		}
	}
	return files
}
