package sidecar

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
)

// beside is a sidecar that is to take the place of another.
func (s *sidecar) beside() *sidecar {
	next := &sidecar{config: s.config, log: new(lockedBuffer)}
	next.config.Replace = true
	next.config.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(next.log, s.log), nil))
	return next
}

// ended waits until a sidecar whose place another has taken is done.
func (s *sidecar) ended(t testing.TB) {
	t.Helper()
	select {
	case err := <-s.done:
		s.cancel()
		s.cancel = nil
		if err != nil {
			t.Errorf("the agent that was replaced ended with: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the agent that was replaced does not end")
	}
}

// A planned restart costs nobody a request: writes go to the lanes of one agent or of the other, and Envoy lives on.
func TestAgentsAreReplacedUnderLoad(t *testing.T) {
	for name, to := range map[string]mesh.Topology{"coherent": laned(shards...), "transactions": transactional(shards...), "local": topology(shards...)} {
		t.Run(name, func(t *testing.T) {
			plane := newControlPlane(t)
			plane.serve(t, "1", build(t, to))
			plane.start(t)
			s, w := newSidecar(t, plane.address), newWires(shards...)
			s.startWired(t, w)
			s.waitServing(t)
			s.waitSaved(t)
			pid := s.status(t).Envoy.PID
			c := s.startCrowd(t)
			c.loads[0].waitMore(t, 100)
			if name == "transactions" {
				c.transact(t, s)
			}
			for round := range 3 {
				next, wires := s.beside(), newWires(shards...)
				next.startWired(t, wires)
				s.ended(t)
				c.loads[0].waitMore(t, 100)
				if got := next.status(t).Envoy; got.PID != pid || !got.Adopted {
					t.Errorf("Envoy is not the same: %+v, want pid %d", got, pid)
				}
				if heard := wires.take(); (len(heard) == len(shards)) != (name != "local") {
					t.Errorf("%d of the new agent's lanes are used", len(heard))
				}
				if !w.drained {
					t.Error("the lanes of the agent before were cut")
				}
				eventually(t, func() error {
					if folders, err := filepath.Glob(filepath.Join(s.config.Dir, "lanes-*")); len(folders) != 1 || !strings.HasSuffix(folders[0], fmt.Sprint("-", round+2)) {
						return fmt.Errorf("lanes are in %v, %v", folders, err)
					}
					return nil
				})
				s, w = next, wires
			}
			c.finish(t)
			plane.heard.wait(t, func(h *heard) string {
				if h.left > 0 || h.open != 1 {
					return "want that no agent has said goodbye"
				}
				return ""
			})
		})
	}
}

// transact has the crowd run transactions until it is stopped.
func (c *crowd) transact(t *testing.T, s *sidecar) {
	client := s.client(t)
	c.done.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-c.stop:
				return
			default:
			}
			key := fmt.Sprintf("%s-transaction-%d", t.Name(), n%16)
			if _, err := client.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
				p.Set(t.Context(), key, n, 0)
				p.Incr(t.Context(), key)
				return nil
			}); err != nil {
				c.mu.Lock()
				c.errors = append(c.errors, err)
				c.mu.Unlock()
			}
		}
	})
}

// With no control plane the saved endpoints move Envoy.
func TestAnAgentIsReplacedWithoutAControlPlane(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, laned(shards...)))
	plane.start(t)
	s, w := newSidecar(t, plane.address), newWires(shards...)
	s.startWired(t, w)
	s.waitServing(t)
	s.waitSaved(t)
	plane.stop()
	s.waitSource(t, fromDisk)
	requests := s.startLoad(t)
	requests.waitMore(t, 100)
	next, wires := s.beside(), newWires(shards...)
	next.startWired(t, wires)
	s.ended(t)
	requests.waitMore(t, 100)
	requests.finish(t)
	if len(wires.take()) == 0 {
		t.Error("the new agent's lanes are not used")
	}
}

func TestReplacing(t *testing.T) {
	t.Run("nobody", func(t *testing.T) {
		plane := newControlPlane(t)
		plane.serve(t, "1", build(t, topology(shards...)))
		plane.start(t)
		s := newSidecar(t, plane.address)
		s.config.Replace = true
		s.start(t)
		s.waitServing(t)
	})
	t.Run("an agent that does not answer", func(t *testing.T) {
		s := newSidecar(t, "127.0.0.1:1")
		held, err := lock(s.config.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		s.config.Replace = true
		if err := Run(t.Context(), s.config); err == nil || !errors.Is(err, errLocked) || !strings.Contains(err.Error(), "cannot be replaced") {
			t.Errorf("error %v", err)
		}
		l, err := listenHandover(s.config.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if conn := successor(l); conn != nil {
				_, _ = conn.Write([]byte("no\n"))
				conn.Close()
			}
		}()
		if err := Run(t.Context(), s.config); err == nil || !strings.Contains(err.Error(), `"no\n"`) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("strangers change nothing", func(t *testing.T) {
		s, _ := startServing(t)
		for _, said := range []string{"", "help\n", "replace it all\n"} {
			conn, err := net.Dial("unix", filepath.Join(s.config.Dir, handoverSocket))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte(said)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%q: %v, want that it ends", said, err)
			}
			conn.Close()
		}
		s.waitServing(t)
	})
}
