package lane

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// socket reads and writes a connection without telling Go's scheduler of each system call. It is told of those that may take long, and
// wakes a thread for that; these return at once, and telling cost a third of the agent's CPU time. Waiting is the scheduler's still, and
// so are deadlines.
//
// One goroutine may read while another one writes.
type socket struct {
	raw           syscall.RawConn
	reads, writes transfer
}

// transfer is what a system call is to move, and has moved. It is kept, and with it the function that the scheduler calls.
type transfer struct {
	call   func(fd uintptr) bool
	bytes  []byte
	n      int
	err    error
	waited bool
}

func newSocket(c syscall.Conn) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{raw: raw}
	s.reads.call = func(fd uintptr) bool {
		again := s.reads.move(syscall.SYS_READ, fd)
		s.reads.waited = s.reads.waited || again
		return !again
	}
	s.writes.call = func(fd uintptr) bool {
		s.writes.write(fd)
		return true
	}
	return s, nil
}

// move says whether the call would have to wait.
func (t *transfer) move(trap, fd uintptr) (again bool) {
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.bytes))), uintptr(len(t.bytes)))
		switch errno {
		case 0:
			t.n, t.err = int(n), nil
			return false
		case syscall.EINTR:
		default:
			t.n, t.err = 0, errno
			return errno == syscall.EAGAIN
		}
	}
}

// write is a move for which there may be no room.
func (t *transfer) write(fd uintptr) {
	if t.move(syscall.SYS_WRITE, fd) {
		t.n, t.err = 0, nil
	}
}

func (t *transfer) begin(b []byte) { t.bytes, t.waited = b, false }

// end takes how the scheduler's call ended.
func (t *transfer) end(err error) (n int, _ error) {
	if t.bytes = nil; err != nil {
		return 0, err
	}
	return t.n, t.err
}

// read waits for bytes. waited says that none were there when it began.
func (s *socket) read(b []byte) (n int, waited bool, err error) {
	s.reads.begin(b)
	n, err = s.reads.end(s.raw.Read(s.reads.call))
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, s.reads.waited, err
}

// write writes what there is room for, without waiting.
func (s *socket) write(b []byte) (n int, err error) {
	s.writes.begin(b)
	return s.writes.end(s.raw.Write(s.writes.call))
}

// silent says whether there is nothing to be read, not even the end.
func (s *socket) silent() (yes bool) {
	err := s.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		for err == syscall.EINTR {
			_, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		}
		yes = err == syscall.EAGAIN
		return true
	})
	return yes && err == nil
}

// eager is a TCP connection over its socket.
type eager struct {
	*net.TCPConn
	socket *socket
}

func (e eager) Read(b []byte) (int, error) {
	n, _, err := e.socket.read(b)
	return n, err
}

func (e eager) Write(b []byte) (int, error) {
	n, err := e.socket.write(b)
	if err != nil || n == len(b) {
		return n, err
	}
	rest, err := e.TCPConn.Write(b[n:])
	return n + rest, err
}
