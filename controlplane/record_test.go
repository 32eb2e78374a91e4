package controlplane

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestARecordComesBackAsItWasKept(t *testing.T) {
	state := []byte("{\"a\": \"<&\u2028>\",\n \"b\": [1, 2.50, 18446744073709551615]}")
	r, err := newRecord(state, 7, "session")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := r.pack()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), stateFile)
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := unpack(packed)
	if err != nil || kept.Revision != 7 || kept.By != "session" || !bytes.Equal(kept.State, r.State) {
		t.Errorf("from Consul: %+v, %v", kept, err)
	}
	if saved, err := parseRecord(data); err != nil || !bytes.Equal(saved.State, r.State) || saved.Revision != 7 {
		t.Errorf("from the file: %+v, %v", saved, err)
	}
	if again, err := newRecord(kept.State, 7, "session"); err != nil || again.Sum != r.Sum || !bytes.Equal(again.State, r.State) {
		t.Errorf("kept again: %+v, %v", again, err)
	}
	if _, err := newRecord([]byte("{"), 1, ""); err == nil {
		t.Error("a state that is not JSON was taken")
	}
	for name, damage := range map[string]func([]byte) []byte{
		"a digit":      func(d []byte) []byte { return bytes.Replace(d, []byte("2.50"), []byte("2.51"), 1) },
		"cut off":      func(d []byte) []byte { return d[:len(d)-10] },
		"empty":        func([]byte) []byte { return nil },
		"no revision":  func(d []byte) []byte { return bytes.Replace(d, []byte(`"revision": 7`), []byte(`"revision": 0`), 1) },
		"another file": func([]byte) []byte { return []byte("{}") },
	} {
		if _, err := parseRecord(damage(bytes.Clone(data))); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	if _, err := unpack(packed[:len(packed)-4]); err == nil {
		t.Error("a value that was cut off was taken")
	}
	if _, err := unpack([]byte(strings.Repeat("x", 100))); err == nil {
		t.Error("a value that was never packed was taken")
	}
}
