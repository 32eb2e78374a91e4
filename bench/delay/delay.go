// Package delay is a TCP proxy that puts two places on one machine as far apart as two regions are: what is sent arrives a one-way
// delay later, in both directions, and a partition holds everything back until it is healed, as between peers that send
// again what a network has dropped.
//
// It never loses, changes or reorders a byte, and it limits no bandwidth. Benchmarks and tests use it; the product does not.
package delay

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// window is how many bytes may be under way in one direction of a connection: 100 ms at 160 MB/s.
	window = 16 << 20
	// pieces is how many reads those may be.
	pieces    = 8192
	readBytes = 32 << 10
)

// Proxy forwards the connections that it accepts to one address.
type Proxy struct {
	target   string
	listener net.Listener
	done     chan struct{} // closed by Close
	running  sync.WaitGroup

	mu     sync.Mutex
	oneWay time.Duration
	whole  chan struct{} // closed while there is no partition
	ends   map[net.Conn]bool
}

// Listen forwards a port of loopback, of the kernel's choice, to the target's HOST:PORT, which need not listen yet.
func Listen(target string, oneWay time.Duration) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("delay: %w", err)
	}
	p := &Proxy{target: target, listener: listener, done: make(chan struct{}), oneWay: oneWay, whole: make(chan struct{}), ends: map[net.Conn]bool{}}
	close(p.whole)
	p.running.Go(p.accept)
	return p, nil
}

// Address is where it listens, an IP:port.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// SetDelay is for what is sent from now on.
func (p *Proxy) SetDelay(oneWay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.oneWay = oneWay
}

// Part begins a partition: nothing that has not arrived does, no connection is made, and none is seen to end.
func (p *Proxy) Part() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.whole:
		p.whole = make(chan struct{})
	default: // parted already
	}
}

// Heal ends a partition. What it held back is one delay away.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.whole:
	default:
		close(p.whole)
	}
}

// Close ends the listener and all connections, and returns when they have ended.
func (p *Proxy) Close() error {
	close(p.done)
	err := p.listener.Close()
	p.mu.Lock()
	for end := range p.ends {
		end.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.running.Go(func() { p.serve(client) })
	}
}

// serve forwards one connection. To connect takes a round trip, which the client's kernel has not waited for; what it sends first does.
func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if !p.hold(client) {
		return
	}
	defer p.release(client)
	opened := time.Now().Add(2 * p.delay())
	if !p.wait(opened) {
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	if !p.hold(server) {
		return
	}
	defer p.release(server)
	var both sync.WaitGroup
	both.Go(func() { p.forward(client, server) })
	both.Go(func() { p.forward(server, client) })
	both.Wait()
}

// piece is what one read has brought; nothing is the end.
type piece struct {
	data []byte
	due  time.Time
}

// forward copies until the end of from, which it passes on.
func (p *Proxy) forward(from, to net.Conn) {
	under := make(chan piece, pieces)
	room := semaphore.NewWeighted(window)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	p.running.Go(func() {
		defer close(under)
		buffer := make([]byte, readBytes)
		for {
			n, err := from.Read(buffer)
			if n > 0 && room.Acquire(ctx, int64(n)) != nil {
				return
			}
			next := piece{bytes.Clone(buffer[:n]), time.Now().Add(p.delay())}
			if n > 0 || err != nil {
				select {
				case under <- next:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for next := range under {
		if !p.wait(next.due) {
			return
		}
		if len(next.data) == 0 {
			break
		}
		if _, err := to.Write(next.data); err != nil {
			from.Close() // the other direction ends by itself
			return
		}
		room.Release(int64(len(next.data)))
	}
	to.(*net.TCPConn).CloseWrite()
}

func (p *Proxy) delay() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.oneWay
}

// wait returns when something that is due then has arrived; false is that the proxy is closed.
func (p *Proxy) wait(due time.Time) bool {
	for {
		timer := time.NewTimer(time.Until(due))
		select {
		case <-p.done:
			timer.Stop()
			return false
		case <-timer.C:
		}
		p.mu.Lock()
		whole := p.whole
		p.mu.Unlock()
		select {
		case <-whole:
			return true
		default:
		}
		select {
		case <-p.done:
			return false
		case <-whole:
			due = time.Now().Add(p.delay())
		}
	}
}

// hold has Close end the connection; false is that it is late for that.
func (p *Proxy) hold(end net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
		p.ends[end] = true
		return true
	}
}

func (p *Proxy) release(end net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ends, end)
}
