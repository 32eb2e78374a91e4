package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// keeps checks that who leads keeps something, that the next leader has it, and that nobody else may write.
func keeps(t *testing.T, first, second shelf, handOver func()) {
	t.Helper()
	load := func(s shelf, want string) {
		t.Helper()
		if data, err := s.load(t.Context()); err != nil || string(data) != want {
			t.Errorf("it has %q, %v; want %q", data, err, want)
		}
	}
	save := func(s shelf, content string, want error) {
		t.Helper()
		if err := s.save(t.Context(), []byte(content)); !errors.Is(err, want) {
			t.Errorf("saving %s: %v, want %v", content, err, want)
		}
	}
	load(first, "")
	save(first, `{"a":1}`, nil)
	save(first, `{"a":2}`, nil)
	load(second, `{"a":2}`)
	save(second, `{"a":3}`, errNotLeading)
	load(first, `{"a":2}`)
	handOver()
	save(first, `{"a":4}`, errNotLeading)
	load(second, `{"a":2}`)
	save(second, `{"a":5}`, nil)
	load(second, `{"a":5}`)
}

func TestAFolderKeepsWhatIsBesideTheState(t *testing.T) {
	dir := t.TempDir()
	first, second := newFileStore(dir, "http://first"), newFileStore(dir, "http://second")
	defer second.letGo()
	keeps(t, first.shelf("warming"), second.shelf("warming"), func() {
		first.mu.Lock()
		first.letGo()
		first.mu.Unlock()
		second.look()
	})
	if err := os.WriteFile(filepath.Join(dir, "warming.json"), []byte(`{"revision": 1, "sha256": "", "state": {"a": 6}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := second.shelf("warming").load(t.Context()); err == nil {
		t.Errorf("what was edited by hand is taken: %s", data)
	}
}

func TestWithoutAFolderWhatIsBesideTheStateIsForgotten(t *testing.T) {
	s := newFileStore("", "http://here").shelf("warming")
	if err := s.save(t.Context(), []byte(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	if data, err := s.load(t.Context()); err != nil || string(data) != `{"a":1}` {
		t.Errorf("%s, %v", data, err)
	}
}

func TestConsulKeepsWhatIsBesideTheState(t *testing.T) {
	t.Parallel()
	c := consulServers(t, 1)[0]
	startConsuls(t, c)
	first, second := openStore(t, c, "first"), openStore(t, c, "second")
	changes, stop := runStore(t, first)
	until(t, changes, "the first leads", first, leads(first))
	seen, _ := runStore(t, second)
	until(t, seen, "the second knows who leads", second, func() bool { return second.leader() == "http://first" })
	mine, theirs := first.shelf("warming"), second.shelf("warming")
	keeps(t, mine, theirs, func() {
		stop()
		until(t, seen, "the second takes over", second, leads(second))
	})

	// Somebody else writes it, or Consul loses it: who leads has the newest, and says so once it knows what is there.
	overwrite(t, consulKeys(t, c), theirs.(*consulShelf).key, []byte("rubbish"))
	if _, err := theirs.load(t.Context()); err == nil {
		t.Error("rubbish is taken")
	}
	if err := theirs.save(t.Context(), []byte(`{"a":6}`)); err != nil {
		t.Errorf("%v: rubbish is not replaced", err)
	}
	if data, err := mine.load(t.Context()); err != nil || string(data) != `{"a":6}` {
		t.Errorf("%s, %v", data, err)
	}
}
