// Package deploy tests what deploys cachemesh: the Dockerfile, docker-compose.yml, the Helm chart and the Kubernetes examples. Each is
// read by the library that its real tool uses, and what it starts is held against the programs themselves.
//
// No Docker and no cluster runs here: whether images can be pulled, networks made and pods scheduled is not tested.
package deploy

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// root is the repository's folder.
const root = ".."

// programs is the folder with cachemesh and twitter, as built for these tests.
var programs string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	var err error
	if programs, err = os.MkdirTemp("", "cachemesh"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	command := exec.Command("go", "build", "-o", programs+string(filepath.Separator), "./cmd/cachemesh", "./examples/twitter")
	command.Dir, command.Stderr = root, os.Stderr
	if err := command.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the programs:", err)
		return 1
	}
	return m.Run()
}

// run runs one of the programs to its end and returns what it printed.
func run(program string, args ...string) (string, error) {
	var out, notes bytes.Buffer
	command := exec.Command(filepath.Join(programs, program), args...)
	command.Stdout, command.Stderr = &out, &notes
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, notes.String())
	}
	return out.String(), nil
}

// goList prints something of each package of the two programs.
func goList(t *testing.T, format string) string {
	t.Helper()
	command := exec.Command("go", "list", "-deps", "-f", format, "./cmd/cachemesh", "./examples/twitter")
	command.Dir = root
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// accepted checks that a program has the command, that it takes the flags, and that their values are of the right kind.
func accepted(t *testing.T, who, program string, args []string) {
	t.Helper()
	page, err := run(program, append(slices.Clone(args), "--help")...)
	if err != nil {
		t.Errorf("%s: %v", who, err)
	} else if want := fmt.Sprintf("  %s %s ", program, args[0]); !strings.Contains(page, want) {
		t.Errorf("%s: %s has no command %s:\n%s", who, program, args[0], page)
	}
}

// flagOf returns the value of --name=value.
func flagOf(args []string, name string) string {
	for _, a := range args {
		if value, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return value
		}
	}
	return ""
}

func hasFlag(args []string, name string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return a == "--"+name || strings.HasPrefix(a, "--"+name+"=") })
}

// mesh checks a mesh.yaml as a control plane would read it.
func mesh(t *testing.T, file string) {
	t.Helper()
	if _, err := run("cachemesh", "validate", file); err != nil {
		t.Error(err)
	}
}

// pinned is an image's name with a tag that says which version it is.
var pinned = regexp.MustCompile(`^[a-z0-9./-]+:[a-z0-9][A-Za-z0-9._-]*$`)

func checkImage(t *testing.T, who, image string) {
	t.Helper()
	if !pinned.MatchString(image) || strings.HasSuffix(image, ":latest") {
		t.Errorf("%s: the image %q is not pinned by a tag", who, image)
	}
}

// golden compares with a file, or rewrites it.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
