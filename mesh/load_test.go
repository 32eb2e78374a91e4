package mesh

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Each testdata/bad/NAME.yaml has a NAME.txt with what Load says of it.
func TestLoadNamesWhatIsWrong(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Load(filepath.Base(file), data)
			if err == nil {
				t.Fatal("loaded")
			}
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("error of type %T, want Problems", err)
			}
			for _, p := range problems {
				if p.Message == "" || p.Remedy == "" {
					t.Errorf("%v lacks a message or a remedy", p)
				}
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

func loadRegions(t *testing.T) *Mesh {
	t.Helper()
	data, err := os.ReadFile("testdata/regions.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Load("regions.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLoadFillsInDefaults(t *testing.T) {
	m := loadRegions(t)
	if got, want := m.Pools[0].Hashing, (Hashing{Algorithm: Maglev, Size: 65537}); got != want {
		t.Errorf("hashing %+v, want %+v", got, want)
	}
	if got, want := m.Pools[1].Hashing, (Hashing{Algorithm: RingHash, Size: 1024}); got != want {
		t.Errorf("hashing %+v, want %+v", got, want)
	}
	if m.Pools[0].Routes[0].Coherence != Local {
		t.Errorf("coherence %q, want local", m.Pools[0].Routes[0].Coherence)
	}
	if m.Regions[0].Shards[0].Weight != 1 || m.Regions[0].Shards[1].Weight != 3 {
		t.Errorf("weights %+v", m.Regions[0].Shards)
	}
	if m.OpTimeout != 250*time.Millisecond {
		t.Errorf("opTimeout %s", m.OpTimeout)
	}
}

func TestTopologyOfARegion(t *testing.T) {
	m := loadRegions(t)
	topology, err := m.Topology("us-east")
	if err != nil {
		t.Fatal(err)
	}
	shard := topology.Pools[0].Shards[0]
	if primary, ok := shard.Primary(); !ok || primary.Address != "127.0.0.1:7001" || shard.Nodes[1].Role != Replica {
		t.Errorf("nodes %+v, want the first as primary", shard.Nodes)
	}
	if _, err := m.Topology("mars"); err == nil || !strings.Contains(err.Error(), "us-east, eu-west") {
		t.Errorf("error %v, want one that names the regions", err)
	}
}

func TestTheLongestPrefixTakesAKey(t *testing.T) {
	topology, err := loadRegions(t).Topology("us-east")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key, pool, prefix string
		err               error
	}{
		{key: "user:1", pool: "timelines", prefix: "user:"},
		{key: "user:card:1", pool: "content", prefix: "user:card:"},
		{key: "user:card", pool: "timelines", prefix: "user:"},
		{key: "tweet:\x00\xff", pool: "content", prefix: "tweet:"},
		{key: "{tweet:1}", err: ErrNoRoute},
		{key: "", err: ErrNoRoute},
		{key: "cachemesh:x", err: ErrReserved},
		{key: "cachemesh", err: ErrNoRoute},
	} {
		pool, route, err := topology.Route([]byte(c.key))
		if pool.Name != c.pool || route.Prefix != c.prefix || !errors.Is(err, c.err) {
			t.Errorf("key %q: pool %q, prefix %q, error %v; want %q, %q, %v", c.key, pool.Name, route.Prefix, err, c.pool, c.prefix, c.err)
		}
	}
}

// Whatever the bytes, Load returns a mesh that it would accept again or Problems, and never panics.
func FuzzLoad(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	bad, _ := filepath.Glob("testdata/bad/*.yaml")
	for _, file := range append(files, bad...) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Load("fuzz.yaml", data)
		if err == nil && (len(m.Pools) == 0 || len(m.Regions) == 0) {
			t.Errorf("accepted a mesh without pools or regions: %q", data)
		}
		var problems Problems
		if err != nil && !errors.As(err, &problems) {
			t.Errorf("error of type %T for %q", err, bytes.TrimSpace(data))
		}
	})
}
