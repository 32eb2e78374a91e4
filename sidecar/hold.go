package sidecar

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// A planned switch lasts a few milliseconds. holdAtMost is less than the usual op_timeout, so that a switch that hangs costs no
// request: what is held then goes to the node before.
const (
	holdAtMost  = 400 * time.Millisecond
	dialTimeout = 300 * time.Millisecond
)

// How held connections end, in metrics.
const (
	holdReleased = "released" // the shard has an address again
	holdExpired  = "expired"  // passed on to the address before
	holdFailed   = "failed"   // closed: no address is known, or none answers
)

// hold is what the agent knows of a shard's address. The lock of standIns guards it.
type hold struct {
	network, address string        // where the shard answers, or did before; "" is unknown
	released         chan struct{} // closed unless the shard is held
	until            time.Time     // when patience ends; zero until a connection comes
	waiting          int           // connections
}

// hold returns that of a shard. The caller holds the lock.
func (s *standIns) hold(shard string) *hold {
	h := s.holds[shard]
	if h == nil {
		h = &hold{released: make(chan struct{})}
		close(h.released)
		s.holds[shard] = h
	}
	return h
}

// begin holds what comes from now on.
func (h *hold) begin() {
	if h.free() {
		h.released, h.until = make(chan struct{}), time.Time{}
	}
}

// release lets go what is held: to the primary, or to the null stand-in.
func (h *hold) release(e envoy.Endpoint) {
	h.network, h.address = "tcp", e.Address
	if e.StandIn == mesh.Null {
		h.network = "unix"
	}
	if !h.free() {
		close(h.released)
	}
}

func (h *hold) free() bool {
	select {
	case <-h.released:
		return true
	default:
		return false
	}
}

// held waits until the shard of a connection has an address, and then passes bytes both ways. It reads none of them before:
// they wait in the socket, and in Envoy.
func (s *standIns) held(shard string, conn *net.UnixConn) {
	node, end := s.await(shard)
	if node != nil && !s.opened(node) {
		return
	}
	s.mu.Lock()
	s.ends[end]++
	s.mu.Unlock()
	if node == nil {
		return
	}
	defer s.closed(node)
	splice(conn, node)
}

// await returns a connection to the shard's node, nil if there is none, and how the wait ended.
func (s *standIns) await(shard string) (node net.Conn, end string) {
	s.mu.Lock()
	h := s.hold(shard)
	released := h.released
	if h.until.IsZero() {
		h.until = time.Now().Add(holdAtMost)
	}
	patience := time.NewTimer(time.Until(h.until))
	defer patience.Stop()
	h.waiting++
	s.mu.Unlock()

	end = holdReleased
	select {
	case <-released:
	case <-patience.C:
		end = holdExpired
	case <-s.ended:
	}
	s.mu.Lock()
	h.waiting--
	network, address := h.network, h.address
	s.mu.Unlock()

	err := errors.New("no address of the shard is known")
	if address != "" {
		if network == "unix" {
			address = s.socketPath(address)
		}
		if node, err = net.DialTimeout(network, address, dialTimeout); err == nil {
			if end == holdExpired {
				s.log.Warn("a switch takes too long: what was held goes to the node before", "shard", shard, "address", address)
			}
			return node, end
		}
	}
	s.log.Error("a held connection is closed", "shard", shard, "after", end, "error", err)
	return nil, holdFailed
}

// splice passes bytes both ways until Envoy has closed its connection. An end of the node's travels on, after what came before it.
func splice(envoys *net.UnixConn, node net.Conn) {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _ = io.Copy(envoys, node) // a failure of either shows as the end of the other
		_ = envoys.CloseWrite()
	}()
	_, _ = io.Copy(node, envoys)
	// Nobody waits for answers any more, and a node that hangs would never end them.
	node.Close()
	<-answered
}
