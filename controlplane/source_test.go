package controlplane

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

const goodMesh = `apiVersion: cachemesh.dev/v1
kind: Mesh
pools: [{name: cache, routes: [{prefix: ""}]}]
regions: [{name: home, shards: [{pool: cache, name: cache-0, nodes: ["127.0.0.1:7001"]}]}]
`

var brokenMesh = strings.Replace(goodMesh, "prefix", "prefiks", 1)

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	// As editors and Kubernetes do: a new file takes the old one's name.
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestABrokenFileNeverReplacesAGoodOne(t *testing.T) {
	dir := t.TempDir()
	path, state := filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, "state")
	writeFile(t, path, brokenMesh)
	if _, err := (&fileSource{path: path, state: state, log: quiet}).first(); err == nil || !strings.Contains(err.Error(), "prefiks") {
		t.Errorf("error %v, want one that names the field", err)
	}
	writeFile(t, path, goodMesh)
	if u, err := (&fileSource{path: path, state: state, log: quiet}).first(); err != nil || u.err != nil || u.mesh == nil {
		t.Fatalf("reading %+v, error %v", u, err)
	}
	writeFile(t, path, brokenMesh)
	u, err := (&fileSource{path: path, state: state, log: quiet}).first()
	if err != nil || u.mesh == nil || u.err == nil {
		t.Errorf("reading %+v, error %v; want the last good mesh and the problem", u, err)
	}
	if _, err := (&fileSource{path: path, log: quiet}).first(); err == nil {
		t.Error("a control plane without a state folder started beside a broken file")
	}
}

func TestWatchReportsEveryChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	writeFile(t, path, goodMesh)
	s := &fileSource{path: path, log: quiet}
	if _, err := s.first(); err != nil {
		t.Fatal(err)
	}
	readings := make(chan reading)
	done := make(chan error)
	go func() { done <- s.watch(t.Context(), readings) }()
	next := func() reading {
		t.Helper()
		select {
		case r := <-readings:
			return r
		case err := <-done:
			t.Fatalf("watch ended: %v", err)
		case <-time.After(5 * time.Second):
			t.Fatal("the change was not seen")
		}
		return reading{}
	}
	writeFile(t, path, brokenMesh)
	if u := next(); u.err == nil || u.mesh != nil {
		t.Errorf("reading %+v, want a problem", u)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if u := next(); u.err == nil || !strings.Contains(u.err.Error(), "no such file") {
		t.Errorf("reading %+v, want that the file is gone", u)
	}
	writeFile(t, path, strings.Replace(goodMesh, "7001", "7002", 1))
	if u := next(); u.mesh == nil || u.mesh.Regions[0].Shards[0].Nodes[0] != "127.0.0.1:7002" {
		t.Errorf("reading %+v, want the new address", u)
	}
}
