package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cachemesh/cachemesh/ring"
)

// The tests of package ring compare it with the files; this one compares the files with the Envoy that is
// installed, so that an upgrade which moves keys does not go unnoticed.
func TestRecordedFilesAreWhatEnvoySays(t *testing.T) {
	vectors, err := record(t.Context(), cases())
	if err != nil {
		t.Fatal(err)
	}
	const remedy = "run `go run ./ring/record` and look at the difference"
	testdata := filepath.Join("..", "testdata")
	for _, v := range vectors {
		want, err := encode(v)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(testdata, v.Name+".json")
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("%v: %s", err, remedy)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what Envoy %s says: %s", file, v.Envoy, remedy)
		}
	}
	files, err := filepath.Glob(filepath.Join(testdata, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(vectors) {
		t.Errorf("%d files for %d cases: remove those that have no case", len(files), len(vectors))
	}
}

func TestKeyOf(t *testing.T) {
	for range 1000 {
		hash := rand.Uint64()
		if key := keyOf(hash); ring.Hash(key) != hash && !bytes.ContainsRune(key, '{') {
			t.Errorf("key %q has hash %d, want %d", key, ring.Hash(key), hash)
		}
	}
}
