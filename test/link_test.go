package test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// linkedRegions are two regions of one mesh, with other numbers of shards, two nodes a shard, and sidecars that tell the other region's
// what to remove. The way between them can be cut.
type linkedRegions struct {
	*testMesh
	regions []*linkedRegion
}

type linkedRegion struct {
	name     string
	plane    *controlplane
	sidecars []*sidecar
	clients  []*redis.Client
	links    []*way               // to its sidecars, from the other region
	kept     map[string]*keptNode // by address
}

func newLinkedRegions(t *testing.T, sidecars int) *linkedRegions {
	t.Helper()
	m := &linkedRegions{testMesh: newMesh(t)}
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Routes: []mesh.Route{{Prefix: "user:", Coherence: mesh.Invalidate, Writes: mesh.Refill}, {Prefix: ""}}}}
	m.spec.Regions = nil
	listens := freeAddresses(t, 2*sidecars)
	for i, name := range []string{region, "there"} {
		r := &linkedRegion{name: name, kept: map[string]*keptNode{}}
		spec := mesh.RegionSpec{Name: name}
		for _, at := range listens[sidecars*i : sidecars*(i+1)] {
			w := newWay(t, at)
			r.links = append(r.links, w)
			spec.Links = append(spec.Links, w.address)
		}
		for n := range 2 + i {
			s := mesh.ShardSpec{Pool: "all", Name: fmt.Sprintf("all-%d", n)}
			for range 2 {
				node := m.keepNode(t)
				r.kept[node.server.Address()] = node
				s.Nodes = append(s.Nodes, node.server.Address())
			}
			spec.Shards = append(spec.Shards, s)
		}
		m.regions = append(m.regions, r)
		m.spec.Regions = append(m.spec.Regions, spec)
	}
	m.write(t)
	for i, r := range m.regions {
		r.plane = m.startControlplane(t, "--region", r.name, "--state", m.dir+"/state-"+r.name)
		for n := range sidecars {
			s := m.newSidecar(t, fmt.Sprintf("%s-%d", r.name, n), r.plane)
			s.args[slices.Index(s.args, "--region")+1] = r.name
			s.args = append(s.args, "--link", listens[sidecars*i+n])
			s.start(t)
			r.sidecars = append(r.sidecars, s)
			r.clients = append(r.clients, s.client(t))
		}
	}
	for _, r := range m.regions {
		for _, s := range r.sidecars {
			r.plane.waitSynced(t, s.name)
		}
		r.waitLinked(t)
	}
	return m
}

// status is how the other region learns of this one's writes.
func (r *linkedRegion) status() (control.LinkStatus, error) {
	s, err := get[control.RegionsStatus](r.plane.url + "/v1/regions")
	if err != nil {
		return control.LinkStatus{}, err
	}
	if len(s.Links) != 1 {
		return control.LinkStatus{}, fmt.Errorf("%d links", len(s.Links))
	}
	return s.Links[0], nil
}

// waitLinked waits until all of the region's journals arrive at the other, and no node lacks a replica.
func (r *linkedRegion) waitLinked(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		l, err := r.status()
		if err != nil || l.State != control.LinkUp || l.LagMS == nil || l.Fences > 0 || slices.ContainsFunc(l.Journals, func(j control.JournalStatus) bool { return j.Cursor == "" }) {
			return fmt.Errorf("%+v, %v", l, err)
		}
		s, err := r.plane.read()
		if err != nil {
			return err
		}
		for _, row := range s.Shards {
			for _, n := range row.Nodes {
				if !n.Up || n.Role == string(mesh.Replica) && (n.Replication == nil || !n.Replication.Linked) {
					return fmt.Errorf("%s: %+v", row.Name, n)
				}
			}
		}
		return nil
	})
}

func (r *linkedRegion) primary(t *testing.T, shard string) string {
	t.Helper()
	s, err := r.plane.read()
	if err != nil {
		t.Fatal(err)
	}
	_, address, err := shardOf(s, shard)
	if err != nil || address == "" {
		t.Fatalf("%s has no primary: %v", shard, err)
	}
	return address
}

// set writes values in both regions.
func (m *linkedRegions) set(t *testing.T, keys ...string) {
	t.Helper()
	for _, r := range m.regions {
		eventually(t, 10*time.Second, func() error {
			_, err := r.clients[0].Pipelined(t.Context(), func(p redis.Pipeliner) error {
				for _, k := range keys {
					p.Set(t.Context(), k, "old", 0)
				}
				return nil
			})
			return err
		})
	}
}

// remove deletes keys in the first region, through both sidecars, and returns those whose removal was acknowledged.
func (m *linkedRegions) remove(t *testing.T, keys ...string) (done []string) {
	t.Helper()
	for i, k := range keys {
		if m.regions[0].clients[i%2].Del(t.Context(), k).Err() == nil {
			done = append(done, k)
		}
	}
	return done
}

// gone waits until a region has none of the keys.
func (r *linkedRegion) gone(t *testing.T, within time.Duration, keys ...string) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, within, func() error {
		var asked []*redis.IntCmd
		if _, err := r.clients[1].Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for _, k := range keys {
				asked = append(asked, p.Exists(t.Context(), k))
			}
			return nil
		}); err != nil {
			return err
		}
		for i, a := range asked {
			if a.Val() != 0 {
				return fmt.Errorf("%s is still in region %s", keys[i], r.name)
			}
		}
		return nil
	})
	return time.Since(began)
}

func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("user:%s:%d", prefix, i)
	}
	return all
}

func TestARemovalReachesTheOtherRegion(t *testing.T) {
	m := newLinkedRegions(t, 2)
	here, there := m.regions[0], m.regions[1]
	keys := names("a", 300)
	m.set(t, keys...)
	var lags []time.Duration
	for _, k := range keys[:100] {
		m.remove(t, k)
		began := time.Now()
		for there.clients[0].Exists(t.Context(), k).Val() != 0 {
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s is there after 10 s", k)
			}
		}
		lags = append(lags, time.Since(began))
	}
	slices.Sort(lags)
	t.Logf("from a removal's reply until the other region has the key no more: median %v, most %v", lags[50], lags[99])
	if lags[50] > 100*time.Millisecond {
		t.Errorf("the median is %v", lags[50])
	}
	// A refill stays at home, and the other direction works, too.
	m.set(t, keys[:100]...)
	if there.clients[1].Exists(t.Context(), keys[:100]...).Val() != 100 {
		t.Error("a refill removed a key elsewhere")
	}
	if err := there.clients[0].Del(t.Context(), keys[150]).Err(); err != nil {
		t.Fatal(err)
	}
	here.gone(t, 10*time.Second, keys[150])

	// The regions part.
	for _, r := range m.regions {
		for _, w := range r.links {
			w.cut()
		}
	}
	eventually(t, 10*time.Second, func() error {
		if l, err := here.status(); err != nil || l.State != control.LinkDown || l.Problem == "" {
			return fmt.Errorf("%+v, %v", l, err)
		}
		return nil
	})
	parted := names("b", 2000)
	m.set(t, parted...)
	if done := m.remove(t, parted...); len(done) != len(parted) {
		t.Errorf("%d of %d removals were acknowledged", len(done), len(parted))
	}
	if n := there.clients[0].Exists(t.Context(), parted[0], parted[1999]).Val(); n != 2 {
		t.Errorf("a partition that lets %d removals through", 2-n)
	}
	for _, r := range m.regions {
		for _, w := range r.links {
			w.mend()
		}
	}
	t.Logf("%d removals after a partition: %v", len(parted), there.gone(t, 20*time.Second, parted...))
	here.waitLinked(t)

	// Whoever follows the journals is killed.
	l, err := here.status()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(here.sidecars, func(s *sidecar) bool { return s.name == l.Journals[0].Agent })
	for n, j := range l.Journals {
		t.Logf("%s is followed by %s", j.Shard, l.Journals[n].Agent)
	}
	late := names("c", 200)
	m.set(t, late...)
	if err := here.sidecars[i].process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var done []string
	for _, k := range late {
		if here.clients[1-i].Del(t.Context(), k).Err() == nil {
			done = append(done, k)
		}
	}
	if len(done) != len(late) {
		t.Errorf("%d of %d removals through the other sidecar were acknowledged", len(done), len(late))
	}
	took := there.gone(t, 10*time.Second, done...)
	t.Logf("after its agent was killed, another took over within %v", took)
	if l, err = here.status(); err != nil || l.Gaps > 0 {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestALostJournalIsFenced(t *testing.T) {
	m := newLinkedRegions(t, 2)
	here, there := m.regions[0], m.regions[1]
	keys := names("a", 400)
	m.set(t, keys...)
	var its []string
	for i, at := range here.plane.where(t, keys...) {
		if at.Shard == "all-0" {
			its = append(its, keys[i])
		}
	}
	if err := there.clients[0].Set(t.Context(), "local", "stays", 0).Err(); err != nil {
		t.Fatal(err)
	}
	node := newClient(t, &redis.Options{Addr: here.primary(t, "all-0")})
	epoch := node.Get(t.Context(), "cachemesh:epoch").Val()
	if n := node.Del(t.Context(), "cachemesh:journal:"+epoch).Val(); n != 1 {
		t.Fatal("there was no journal")
	}
	t.Logf("fenced within %v", there.gone(t, 30*time.Second, its...))
	if n := there.clients[0].Exists(t.Context(), keys...).Val(); int(n) != len(keys)-len(its) {
		t.Errorf("%d keys are left, want %d", n, len(keys)-len(its))
	}
	if there.clients[0].Get(t.Context(), "local").Val() != "stays" {
		t.Error("a key of a local route was fenced")
	}
	eventually(t, 10*time.Second, func() error {
		all := readEvents(t, http.DefaultClient, here.plane.url)
		if count(all, shards.Gap) != 1 || count(all, shards.Fence) != 1 {
			return fmt.Errorf("%d gaps and %d fences among the events", count(all, shards.Gap), count(all, shards.Fence))
		}
		return nil
	})
	if l, err := here.status(); err != nil || l.Gaps != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	// What comes afterwards is journaled again.
	m.set(t, its...)
	m.remove(t, its...)
	there.gone(t, 10*time.Second, its...)
}

// Failovers on either side, while removals go on: what was acknowledged is gone in the other region, at the latest when a fence was needed.
func TestFailoversLoseNoRemoval(t *testing.T) {
	m := newLinkedRegions(t, 2)
	for _, side := range []int{0, 1} {
		keys := names(fmt.Sprint("f", side), 3000)
		m.set(t, keys...)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		var done []string
		var work sync.WaitGroup
		for half := range 2 {
			work.Go(func() {
				for _, k := range keys[half*1500 : half*1500+1500] {
					if m.regions[0].clients[half].Del(ctx, k).Err() == nil {
						mu.Lock()
						done = append(done, k)
						mu.Unlock()
					}
					time.Sleep(2 * time.Millisecond)
				}
			})
		}
		eventually(t, 20*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(done) < 500 {
				return fmt.Errorf("%d removals", len(done))
			}
			return nil
		})
		r := m.regions[side]
		r.kept[r.primary(t, "all-1")].signal(t, syscall.SIGKILL)
		work.Wait()
		if len(done) < 1000 {
			t.Errorf("only %d removals were acknowledged", len(done))
		}
		took := m.regions[1].gone(t, 30*time.Second, done...)
		l, err := m.regions[0].status()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("a failover in region %s: %d removals acknowledged, all elsewhere after %v, %d gaps", r.name, len(done), took, l.Gaps)
		m.regions[0].gone(t, 10*time.Second, done...)
	}
}

// An agent and a primary are lost together: nobody knows what was written last, so both regions remove all that may be stale.
func TestALostTailIsFencedInBothRegions(t *testing.T) {
	m := newLinkedRegions(t, 3) // two of which can say that a primary is down
	here, there := m.regions[0], m.regions[1]
	keys := names("a", 400)
	m.set(t, keys...)
	var its []string
	for i, at := range here.plane.where(t, keys...) {
		if at.Shard == "all-1" {
			its = append(its, keys[i])
		}
	}
	if err := here.sidecars[0].process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	here.kept[here.primary(t, "all-1")].signal(t, syscall.SIGKILL)
	t.Logf("gone elsewhere within %v", there.gone(t, 30*time.Second, its...))
	here.gone(t, 10*time.Second, its...)
	if n := here.clients[1].Exists(t.Context(), keys...).Val(); int(n) != len(keys)-len(its) {
		t.Errorf("%d keys are left at home, want %d", n, len(keys)-len(its))
	}
	eventually(t, 10*time.Second, func() error {
		if n := count(readEvents(t, http.DefaultClient, here.plane.url), shards.Fence); n != 2 {
			return fmt.Errorf("%d fences among the events", n)
		}
		return nil
	})
}
