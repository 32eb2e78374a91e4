package ring

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// vector is what `go run ./ring/record` wrote for a case.
type vector struct {
	Envoy     string
	Algorithm Algorithm
	Size      uint64
	Hosts     []struct {
		Name   string
		Weight uint32
	}
	MinEntries int `json:"min_entries"`
	MaxEntries int `json:"max_entries"`
	Keys       map[string]string
}

func TestEnvoyVectors(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	keys, wrapped := 0, 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v vector
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		hosts := make([]Host, len(v.Hosts))
		for i, h := range v.Hosts {
			hosts[i] = Host{h.Name, h.Weight}
		}
		r, err := New(Config{v.Algorithm, v.Size}, hosts)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for encoded, want := range v.Keys {
			key, err := base64.StdEncoding.DecodeString(encoded)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if got := hosts[r.Find(key)].HashKey; got != want {
				t.Errorf("%s: key %q is on %s, Envoy %s says %s", file, key, got, v.Envoy, want)
			}
			keys++
			if wraps(r, Hash(key)) {
				wrapped++
			}
		}
		if v.Algorithm == Maglev && len(hosts) == 1 {
			continue // Envoy keeps no table for a single host and counts one entry
		}
		if fewest, most := entriesPerHost(r); fewest != v.MinEntries || most != v.MaxEntries {
			t.Errorf("%s: %d to %d entries a host, Envoy %s says %d to %d", file, fewest, most, v.Envoy, v.MinEntries, v.MaxEntries)
		}
	}
	// Guards against a recording that would prove little.
	if len(files) < 30 || keys < 10000 || wrapped < 100 {
		t.Errorf("%d files with %d keys, of which %d close the ring at another host than the last entry's", len(files), keys, wrapped)
	}
}

// wraps tells a hash beyond the last entry, where that entry's host is not the first one's.
func wraps(r *Ring, hash uint64) bool {
	n := len(r.arcs.ends)
	return n > 1 && hash > r.arcs.ends[n-2] && r.owners[n-2] != r.owners[n-1]
}

func entriesPerHost(r *Ring) (fewest, most int) {
	counts := make([]int, r.hosts)
	for _, owner := range r.owners[:r.entries] {
		counts[owner]++
	}
	fewest = r.entries
	for _, n := range counts {
		fewest, most = min(fewest, n), max(most, n)
	}
	return fewest, most
}
