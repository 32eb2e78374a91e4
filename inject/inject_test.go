package inject

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var options = Options{Image: "registry.example/cachemesh:v1", Region: "us-east", ControlPlanes: []string{"cachemesh-us-east:18000"}}

// optionsOf says how a case is injected where the name of its file tells.
func optionsOf(file string) Options {
	o := options
	switch filepath.Base(file) {
	case "secrets.yaml":
		o.TLSSecret, o.RedisSecret = "cachemesh-ca", "redis-passwords"
	case "issuer.yaml":
		o.TLSIssuer, o.Link = "ClusterIssuer/mesh", 7946
	}
	return o
}

func cases(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".injected.yaml") })
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	return files
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

// Each testdata/NAME.yaml becomes NAME.injected.yaml. Whatever the case, the file's own lines and values stay.
func TestManifests(t *testing.T) {
	for _, file := range cases(t, "testdata/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out, pods, err := Manifests(file, in, optionsOf(file))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".injected.yaml", out)
			again, _, err := Manifests(file, out, optionsOf(file))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(out), string(again)); diff != "" {
				t.Errorf("injecting again changes something (-first +second):\n%s", diff)
			}
			if n := bytes.Count(out, []byte("restartPolicy: Always\n")) - bytes.Count(in, []byte("restartPolicy: Always\n")); n != pods && filepath.Base(file) != "replaced.yaml" {
				t.Errorf("%d sidecars for %d pods", n, pods)
			}
			got, err := documents(out)
			if err != nil {
				t.Fatal(err)
			}
			want, err := documents(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(without(want), without(got)); diff != "" {
				t.Errorf("apart from what was added (-in +out):\n%s", diff)
			}
			if filepath.Base(file) != "replaced.yaml" {
				keptInOrder(t, in, out)
			}
		})
	}
}

func documents(data []byte) ([]any, error) {
	var all []any
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc any
		if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, doc)
	}
}

// without removes what is ours, and lists that are empty then.
func without(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			kept := without(value)
			if list, ok := kept.([]any); (ok && len(list) == 0) || value == nil {
				delete(v, key)
				continue
			}
			v[key] = kept
		}
	case []any:
		var kept []any
		for _, e := range v {
			if m, ok := e.(map[string]any); ok {
				if name, ok := m["name"].(string); ok && (name == container || strings.HasPrefix(name, container+"-")) {
					continue
				}
			}
			kept = append(kept, without(e))
		}
		return kept
	}
	return v
}

// keptInOrder checks that the lines of in, but for those of empty lists, are in out.
func keptInOrder(t *testing.T, in, out []byte) {
	t.Helper()
	rest := strings.Split(string(out), "\n")
	for _, line := range strings.Split(string(in), "\n") {
		line, _, _ = strings.Cut(line, " []")
		at := slices.Index(rest, line)
		if at < 0 {
			t.Errorf("the line %q is gone or elsewhere", line)
			continue
		}
		rest = rest[at+1:]
	}
}

// Each testdata/bad/NAME.yaml has a NAME.txt with what is said of it.
func TestManifestsSaysWhatIsWrong(t *testing.T) {
	for _, file := range cases(t, "testdata/bad/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out, _, err := Manifests(filepath.Base(file), in, options)
			if err == nil || out != nil {
				t.Fatalf("error %v with output %q, want an error alone", err, out)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".txt", []byte(err.Error()+"\n"))
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	in, err := os.ReadFile("testdata/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Options){
		`image ""`:                 func(o *Options) { o.Image = "" },
		`region "US"`:              func(o *Options) { o.Region = "US" },
		"no control plane":         func(o *Options) { o.ControlPlanes = nil },
		`"here" is no HOST:PORT`:   func(o *Options) { o.ControlPlanes = []string{"here"} },
		`"here:0" is no HOST:PORT`: func(o *Options) { o.ControlPlanes = []string{"here:0"} },
		"exclude each other":       func(o *Options) { o.TLSSecret, o.TLSIssuer = "a", "b" },
		`TLS secret "a: b"`:        func(o *Options) { o.TLSSecret = "a: b" },
		`Redis secret "../x"`:      func(o *Options) { o.RedisSecret = "../x" },
		`TLS issuer "Foo/x"`:       func(o *Options) { o.TLSIssuer = "Foo/x" },
		"a link without a TLS":     func(o *Options) { o.Link = 7946 },
	} {
		o := options
		change(&o)
		if _, _, err := Manifests("pod.yaml", in, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// Whatever the bytes, the outcome is an error, or YAML that means the same but for what was added.
func FuzzManifests(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yaml", "testdata/bad/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		out, _, err := Manifests("fuzz.yaml", data, options)
		if err != nil {
			return
		}
		want, err := documents(data)
		if err != nil {
			return // what the parser takes, the decoder may refuse: a key twice, say
		}
		got, err := documents(out)
		if err != nil {
			t.Fatalf("%v in %q, which was %q", err, out, data)
		}
		if diff := cmp.Diff(without(want), without(got)); diff != "" {
			t.Errorf("%q becomes %q: %s", data, out, diff)
		}
	})
}
