package lane

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func peers(t *testing.T) (*peer, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "l"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPeer(accepted.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, other
}

// Whoever waits for commands is not woken because a reply was read.
func TestRoomToWriteWakesNobody(t *testing.T) {
	p, other := peers(t)
	poller, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(poller)
	// As Go's poller looks.
	if err := p.arrivals.raw.Control(func(fd uintptr) {
		err = unix.EpollCtl(poller, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET})
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	woken := func(within int) int {
		n, err := unix.EpollWait(poller, make([]unix.EpollEvent, 1), within)
		for err == unix.EINTR {
			n, err = unix.EpollWait(poller, make([]unix.EpollEvent, 1), within)
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 3 {
		if n, err := p.write([]byte("reply")); n != 5 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := other.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if woken(0) != 0 {
			t.Error("woken though there is nothing to read")
		}
		if _, err := other.Write([]byte("command")); err != nil {
			t.Fatal(err)
		}
		if woken(10_000) != 1 {
			t.Error("not woken by bytes")
		}
		if n, waited, err := p.read(make([]byte, 16)); n != 7 || waited || err != nil {
			t.Errorf("read %d bytes, waited: %t, %v", n, waited, err)
		}
	}
}

func TestAPeerThatTakesNothing(t *testing.T) {
	p, other := peers(t)
	large := make([]byte, 8<<20)
	n, err := p.write(large)
	if n == 0 || n == len(large) || err != nil {
		t.Fatalf("%d of %d bytes were taken: %v", n, len(large), err)
	}
	if n, err := p.write(large); n != 0 || err != nil {
		t.Errorf("%d bytes were taken without room: %v", n, err)
	}
	if err := p.drain(large, 20*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nobody reads: %v", err)
	}
	taken := make(chan int)
	go func() {
		all, b := 0, make([]byte, 64<<10)
		for all < n+len(large) {
			m, err := other.Read(b)
			if err != nil {
				break
			}
			all += m
		}
		taken <- all
	}()
	if err := p.drain(large, 10*time.Second); err != nil {
		t.Error(err)
	}
	if all := <-taken; all != n+len(large) {
		t.Errorf("%d bytes came, want %d", all, n+len(large))
	}
}

func TestWhoReadsLearnsOfTheEnd(t *testing.T) {
	for name, end := range map[string]func(*peer, net.Conn){
		"closed here":              func(p *peer, _ net.Conn) { p.Close() },
		"closed there":             func(_ *peer, other net.Conn) { other.Close() },
		"nothing more is taken in": func(p *peer, _ net.Conn) { p.closeRead() },
	} {
		p, other := peers(t)
		if n, err := p.readWithin(make([]byte, 1), 10*time.Millisecond); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d bytes of none: %v", name, n, err)
		}
		ended := make(chan error)
		go func() {
			_, _, err := p.read(make([]byte, 1))
			ended <- err
		}()
		end(p, other)
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it waits still", name)
		}
	}
}
