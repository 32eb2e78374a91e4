package null

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

func TestConnection(t *testing.T) {
	var answered atomic.Int64
	p := dialNull(t, func() { answered.Add(1) })
	for _, c := range [][2]string{
		{"auth secret", "+OK\r\n"}, {"AUTH user secret", "+OK\r\n"}, {"select 0", "+OK\r\n"}, {"client setname a", "+OK\r\n"}, {"readonly", "+OK\r\n"},
		{"hello 4", "-NOPROTO unsupported protocol version\r\n"},
	} {
		if got := p.do(strings.Fields(c[0])...); got != c[1] {
			t.Errorf("%s: %q, want %q", c[0], got, c[1])
		}
	}
	for protocol, want := range map[string]string{"2": "*14\r\n$6\r\nserver\r\n", "3": "%7\r\n$6\r\nserver\r\n"} {
		if got := p.do("HELLO", protocol, "AUTH", "user", "secret"); !strings.HasPrefix(got, want) || !strings.Contains(got, "proto\r\n:"+protocol+"\r\n") {
			t.Errorf("HELLO %s: %q", protocol, got)
		}
	}
	if n := answered.Load(); n != 0 {
		t.Errorf("%d of them count as commands on data", n)
	}
	p.do("get", "a")
	p.do("nonsense")
	if n := answered.Load(); n != 2 {
		t.Errorf("%d commands count, want 2", n)
	}
}

// ioredis does not take a Redis for ready before INFO says that it loads nothing.
func TestInfo(t *testing.T) {
	p := dialNull(t, func() {})
	if got := p.do("info"); !strings.Contains(got, "\r\nloading:0\r\n") || !strings.Contains(got, "\r\n\r\n# Replication\r\nrole:master\r\n") {
		t.Errorf("%q", got)
	}
	if got := p.do("info", "keyspace"); got != "$12\r\n# Keyspace\r\n\r\n" {
		t.Errorf("%q", got)
	}
	p.do("hello", "3")
	if got := p.do("info", "keyspace"); got != "=16\r\ntxt:# Keyspace\r\n\r\n" {
		t.Errorf("%q", got)
	}
}

func TestPipelineIsAnsweredInOrder(t *testing.T) {
	p := dialNull(t, func() {})
	// Nobody reads the answers before all commands are sent, as over a socket with room for them.
	go io.WriteString(p.conn, strings.Repeat("*2\r\n$3\r\nget\r\n$1\r\na\r\n*2\r\n$4\r\nincr\r\n$1\r\na\r\n", 1000))
	for i := range 1000 {
		if got := p.answer() + p.answer(); got != "$-1\r\n:1\r\n" {
			t.Fatalf("pair %d: %q", i, got)
		}
	}
}

func TestBrokenProtocolEndsTheConnection(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		Serve(theirs, func() {})
	}()
	p := newPeer(t, ours)
	if got := p.send("GET a\r\n"); !strings.HasPrefix(got, "-ERR Protocol error: want '*'") {
		t.Errorf("%q", got)
	}
	if _, err := p.in.ReadByte(); err != io.EOF {
		t.Errorf("error %v, want the end", err)
	}
}

func BenchmarkServe(b *testing.B) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go Serve(theirs, func() {})
	go func() {
		for {
			if _, err := io.WriteString(ours, strings.Repeat("*2\r\n$3\r\nget\r\n$8\r\nsome:key\r\n", 16)); err != nil {
				return
			}
		}
	}()
	answers := make([]byte, 16*len("$-1\r\n"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(ours, answers); err != nil {
			b.Fatal(err)
		}
	}
}
