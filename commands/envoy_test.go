package commands_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cachemesh/cachemesh/commands"
)

// local says what Envoy answers by itself; a lone Redis may answer otherwise.
var local = map[string]struct {
	words  []string
	answer string // its beginning
}{
	"auth":   {[]string{"auth", "password"}, "-ERR Client sent AUTH, but no password is set"},
	"client": {[]string{"client", "setname", "app"}, "OK"},
	"echo":   {[]string{"echo", "hello"}, "hello"},
	"hello":  {[]string{"hello", "2"}, "[server envoy-redis-proxy"},
	"ping":   {[]string{"ping"}, "PONG"},
	"quit":   {[]string{"quit"}, "OK"},
	"time":   {[]string{"time"}, "["},
}

// beforeTable are the local commands that Envoy answers before it looks into the table that its statistics list.
var beforeTable = []string{"auth", "client", "echo", "ping", "quit", "time"}

// examples reads testdata/examples.txt and sees to it that every command with a place to run has one.
func examples(t *testing.T) map[string]string {
	data, err := os.ReadFile("testdata/examples.txt")
	if err != nil {
		t.Fatal(err)
	}
	examples := map[string]string{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, example, ok := strings.Cut(line, ": ")
		if _, twice := examples[name]; !ok || twice {
			t.Fatalf("examples.txt: want one line NAME: EXAMPLE a command, got %q", line)
		}
		examples[name] = example
	}
	for _, c := range commands.All() {
		_, has := examples[c.Name]
		if want := c.Kind != commands.KindLocal && c.Kind != commands.KindNone; has != want {
			t.Errorf("%s has an example: %v, want %v", c.Name, has, want)
		}
	}
	return examples
}

// ofCommand is the first command of an example that is the named one.
func ofCommand(m *mesh, name, example string) []string {
	for line := range strings.SplitSeq(example, " ; ") {
		if words := m.command(line); words[0] == name {
			return words
		}
	}
	return nil
}

func TestCommandsAnswerAsTheCatalogueSays(t *testing.T) {
	m, examples := startMesh(t), examples(t)
	for _, c := range commands.All() {
		t.Run(c.Name, func(t *testing.T) {
			switch {
			case c.Kind == commands.KindLocal:
				m.calls(t)
				if got := dial(t, m.refusing).do(local[c.Name].words...); !strings.HasPrefix(got, local[c.Name].answer) {
					t.Errorf("answer %q, want %q", got, local[c.Name].answer)
				}
				if calls := m.calls(t); calls != nil {
					t.Errorf("the shards ran %q", calls)
				}
			case c.Verdict == commands.VerdictUnknown:
				for _, name := range []string{c.Name, strings.ToUpper(c.Name)} {
					want := "-" + strings.Replace(c.Error, "'"+c.Name+"'", "'"+name+"'", 1)
					if got := dial(t, m.refusing).do(name, "a", "b"); got != want+"a" {
						t.Errorf("error %q, want %q", got, want+"a")
					}
					if got := dial(t, m.refusing).do(name); got != want {
						t.Errorf("error %q, want %q", got, want)
					}
				}
			default:
				address := m.refusing
				if c.Verdict == commands.VerdictRefused {
					address = m.open
				}
				m.flush(t)
				got := m.run(t, address, examples[c.Name])
				want := m.run(t, m.lone, examples[c.Name])
				if diff := cmp.Diff(want, got); c.Verdict != commands.VerdictRefused && diff != "" {
					t.Errorf("answers unlike one Redis (-) through the mesh (+):\n%s", diff)
				} else if c.Verdict == commands.VerdictRefused && diff == "" {
					t.Errorf("is refused, yet answers as one Redis:\n%s", got)
				}
			}
		})
	}
}

func TestRefusedCommandsReachNoShard(t *testing.T) {
	m, examples := startMesh(t), examples(t)
	for _, name := range (commands.Listener{}).Refused() {
		t.Run(name, func(t *testing.T) {
			words := ofCommand(m, name, examples[name])
			if words == nil {
				t.Fatal("its example does not run it")
			}
			m.calls(t)
			want := "-" + commands.Explain(name).Error
			client := dial(t, m.refusing)
			if got := client.do(words...); got != want {
				t.Errorf("%q: %q, want %q", words, got, want)
			}
			words[0] = strings.ToUpper(name[:1]) + name[1:]
			if got := client.do(words...); got != want {
				t.Errorf("%q: %q, want %q", words, got, want)
			}
			if got := client.send(strings.Join(words, " ") + "\r\n"); got != want {
				t.Errorf("%q in one line: %q, want %q", words, got, want)
			}
			if calls := m.calls(t); calls != nil {
				t.Errorf("the shards ran %q", calls)
			}
		})
	}
}

func TestCatalogueIsWhatEnvoyAndRedisKnow(t *testing.T) {
	m := startMesh(t)
	response, err := http.Get("http://" + m.admin + "/stats?filter=^redis\\.open\\.command\\..*\\.total$")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stats, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	known := slices.Clone(beforeTable)
	for line := range strings.Lines(string(stats)) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "redis.open.command."), ".total:")
		known = append(known, name)
	}
	slices.Sort(known)
	var catalogued []string
	for _, c := range commands.All() {
		if c.Kind != commands.KindNone {
			catalogued = append(catalogued, c.Name)
		}
	}
	if diff := cmp.Diff(known, catalogued); diff != "" {
		t.Errorf("Envoy knows (-), the catalogue says that it does (+):\n%s", diff)
	}

	names := strings.Fields(strings.Trim(dial(t, m.lone).do("command", "list"), "[]"))
	if len(names) < 200 {
		t.Fatalf("Redis lists %d commands only: %q", len(names), names)
	}
	for _, name := range names {
		if !strings.Contains(name, "|") && !slices.ContainsFunc(commands.All(), func(c commands.Command) bool { return c.Name == name }) {
			t.Errorf("Redis knows %s, the catalogue does not", name)
		}
	}
}

// TestWays finds out which way Envoy sends a command: on the listener "reads", only what it takes for a read finds a shard.
func TestWays(t *testing.T) {
	// What Redis 7.0 does not know, or does not flag as a write, and changes something on the shard all the same.
	changes := []string{"publish", "bf.add", "bf.insert", "bf.loadchunk", "bf.madd", "bf.reserve"}
	m, examples := startMesh(t), examples(t)
	for _, c := range commands.All() {
		if c.Kind == commands.KindLocal || c.Kind == commands.KindNone || c.Kind == commands.KindTransaction {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			m.calls(t)
			answer := dial(t, m.reads).do(ofCommand(m, c.Name, examples[c.Name])...)
			read := answer != "-no upstream host" && !strings.HasPrefix(answer, "-finished with ")
			if calls := m.calls(t); !read && calls != nil {
				t.Fatalf("answer %q, but the shards ran %q", answer, calls)
			}
			if c.Kind == commands.KindRead && !read || c.Kind == commands.KindWrite && read {
				t.Errorf("sent the read way: %v, but the catalogue says %s", read, c.Kind)
			}
			flags := dial(t, m.lone).do("command", "info", c.Name)
			writes := slices.Contains(changes, c.Name) || slices.Contains(strings.FieldsFunc(flags, func(r rune) bool {
				return strings.ContainsRune("[] ", r)
			}), "write")
			if want := read && writes; c.EnvoyReads != want {
				t.Errorf("EnvoyReads is %v, but it goes the read way: %v, and writes: %v", c.EnvoyReads, read, writes)
			}
		})
	}
}

// TestErrors brings about the errors that only the state of the mesh explains, and asks what they mean.
func TestErrors(t *testing.T) {
	m := startMesh(t)
	explained := func(answer, want string) {
		t.Helper()
		if !strings.HasPrefix(answer, "-"+want) {
			t.Errorf("answer %q, want the error %q", answer, want)
		}
		if _, ok := commands.ExplainError(answer); !ok {
			t.Errorf("%q has no explanation", answer)
		}
	}
	open := dial(t, m.open)
	explained(dial(t, m.refusing).do("select", "1"), commands.FaultError)
	explained(dial(t, m.narrow).do("get", "wide"), "no upstream host")
	explained(dial(t, m.reads).do("mset", "a", "v", "b", "v"), "finished with 2 error(s)")
	explained(open.do("hello", "3"), "NOPROTO")
	explained(dial(t, m.resp3).do("get", "a"), "NOPROTO")
	explained(open.do("auth", "user", "password"), "ERR Client sent AUTH, but no username-password pair is set")
	explained(dial(t, m.locked).do("get", "a"), "NOAUTH")
	explained(dial(t, m.locked).do("auth", "wrong"), "ERR invalid password")
	explained(dial(t, m.locked).do("auth", "user", "wrong"), "WRONGPASS")
	explained(open.do("client", "tracking", "on"), "ERR CLIENT subcommand 'tracking'")
	explained(open.do("get"), "invalid request")
	explained(open.do("get", "a", "b"), "ERR wrong number of arguments")
	explained(open.do("mset", "a"), "wrong number of arguments")
	explained(open.do("eval", "return 1", "0"), "wrong number of arguments")
	explained(open.do("evalsha", "0", "1", "a"), "NOSCRIPT")
	explained(open.do("cluster", "slots"), "ERR This instance has cluster support disabled")
	explained(open.do("BLPOP", "a", "1"), "ERR unknown command 'BLPOP', with args beginning with: a")
	explained(open.do("nonsense"), "ERR unknown command 'nonsense'")
	explained(open.do("bf.add", "a", "x"), "ERR unknown command 'bf.add'")

	shard := dial(t, m.shards[0])
	key := m.command("A")[0]
	shard.do("config", "set", "maxmemory", "1")
	explained(open.do("set", key, "v"), "OOM command not allowed")
	shard.do("config", "set", "maxmemory", "0")
	shard.do("replicaof", "127.0.0.1", "1")
	explained(open.do("set", key, "v"), "READONLY")
	shard.do("config", "set", "replica-serve-stale-data", "no")
	explained(open.do("get", key), "MASTERDOWN")
	shard.do("replicaof", "no", "one")
	if err := m.processes[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	explained(open.do("get", key), "upstream failure")

	if meaning, ok := commands.ExplainError("WRONGTYPE Operation against a key holding the wrong kind of value"); ok {
		t.Errorf("an error of the application's own is explained as the mesh's: %s", meaning)
	}
}

// TestInfoTellsOfOneShard holds what the catalogue says of INFO and, in part, of CLUSTER.
func TestInfoTellsOfOneShard(t *testing.T) {
	m := startMesh(t)
	m.flush(t)
	keyspace := func(keys int) string { return fmt.Sprintf("# Keyspace\r\ndb0:keys=%d,expires=0,avg_ttl=0\r\n", keys) }
	set := func(key string) {
		if answer := dial(t, m.open).do("set", m.keys.Replace(key), "v"); answer != "OK" {
			t.Fatal(answer)
		}
	}
	set("A")
	set("B")
	resp3 := dial(t, m.resp3)
	resp3.do("hello", "3")
	for name, client := range map[string]*connection{"RESP2": dial(t, m.open), "RESP3": resp3} {
		for range 3 {
			if got := client.do("info", "keyspace"); got != keyspace(1) {
				t.Errorf("%s, a key on each of two shards: %q", name, got)
			}
		}
		if got := client.do("info"); !strings.Contains(got, "redis_mode:cluster") {
			t.Errorf("%s: %q does not say redis_mode:cluster", name, got)
		}
	}
	for _, command := range [][]string{{"info"}, {"cluster", "info"}} {
		if got := dial(t, m.narrow).do(command...); got != "-no upstream host" {
			t.Errorf("%q without a route for every other key: %q", command, got)
		}
	}

	set("A2")
	asked, other := 0, "B"
	if dial(t, m.open).do("info", "keyspace") == keyspace(1) {
		asked, other = 1, "A"
	}
	m.processes[asked].Kill()
	if got := dial(t, m.open).do("info"); got != "-upstream failure" {
		t.Errorf("its shard is dead, and it answers %q", got)
	}
	if got := dial(t, m.open).do("get", m.keys.Replace(other)); got != "v" {
		t.Errorf("a key of the other shard: %q", got)
	}
}
