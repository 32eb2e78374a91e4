package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/google/renameio/v2"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// topologies is what this agent knows of the region's topology, for all that does not concern Envoy: policies, epochs, rings. Every
// control plane offers its own. The one that serves Envoy counts, so that Envoy and the agent follow the same; where that one
// offers none, it stays with whom it followed, and where that one has gone, with the newest. What counted last is kept on disk, and counts until there is an offer.
type topologies struct {
	region string
	plane  func() string // name of the control plane that serves Envoy; "" while none does
	log    *slog.Logger
	now    atomic.Pointer[topologyOffer]
	saves  chan *topologyOffer // holds the newest that is not yet on disk

	mu          sync.Mutex
	offers      []*topologyOffer // the newest last
	subscribers []func(*mesh.Topology)
	changed     func() // called when another counts
}

// topologyOffer is what one control plane says. It does not change.
type topologyOffer struct {
	from     any    // who says so
	name     string // of the control plane, as the agent was told
	text     []byte // JSON
	topology *mesh.Topology
}

func newTopologies(region string, plane func() string, saved *topologyOffer, log *slog.Logger) *topologies {
	t := &topologies{region: region, plane: plane, log: log, saves: make(chan *topologyOffer, 1), changed: func() {}}
	t.now.Store(saved)
	return t
}

// current is the topology that counts, nil while there is none. It does not change.
func (t *topologies) current() *mesh.Topology {
	if o := t.now.Load(); o != nil {
		return o.topology
	}
	return nil
}

// version is a hash of the topology that counts, "" while there is none.
func (t *topologies) version() string {
	if o := t.now.Load(); o != nil {
		return digest(o.text)[:12]
	}
	return ""
}

// subscribe has f called with the topology that counts, if there is one, and then with every other, one at a time. A topology counts as
// soon as all have returned: control planes learn then that this sidecar follows it.
func (t *topologies) subscribe(f func(*mesh.Topology)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subscribers = append(t.subscribers, f)
	if now := t.current(); now != nil {
		f(now)
	}
}

// offer takes in what a control plane says, or says why it cannot, and then what that one said before stays.
func (t *topologies) offer(from any, name string, text []byte) error {
	topology, err := parseTopology(t.region, text)
	if err != nil {
		return fmt.Errorf("topology: %w", err)
	}
	t.mu.Lock()
	t.drop(from)
	t.offers = append(t.offers, &topologyOffer{from: from, name: name, text: text, topology: topology})
	t.mu.Unlock()
	t.choose()
	return nil
}

// withdraw forgets what a control plane said.
func (t *topologies) withdraw(from any) {
	t.mu.Lock()
	t.drop(from)
	t.mu.Unlock()
	t.choose()
}

// drop removes an offer. The caller holds the lock.
func (t *topologies) drop(from any) {
	for i, o := range t.offers {
		if o.from == from {
			t.offers = append(t.offers[:i:i], t.offers[i+1:]...)
			return
		}
	}
}

// choose makes the best offer count. Call it when another control plane serves Envoy, too.
func (t *topologies) choose() {
	plane := t.plane()
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.now.Load()
	rank := func(o *topologyOffer) int {
		switch {
		case o.name == plane:
			return 2
		case before != nil && o.from == before.from:
			return 1
		}
		return 0
	}
	var best *topologyOffer
	for _, o := range t.offers {
		if best == nil || rank(o) >= rank(best) {
			best = o
		}
	}
	if best == nil || before != nil && bytes.Equal(before.text, best.text) {
		return
	}
	for _, f := range t.subscribers {
		f(best.topology)
	}
	t.now.Store(best)
	select {
	case <-t.saves: // a newer one replaces one that still waits
	default:
	}
	t.saves <- best
	t.changed()
}

// agreed are the endpoints that Envoy has acknowledged, without the addresses of those shards on lanes for which the topology that
// counts says otherwise: a write still goes elsewhere. It does not change what it is given.
func (t *topologies) agreed(has map[string]string, lanes map[string]bool) map[string]string {
	if len(lanes) == 0 {
		return has
	}
	known := map[string]string{}
	if now := t.current(); now != nil {
		for _, p := range now.Pools {
			for _, s := range p.Shards {
				known[s.Name] = envoy.Address(s)
			}
		}
	}
	agreed := make(map[string]string, len(has))
	for shard, address := range has {
		if lanes[shard] && known[shard] != address {
			address = ""
		}
		agreed[shard] = address
	}
	return agreed
}

// parseTopology reads what a control plane says, or what is saved. It ignores fields that this version does not know.
func parseTopology(region string, text []byte) (*mesh.Topology, error) {
	t := new(mesh.Topology)
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("it is not what this version understands: %w", err)
	}
	if t.Region != region {
		return nil, fmt.Errorf("it is of region %q, and this sidecar is of %q", t.Region, region)
	}
	for _, p := range t.Pools {
		if _, err := envoy.Ring(p); len(p.Shards) > 0 && err != nil {
			return nil, fmt.Errorf("pool %q: %w", p.Name, err)
		}
	}
	return t, nil
}

// The saved file is
//
//	cachemesh-topology 1 SHA256\n   format and its version, hex digest of all that follows
//	JSON                            mesh.Topology, as a control plane sent it
const savedTopologyFormat = "cachemesh-topology 1 "

// save writes each topology that counts to path until ctx ends, the last one included.
func (t *topologies) save(ctx context.Context, path string) error {
	write := func(o *topologyOffer) {
		data := append([]byte(savedTopologyFormat+digest(o.text)+"\n"), o.text...)
		if err := renameio.WriteFile(path, data, 0o600); err != nil {
			t.log.Error("the topology is not saved: a restart without control plane would bring up an older one", "error", err)
		}
	}
	for {
		select {
		case o := <-t.saves:
			write(o)
		case <-ctx.Done():
			select {
			case o := <-t.saves:
				write(o)
			default:
			}
			return nil
		}
	}
}

// loadTopology returns what was saved, nil if nothing was.
func loadTopology(region, path string) (*topologyOffer, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	header, text, _ := bytes.Cut(data, []byte("\n"))
	sum, ok := bytes.CutPrefix(header, []byte(savedTopologyFormat))
	switch {
	case !ok:
		err = errors.New("it does not begin as this version writes it")
	case string(sum) != digest(text):
		err = errors.New("it is damaged: its digest does not match")
	default:
		var topology *mesh.Topology
		if topology, err = parseTopology(region, text); err == nil {
			return &topologyOffer{text: text, topology: topology}, nil
		}
	}
	return nil, fmt.Errorf("%s cannot be read: %w", path, err)
}
