package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/sidecar/null"
)

// standIns answer for shards in place of their nodes, at sockets that Envoy's endpoints name. They are there before Envoy hears
// of them, and for as long as it may know them.
type standIns struct {
	folders map[mesh.StandIn]*os.File // where the sockets are
	log     *slog.Logger
	ended   chan struct{} // closed when the agent ends

	mu          sync.Mutex
	sockets     map[string]*standInSocket          // by mesh.StandIn.Path
	kinds       map[string]map[string]mesh.StandIn // by resource and shard, as last told
	holds       map[string]*hold                   // by shard
	connections map[net.Conn]bool                  // all that are open, either way
	answered    map[string]int                     // commands that the null stand-in answered, by shard
	ends        map[string]int                     // held connections, by how they ended
	running     sync.WaitGroup
}

// standInSocket is a socket of one shard.
type standInSocket struct {
	shard    string
	kind     mesh.StandIn
	listener *net.UnixListener
	unnamed  bool // at the last sweep
}

// newStandIns makes the sockets' folders in dir, for this user alone.
func newStandIns(dir string, log *slog.Logger) (*standIns, error) {
	s := &standIns{
		folders: map[mesh.StandIn]*os.File{}, log: log, ended: make(chan struct{}),
		sockets: map[string]*standInSocket{}, kinds: map[string]map[string]mesh.StandIn{}, holds: map[string]*hold{},
		connections: map[net.Conn]bool{}, answered: map[string]int{}, ends: map[string]int{holdReleased: 0, holdExpired: 0, holdFailed: 0},
	}
	for _, kind := range []mesh.StandIn{mesh.Null, mesh.Hold} {
		path := filepath.Join(dir, string(kind))
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		folder, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		s.folders[kind] = folder
	}
	return s, nil
}

// apply makes the sockets that endpoints name, and lets go what was held for a shard that has an address again. Call it before
// Envoy gets the endpoints.
func (s *standIns) apply(endpoints []*discovery.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range endpoints {
		shards, err := envoy.Endpoints(resource)
		if err != nil {
			s.log.Error("endpoints have no stand-ins that can be made", "error", err)
			continue
		}
		before, now := s.kinds[resource.Name], map[string]mesh.StandIn{}
		for _, e := range shards {
			if e.Lane {
				continue
			}
			now[e.Shard] = e.StandIn
			h := s.hold(e.Shard)
			if e.StandIn != mesh.Hold {
				h.release(e)
			} else if before[e.Shard] != mesh.Hold {
				h.begin()
			}
			if e.StandIn == "" {
				continue
			}
			if err := s.bind(e); err != nil {
				s.log.Error("a shard has no stand-in: its requests fail", "shard", e.Shard, "stand_in", e.StandIn, "error", err)
			}
		}
		s.kinds[resource.Name] = now
	}
}

// socketPath is a path of a stand-in's socket that a socket address has room for, however long the sidecar's own is.
func (s *standIns) socketPath(at string) string {
	kind, name, _ := strings.Cut(at, "/")
	return fmt.Sprintf("/proc/self/fd/%d/%s", s.folders[mesh.StandIn(kind)].Fd(), name)
}

// bind listens on the socket of e, unless it does already. The caller holds the lock.
func (s *standIns) bind(e envoy.Endpoint) error {
	if s.sockets[e.Address] != nil {
		return nil
	}
	path := s.socketPath(e.Address)
	// An agent that was killed leaves its sockets.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return err
	}
	// Nobody else can enter the folder meanwhile.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return err
	}
	socket := &standInSocket{shard: e.Shard, kind: e.StandIn, listener: l}
	s.sockets[e.Address] = socket
	if e.StandIn == mesh.Null {
		s.answered[e.Shard] += 0 // a counter shows before its first event
	}
	level := slog.LevelInfo // a hold is part of a planned switch
	if e.StandIn == mesh.Null {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "standing in for a shard", "shard", e.Shard, "stand_in", e.StandIn)
	s.running.Go(func() { s.accept(socket) })
	return nil
}

func (s *standIns) accept(socket *standInSocket) {
	for {
		conn, err := socket.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Error("a stand-in accepts no connection", "shard", socket.shard, "error", err)
			select {
			case <-s.ended:
				return
			case <-time.After(100 * time.Millisecond): // file descriptors may be free again
			}
			continue
		}
		s.running.Go(func() {
			if !s.opened(conn) {
				return
			}
			defer s.closed(conn)
			switch socket.kind {
			case mesh.Null:
				null.Serve(conn, func() { s.count(socket.shard) })
			case mesh.Hold:
				s.held(socket.shard, conn)
			}
		})
	}
}

// opened notes a connection, so that close ends it. It says whether there is still time to use it.
func (s *standIns) opened(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		conn.Close()
		return false
	default:
	}
	s.connections[conn] = true
	return true
}

func (s *standIns) closed(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.connections, conn)
}

func (s *standIns) count(shard string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered[shard]++
}

func (s *standIns) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sockets) > 0
}

// sweep closes the sockets that endpoints did not name this time nor the last. Connections end by themselves: Envoy closes one
// when its last request is answered.
func (s *standIns) sweep(endpoints []*discovery.Resource) {
	named := map[string]bool{}
	for _, resource := range endpoints {
		shards, err := envoy.Endpoints(resource)
		if err != nil {
			continue // apply has said so
		}
		for _, e := range shards {
			named[e.Address] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, socket := range s.sockets {
		gone := socket.unnamed && !named[at]
		socket.unnamed = !named[at]
		if gone {
			socket.listener.Close()
			delete(s.sockets, at)
			s.log.Info("no longer standing in for a shard", "shard", socket.shard, "stand_in", socket.kind)
		}
	}
}

// counts are how many connections are held now, how those before ended, and how many commands null answered for each shard.
func (s *standIns) counts() (waiting int, ends, answered map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.holds {
		waiting += h.waiting
	}
	return waiting, maps.Clone(s.ends), maps.Clone(s.answered)
}

// drain returns when no connection is open, or ctx has ended.
func (s *standIns) drain(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		s.mu.Lock()
		open := len(s.connections)
		s.mu.Unlock()
		if open == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// close ends all sockets and connections. Call it once Envoy is gone.
func (s *standIns) close() {
	s.mu.Lock()
	close(s.ended)
	for _, socket := range s.sockets {
		socket.listener.Close()
	}
	for conn := range s.connections {
		conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	for _, folder := range s.folders {
		folder.Close()
	}
}

// status lists the sockets by shard and kind.
func (s *standIns) status() []StandInStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []StandInStatus{}
	for _, socket := range s.sockets {
		all = append(all, StandInStatus{socket.shard, socket.kind})
	}
	slices.SortFunc(all, func(a, b StandInStatus) int {
		return cmp.Or(strings.Compare(a.Shard, b.Shard), cmp.Compare(a.Kind, b.Kind))
	})
	return all
}
