package process

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// FreePorts returns n different TCP ports of 127.0.0.1 that nobody listened on a moment ago. They lie below
// the kernel's range of ephemeral ports, so that no outgoing connection takes one before it is used. No other process gets the same
// ports from here before this one ends: what was killed may start again where it was.
func FreePorts(n int) ([]int, error) {
	const first, last = 10240, 32000
	var ports []int
	// A random start keeps two programs that ask at the same time apart.
	start := rand.IntN(last - first)
	for i := 0; len(ports) < n; i++ {
		if i == last-first {
			return nil, fmt.Errorf("fewer than %d free ports between %d and %d", n, first, last)
		}
		port := first + (start+i)%(last-first)
		if free(port) && reserve(port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// reserve locks a file for the life of this process. Where that cannot be done, ports are only less safe.
func reserve(port int) bool {
	dir := filepath.Join(os.TempDir(), "cachemesh-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return true
	}
	f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return true
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return !errors.Is(err, syscall.EWOULDBLOCK)
	}
	reserved.Store(port, f) // or else the garbage collector would close it
	return true
}

var reserved sync.Map

func free(port int) bool {
	// A program that is started in this moment would have a copy of the socket, and keep the port until it runs.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
