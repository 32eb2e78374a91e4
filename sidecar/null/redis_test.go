package null

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/commands"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/resp"
)

// startRedis starts the Redis that says what an empty one answers.
func startRedis(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	server := process.Redis{Port: ports[0], Dir: t.TempDir()}
	p, err := server.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(time.Second) })
	return server.Address()
}

// peer is a connection of a client.
type peer struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dialRedis(t *testing.T, address string) *peer {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return newPeer(t, conn)
}

// dialNull connects to a null Redis; answered counts its commands on data.
func dialNull(t *testing.T, answered func()) *peer {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		Serve(theirs, answered)
	}()
	t.Cleanup(func() { ours.Close(); <-done })
	return newPeer(t, ours)
}

func newPeer(t *testing.T, conn net.Conn) *peer {
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &peer{t, conn, bufio.NewReader(conn)}
}

// do sends one command and returns the bytes of its answer.
func (p *peer) do(words ...string) string {
	p.t.Helper()
	var b strings.Builder
	w := resp.NewWriter(&b)
	w.Array(len(words))
	for _, word := range words {
		w.Bulk(word)
	}
	w.Flush()
	return p.send(b.String())
}

func (p *peer) send(bytes string) string {
	p.t.Helper()
	if _, err := io.WriteString(p.conn, bytes); err != nil {
		p.t.Fatal(err)
	}
	return p.answer()
}

func (p *peer) answer() string {
	p.t.Helper()
	line, err := p.in.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimRight(line[1:], "\r\n"))
	switch line[0] {
	case '$', '=':
		if n >= 0 {
			data := make([]byte, n+2)
			if _, err := io.ReadFull(p.in, data); err != nil {
				p.t.Fatal(err)
			}
			line += string(data)
		}
	case '%':
		n *= 2
		fallthrough
	case '*', '~':
		for range n {
			line += p.answer()
		}
	}
	return line
}

// examples are the commands of the catalogue's examples, one by one.
func examples(t *testing.T) [][]string {
	data, err := os.ReadFile("../../commands/testdata/examples.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for line := range strings.Lines(string(data)) {
		name, example, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || name[0] == '#' || !passes(name) {
			continue
		}
		for one := range strings.SplitSeq(example, " ; ") {
			all = append(all, strings.Fields(one))
		}
	}
	if len(all) < 200 {
		t.Fatalf("only %d examples", len(all))
	}
	return all
}

// passes says whether the listeners pass a command on to shards.
func passes(name string) bool {
	c := commands.Explain(name)
	return (c.Verdict == commands.VerdictWorks || c.Verdict == commands.VerdictCareful) && c.Kind != commands.KindLocal
}

// Options and errors that the catalogue's examples leave out.
const more = `
get; set A; set A v get; set A v xx; set A v nx get; set A v ex 100 nx; set A v foo; set A v ex; setrange A 3 x; setrange A -1 x; setrange A x x
getset A v; getex A; getex A ex 5; incrby A x; incrby A 9223372036854775808; decrby A -9223372036854775808; incrbyfloat A x; incrbyfloat A 1.10
incrbyfloat A -3; hincrbyfloat A f 0.25; hincrby A f 7; hincrby A f x; hset A f v g w f x; hset A f v g; hmget A f g h; hrandfield A 2; hrandfield A -2 withvalues
srandmember A 2; spop A 2; lpop A 2; rpop A; lpos A x count 0; lpos A x rank 1; sadd A m m n; pfadd A; pfcount A B; touch A B; exists A A
zadd A xx 1 m; zadd A xx incr 1 m; zadd A incr 1.5 m; zadd A nx ch 1 m 2 m 3 n; zadd A x m; zadd A 1 m 2; zadd A incr 1 m 2 n; zadd A inf m; zincrby A 2.5 m; zincrby A inf m
zincrby A x m; zrandmember A 2; zrandmember A 2 withscores; zrange A 0 -1 withscores; zpopmin A 2; zpopmax A; zmscore A m n o; zrevrange A 0 -1 withscores
geoadd A xx 1 1 m; geoadd A ch 1 1 m 3 3 n; geoadd A 1 1; geopos A m n; geohash A m n; georadius A 1 1 1 km store B; georadiusbymember A m 1 km storedist B; geosearch A frommember m byradius 1 km withdist
xadd A 5 f v; xadd A 5-* f v; xadd A 0-* f v; xadd A 0-0 f v; xadd A x f v; xadd A nomkstream 1-1 f v; xadd A maxlen ~ 10 limit 5 1-1 f v; xadd A minid 3 1-1 f v; xadd A 1-1 f; xadd A 1-1 f v g
xpending A g; xpending A g - + 10; xtrim A minid 5; sort A by x get y store B; sort A desc limit 0 1; object freq A; object idletime A; object nonsense A; object encoding; object
bitfield A incrby u8 0 300; bitfield A overflow fail incrby u8 0 300; bitfield A overflow sat incrby u8 0 300 incrby i8 8 -300; bitfield A overflow sat incrby u8 0 -3
bitfield A incrby i8 0 200; bitfield A incrby i64 0 -1; bitfield A incrby u63 0 -1; bitfield A set u8 0 5; bitfield A get u64 0; bitfield A overflow x; bitfield A get u8; bitfield A x
bitfield A incrby u1 0 3; bitfield A incrby u8 0 x; bitfield A; bitfield_ro A get i5 100; bitfield A overflow fail set u8 0 256
bitpos A 0; bitpos A 1; bitpos A 2; bitpos A 0 1; bitcount A 0 1 bit; getrange A 0 -1; evalsha nonsense 1 A; cluster slots; cluster; persist A; expire A 10 nx; expireat A 1
nonsense; nonsense a b; echo hello; ping; ping hello; select 0; select 99; auth; hello 4; hmset A f; mget A B A; mset A v B w; unlink A B; lset A 0 v; linsert A after x y; linsert A before x
`

func TestAnswersAreThoseOfAnEmptyRedis(t *testing.T) {
	address := startRedis(t)
	flusher := dialRedis(t, address)
	cases := examples(t)
	for one := range strings.FieldsFuncSeq(more, func(r rune) bool { return r == ';' || r == '\n' }) {
		if words := strings.Fields(one); len(words) > 0 {
			cases = append(cases, words)
		}
	}
	flusher.do("set", "k", "v")
	payload := flusher.do("dump", "k")
	payload = payload[strings.Index(payload, "\n")+1 : len(payload)-2]
	for _, protocol := range []string{"2", "3"} {
		redis, null := dialRedis(t, address), dialNull(t, func() {})
		redis.do("hello", protocol)
		null.do("hello", protocol)
		for _, words := range cases {
			if _, differs := otherwise[words[0]]; differs {
				continue
			}
			for i, word := range words {
				if word == "DUMP" {
					words[i] = payload
				}
			}
			flusher.do("flushall")
			if want, got := redis.do(words...), null.do(words...); got != want {
				t.Errorf("RESP%s, %q: %q, Redis answers %q", protocol, words, got, want)
			}
		}
	}
}

// otherwise are the commands that the Redis of the tests does not know, or whose answers no empty Redis has: an example, and what
// it is answered in RESP2 and RESP3.
var otherwise = map[string]struct{ example, resp2, resp3 string }{
	"eval": {"eval return(1) 1 A", "-" + noScripts + "\r\n", "-" + noScripts + "\r\n"},

	"httl":         {"httl A fields 2 f g", "*2\r\n:-2\r\n:-2\r\n", "*2\r\n:-2\r\n:-2\r\n"},
	"hpttl":        {"hpttl A fields 1 f", "*1\r\n:-2\r\n", "*1\r\n:-2\r\n"},
	"hexpiretime":  {"hexpiretime A fields 1 f", "*1\r\n:-2\r\n", "*1\r\n:-2\r\n"},
	"hpexpiretime": {"hpexpiretime A fields 1 f", "*1\r\n:-2\r\n", "*1\r\n:-2\r\n"},
	"hpersist":     {"hpersist A fields 1 f", "*1\r\n:-2\r\n", "*1\r\n:-2\r\n"},
	"hexpire":      {"hexpire A 100 nx fields 2 f g", "*2\r\n:-2\r\n:-2\r\n", "*2\r\n:-2\r\n:-2\r\n"},
	"hpexpire":     {"hpexpire A 100 fields 2 f", "-ERR syntax error\r\n", "-ERR syntax error\r\n"},
	"hexpireat":    {"hexpireat A 1 fields 1 f", "*1\r\n:-2\r\n", "*1\r\n:-2\r\n"},
	"hpexpireat":   {"hpexpireat A 1 fields 1 f", "*1\r\n:-2\r\n", "*1\r\n:-2\r\n"},

	"bf.add":       {"bf.add A x", ":1\r\n", "#t\r\n"},
	"bf.exists":    {"bf.exists A x", ":0\r\n", "#f\r\n"},
	"bf.madd":      {"bf.madd A x y", "*2\r\n:1\r\n:1\r\n", "*2\r\n#t\r\n#t\r\n"},
	"bf.mexists":   {"bf.mexists A x", "*1\r\n:0\r\n", "*1\r\n#f\r\n"},
	"bf.insert":    {"bf.insert A capacity 9 items x y", "*2\r\n:1\r\n:1\r\n", "*2\r\n#t\r\n#t\r\n"},
	"bf.card":      {"bf.card A", ":0\r\n", ":0\r\n"},
	"bf.reserve":   {"bf.reserve A 0.01 100", "+OK\r\n", "+OK\r\n"},
	"bf.loadchunk": {"bf.loadchunk A 1 x", "+OK\r\n", "+OK\r\n"},
	"bf.info":      {"bf.info A", "-ERR not found\r\n", "-ERR not found\r\n"},
	"bf.scandump":  {"bf.scandump A 0", "-ERR not found\r\n", "-ERR not found\r\n"},
}

func TestAnswersThatNoRedisHereGives(t *testing.T) {
	resp2, resp3 := dialNull(t, func() {}), dialNull(t, func() {})
	resp3.do("hello", "3")
	for _, c := range otherwise {
		words := strings.Fields(c.example)
		if got := resp2.do(words...); got != c.resp2 {
			t.Errorf("RESP2, %s: %q, want %q", c.example, got, c.resp2)
		}
		if got := resp3.do(words...); got != c.resp3 {
			t.Errorf("RESP3, %s: %q, want %q", c.example, got, c.resp3)
		}
	}
}

// Every command that listeners pass on is known here, with Redis's own arity, and nothing else but what begins a connection.
func TestEveryCommandThatPassesIsKnown(t *testing.T) {
	redis := dialRedis(t, startRedis(t))
	for _, c := range commands.All() {
		here, exists := known[c.Name]
		if want := passes(c.Name) || c.OnRESP3; exists != want && !here.connection {
			t.Errorf("%s is known here: %v, want %v", c.Name, exists, want)
		}
		about := strings.Split(redis.do("command", "info", c.Name), "\r\n")
		if !exists || len(about) < 5 { // unknown to this Redis
			continue
		}
		if got, want := fmt.Sprintf(":%d", here.arity), about[4]; got != want {
			t.Errorf("%s has the arity %s, and in Redis %s", c.Name, got, want)
		}
	}
}
