package test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// TestAHandoffOutlivesItsLeaderAndConsul has the nodes of the new shard registered, loses Consul while keys are copied, and then the leader.
func TestAHandoffOutlivesItsLeaderAndConsul(t *testing.T) {
	t.Parallel()
	consul, _ := newMesh(t).startConsul(t)
	m := &reshaped{testMesh: newMesh(t)}
	m.spec.Health.DownAfter = 2 * time.Second
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Routes: []mesh.Route{{Prefix: ""}}}}
	m.spec.Transactions = mesh.TransactionsLanes
	m.spec.Membership.Consul = &mesh.ConsulSpec{Address: consul.Address()}
	m.spec.Regions[0].Datacenter = region
	for i := range 2 {
		m.spec.Regions[0].Shards = append(m.spec.Regions[0].Shards, mesh.ShardSpec{Pool: "all", Name: fmt.Sprintf("all-%d", i)})
	}
	m.write(t)
	register := func(shard string) {
		for _, address := range m.shardNodes(t) {
			invocation{args: []string{"shard", "register", "--pool", "all", "--shard", shard, "--address", address, "--consul", consul.Address()}}.run(t).want(t, 0)
		}
	}
	register("all-0")
	register("all-1")
	var planes []*controlplane
	var ways []*consulWay
	for i := range 2 {
		w := newConsulWay(t, consul.Address())
		c := m.newControlplane(t, "--consul", w.address, "--state", fmt.Sprintf("%s/state-%d", m.dir, i))
		c.start(t)
		planes, ways = append(planes, c), append(ways, w)
	}
	for i := range 2 {
		m.sidecars = append(m.sidecars, m.startSidecar(t, fmt.Sprintf("s-%d", i), planes...))
	}
	leader := func() (at int) {
		t.Helper()
		eventually(t, 40*time.Second, func() error {
			at = slices.IndexFunc(planes, func(c *controlplane) bool { s, err := c.read(); return err == nil && s.Leader.Leading })
			if at < 0 {
				return fmt.Errorf("nobody leads")
			}
			return nil
		})
		return at
	}
	m.plane = planes[leader()]
	m.fill(t)
	load := startTraffic(t, m.sidecars, []*sidecar{m.sidecars[1], m.sidecars[0]})
	load.waitMore(t, 100)

	register("all-7")
	eventually(t, 20*time.Second, func() error {
		s, err := m.plane.read()
		if err == nil && len(s.Membership.Problems) != 2 {
			err = fmt.Errorf("problems are %+v", s.Membership.Problems)
		}
		return err
	})
	m.begin(t, "/v1/pools/all/add", control.ReshapeRequest{Limits: shards.Limits{KeysPerSecond: 400}})
	copied := func(step mesh.HandoffStep) func() error {
		return func() error {
			p, err := m.plane.pool()
			switch {
			case err != nil:
				return err
			case p.Handoff == nil || p.Handoff.Shard != "all-7" || p.Handoff.Step != step || p.Handoff.Progress == nil || p.Handoff.Progress.Copied == 0:
				return fmt.Errorf("the handoff is %+v", p.Handoff)
			}
			return nil
		}
	}
	eventually(t, 20*time.Second, copied(mesh.Copying))
	for _, w := range ways {
		w.cut()
	}
	eventually(t, 20*time.Second, func() error {
		if s, err := m.plane.read(); err != nil || s.Leader.Leading {
			return fmt.Errorf("it leads without Consul: %w", err)
		}
		return nil
	})
	load.waitMore(t, 100)
	for _, w := range ways {
		w.mend()
	}
	m.plane = planes[leader()]
	eventually(t, 20*time.Second, copied(mesh.Copying))
	if err := m.plane.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-m.plane.process.Done()
	other := planes[(slices.Index(planes, m.plane)+1)%2]
	m.plane = other
	if at := leader(); planes[at] != other {
		t.Fatalf("control plane %d leads", at)
	}
	m.plane.finished(t, 120*time.Second, 1)
	load.waitMore(t, 100)
	load.finish(t)
	m.placed(t, m.plane)
	if s, err := m.plane.read(); err != nil || len(s.Membership.Problems) > 0 {
		t.Errorf("%v: problems are %+v", err, s.Membership.Problems)
	}
}
