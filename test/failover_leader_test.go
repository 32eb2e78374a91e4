package test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

// pair is a mesh of one shard in a region of its own, with two control planes that keep its state in Consul. The test is on the way from each
// of them to Consul, and on the way from everybody to each node.
type pair struct {
	*testMesh
	shard   string
	planes  []*controlplane
	consuls []*consulWay // of each control plane
	kept    map[string]*keptNode
	ways    map[string]*way
	clients map[string]*redis.Client
	sidecar *sidecar
	checker *checker
}

func newPair(t *testing.T, name string, consul process.Consul) *pair {
	t.Helper()
	p := &pair{testMesh: newMesh(t), shard: name + "-0", kept: map[string]*keptNode{}, ways: map[string]*way{}, clients: map[string]*redis.Client{}}
	p.spec.Pools = []mesh.PoolSpec{{Name: name, Routes: []mesh.Route{{Prefix: ""}}}}
	p.spec.Regions[0] = mesh.RegionSpec{Name: name, Datacenter: region, Shards: []mesh.ShardSpec{{Pool: name, Name: p.shard}}}
	p.spec.Health.DownAfter = 600 * time.Millisecond // many of them start at once
	p.spec.Membership.Consul = &mesh.ConsulSpec{Address: consul.Address()}
	p.write(t)
	for range 2 {
		n := p.keepNode(t)
		w := newWay(t, n.server.Address())
		p.kept[w.address], p.ways[w.address], p.clients[w.address] = n, w, n.client(t)
		invocation{args: []string{"shard", "register", "--pool", name, "--shard", p.shard, "--address", w.address, "--consul", consul.Address()}}.run(t).want(t, 0)
	}
	for i := range 2 {
		w := newConsulWay(t, consul.Address())
		c := p.newControlplane(t, "--consul", w.address, "--state", fmt.Sprintf("%s/state-%d", p.dir, i))
		c.start(t)
		p.consuls, p.planes = append(p.consuls, w), append(p.planes, c)
	}
	p.sidecar = p.newSidecar(t, name, p.planes...)
	p.sidecar.args = append(p.sidecar.args, "--region", name)
	p.sidecar.start(t)
	p.settle(t)
	p.checker = startChecker(t, p.sidecar.client(t), "k", newTold())
	p.checker.waitMore(t, 20)
	return p
}

// leader is the one that says that it leads.
func (p *pair) leader() (int, error) {
	for i, c := range p.planes {
		if s, err := c.read(); err == nil && s.Leader.Leading {
			return i, nil
		}
	}
	return 0, errors.New("no control plane says that it leads")
}

// settle waits until the shard is well and one control plane leads, and returns which, and the shard's primary.
func (p *pair) settle(t *testing.T) (leader int, primary string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		var err error
		if leader, err = p.leader(); err != nil {
			return err
		}
		s, err := p.planes[leader].read()
		if err != nil {
			return err
		}
		_, primary, _ = shardOf(s, p.shard)
		return settled(t.Context(), s, p.shard, p.clients)
	})
	return leader, primary
}

func (p *pair) story(t *testing.T, plane int) []shards.Event {
	t.Helper()
	all := readEvents(t, http.DefaultClient, p.planes[plane].url)
	checkEpochs(t, all)
	return all
}

// consulWay is a control plane's way to Consul.
type consulWay struct {
	address string

	mu   sync.Mutex
	trap *consulTrap
	open context.Context // ends when the way is cut
	end  context.CancelFunc
}

// cut lets nothing through any more, and what waits for an answer gets none.
func (w *consulWay) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end()
}

func (w *consulWay) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open, w.end = context.WithCancel(context.Background())
}

func (w *consulWay) serve(out http.ResponseWriter, in *http.Request, next http.Handler) {
	w.mu.Lock()
	open := w.open
	w.mu.Unlock()
	ctx, end := context.WithCancel(in.Context())
	defer end()
	defer context.AfterFunc(open, end)()
	next.ServeHTTP(out, in.WithContext(ctx))
}

// consulTrap is set for the write of a state.
type consulTrap struct {
	*trap
	is func(shards.State) bool
}

func newConsulWay(t *testing.T, consul string) *consulWay {
	t.Helper()
	w := &consulWay{address: freeAddresses(t, 1)[0]}
	w.mend()
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: consul})
	transport := &http.Transport{MaxIdleConnsPerHost: 10}
	forward.Transport = transport
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	server := &http.Server{Addr: w.address, Handler: http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		p := w.trapped(in)
		if p == nil {
			w.serve(out, in, forward)
			return
		}
		if p.received() {
			answer, err := transport.RoundTrip(toConsul(in, consul))
			if err == nil {
				answer.Body.Close()
			}
			p.answered()
		}
		panic(http.ErrAbortHandler)
	})}
	listening := make(chan error, 1)
	go func() { listening <- server.ListenAndServe() }()
	t.Cleanup(func() {
		server.Close()
		<-listening
		transport.CloseIdleConnections()
	})
	return w
}

// toConsul is a request as it is to be sent on.
func toConsul(in *http.Request, consul string) *http.Request {
	out := in.Clone(context.Background())
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", consul
	return out
}

func (w *consulWay) set(p *consulTrap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trap = p
}

// trapped is the trap that a request sets off.
func (w *consulWay) trapped(in *http.Request) *consulTrap {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trap == nil || in.URL.Path != "/v1/txn" {
		return nil
	}
	body, err := io.ReadAll(in.Body)
	in.Body = io.NopCloser(bytes.NewReader(body))
	if err != nil {
		return nil
	}
	s, err := stateIn(body)
	if err != nil || !w.trap.is(s) {
		return nil
	}
	p := w.trap
	w.trap = nil
	return p
}

// stateIn is the state that a transaction writes.
func stateIn(body []byte) (s shards.State, err error) {
	var operations []struct{ KV struct{ Value []byte } }
	if err := json.Unmarshal(body, &operations); err != nil || len(operations) != 2 {
		return s, fmt.Errorf("%d operations, %w", len(operations), err)
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(operations[1].KV.Value))
	if err != nil {
		return s, err
	}
	var record struct{ State shards.State }
	err = json.NewDecoder(unpacked).Decode(&record)
	return record.State, err
}

// moment is when in a change the leader is killed: at a command to a node, or at the write of a state.
type moment struct {
	when    when
	change  shards.Kind  // Failover, Switch, or Demoted: the old primary's return
	command string       // to which of the nodes does not matter
	phase   shards.Phase // of the shard in the state that is written
}

func (m moment) String() string {
	at := m.command
	if at == "" {
		at = "writing " + string(m.phase)
	}
	if m.phase == "" && m.command == "" {
		at = "writing the end"
	}
	return strings.NewReplacer("\r\n", " ", "$", "").Replace(fmt.Sprint(m.change, ", ", m.when, " ", at))
}

// moments are all of a failover, of the old primary's return and of a switch.
func moments() (all []moment) {
	for _, at := range []when{before, after, late} {
		for _, change := range []shards.Kind{shards.Failover, shards.Switch} {
			phases := []shards.Phase{shards.Promoting, shards.Serving, ""}
			if change == shards.Switch {
				phases[0] = shards.Holding
			}
			for _, phase := range phases {
				all = append(all, moment{at, change, "", phase})
			}
			for _, c := range []string{command("replicaof", "no"), command("set", "cachemesh:epoch")} {
				all = append(all, moment{at, change, c, ""})
			}
		}
		all = append(all, moment{at, shards.Demoted, command("replicaof", "127.0.0.1"), ""})
		for _, c := range []string{command("client", "pause"), command("replicaof", "127.0.0.1"), command("client", "unpause")} {
			all = append(all, moment{at, shards.Switch, c, ""})
		}
	}
	return all
}

// kill begins a change, kills the leader at a moment of it, and waits until the other control plane has brought it to an end.
func (p *pair) kill(t *testing.T, at moment) {
	t.Helper()
	leader, primary := p.settle(t)
	past := p.story(t, leader)
	lost := p.checker.lost.Load()
	victim := p.planes[leader]
	once := newTrap(at.command, at.when, func() { victim.process.Signal(syscall.SIGKILL) })
	var asking sync.WaitGroup
	defer asking.Wait()
	begin := func() {
		t.Helper()
		if at.change == shards.Switch {
			asking.Go(func() { p.ask(leader, once.sprung) })
			return
		}
		p.kept[primary].kill(t)
	}
	if at.change == shards.Demoted {
		begin()
		eventually(t, 10*time.Second, func() error {
			if now := p.story(t, leader); count(now, shards.Failover) == count(past, shards.Failover) {
				return errors.New("no failover yet")
			}
			return nil
		})
		begin = func() { p.kept[primary] = p.keepAgain(t, p.kept[primary]) }
	}

	if at.command != "" {
		for _, w := range p.ways {
			w.set(once)
		}
	} else {
		p.writing(leader, at, epochOf(past), once)
	}
	begin()
	select {
	case <-once.sprung:
	case <-time.After(15 * time.Second):
		t.Fatalf("the leader did not come to that: %+v", kinds(p.story(t, leader), p.shard))
	}
	<-victim.process.Done()
	for _, w := range p.ways {
		w.set(nil)
	}
	other := 1 - leader
	eventually(t, 20*time.Second, func() error {
		if s, err := p.planes[other].read(); err != nil || !s.Leader.Leading {
			return fmt.Errorf("the other control plane does not lead: %+v, %v", s.Leader, err)
		}
		return nil
	})
	p.checker.waitMore(t, 20)
	if at.change == shards.Failover {
		p.kept[primary] = p.keepAgain(t, p.kept[primary])
	}
	victim.start(t)
	_, now := p.settle(t)
	if at.when == late {
		close(once.release)
		select {
		case <-once.delivered:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the late message has no answer", at)
		}
		p.checker.waitMore(t, 20)
		_, next := p.settle(t)
		if next != now {
			t.Errorf("%s: the late message made %s the primary, %s was", at, next, now)
		}
	}
	story := p.story(t, other)
	switch {
	case at.change != shards.Switch && now == primary:
		t.Errorf("%s is the primary again", now)
	case at.change != shards.Switch && count(story, shards.Failover) != count(past, shards.Failover)+1:
		t.Errorf("the failovers are %v, were %v", kinds(story, p.shard), kinds(past, p.shard))
	case at.change == shards.Switch && now != primary && count(story, shards.Switch) == count(past, shards.Switch):
		t.Errorf("the switch is not in %v", kinds(story, p.shard))
	case at.change == shards.Switch && p.checker.lost.Load() > lost:
		t.Errorf("%s: %d acknowledged writes were lost", at, p.checker.lost.Load()-lost)
	}
}

// ask asks for a switch until one is begun: the leader may not have seen yet that the replica is in sync.
func (p *pair) ask(plane int, begun <-chan struct{}) {
	for {
		answer, err := http.Post(p.planes[plane].url+"/v1/shards/"+p.shard+"/switch", "application/json", strings.NewReader("{}"))
		if err != nil {
			return
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusConflict {
			return
		}
		select {
		case <-begun:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// writing sets a trap for the write of a shard's state in a phase of a change after an epoch.
func (p *pair) writing(plane int, at moment, epoch uint64, once *trap) {
	begun := false
	p.consuls[plane].set(&consulTrap{once, func(s shards.State) bool {
		change := s.Shards[p.shard].Change
		if change != nil && change.Epoch > epoch {
			begun = true
			return at.phase == change.Phase
		}
		return begun && at.phase == "" && change == nil
	}})
}

// epochOf is the highest in a story.
func epochOf(all []shards.Event) (epoch uint64) {
	for _, e := range all {
		epoch = max(epoch, e.Epoch)
	}
	return epoch
}

func TestLeaderKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	server, _ := newMesh(t).startConsul(t)
	all := moments()
	const pairs = 9
	t.Run("pairs", func(t *testing.T) {
		var running sync.WaitGroup
		defer running.Wait()
		for i := range pairs {
			running.Go(func() {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					p := newPair(t, fmt.Sprintf("pair%d", i), server)
					for n := i; n < len(all); n += pairs {
						at := all[n]
						began := time.Now()
						p.kill(t, at)
						t.Logf("%s: %s", at, time.Since(began).Round(100*time.Millisecond))
					}
					p.checker.finish(t)
				})
			})
		}
	})
}
