package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	control "github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// signal sends a signal to the node's process.
func (n *keptNode) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// client speaks to the node itself.
func (n *keptNode) client(t *testing.T) *redis.Client {
	t.Helper()
	return newClient(t, &redis.Options{Addr: n.server.Address(), Protocol: 2})
}

// replication is what the node says of it.
func replication(ctx context.Context, node *redis.Client) (map[string]string, error) {
	info, err := node.InfoMap(ctx, "replication").Result()
	return info["Replication"], err
}

// read asks a control plane's API, without starting a command each time.
func (c *controlplane) read() (control.Status, error) { return readStatus(http.DefaultClient, c.url) }

func readStatus(client *http.Client, url string) (s control.Status, err error) {
	response, err := client.Get(url + "/v1/status")
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}

// readEvents are all that a control plane knows, the oldest first.
func readEvents(t *testing.T, client *http.Client, url string) (all []shards.Event) {
	t.Helper()
	response, err := client.Get(url + "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for lines := json.NewDecoder(response.Body); lines.More(); {
		var e shards.Event
		if err := lines.Decode(&e); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// kinds are those of the events of a shard, without what tells of replicas and leaders only.
func kinds(all []shards.Event, shard string) (kinds []shards.Kind) {
	for _, e := range all {
		if e.Shard == shard && e.Kind != shards.NodeLost && e.Kind != shards.NodeReturned {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds
}

func count(all []shards.Event, kind shards.Kind) (n int) {
	for _, e := range all {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// shardOf is a shard's row, and the address of its primary, "" if it has none.
func shardOf(s control.Status, name string) (row control.ShardStatus, primary string, err error) {
	i := slices.IndexFunc(s.Shards, func(r control.ShardStatus) bool { return r.Name == name })
	if i < 0 {
		return row, "", fmt.Errorf("there is no shard %q in %+v", name, s.Shards)
	}
	row = s.Shards[i]
	for _, n := range row.Nodes {
		if n.Role == string(mesh.Primary) && row.StandIn != mesh.Null {
			primary = n.Address
		}
	}
	return row, primary, nil
}

// settled is nil when a shard is under no change, and all of its nodes but the primary are in sync with it, by their own word.
func settled(ctx context.Context, s control.Status, shard string, nodes map[string]*redis.Client) error {
	row, primary, err := shardOf(s, shard)
	switch {
	case err != nil:
		return err
	case row.Change != nil || primary == "" || len(row.Witnesses) == 0:
		return fmt.Errorf("%s has the primary %q, the witnesses %v and the change %+v", shard, primary, row.Witnesses, row.Change)
	}
	for address, node := range nodes {
		r, err := replication(ctx, node)
		switch {
		case err != nil:
			return err
		case address == primary:
			if r["role"] != "master" {
				return fmt.Errorf("%s, the primary, says %v", address, r)
			}
			if epoch, err := node.Get(ctx, "cachemesh:epoch").Uint64(); err != nil || epoch != row.Epoch {
				return fmt.Errorf("%s mirrors epoch %d (%v), want %d", address, epoch, err, row.Epoch)
			}
		case r["role"] != "slave" || r["master_port"] != portOf(primary) || r["master_host"] != hostOf(primary) || r["master_link_status"] != "up":
			return fmt.Errorf("%s is no replica of %s: %v", address, primary, r)
		}
	}
	return nil
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

// checkEpochs fails the test if an epoch of a shard was given twice, or went back.
func checkEpochs(t *testing.T, all []shards.Event) {
	t.Helper()
	last := map[string]shards.Event{}
	for _, e := range all {
		switch e.Kind {
		case shards.Bootstrap, shards.Failover, shards.Switch, shards.Follow, shards.StandIn, shards.Raised, shards.Recovery:
			if before := last[e.Shard]; e.Epoch <= before.Epoch {
				t.Errorf("%s: epoch %d of the event %d comes after %d of %d", e.Shard, e.Epoch, e.ID, before.Epoch, before.ID)
			}
			last[e.Shard] = e
		}
	}
}

// oneShard is a mesh of one shard, "all-0", whose nodes are reached over ways that the test can cut.
type oneShard struct {
	*managed
	ways    map[string]*way          // by address
	clients map[string]*redis.Client // to the nodes themselves, by the address of their ways
	told    *told
}

// newOneShard starts a mesh with so many nodes and changes its file first.
func newOneShard(t *testing.T, nodes int, change func(*mesh.Mesh)) *oneShard {
	t.Helper()
	m := &oneShard{managed: &managed{testMesh: newMesh(t), kept: map[string]*keptNode{}}, ways: map[string]*way{}, clients: map[string]*redis.Client{}, told: newTold()}
	shard := mesh.ShardSpec{Pool: "all", Name: "all-0"}
	for range nodes {
		n := m.keepNode(t)
		w := newWay(t, n.server.Address())
		m.kept[w.address], m.ways[w.address], m.clients[w.address] = n, w, n.client(t)
		shard.Nodes = append(shard.Nodes, w.address)
	}
	m.spec.Pools = []mesh.PoolSpec{{Name: "all", Routes: []mesh.Route{{Prefix: ""}}}}
	m.spec.Regions[0].Shards = []mesh.ShardSpec{shard}
	if change != nil {
		change(&m.spec)
	}
	m.write(t)
	m.plane = m.startControlplane(t, "--state", m.dir+"/state")
	m.sidecar = m.startSidecar(t, "s-0", m.plane)
	m.settle(t)
	return m
}

// settle waits until the shard is well, and returns its primary and its other nodes.
func (m *oneShard) settle(t *testing.T) (primary string, others []string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		s, err := m.plane.read()
		if err != nil {
			return err
		}
		_, primary, _ = shardOf(s, "all-0")
		return settled(t.Context(), s, "all-0", m.clients)
	})
	for _, address := range m.shards()[0].Nodes {
		if address != primary {
			others = append(others, address)
		}
	}
	return primary, others
}

// check starts a checker of the shard.
func (m *oneShard) check(t *testing.T) *checker {
	t.Helper()
	c := startChecker(t, m.sidecar.client(t), "k", m.told)
	c.waitMore(t, 20)
	return c
}

func (m *oneShard) story(t *testing.T) []shards.Event {
	t.Helper()
	all := readEvents(t, http.DefaultClient, m.plane.url)
	checkEpochs(t, all)
	return all
}

// row is what the status says of the shard.
func (m *oneShard) row(t *testing.T) control.ShardStatus {
	t.Helper()
	s, err := m.plane.read()
	if err != nil {
		t.Fatal(err)
	}
	row, _, err := shardOf(s, "all-0")
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// alerted waits for an alert with this text.
func (m *oneShard) alerted(t *testing.T, text string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		s, err := m.plane.read()
		return cmpAlert(s, err, text)
	})
}

func cmpAlert(s control.Status, err error, text string) error {
	if err != nil || slices.ContainsFunc(s.Alerts, func(a alert) bool { return strings.Contains(a.Message, text) }) {
		return err
	}
	return fmt.Errorf("no alert says %q: %+v", text, s.Alerts)
}

// way is the only way to a node, for all: its address is that of the node in the mesh.
type way struct {
	address, to string

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
	trap  *trap
}

// trap is set for a message. It goes off once: before the message has been received, or after it has been answered.
type trap struct {
	command string // to a node, as it is sent, in lower case
	when    when
	spring  func()
	sprung  chan struct{}
	once    sync.Once
	// A late message is received once release is closed; delivered is closed when it has been answered.
	release, delivered chan struct{}
}

type when string

const (
	before when = "before"
	after  when = "after"
	late   when = "late" // before, and the message is received much later
)

func newTrap(command string, at when, spring func()) *trap {
	return &trap{command: command, when: at, spring: spring, sprung: make(chan struct{}), release: make(chan struct{}), delivered: make(chan struct{})}
}

func (p *trap) goOff() {
	p.once.Do(func() {
		p.spring()
		close(p.sprung)
	})
}

// received says whether the message may be received now.
func (p *trap) received() bool {
	if p.when == after {
		return true
	}
	p.goOff()
	if p.when == before {
		return false
	}
	select {
	case <-p.release:
		return true
	case <-time.After(30 * time.Second):
		return false
	}
}

// answered takes in that the message has been answered. The answer is lost.
func (p *trap) answered() {
	p.goOff()
	close(p.delivered)
}

// command is how a Redis client sends one, or the beginning of one, in lower case.
func command(words ...string) string {
	var b strings.Builder
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), strings.ToLower(w))
	}
	return b.String()
}

func newWay(t *testing.T, to string) *way {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(freePorts(t, 1)[0])))
	if err != nil {
		t.Fatal(err)
	}
	w := &way{address: l.Addr().String(), to: to, conns: map[net.Conn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { w.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.cut()
		serving.Wait()
	})
	return w
}

// cut ends all connections, and lets none come about.
func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shut = true
	for conn := range w.conns {
		conn.Close()
	}
}

func (w *way) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shut = false
}

// set makes p the trap, nil for none.
func (w *way) set(p *trap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trap = p
}

func (w *way) open(conn net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.shut {
		w.conns[conn] = true
	}
	return !w.shut
}

func (w *way) close(conn net.Conn) {
	conn.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, conn)
}

// trapped is the trap that some requests set off.
func (w *way) trapped(requests []byte) *trap {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.trap; p != nil && bytes.Contains(bytes.ToLower(requests), []byte(p.command)) {
		w.trap = nil
		return p
	}
	return nil
}

func (w *way) serve(client net.Conn) {
	defer w.close(client)
	if !w.open(client) {
		return
	}
	node, err := net.DialTimeout("tcp", w.to, time.Second)
	if err != nil {
		return
	}
	defer w.close(node)
	if !w.open(node) {
		return
	}
	caught := make(chan *trap, 1)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		defer client.Close()
		for buffer := make([]byte, 64<<10); ; {
			n, err := node.Read(buffer)
			if err != nil {
				return
			}
			select {
			case p := <-caught:
				p.answered()
				return
			default:
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	for buffer := make([]byte, 64<<10); ; {
		n, err := client.Read(buffer)
		if err != nil {
			break
		}
		if p := w.trapped(buffer[:n]); p != nil {
			if !p.received() {
				break
			}
			caught <- p
			node.Write(buffer[:n])
			<-answered
			break
		}
		if _, err := node.Write(buffer[:n]); err != nil {
			break
		}
	}
	node.Close()
	<-answered
}
