package lane

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a connection of Envoy's. Go's poller looks for bytes to read and for room to write alike, and a Unix socket has room anew whenever
// its other end has read something: for every reply the agent would be woken for nothing. So the socket is not in the poller. An epoll of its
// own is, which looks for bytes only.
//
// One goroutine may read while another one writes.
type peer struct {
	file          *os.File // the socket, of which Go does not know that it can be polled
	raw           syscall.RawConn
	arrivals      *watch
	reads, writes transfer

	// They are kept, as they are called each time.
	readable            func(uintptr) bool
	readFrom, writeInto func(fd uintptr)
}

// newPeer takes the connection over, and closes it if that fails.
func newPeer(c *net.UnixConn) (*peer, error) {
	file, err := unpolled(c)
	if err != nil {
		return nil, err
	}
	p := &peer{file: file}
	if p.raw, err = file.SyscallConn(); err == nil {
		p.arrivals, err = newWatch(p.raw, unix.EPOLLIN|unix.EPOLLRDHUP)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	again := false
	p.readFrom = func(fd uintptr) { again = p.reads.move(syscall.SYS_READ, fd) }
	p.writeInto = p.writes.write
	p.readable = func(uintptr) bool {
		if err := p.raw.Control(p.readFrom); err != nil {
			again, p.reads.n, p.reads.err = false, 0, err
		}
		p.reads.waited = p.reads.waited || again
		return !again
	}
	return p, nil
}

// unpolled closes a connection and returns what it was as a File that is not in Go's poller. A File is, if it does not block when it is made.
func unpolled(c *net.UnixConn) (*os.File, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	if failed := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); failed != nil {
		return nil, failed
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "lane")
	if err := unix.SetNonblock(fd, true); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// read waits for bytes. waited says that none were there when it began.
func (p *peer) read(b []byte) (n int, waited bool, err error) {
	p.reads.begin(b)
	n, err = p.reads.end(p.arrivals.raw.Read(p.readable))
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, p.reads.waited, err
}

// readWithin waits no longer than it is told.
func (p *peer) readWithin(b []byte, d time.Duration) (n int, err error) {
	if err := p.arrivals.file.SetReadDeadline(time.Now().Add(d)); err != nil {
		return 0, err
	}
	n, _, err = p.read(b)
	_ = p.arrivals.file.SetReadDeadline(time.Time{}) // its failure shows in the next read
	return n, err
}

// write writes what there is room for, without waiting.
func (p *peer) write(b []byte) (n int, err error) {
	p.writes.begin(b)
	return p.writes.end(p.raw.Control(p.writeInto))
}

// drain writes everything. No room at all for d is an error.
func (p *peer) drain(b []byte, d time.Duration) error {
	room, err := newWatch(p.raw, unix.EPOLLOUT)
	if err != nil {
		return err
	}
	defer room.file.Close()
	for len(b) > 0 {
		if err := room.file.SetReadDeadline(time.Now().Add(d)); err != nil {
			return err
		}
		var n int
		var failed error
		if err := room.raw.Read(func(uintptr) bool {
			n, failed = p.write(b)
			return n > 0 || failed != nil
		}); err != nil {
			return err
		}
		if failed != nil {
			return failed
		}
		b = b[n:]
	}
	return nil
}

// closeRead ends what there is to be read.
func (p *peer) closeRead() {
	_ = p.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RD) }) // the other end may have gone
}

// Close wakes who reads.
func (p *peer) Close() {
	p.arrivals.file.Close()
	p.file.Close()
}

// watch is an epoll of one socket, which Go's poller takes for readable when the socket has one of the events.
type watch struct {
	file *os.File
	raw  syscall.RawConn
}

func newWatch(of syscall.RawConn, events uint32) (*watch, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if failed := of.Control(func(fd uintptr) {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: events})
	}); failed != nil {
		err = failed
	}
	if err == nil {
		err = unix.SetNonblock(epoll, true)
	}
	if err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	w := &watch{file: os.NewFile(uintptr(epoll), "epoll")}
	if w.raw, err = w.file.SyscallConn(); err == nil {
		err = w.file.SetReadDeadline(time.Time{}) // fails if Go does not poll it
	}
	if err != nil {
		w.file.Close()
		return nil, err
	}
	return w, nil
}
