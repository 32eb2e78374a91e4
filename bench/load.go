package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"
	"unsafe"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

const (
	keyCount   = 10_000
	valueBytes = 230
	// stalled is how long every connection may be silent before a run is given up.
	stalled = 5 * time.Second
)

// endpoint is where a Redis client connects.
type endpoint struct{ network, address string }

func key(i int) string { return fmt.Sprintf("bench:%08d", i) }

func value(i int) string { return valueOf(key(i)) }

// valueOf begins with the key, so that a reply that belongs to another request is noticed.
func valueOf(key string) string { return key + " " + strings.Repeat("v", valueBytes-len(key)-1) }

// workload is a cycle of batches: the bytes to send and the bytes that must come back. Whatever else a
// server answers is an error, so that none is ever counted as an operation.
type workload struct {
	pipeline          int
	requests, replies [][]byte
}

// newWorkload runs command (GET or SET) over all keys, shuffled the same way each time.
func newWorkload(command string, pipeline int) workload {
	return workloadOf("bench:", command, pipeline)
}

// workloadOf has keys that begin with prefix. DEL is of keys that are never there.
func workloadOf(prefix, command string, pipeline int) workload {
	w := workload{pipeline: pipeline}
	order := rand.New(rand.NewPCG(1, 2)).Perm(keyCount)
	for len(order) >= pipeline {
		var request, reply []byte
		for _, i := range order[:pipeline] {
			key := fmt.Sprintf("%s%08d", prefix, i)
			switch command {
			case "GET":
				request = fmt.Appendf(request, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", len(key), key)
				reply = fmt.Appendf(reply, "$%d\r\n%s\r\n", valueBytes, valueOf(key))
			case "SET":
				request = fmt.Appendf(request, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, valueBytes, valueOf(key))
				reply = append(reply, "+OK\r\n"...)
			case "DEL":
				request = fmt.Appendf(request, "*2\r\n$3\r\nDEL\r\n$%d\r\n%s\r\n", len(key), key)
				reply = append(reply, ":0\r\n"...)
			default:
				panic("no workload for " + command)
			}
		}
		w.requests, w.replies = append(w.requests, request), append(w.replies, reply)
		order = order[pipeline:]
	}
	return w
}

// load is a set of connections driven by one goroutine over epoll, because a goroutine and a channel a
// connection would cost the machine more than the proxy that is measured. Each connection has at most one
// batch under way.
type load struct {
	work   workload
	epoll  int
	conns  []connection
	events [128]unix.EpollEvent
	buffer []byte
	// latency takes the nanoseconds of a closed loop's batches; nil is nobody.
	latency *hdrhistogram.Histogram
}

type connection struct {
	fd       int
	batch    int       // index of the batch under way, or of the next one
	received int       // bytes of its reply
	busy     bool      // a batch is under way
	intended time.Time // open loop: when that batch, or the next one, is due; closed loop with latency: when it was sent
}

// openLoad connects count times, to the endpoints in turn.
func openLoad(endpoints []endpoint, count int, work workload) (*load, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	l := &load{work: work, epoll: epoll, buffer: make([]byte, 64<<10)}
	for i := range count {
		e := endpoints[i%len(endpoints)]
		fd, err := connect(e)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("connect to %s: %w", e.address, err)
		}
		// The connections walk the same cycle from different places.
		l.conns = append(l.conns, connection{fd: fd, batch: i * len(work.requests) / count})
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			l.close()
			return nil, fmt.Errorf("epoll_ctl: %w", err)
		}
	}
	return l, nil
}

// connect bypasses package net, whose own epoll would be woken by every reply as well.
func connect(e endpoint) (int, error) {
	family, address := unix.AF_UNIX, unix.Sockaddr(&unix.SockaddrUnix{Name: e.address})
	if e.network == "tcp" {
		tcp, err := net.ResolveTCPAddr("tcp4", e.address)
		if err != nil {
			return 0, err
		}
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = unix.Connect(fd, address)
	if err == nil && e.network == "tcp" {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

func (l *load) close() {
	for _, c := range l.conns {
		unix.Close(c.fd)
	}
	unix.Close(l.epoll)
}

// closedLoop sends the next batch on a connection as soon as the last one is answered, for d, and returns the
// operations that were answered. Called again, it goes on with the batches under way.
func (l *load) closedLoop(d time.Duration) (operations int, err error) {
	for i := range l.conns {
		if c := &l.conns[i]; !c.busy {
			if err := l.send(c); err != nil {
				return 0, err
			}
		}
	}
	for end := time.Now().Add(d); ; {
		now := time.Now()
		if !now.Before(end) {
			return operations, nil
		}
		n, err := l.wait(stalled)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, fmt.Errorf("no reply for %s", stalled)
		}
		for _, event := range l.events[:n] {
			c := &l.conns[event.Fd]
			done, err := l.receive(c)
			if err != nil {
				return 0, err
			}
			if done {
				operations += l.work.pipeline
				if l.latency != nil {
					now := time.Now()
					if !c.intended.IsZero() {
						l.latency.RecordValue(now.Sub(c.intended).Nanoseconds()) // fails beyond its range, where a loop is given up
					}
					c.intended = now
				}
				if err := l.send(c); err != nil {
					return 0, err
				}
			}
		}
	}
}

// openLoop offers rate operations a second for d on an even schedule that replies do not slow down, and
// returns the latency of each batch in nanoseconds, from the moment that it was due until its last reply.
func (l *load) openLoop(rate float64, d time.Duration) (*hdrhistogram.Histogram, error) {
	// A batch takes at most stalled to be answered and may have waited for one other.
	latency := hdrhistogram.New(1000, (d + 2*stalled).Nanoseconds(), 3)
	gap := time.Duration(float64(l.work.pipeline) / rate * float64(time.Second))
	start := time.Now()
	for i := range l.conns {
		l.conns[i].intended = start.Add(gap * time.Duration(i))
	}
	end, turn := start.Add(d), gap*time.Duration(len(l.conns))
	underway := 0
	due := start // when the next connection's turn comes
	for next := 0; ; {
		now := time.Now()
		for ; due.Before(end) && !due.After(now); due = due.Add(gap) {
			c := &l.conns[next]
			next = (next + 1) % len(l.conns)
			if c.busy {
				continue // sent when the batch before it is answered
			}
			if err := l.send(c); err != nil {
				return nil, err
			}
			underway++
		}
		timeout := stalled
		if due.Before(end) {
			timeout = due.Sub(now)
		} else if underway == 0 {
			return latency, nil
		}
		n, err := l.wait(timeout)
		if err != nil {
			return nil, err
		}
		if n == 0 && timeout == stalled {
			return nil, fmt.Errorf("no reply for %s", stalled)
		}
		for _, event := range l.events[:n] {
			c := &l.conns[event.Fd]
			done, err := l.receive(c)
			if err != nil {
				return nil, err
			}
			if !done {
				continue
			}
			now := time.Now()
			if err := latency.RecordValue(now.Sub(c.intended).Nanoseconds()); err != nil {
				return nil, err
			}
			c.intended = c.intended.Add(turn)
			underway--
			if c.intended.Before(end) && c.intended.Before(due) {
				if err := l.send(c); err != nil {
					return nil, err
				}
				underway++
			}
		}
	}
}

func (l *load) send(c *connection) error {
	c.batch = (c.batch + 1) % len(l.work.requests)
	c.received, c.busy = 0, true
	request := l.work.requests[c.batch]
	n, err := unix.Write(c.fd, request)
	if err == nil && n != len(request) {
		// A batch is far smaller than a socket's buffer, and the one before it has been read.
		err = fmt.Errorf("%d of %d bytes taken", n, len(request))
	}
	if err != nil {
		return fmt.Errorf("send a request: %w", err)
	}
	return nil
}

// receive reads what has come and says whether the batch is answered in full.
func (l *load) receive(c *connection) (done bool, err error) {
	n, err := unix.Read(c.fd, l.buffer)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read a reply: %w", err)
	}
	if n == 0 {
		return false, errors.New("read a reply: the server closed the connection")
	}
	want := l.work.replies[c.batch][c.received:]
	if !c.busy || !bytes.HasPrefix(want, l.buffer[:n]) {
		good := 0
		for good < min(n, len(want)) && want[good] == l.buffer[good] {
			good++
		}
		return false, fmt.Errorf("wrong reply to %.80q: %.80q, want %.80q", l.work.requests[c.batch], l.buffer[good:n], want[good:])
	}
	c.received += n
	c.busy = n < len(want)
	return !c.busy, nil
}

// wait returns the number of connections in l.events that can be read, after timeout at the latest.
// The timeout has microseconds, unlike package net's and epoll_wait's.
func (l *load) wait(timeout time.Duration) (int, error) {
	ts := unix.NsecToTimespec(max(0, timeout).Nanoseconds())
	for {
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epoll), uintptr(unsafe.Pointer(&l.events[0])),
			uintptr(len(l.events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR: // the Go scheduler's signal
		default:
			return 0, fmt.Errorf("epoll_pwait2: %w", errno)
		}
	}
}
