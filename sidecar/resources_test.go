package sidecar

import (
	"os"
	"path/filepath"
	"testing"
)

func TestResourcesSurviveTheirFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), resourcesFile)
	if r, err := loadResources(path); r != nil || err != nil {
		t.Errorf("without a file: %v, %v", r, err)
	}
	for _, want := range []resources{set(), set(res(lds, "l", "1"), res(cds, "d", "2"), res(cds, "c", "1"))} {
		if err := saveResources(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := loadResources(path)
		if err != nil || got == nil || got.String() != want.String() {
			t.Errorf("loads %q (error %v), saved was %q", got, err, want)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, error %v, want 0600", info.Mode(), err)
		}
	}
}

func TestEveryDamageOfSavedResourcesIsSeen(t *testing.T) {
	data, err := set(res(lds, "l", "1"), res(cds, "c", "1")).encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if r, err := decodeResources(data[:n]); err == nil {
			t.Errorf("cut to %d bytes: reads %q", n, r)
		}
		damaged := append([]byte(nil), data...)
		damaged[n] ^= 1
		if r, err := decodeResources(damaged); err == nil {
			t.Errorf("byte %d changed: reads %q", n, r)
		}
	}
}

func FuzzDecodeResources(f *testing.F) {
	data, err := set(res(lds, "l", "1")).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[len(savedFormat)+65:])
	f.Fuzz(func(t *testing.T, body []byte) {
		// With the right digest, the rest of the reader meets the bytes.
		r, err := decodeResources([]byte(savedFormat + digest(body) + "\n" + string(body)))
		if err != nil {
			return
		}
		if _, err := r.encode(); err != nil {
			t.Error(err)
		}
	})
}
