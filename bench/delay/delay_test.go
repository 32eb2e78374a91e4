package delay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// generous is far more than anything takes.
const generous = 20 * time.Second

// echo answers every byte with itself, and ends a connection when its client does.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func proxy(t *testing.T, target string, oneWay time.Duration) *Proxy {
	p, err := Listen(target, oneWay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(generous))
	return c.(*net.TCPConn)
}

// roundTrip returns how long an answer takes.
func roundTrip(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(c, answer); err != nil {
		t.Fatal(err)
	}
	if string(answer) != "ping" {
		t.Fatalf("got %q", answer)
	}
	return time.Since(began)
}

func TestDelay(t *testing.T) {
	const oneWay = 40 * time.Millisecond
	p := proxy(t, echo(t), oneWay)
	c := dial(t, p)
	if took := roundTrip(t, c); took < 4*oneWay {
		t.Errorf("the first answer took %s, want two round trips: one is to connect", took)
	}
	if took := roundTrip(t, c); took < 2*oneWay || took >= 4*oneWay {
		t.Errorf("an answer took %s, want a round trip of %s", took, 2*oneWay)
	}
	p.SetDelay(0)
	if took := roundTrip(t, c); took >= 2*oneWay {
		t.Errorf("an answer took %s without delay", took)
	}
}

func TestBytesArriveInOrderAndSoDoesTheEnd(t *testing.T) {
	c := dial(t, proxy(t, echo(t), 5*time.Millisecond))
	sent := make([]byte, 3*window)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, of %d, or others", len(got), len(sent))
	}
}

func TestPartition(t *testing.T) {
	p := proxy(t, echo(t), time.Millisecond)
	old := dial(t, p)
	roundTrip(t, old)
	p.Part()
	p.Part() // twice is once
	fresh := dial(t, p)
	for _, c := range []net.Conn{old, fresh} {
		if _, err := c.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := c.Read(make([]byte, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes and %v came through a partition", n, err)
		}
		c.SetReadDeadline(time.Now().Add(generous))
	}
	p.Heal()
	p.Heal()
	for _, c := range []net.Conn{old, fresh} {
		answer := make([]byte, 4)
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "held" {
			t.Errorf("after the partition came %q, %v", answer, err)
		}
		roundTrip(t, c)
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := dial(t, proxy(t, l.Addr().String(), 0)).Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading from nobody: %v", err)
	}
}

func TestCloseEndsConnections(t *testing.T) {
	p, err := Listen(echo(t), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, p)
	roundTrip(t, c)
	p.Part()
	held := dial(t, p)
	if _, err := held.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{c, held} {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after Close: %v", err)
		}
	}
}
