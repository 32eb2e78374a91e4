package holdoff

import (
	"strings"
	"testing"
	"time"
)

func TestLoadKeepsOffWhatIsHeld(t *testing.T) {
	s := startShard(t)
	if got := s.raw(AppendLoadPrepare(nil)); got != loadDigest {
		t.Fatalf("the script is %v, want %q", got, loadDigest)
	}
	s.do("SET", "there", "newer")
	s.do("HSET", "source", "a", "b")
	dump, _ := s.do("DUMP", "source").(string)
	load := func(keys ...string) any {
		command := AppendLoad(nil, len(keys)+2)
		for _, k := range keys {
			command = AppendLoadEntry(command, []byte(k), 60_000, []byte("value"), false)
		}
		command = AppendLoadEntry(command, []byte("hash"), 0, []byte(dump), true)
		command = AppendLoadEntry(command, []byte("broken"), 0, []byte("no dump"), true)
		return s.raw(command)
	}
	if got := load("there", "a", "held", "prefix:1"); got != "tlllle" {
		t.Errorf("while nothing is held: %v", got)
	}
	if got := s.do("HGET", "hash", "a"); got != "b" || s.ttl("a") <= 59*time.Second {
		t.Errorf("what was loaded: %v %v", got, s.ttl("a"))
	}
	s.do("DEL", "a", "held", "prefix:1", "hash")
	s.note(Note{Removed: marks(time.Minute, "held"), Prefixes: marks(time.Minute, "prefix:")})
	before := s.lookups()
	if got := load("there", "a", "held", "prefix:1"); got != "tlhhle" {
		t.Errorf("while something is held: %v", got)
	}
	if after := s.lookups(); after > before+1 { // prefixes are read once for all
		t.Errorf("looking at what is held is %d hits or misses", after-before)
	}
	if got := load(strings.Repeat("x", maxKey+1)); got != "hte" {
		t.Errorf("a key that is too long for marks: %v", got)
	}
}
