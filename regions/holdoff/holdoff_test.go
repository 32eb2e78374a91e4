package holdoff

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
)

func TestOnlyRefillsAreHeld(t *testing.T) {
	for _, c := range []struct {
		route *mesh.Route
		want  time.Duration
	}{
		{nil, 0},
		{&mesh.Route{Coherence: mesh.Local, HoldOff: time.Second}, 0},
		{&mesh.Route{Coherence: mesh.Invalidate, Writes: mesh.Update, HoldOff: time.Second}, 0},
		{&mesh.Route{Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: time.Second}, time.Second},
		{&mesh.Route{Coherence: mesh.Invalidate, Writes: mesh.Refill}, 0},
	} {
		if got := Of(c.route); got != c.want {
			t.Errorf("%+v: %s, want %s", c.route, got, c.want)
		}
	}
}

// shard is a Redis that is told what to do as lanes and appliers do.
type shard struct {
	*testing.T
	*redis.Client
}

func startShard(t *testing.T, args ...string) shard {
	t.Helper()
	return shard{t, redistest.Start(t, process.Redis{Args: args}).Client}
}

func (s shard) do(args ...any) any {
	s.Helper()
	v, err := s.Do(context.Background(), args...).Result()
	if err != nil && err != redis.Nil {
		s.Fatalf("%.100v: %v", args, err)
	}
	return v
}

// arguments are those of an appended command.
func arguments(t testing.TB, command []byte) (args []any) {
	t.Helper()
	rest := string(command)
	_, rest, _ = strings.Cut(rest, "\r\n")
	for rest != "" {
		var n int
		head, after, _ := strings.Cut(rest, "\r\n")
		if _, err := fmt.Sscanf(head, "$%d", &n); err != nil {
			t.Fatal(err)
		}
		args, rest = append(args, after[:n]), after[n+2:]
	}
	if want := fmt.Sprintf("*%d\r\n", len(args)); !strings.HasPrefix(string(command), want) {
		t.Fatalf("%q begins %.10q, want %q", args[0], command, want)
	}
	return args
}

// raw sends an appended command as it is.
func (s shard) raw(command []byte) any {
	s.Helper()
	return s.do(arguments(s.T, command)...)
}

// note sends a note both ways, which must be the same, and returns how many keys were held.
func (s shard) note(n Note) int64 {
	s.Helper()
	var plain []string
	for _, a := range n.Args() {
		if b, ok := a.([]byte); ok {
			a = string(b)
		}
		plain = append(plain, fmt.Sprint(a))
	}
	var appended []byte
	for i, a := range plain {
		if i == 0 {
			appended = append(appended, fmt.Sprintf("*%d\r\n", len(plain))...)
		}
		appended = appendBulk(appended, a)
	}
	if got := n.Append(nil); string(got) != string(appended) {
		s.Fatalf("appended is %q, and the arguments are %q", got, plain)
	}
	return s.raw(n.Append(nil)).(int64)
}

// lookups are those of the cache, as its hit rate counts them.
func (s shard) lookups() int {
	s.Helper()
	var hits, misses int
	for line := range strings.Lines(s.Info(context.Background(), "stats").Val()) {
		fmt.Sscanf(line, "keyspace_hits:%d", &hits)
		fmt.Sscanf(line, "keyspace_misses:%d", &misses)
	}
	return hits + misses
}

func (s shard) ttl(key string) time.Duration {
	s.Helper()
	d, err := s.PTTL(context.Background(), key).Result()
	if err != nil {
		s.Fatal(err)
	}
	return d
}

// within says whether a time to live is the rest of a hold-off that began a moment ago.
func (s shard) within(key string, holdOff time.Duration) {
	s.Helper()
	if d := s.ttl(key); d <= holdOff/2 || d > holdOff+time.Second {
		s.Errorf("%s lives %s longer, want up to %s", key, d, holdOff)
	}
}

// due asks until something is.
func (s shard) due() (again []Due, count int) {
	s.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		reply, ok := s.raw(AppendDue(nil)).([]any)
		if !ok {
			s.Fatalf("%v is no reply", reply)
		}
		again, count, now, err := ReadDue(reply)
		if err != nil {
			s.Fatal(err)
		}
		if d := time.Since(now); d < -time.Second || d > 10*time.Second {
			s.Errorf("its clock is %s behind", d)
		}
		if count > 0 {
			return again, count
		}
		if time.Now().After(end) {
			s.Fatal("nothing is due")
		}
	}
}

func marks(d time.Duration, keys ...string) (all []Mark) {
	for _, k := range keys {
		all = append(all, Mark{[]byte(k), d})
	}
	return all
}

func keys(all ...string) (b [][]byte) {
	for _, k := range all {
		b = append(b, []byte(k))
	}
	return b
}

const long = time.Minute

// Whatever a write gave a key to live, what is held keeps no more than the rest of the hold-off, and less if it has less.
func TestWhateverFillsAHeldKeyKeepsTheRestOfTheHoldOff(t *testing.T) {
	s := startShard(t)
	dumped := func() string { s.do("SET", "other", "v"); return s.do("DUMP", "other").(string) }()
	for i, fill := range [][]any{
		{"SET", "k", "v"}, {"SET", "k", "v", "EX", 3600}, {"SET", "k", "v", "PX", 3_600_000}, {"SET", "k", "v", "EXAT", time.Now().Unix() + 3600},
		{"SET", "k", "v", "PXAT", time.Now().UnixMilli() + 3_600_000}, {"SET", "k", "v", "NX"}, {"SET", "k", "v", "GET"}, {"SET", "k", "v", "KEEPTTL"},
		{"SETEX", "k", 3600, "v"}, {"PSETEX", "k", 3_600_000, "v"}, {"SETNX", "k", "v"}, {"MSET", "k", "v"}, {"APPEND", "k", "v"}, {"SETRANGE", "k", 0, "v"},
		{"SETBIT", "k", 1, 1}, {"INCR", "k"}, {"INCRBYFLOAT", "k", 1}, {"HSET", "k", "f", "v"}, {"HMSET", "k", "f", "v"}, {"HINCRBY", "k", "f", 1},
		{"LPUSH", "k", "v"}, {"RPUSH", "k", "v"}, {"SADD", "k", "v"}, {"ZADD", "k", 1, "v"}, {"GEOADD", "k", 1, 1, "v"}, {"PFADD", "k", "v"},
		{"XADD", "k", "*", "f", "v"}, {"RESTORE", "k", 0, dumped}, {"RESTORE", "k", 3_600_000, dumped}, {"EVAL", "return redis.call('SET', KEYS[1], 'v')", 1, "k"},
	} {
		s.note(Note{Removed: marks(long, "k"), Link: i%2 == 0})
		s.do("DEL", "k")
		s.do(fill...)
		if n := s.note(Note{Written: keys("k", "other")}); n != 1 {
			t.Errorf("%v: %d keys are held, want 1", fill[:1], n)
		}
		s.within("k", long)
		for _, longer := range [][]any{{"EXPIRE", "k", 7200}, {"PEXPIREAT", "k", time.Now().UnixMilli() + 7_200_000}, {"PERSIST", "k"}} {
			s.do(longer...)
			s.note(Note{Written: keys("k")})
			s.within("k", long)
		}
		s.do("PEXPIRE", "k", 5000)
		s.note(Note{Written: keys("k")})
		s.within("k", 5*time.Second)
	}
	if d := s.ttl("other"); d != -1 {
		t.Errorf("a key that is not held lives %s", d)
	}
}

func TestTheEndOfAHoldOff(t *testing.T) {
	s := startShard(t)
	const short = 300 * time.Millisecond
	s.note(Note{Removed: marks(short, "refilled", "forgotten", "absent", "again")})
	s.note(Note{Removed: marks(short, "refilled by link"), Link: true})
	for _, k := range []string{"refilled", "refilled by link", "forgotten", "again"} {
		s.do("SET", k, "stale")
	}
	// "forgotten" is of a lane that was killed before it had noted the write.
	if n := s.note(Note{Written: keys("refilled", "refilled by link", "again")}); n != 3 {
		t.Errorf("%d keys are held, want 3", n)
	}
	again, count := map[string]string{}, 0
	for count < 5 {
		all, n := s.due()
		for _, d := range all {
			again[string(d.Key)] = d.Claim
		}
		count += n
	}
	if len(again) != 3 || again["refilled"] == "" || again["forgotten"] == "" || again["again"] == "" || count != 5 {
		t.Errorf("of %d, other regions are to be told of %q", count, again)
	}
	if n := s.do("EXISTS", "refilled", "refilled by link", "forgotten", "again"); n != int64(0) {
		t.Errorf("%d keys outlived their hold-off", n)
	}
	// What is filled from now on is good.
	s.do("SET", "refilled", "new", "EX", 3600)
	if n := s.note(Note{Written: keys("refilled")}); n != 0 || s.ttl("refilled") < time.Hour/2 {
		t.Errorf("a key is held after its end: %d, and lives %s", n, s.ttl("refilled"))
	}
	// A key that is removed before it is done is held anew, however short its hold-off.
	s.note(Note{Removed: marks(time.Second, "again")})
	var done []Due
	for k, claim := range again {
		done = append(done, Due{[]byte(k), claim})
	}
	if n := s.raw(AppendDone(nil, done)); n != int64(2) {
		t.Errorf("%v are done, want 2", n)
	}
	if left, _ := s.ZRange(context.Background(), heldKey, 0, -1).Result(); !slices.Equal(left, []string{"again"}) {
		t.Errorf("still held: %q", left)
	}
}

// Who is told of a key's end and dies leaves it to another.
func TestAClaimEnds(t *testing.T) {
	s := startShard(t)
	s.note(Note{Removed: marks(20*time.Millisecond, "k")})
	s.do("SET", "k", "stale")
	s.note(Note{Written: keys("k")})
	first, _ := s.due()
	second, _ := s.due()
	if len(first) != 1 || len(second) != 1 || first[0].Claim == second[0].Claim {
		t.Errorf("told %q, then %q", first, second)
	}
	if n := s.raw(AppendDone(nil, first)); n != int64(0) {
		t.Errorf("whose claim is over has done %v", n)
	}
	if n := s.raw(AppendDone(nil, second)); n != int64(1) {
		t.Errorf("%v are done, want 1", n)
	}
}

// looks are the commands of AppendLook.
func looks(all []byte) (commands [][]byte) {
	for _, part := range strings.Split(string(all), "*6\r\n")[1:] {
		commands = append(commands, []byte("*6\r\n"+part))
	}
	return commands
}

// Plain commands say what the Note says.
func TestMarksAndLooksWithoutAScript(t *testing.T) {
	s := startShard(t)
	look := func(want ...bool) {
		t.Helper()
		before := s.lookups()
		var got []bool
		for _, command := range looks(AppendLook(nil, keys("a", "b"))) {
			got = append(got, s.raw(command) != nil)
		}
		if n := s.lookups() - before; n != 0 {
			t.Errorf("looks count as %d lookups of the cache", n)
		}
		if !slices.Equal(got, want) {
			t.Errorf("held, of prefixes, a and b: %t, want %t", got, want)
		}
	}
	look(false, false, false)
	before := s.lookups()
	if s.raw(AppendDue(nil)); s.lookups() != before {
		t.Error("to look whether anything is over counts as a lookup")
	}
	if n := s.raw(AppendMarks(nil, append(marks(long, "a"), marks(time.Second, "c")...), time.Now())); n != int64(2) {
		t.Errorf("%v marks are new, want 2", n)
	}
	look(false, true, false)
	s.do("SET", "a", "v")
	if n := s.note(Note{Written: keys("a", "b")}); n != 1 {
		t.Errorf("%d keys are held, want 1", n)
	}
	s.within("a", long)
	s.note(Note{Prefixes: marks(50*time.Millisecond, "b")})
	look(true, true, false)
	s.do("SET", "b", "v")
	s.note(Note{Written: keys("b")})
	look(true, true, true)
	for s.do("EXISTS", prefixesKey, "b") != int64(0) || s.do("ZCARD", heldKey) != int64(2) {
		s.due()
	}
	look(false, true, false)
	if Plain([]byte(strings.Repeat("x", maxKey+1))) {
		t.Error("a long key is plain")
	}
}

// Marks without a script know no bound; the house is kept later.
func TestTooManyMarksWithoutAScript(t *testing.T) {
	s := startShard(t)
	var all []Mark
	for i := range MaxMarks + 10 {
		all = append(all, Mark{fmt.Appendf(nil, "k%d", i), long + time.Duration(i)*time.Millisecond})
	}
	for part := range slices.Chunk(all, 5000) {
		s.raw(AppendMarks(nil, part, time.Now()))
	}
	s.raw(AppendDue(nil))
	if n := s.do("ZCARD", heldKey); n != int64(MaxMarks+1) {
		t.Errorf("%v marks, want %d and one of all", n, MaxMarks)
	}
	s.do("SET", "k0", "v")
	s.note(Note{Written: keys("k0")})
	if d := s.ttl("k0"); d <= long {
		t.Errorf("a key that had to make room lives %s", d)
	}
}

// A mark lasts its hold-off and at most a twelfth more, and one of the same moment changes nothing.
func TestEndsOfMarksAreRoundedUp(t *testing.T) {
	s := startShard(t)
	for _, d := range []time.Duration{time.Millisecond, 40 * time.Millisecond, time.Second, 3 * time.Second, long} {
		for i := range 20 {
			now := time.UnixMilli(1_900_000_000_000 + int64(i)*97)
			s.raw(AppendMarks(nil, marks(d, d.String()), now))
			end := time.UnixMilli(int64(s.ZScore(context.Background(), heldKey, d.String()).Val()))
			if more := end.Sub(now.Add(d)); more <= 0 || more > 2*time.Millisecond+min(d/12, 250*time.Millisecond) {
				t.Errorf("a mark of %s lasts %s more", d, more)
			}
		}
	}
	moment := time.UnixMilli(1_900_000_000_000)
	changes := func() string {
		return s.InfoMap(context.Background(), "persistence").Val()["Persistence"]["rdb_changes_since_last_save"]
	}
	s.raw(AppendMarks(nil, marks(long, "hot"), moment))
	before := changes()
	if s.raw(AppendMarks(nil, marks(long, "hot"), moment.Add(time.Millisecond))); changes() != before {
		t.Error("a mark that is there already changes the shard")
	}
}

func TestAMarkNeverEndsSooner(t *testing.T) {
	s := startShard(t)
	s.note(Note{Removed: marks(long, "k")})
	s.note(Note{Removed: marks(time.Second, "k")})
	s.do("SET", "k", "v")
	s.note(Note{Written: keys("k")})
	s.within("k", long)
}

func TestPrefixes(t *testing.T) {
	s := startShard(t)
	longKey := "user:" + strings.Repeat("x", maxKey)
	s.note(Note{Prefixes: marks(long, "user:")})
	s.do("SET", "user:1", "v")
	s.do("SET", "tweet:1", "v")
	if n := s.note(Note{Written: keys("user:1", "tweet:1")}); n != 1 {
		t.Errorf("%d keys are held, want 1", n)
	}
	s.within("user:1", long)
	if s.ttl("tweet:1") != -1 {
		t.Error("a key with another prefix is held")
	}
	s.do("FLUSHALL")
	s.note(Note{Removed: marks(long, longKey)})
	s.do("SET", longKey, "v")
	s.note(Note{Written: keys(longKey)})
	s.within(longKey, long)
	s.do("FLUSHALL")
	s.note(Note{Prefixes: marks(20*time.Millisecond, "")})
	for s.note(Note{Written: keys("user:1")}); s.do("EXISTS", prefixesKey) != int64(0); {
		s.note(Note{Written: keys("user:1")})
	}
	// Too many are everything.
	for i := range maxPrefixes + 1 {
		s.note(Note{Prefixes: marks(long, fmt.Sprint("p", i))})
	}
	if n := s.do("ZCARD", prefixesKey); n != int64(maxPrefixes+1) {
		t.Errorf("%v prefixes are kept, want %d", n, maxPrefixes+1)
	}
	s.do("SET", "anything", "v")
	s.note(Note{Written: keys("anything")})
	s.within("anything", long)
}

func TestAPrimaryHoldsWhenItBegins(t *testing.T) {
	s := startShard(t)
	begin := AppendBegin(nil, OfAll([]mesh.Route{
		{Prefix: "a:", Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: long},
		{Prefix: "b:", Coherence: mesh.Invalidate, Writes: mesh.Refill, HoldOff: 10 * long},
		{Prefix: "c:", Coherence: mesh.Invalidate, Writes: mesh.Update, HoldOff: long},
	}))
	if began := s.raw(begin); began != int64(1) {
		t.Errorf("it answers %v", began)
	}
	s.do("MSET", "a:1", "v", "b:1", "v", "c:1", "v")
	if n := s.note(Note{Written: keys("a:1", "b:1", "c:1")}); n != 2 {
		t.Errorf("%d keys are held, want 2", n)
	}
	s.within("a:1", long)
	s.within("b:1", 10*long)
	s.do("DEL", prefixesKey, heldKey)
	if began := s.raw(begin); began != int64(0) {
		t.Errorf("the same process begins twice: %v", began)
	}
	// As a replica has it that takes over.
	s.do("SET", holderKey, "another")
	if began := s.raw(begin); began != int64(1) {
		t.Errorf("another process does not begin: %v", began)
	}
	s.note(Note{Written: keys("a:1")})
	s.within("a:1", long)
}

// Beyond the bound every key is held: nothing is forgotten for want of room.
func TestTooManyMarks(t *testing.T) {
	s := startShard(t)
	var n Note
	for i := range MaxMarks + 10 {
		n.Removed = append(n.Removed, Mark{fmt.Appendf(nil, "k%d", i), long})
		if len(n.Removed) == 5000 {
			s.raw(n.Append(nil))
			n.Reset()
		}
	}
	s.raw(n.Append(nil))
	if got := s.do("ZCARD", heldKey); got != int64(MaxMarks+1) {
		t.Errorf("%v marks, want %d and one of all", got, MaxMarks)
	}
	last := fmt.Sprint("k", MaxMarks+9)
	s.do("SET", last, "v")
	s.note(Note{Written: keys(last)})
	s.within(last, long)
	t.Logf("%v bytes", s.do("MEMORY", "USAGE", heldKey, "SAMPLES", 0))
}

func TestManyKeysOfOneNote(t *testing.T) {
	s := startShard(t)
	n := Note{}
	for i := range 20_000 {
		k := fmt.Appendf(nil, "k%d", i)
		n.Written = append(n.Written, k)
		s.do("SET", k, "v")
		if i%2 == 0 {
			n.Removed = append(n.Removed, Mark{k, long})
		}
	}
	if got := s.raw(n.Append(nil)); got != int64(10_000) {
		t.Errorf("%v keys are held, want 10000", got)
	}
}

func TestAFullNodeKeepsMarks(t *testing.T) {
	s := startShard(t, "--maxmemory", "1000", "--maxmemory-policy", "noeviction")
	if err := s.Set(context.Background(), "k", "v", 0).Err(); err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Fatalf("the node is not full: %v", err)
	}
	s.note(Note{Removed: marks(long, "k")})
	if n := s.do("ZCARD", heldKey); n != int64(1) {
		t.Errorf("%v marks, want 1", n)
	}
}
