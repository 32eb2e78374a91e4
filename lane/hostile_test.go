package lane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

func TestLargeValuesPassAsTheyCome(t *testing.T) {
	ctx := context.Background()
	_, node := startRedis(t, process.Redis{})
	f := startLaneOf(t, patient, View{Address: addressOf(node)})
	c := f.connect(t)
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	value := strings.Repeat("0123456789abcdef", 3<<20) // 48 MiB
	small := appendCommand(nil, "SET", "u:small", "x")
	if _, err := c.Write(small); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(c, "*3\r\n$3\r\nSET\r\n$7\r\nu:large\r\n"+fmt.Sprintf("$%d\r\n", len(value)))
		_, _ = io.Copy(struct{ io.Writer }{c}, strings.NewReader(value))
		_, _ = io.WriteString(c, "\r\n")
		_, _ = c.Write(appendCommand(appendCommand(nil, "SET", "u:after", "x"), "GETDEL", "u:large"))
	}()
	for i, want := range []string{"OK", "OK", "OK", value} {
		if got := c.reply(); got != want {
			t.Fatalf("%d: got %.100q of %d, want %.100q", i, got, len(got), want)
		}
	}
	equal(t, "journal", journaled(t, node, 0), []string{"u:small", "u:large", "u:after", "u:large"})
	c.want("-ERR a command of more than 1 MiB*", "EVAL", strings.Repeat("-", 2<<20), "1", "u:1")
	c.want("-ERR a command of more than 1 MiB*", "DEL", strings.Repeat("k", 2<<20))
	c.want(reservedReply, "SET", "cachemesh:x", value[:2<<20])
	c.want("OK", "SET", "u:small", "y")
	if n, err := node.Exists(ctx, "cachemesh:x").Result(); err != nil || n > 0 {
		t.Error(n, err)
	}
	// Half a value is none.
	half := f.connect(t)
	if _, err := io.WriteString(half, "*3\r\n$3\r\nSET\r\n$6\r\nu:half\r\n$9000000\r\n"+value[:5<<20]); err != nil {
		t.Fatal(err)
	}
	half.Close()
	c.want("nil", "GET", "u:half")
}

const reservedReply = "-" + reserved

// Nobody who sends without reading, or never ends a command, makes a lane take more than its bounds, or keeps others waiting for good.
func TestMemoryIsBounded(t *testing.T) {
	_, node := startRedis(t, process.Redis{})
	f := startLane(t, View{Address: addressOf(node)})
	good := f.connect(t)
	good.want("OK", "SET", "u:big", strings.Repeat("v", 100<<10))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var writers sync.WaitGroup
	var conns []net.Conn
	attack := func(b []byte, times int) {
		conn, err := net.Dial("unix", f.path)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		writers.Go(func() {
			_ = conn.SetWriteDeadline(time.Now().Add(3 * time.Second))
			for range times {
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		})
	}
	gets := bytes.Repeat(appendCommand(nil, "GET", "u:big"), 1000)
	unfinished := []byte("*2\r\n$3\r\nGET\r\n$1000000\r\n" + strings.Repeat("x", 900_000))
	for range 4 {
		attack(gets, 100)
	}
	for range 200 {
		attack(unfinished, 1)
	}
	for range 50 {
		if got := good.do("SET", "u:good", "x"); got != "OK" && !strings.HasPrefix(got, "-ERR the shard") {
			t.Errorf("somebody else's reply: %.100q", got)
		}
	}
	writers.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 256<<20 {
		t.Errorf("it grew by %d MiB", grown>>20)
	}
	for _, c := range conns {
		c.Close()
	}
	wait(t, "the lane serves as before", func() bool { return good.do("SET", "u:good", "y") == "OK" })
	wait(t, "the others are gone", func() bool { return f.Stats().Connections == 1 })
	if b := f.buffers.Load(); b > 4<<20 {
		t.Errorf("%d bytes of buffers are never given back", b)
	}
}

// FuzzConnection sends anything to a lane. Whatever it is, others are served, and nothing reaches what belongs to cachemesh.
func FuzzConnection(f *testing.F) {
	for _, s := range []string{
		"*1\r\n$4\r\nPING\r\n", "*3\r\n$3\r\nSET\r\n$3\r\nu:1\r\n$1\r\nx\r\n", "*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nGET\r\n$1\r\nx\r\n*1\r\n$4\r\nEXEC\r\n",
		"GET x\r\n", "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*2\r\n$3\r\nDEL\r\n$3\r\nu:1\r\n", "*3\r\n$4\r\nEVAL\r\n$0\r\n\r\n$1\r\n9\r\n", "*4\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n1\r\n$1\r\nx\r\n",
		"*3\r\n$3\r\nSET\r\n$3\r\nu:1\r\n$2000000\r\n", "*1\r\n$9\r\nSUBSCRIBE\r\n", "*9999999\r\n", "*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n", "*2\r\n$4\r\nAUTH\r\n$0\r\n\r\n",
		"*2\r\n$3\r\nDEL\r\n$19\r\ncachemesh:journal:0\r\n", "*6\r\n$4\r\nSORT\r\n$1\r\nx\r\n$5\r\nSTORE\r\n$15\r\ncachemesh:epoch\r\n$5\r\nSTORE\r\n$1\r\ny\r\n",
	} {
		f.Add([]byte(s))
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		f.Fatal(err)
	}
	r := process.Redis{Port: ports[0], Dir: f.TempDir()}
	p, err := r.Start(context.Background())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Stop(5 * time.Second) })
	f.Fuzz(func(t *testing.T, in []byte) {
		l := startLane(t, View{Address: r.Address()})
		bad := l.connect(t)
		good := l.connect(t)
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, bad)
		}()
		_, _ = bad.Write(in)
		good.want("OK", "SET", "u:good", "x")
		if err := bad.Conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		<-read
		good.want("x", "GET", "u:good")
		if gaps := l.told(); len(gaps) > 0 {
			t.Errorf("the journal is lost: %v", gaps)
		}
	})
}
