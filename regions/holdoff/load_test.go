package holdoff

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/resp"
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

func TestATransactionThatWatchesFailsOnceSomethingIsHeld(t *testing.T) {
	s := startShard(t)
	c := s.Conn()
	defer c.Close()
	do := func(args ...any) any {
		t.Helper()
		v, err := c.Do(t.Context(), args...).Result()
		if err != nil && err != redis.Nil {
			t.Fatal(err)
		}
		return v
	}
	watch := func() (last any) {
		t.Helper()
		r := bufio.NewReader(bytes.NewReader(AppendWatch(nil)))
		for range WatchReplies {
			command, err := resp.ReadCommand(r, resp.Limits{Arguments: 10, Bytes: 1000})
			if err != nil {
				t.Fatal(err)
			}
			var args []any
			for _, a := range command {
				args = append(args, a)
			}
			last = do(args...)
		}
		if _, err := r.Peek(1); err != io.EOF {
			t.Errorf("there are more commands than %d", WatchReplies)
		}
		return last
	}
	exec := func() any {
		t.Helper()
		do("MULTI")
		do("SET", "a", "1")
		return do("EXEC")
	}
	for name, note := range map[string]Note{"a key": {Removed: marks(time.Minute, "held")}, "a prefix": {Prefixes: marks(time.Minute, "prefix:")}} {
		s.do("FLUSHALL")
		before := s.lookups()
		if v := watch(); v != nil {
			t.Fatalf("%s: while nothing is held, the look says %v", name, v)
		}
		if after := s.lookups(); after != before {
			t.Errorf("%s: to look is %d hits or misses", name, after-before)
		}
		if exec() == nil {
			t.Errorf("%s: a transaction failed while nothing is held", name)
		}
		watch()
		s.note(note)
		if v := exec(); v != nil {
			t.Errorf("%s: a transaction did %v after something was held", name, v)
		}
		if watch() == nil {
			t.Errorf("%s: while something is held, the look says that nothing is", name)
		}
	}
}
