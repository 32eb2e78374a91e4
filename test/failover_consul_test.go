package test

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/shards"
)

// nobodyLeads waits until no control plane may act any more.
func (p *pair) nobodyLeads(t *testing.T) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		for _, c := range p.planes {
			s, err := c.read()
			if err == nil {
				err = cmpAlert(s, nil, "the shards' state cannot be kept")
			}
			if err == nil && s.Leader.Leading {
				err = fmt.Errorf("%s leads", c.url)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func TestConsulLostInAFailover(t *testing.T) {
	t.Parallel()
	server, consul := newMesh(t).startConsul(t)
	p := newPair(t, "lone", server)
	_, primary := p.settle(t)
	other := func() string {
		t.Helper()
		for address := range p.clients {
			if address != primary {
				return address
			}
		}
		return ""
	}
	failovers := func() int {
		t.Helper()
		return count(p.story(t, 0), shards.Failover)
	}

	// Without Consul there is none.
	consul.Kill()
	p.kept[primary].kill(t)
	p.nobodyLeads(t)
	from := p.checker.errors.Load()
	eventually(t, 10*time.Second, func() error {
		if p.checker.errors.Load() < from+100 {
			return errors.New("the checker has not tried often enough")
		}
		return nil
	})
	if r, err := replication(t.Context(), p.clients[other()]); err != nil || r["role"] != "slave" {
		t.Errorf("without Consul, the replica says %v, %v", r, err)
	}
	if n := failovers(); n != 0 {
		t.Errorf("%d failovers without Consul", n)
	}
	consul = restartConsul(t, server)
	p.checker.waitMore(t, 20)
	p.kept[primary] = p.keepAgain(t, p.kept[primary])
	leader, next := p.settle(t)
	if next == primary {
		t.Errorf("%s is the primary still", next)
	}
	primary = next

	// It goes when a replica has been promoted, and nobody has been told.
	victim := consul
	gone := newTrap(command("set", "cachemesh:epoch"), after, func() { victim.Signal(syscall.SIGKILL) })
	p.ways[other()].set(gone)
	p.kept[primary].kill(t)
	select {
	case <-gone.sprung:
	case <-time.After(15 * time.Second):
		t.Fatalf("nobody was promoted: %+v", kinds(p.story(t, leader), p.shard))
	}
	<-consul.Done()
	p.nobodyLeads(t)
	restartConsul(t, server)
	p.checker.waitMore(t, 20)
	p.kept[primary] = p.keepAgain(t, p.kept[primary])
	if _, next = p.settle(t); next == primary {
		t.Errorf("%s is the primary still", next)
	}
	eventually(t, 5*time.Second, func() error {
		if n := failovers(); n != 2 {
			return fmt.Errorf("%d failovers, want 2", n)
		}
		return nil
	})
	p.checker.finish(t)
}

func TestAControlPlaneAloneLosesConsul(t *testing.T) {
	t.Parallel()
	server, _ := newMesh(t).startConsul(t)
	p := newPair(t, "cut", server)
	served := func() (plane int) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			s, err := p.sidecar.agentStatus()
			if err != nil {
				return err
			}
			plane = slices.IndexFunc(p.planes, func(c *controlplane) bool { return c.xds == s.XDS.ControlPlane })
			if plane < 0 {
				return fmt.Errorf("%q serves the sidecar", s.XDS.ControlPlane)
			}
			return nil
		})
		return plane
	}
	cut := served()
	p.consuls[cut].cut()
	eventually(t, 20*time.Second, func() error {
		if plane := served(); plane == cut {
			return errors.New("the sidecar follows the control plane that has lost Consul")
		}
		return nil
	})
	eventually(t, 20*time.Second, func() error {
		if leader, err := p.leader(); err != nil || leader == cut {
			return fmt.Errorf("%d leads: %w", leader, err)
		}
		return nil
	})
	s, err := p.planes[1-cut].read()
	if err != nil {
		t.Fatal(err)
	}
	_, primary, _ := shardOf(s, p.shard)
	p.kept[primary].kill(t)
	p.checker.waitMore(t, 20)
	if n := count(p.story(t, 1-cut), shards.Failover); n != 1 {
		t.Errorf("%d failovers, want one", n)
	}
	p.consuls[cut].mend()
	p.kept[primary] = p.keepAgain(t, p.kept[primary])
	if _, next := p.settle(t); next == primary {
		t.Errorf("%s is the primary still", next)
	}
	p.checker.finish(t)
}
