package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOneControlPlaneLeadsAFolderAndTheNextFollows(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	first := newFileStore(dir, "http://first")
	_, stop := runStore(t, first)
	if !leads(first)() || first.leader() != "http://first" || first.problem() != nil || !hasState(first, "", 0)() {
		t.Fatalf("a new folder: leader %q, problem %v", first.leader(), first.problem())
	}
	second := newFileStore(dir, "http://second")
	seen, _ := runStore(t, second)
	mustWrite(t, first, `{"a":1}`, 0)
	until(t, seen, "the follower reads", second, hasState(second, `{"a":1}`, 1))
	mustWrite(t, first, `{"a":2}`, 1)
	until(t, seen, "the follower reads on", second, hasState(second, `{"a":2}`, 2))
	if leads(second)() || second.leader() != "http://first" || second.problem() != nil {
		t.Errorf("the follower: leads until %s, leader %q, problem %v", second.leadsUntil(), second.leader(), second.problem())
	}
	if _, err := second.write(t.Context(), []byte(`{}`), 2); !errors.Is(err, errNotLeading) {
		t.Errorf("a follower's write: %v", err)
	}
	if _, err := first.write(t.Context(), []byte(`{}`), 1); !errors.Is(err, errConflict) {
		t.Errorf("a write upon an old revision: %v", err)
	}
	if _, err := first.write(t.Context(), []byte(`{`), 2); err == nil || !hasState(first, `{"a":2}`, 2)() {
		t.Errorf("a write of half a state: %v", err)
	}
	began := time.Now()
	stop()
	if leads(first)() {
		t.Error("it leads after its end")
	}
	until(t, seen, "the follower takes over", second, leads(second))
	t.Logf("taken over after %s", time.Since(began))
	if second.leader() != "http://second" || !hasState(second, `{"a":2}`, 2)() {
		t.Errorf("the new leader: %q", second.leader())
	}
	mustWrite(t, second, `{"a":3}`, 2)
}

func TestAFolderIsTakenOverFromAKilledLeaderAndKeptFromAStoppedOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	member := startStore(t, storeSpec{Dir: dir})
	if answer := member.put(`{"a":1}`, 0); answer.Error != "" || !answer.Leads || answer.Revision != 1 {
		t.Fatalf("write: %+v", answer)
	}
	s := newFileStore(dir, "http://here")
	seen, _ := runStore(t, s)
	if s.leader() != member.url || leads(s)() {
		t.Fatalf("the follower: leader %q, leads until %s", s.leader(), s.leadsUntil())
	}
	if err := member.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if s.look() || leads(s)() {
		t.Error("a leader that stands still was deposed, though it would not notice")
	}
	began := time.Now()
	member.Kill()
	until(t, seen, "the follower takes over", s, leads(s))
	t.Logf("taken over after %s", time.Since(began))
	mustWrite(t, s, `{"a":2}`, 1)
}

func TestADamagedFileIsNeitherUsedNorReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := newFileStore(dir, "http://first")
	_, stop := runStore(t, first)
	mustWrite(t, first, `{"a":1}`, 0)
	stop()
	path := filepath.Join(dir, stateFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, strings.Replace(string(good), `"a": 1`, `"a": 2`, 1))
	s := newFileStore(dir, "http://second")
	seen, _ := runStore(t, s)
	if err := s.problem(); err == nil || !strings.Contains(err.Error(), path+": its checksum is not that of its state") || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("problem %v", err)
	}
	if _, err := s.write(t.Context(), []byte(`{}`), 0); !errors.Is(err, errNotLeading) || leads(s)() {
		t.Errorf("write beside a damaged file: %v", err)
	}
	writeFile(t, path, string(good))
	until(t, seen, "the copy put back is used", s, leads(s))
	if !hasState(s, `{"a":1}`, 1)() || s.problem() != nil {
		t.Errorf("problem %v", s.problem())
	}
}

func TestAReplacedFolderHasOneLeaderToo(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	first := newFileStore(dir, "http://first")
	mustWrite(t, first, `{"a":1}`, 0)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	second := newFileStore(dir, "http://second")
	runStore(t, second)
	if !leads(second)() {
		t.Fatalf("a new folder is not led: %v", second.problem())
	}
	if _, err := first.write(t.Context(), []byte(`{}`), 1); !errors.Is(err, errNotLeading) || !strings.Contains(err.Error(), "was removed or replaced") {
		t.Errorf("a write by who led the folder before: %v", err)
	}
	seen, _ := runStore(t, first)
	until(t, seen, "who led before follows", first, func() bool { return !leads(first)() && first.leader() == "http://second" })
}

func TestAFolderThatCannotBeUsedIsAProblemAndNoEnd(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	writeFile(t, dir, "a file")
	s := newFileStore(dir, "http://here")
	seen, _ := runStore(t, s)
	if err := s.problem(); err == nil || !strings.HasPrefix(err.Error(), "--state: ") || leads(s)() {
		t.Errorf("problem %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	until(t, seen, "the folder is made", s, leads(s))
}

func TestWithoutAFolderItLeadsAloneAndForgets(t *testing.T) {
	t.Parallel()
	s := newFileStore("", "http://here")
	_, stop := runStore(t, s)
	mustWrite(t, s, `{"a":1}`, 0)
	mustWrite(t, s, `{"a":2}`, 1)
	if !leads(s)() || s.leader() != "http://here" {
		t.Errorf("leads until %s, leader %q", s.leadsUntil(), s.leader())
	}
	stop()
	if leads(s)() {
		t.Error("it leads after its end")
	}
}
