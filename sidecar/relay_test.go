package sidecar

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/envoy"
)

func TestControlPlaneGoneCostsNoRequest(t *testing.T) {
	s, plane := startServing(t)
	s.waitSaved(t)
	requests := s.startLoad(t)
	requests.waitMore(t, 10)
	plane.stop()
	s.waitSource(t, fromDisk)
	requests.waitMore(t, 100)

	plane.start(t)
	s.waitSource(t, fromControlPlane)
	requests.waitMore(t, 100)
	if got := s.status(t).XDS.Nacks; got[envoy.ListenerType]+got[envoy.ClusterType]+got[envoy.EndpointType] != 0 {
		t.Errorf("changes of the source cost rejections: %v", got)
	}
	// What changed meanwhile arrives: all keys are now on the first shard.
	plane.serve(t, "2", build(t, topology(shards[0])))
	direct := newClient(t, &redis.Options{Addr: shards[0]})
	eventually(t, func() error { return everyKeyOn(t, s, direct) })
	requests.finish(t)
}

// everyKeyOn writes keys through the sidecar and looks for them on one shard.
func everyKeyOn(t *testing.T, s *sidecar, shard *redis.Client) error {
	client := s.client(t)
	for i := range 20 {
		key := fmt.Sprintf("%s-%d", t.Name(), i)
		if err := client.Set(t.Context(), key, "value", 0).Err(); err != nil {
			return err
		}
		n, err := shard.Del(t.Context(), key).Result()
		if err == nil && n == 0 {
			err = fmt.Errorf("%s is on another shard", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func TestEnvoyKilledWithoutControlPlaneServesFromDisk(t *testing.T) {
	s, plane := startServing(t)
	s.waitSaved(t)
	plane.stop()
	s.kill(t, syscall.SIGKILL)
	client := s.client(t)
	eventually(t, func() error {
		if s.status(t).Envoy.Restarts["SIGKILL"] == 0 {
			return errors.New("Envoy was not started again")
		}
		return client.Get(t.Context(), t.Name()).Err()
	})
	s.waitSource(t, fromDisk)

	// The whole sidecar comes up, too.
	s.stop(t)
	s.start(t)
	eventually(t, func() error { return client.Get(t.Context(), t.Name()).Err() })
	requests := s.startLoad(t)
	requests.waitMore(t, 10)
	plane.start(t)
	s.waitSource(t, fromControlPlane)
	requests.waitMore(t, 100)
	requests.finish(t)
}

func TestAnotherControlPlaneTakesOver(t *testing.T) {
	var planes []*controlPlane
	for range 2 {
		plane := newControlPlane(t)
		plane.serve(t, "1", build(t, topology(shards...)))
		plane.start(t)
		planes = append(planes, plane)
	}
	s := newSidecar(t, planes[0].address, planes[1].address)
	s.start(t)
	s.waitServing(t)
	s.waitSaved(t)
	requests := s.startLoad(t)
	requests.waitMore(t, 10)
	// The one that serves now stops each time, wherever it is in the list.
	for i, plane := range planes {
		other := planes[1-i]
		plane.stop()
		eventually(t, func() error {
			if got := s.status(t).XDS.ControlPlane; got != other.address {
				return fmt.Errorf("relayed to %q, want %s", got, other.address)
			}
			return nil
		})
		plane.start(t)
	}
	other := planes[0]
	other.serve(t, "2", build(t, topology(shards[0])))
	eventually(t, func() error { return everyKeyOn(t, s, newClient(t, &redis.Options{Addr: shards[0]})) })
	requests.finish(t)
	if strings.Contains(s.log.String(), "serving saved resources") {
		t.Error("saved resources were served although a control plane was there")
	}
}

func TestRejectedListenerLeavesTheOldOne(t *testing.T) {
	s, plane := startServing(t)
	s.waitSaved(t)
	version := s.status(t).XDS.Version
	requests := s.startLoad(t)
	plane.serve(t, "2", withBrokenListeners(t, build(t, topology(shards...))))
	eventually(t, func() error {
		if len(plane.rejections()) == 0 {
			return errors.New("the control plane learns of no rejection")
		}
		return nil
	})
	if got := plane.rejections()[0]; got.TypeUrl != envoy.ListenerType || !strings.Contains(got.ErrorDetail.Message, "no such filter") {
		t.Errorf("the control plane learns of %v, want the listener's reason", got)
	}
	requests.waitMore(t, 100)
	requests.finish(t)
	if got := s.status(t).XDS.Nacks[envoy.ListenerType]; got != 1 {
		t.Errorf("%d rejections counted, want 1", got)
	}
	if !strings.Contains(s.log.String(), "a resource was rejected") || !strings.Contains(s.log.String(), "filter_chains") {
		t.Error("the log does not show the rejected resource")
	}

	// An Envoy that starts now gets the listeners that the others still have.
	s.kill(t, syscall.SIGKILL)
	client := s.client(t)
	eventually(t, func() error {
		if s.status(t).Envoy.Restarts["SIGKILL"] != 1 {
			return errors.New("Envoy was not started again")
		}
		return client.Get(t.Context(), t.Name()).Err()
	})
	s.waitSource(t, fromControlPlane)
	// Envoy serves a listener a moment before its acknowledgement reaches the agent.
	eventually(t, func() error {
		if got := s.status(t).XDS.Version; got != version {
			return fmt.Errorf("Envoy has resources %s after its restart, want %s as before", got, version)
		}
		return nil
	})

	// Other types go on changing, and the saved set has what Envoy has of each.
	plane.serve(t, "3", withBrokenListeners(t, build(t, topology(shards[0]))))
	eventually(t, func() error {
		if s.status(t).XDS.Version == version {
			return errors.New("the new endpoints are not acknowledged")
		}
		return nil
	})
	s.waitSaved(t)
	plane.stop()
	s.kill(t, syscall.SIGKILL)
	eventually(t, func() error { return everyKeyOn(t, s, newClient(t, &redis.Options{Addr: shards[0]})) })
	s.waitSource(t, fromDisk)
}

func TestDamagedResourcesAreIgnored(t *testing.T) {
	s, plane := startServing(t)
	s.waitSaved(t)
	s.stop(t)
	plane.stop()
	path := filepath.Join(s.config.Dir, resourcesFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data[:len(data)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	eventually(t, func() error {
		if !strings.Contains(s.log.String(), "waiting for a control plane") {
			return errors.New("Envoy's stream is not held open")
		}
		return nil
	})
	if !strings.Contains(s.log.String(), "damaged") {
		t.Error("the log does not say that the saved resources are damaged")
	}
	plane.start(t)
	s.waitServing(t)
	s.waitSaved(t)
}

func TestHungControlPlaneIsPassedOver(t *testing.T) {
	// The kernel accepts connections for a program that hangs, and nobody ever answers.
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, hung.Addr().String(), plane.address)
	s.start(t)
	s.waitServing(t)
	s.waitSaved(t)
	if got := s.status(t).XDS.ControlPlane; got != plane.address {
		t.Errorf("relayed to %s, want %s", got, plane.address)
	}
	// With no other, the saved resources serve.
	plane.stop()
	s.kill(t, syscall.SIGKILL)
	client := s.client(t)
	eventually(t, func() error { return client.Get(t.Context(), t.Name()).Err() })
	s.waitSource(t, fromDisk)
}

// freezer stands between a sidecar and a control plane and can stop passing bytes on, as if that were stopped.
type freezer struct {
	net.Listener
	frozen chan struct{} // closed to freeze
}

func newFreezer(t *testing.T, to string) *freezer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{Listener: l, frozen: make(chan struct{})}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { client.Close() })
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			t.Cleanup(func() { server.Close() })
			go f.pass(client, server)
			go f.pass(server, client)
		}
	}()
	return f
}

func (f *freezer) pass(from, to net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		select {
		case <-f.frozen:
			return // both ends stay open
		default:
		}
		if err != nil {
			to.Close()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestControlPlaneThatFreezesCostsNoRequest(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	f := newFreezer(t, plane.address)
	s := newSidecar(t, f.Addr().String())
	s.start(t)
	s.waitServing(t)
	s.waitSaved(t)
	requests := s.startLoad(t)
	requests.waitMore(t, 10)
	close(f.frozen)
	// The keepalive notices it after 13 s.
	eventuallyWithin(t, 30*time.Second, func() error {
		if got := s.status(t).XDS.Source; got != fromDisk {
			return fmt.Errorf("resources come from %q", got)
		}
		return nil
	})
	requests.waitMore(t, 100)
	requests.finish(t)
	s.kill(t, syscall.SIGKILL)
	client := s.client(t)
	eventually(t, func() error { return client.Get(t.Context(), t.Name()).Err() })
}

func TestSilentControlPlaneIsPassedOver(t *testing.T) {
	silent := newControlPlane(t) // has no snapshot, so it accepts streams and answers nothing
	silent.start(t)
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, silent.address, plane.address)
	s.start(t)
	s.waitServing(t)
	if got := s.status(t).XDS.ControlPlane; got != plane.address {
		t.Errorf("relayed to %s, want %s", got, plane.address)
	}
}

func TestResourcesOfAnUnknownContentAreSentAgain(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, plane.address)
	first := s.startChild(t)
	s.waitSaved(t)
	first.Kill()
	// The next agent adopts an Envoy that has everything, and has nothing on disk itself.
	path := filepath.Join(s.config.Dir, resourcesFile)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	eventually(t, func() error {
		got, err := os.ReadFile(path)
		if err == nil && !slices.Equal(got, want) {
			err = errors.New("other resources were saved than before")
		}
		return err
	})
	eventually(t, func() error {
		if st := s.status(t).Envoy; !st.Adopted {
			return fmt.Errorf("Envoy was not adopted: %+v", st)
		}
		return nil
	})
}
