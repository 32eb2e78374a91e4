package process

import (
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
)

// FreePorts returns n different TCP ports of 127.0.0.1 that nobody listened on a moment ago. They lie below
// the kernel's range of ephemeral ports, so that no outgoing connection takes one before it is used.
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
		if free(port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

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
