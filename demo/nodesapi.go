package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// NodesRequest is the body of POST /v1/nodes, which starts Redis nodes for a new shard and answers with NodesAnswer. The demo owns its
// Redis processes, so who adds a shard without nodes asks it, and who replaces nodes.
type NodesRequest struct {
	Region  string `json:"region"`
	Pool    string `json:"pool"`
	Shard   string `json:"shard"`
	Another bool   `json:"another,omitempty"` // one more node for a shard that is there
	Stop    string `json:"stop,omitempty"`    // address of a node of the shard that is to go, and is stopped
}

// NodesAnswer has the addresses of nodes that were started.
type NodesAnswer struct {
	Nodes []string `json:"nodes"`
}

// mostStarted bounds the shards that a demo starts nodes for.
const mostStarted = 32

// serveNodes serves the API, on loopback, until the demo ends.
func (d *Demo) serveNodes() error {
	l, err := net.Listen("tcp", d.layout.nodesAPI)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(d.startMore), ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	d.tended.Go(func() { _ = server.Serve(l) })
	context.AfterFunc(d.running, func() { server.Close() })
	d.endpoints.Nodes = "http://" + d.layout.nodesAPI + "/v1/nodes"
	return nil
}

func (d *Demo) startMore(w http.ResponseWriter, r *http.Request) {
	refuse := func(code int, err error) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
	}
	// A page in a browser can send neither this type without being asked for permission, nor anything without an Origin.
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if r.Method != http.MethodPost || r.URL.Path != "/v1/nodes" || kind != "application/json" || r.Header.Get("Origin") != "" {
		refuse(http.StatusBadRequest, errors.New("want POST /v1/nodes with Content-Type: application/json"))
		return
	}
	var body NodesRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&body); err != nil {
		refuse(http.StatusBadRequest, err)
		return
	}
	addresses, err := d.carryOut(r.Context(), body)
	if err != nil {
		refuse(http.StatusConflict, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(NodesAnswer{addresses})
}

// carryOut starts nodes, or stops one.
func (d *Demo) carryOut(ctx context.Context, r NodesRequest) (addresses []string, err error) {
	i := slices.IndexFunc(d.layout.regions, func(l regionLayout) bool { return l.name == r.Region })
	if i < 0 {
		return nil, fmt.Errorf("there is no region %q in the demo", r.Region)
	}
	named := mesh.Registration{Pool: r.Pool, Shard: r.Shard, Address: "127.0.0.1:1"}
	if err := named.Validate(); err != nil {
		return nil, err
	}
	if r.Stop != "" {
		return nil, d.stopNode(ctx, i, r)
	}
	d.mu.Lock()
	full := len(d.started) >= mostStarted*nodesPerShard
	d.mu.Unlock()
	if full {
		return nil, fmt.Errorf("the demo has started nodes for %d shards: name others with --node", mostStarted)
	}
	count := nodesPerShard
	if r.Another {
		count = 1
	}
	ports, err := process.FreePorts(count)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, port := range ports {
		n := nodeLayout{pool: r.Pool, shard: r.Shard, port: port}
		addresses = append(addresses, n.address())
		group.Go(func() error { return d.startNode(ctx, r.Region, n) })
	}
	if err := group.Wait(); err != nil || !r.Another {
		return addresses, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return addresses, d.list(ctx, i, r, addresses[0], true)
}

// stopNode takes a node out of its shard and ends its process.
func (d *Demo) stopNode(ctx context.Context, region int, r NodesRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.IndexFunc(d.processes, func(p *process.Process) bool { return p.PID() == d.pids[r.Stop] })
	if i < 0 {
		return fmt.Errorf("%s is no node that the demo runs", r.Stop)
	}
	if err := d.list(ctx, region, r, r.Stop, false); err != nil {
		return err
	}
	p := d.processes[i]
	d.processes = slices.Delete(d.processes, i, i+1)
	d.tended.Go(func() { p.Kill() })
	return nil
}

// list has the control planes know of a node, or forget it. The caller holds the lock.
func (d *Demo) list(ctx context.Context, region int, r NodesRequest, address string, add bool) error {
	if d.layout.options.consul() {
		client, err := consul.New(mesh.ConsulSpec{Address: d.layout.regions[region].consul.Address()})
		if err != nil {
			return err
		}
		defer client.Close()
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		id := r.Shard + "-" + port
		if !add {
			return client.Deregister(ctx, id)
		}
		return client.Register(ctx, mesh.Registration{ID: id, Pool: r.Pool, Shard: r.Shard, Address: address})
	}
	listed := &d.layout.mesh.Regions[region].Shards
	i := slices.IndexFunc(*listed, func(s mesh.ShardSpec) bool { return s.Name == r.Shard })
	if i < 0 {
		// One that was added later. Its ring is not mesh.yaml's.
		i = len(*listed)
		spec := mesh.ShardSpec{Pool: r.Pool, Name: r.Shard}
		for _, n := range d.started {
			if n.shard == r.Shard && n.region == r.Region && n.address() != address {
				spec.Nodes = append(spec.Nodes, n.address())
			}
		}
		*listed = append(*listed, spec)
	}
	shard := &(*listed)[i]
	if add {
		shard.Nodes = append(shard.Nodes, address)
	} else {
		shard.Nodes = slices.DeleteFunc(shard.Nodes, func(a string) bool { return a == address })
	}
	return d.layout.writeMesh()
}

// startNode starts a node that is not of the layout.
func (d *Demo) startNode(ctx context.Context, region string, n nodeLayout) error {
	p, err := d.layout.redis(n).Start(ctx)
	if err != nil {
		return err
	}
	d.keep(p)
	d.setPID(n, p)
	d.mu.Lock()
	d.started = append(d.started, startedNode{n, region})
	d.mu.Unlock()
	d.tended.Go(func() { d.tend(n, p) })
	return nil
}

// startedNode is one that was started later.
type startedNode struct {
	nodeLayout
	region string
}

// meet has the meters and the endpoints know of nodes that were started later.
func (d *Demo) meet(meters []*regionMeter) {
	d.mu.Lock()
	started := slices.Clone(d.started)
	d.mu.Unlock()
	for i, m := range meters {
		for _, n := range started {
			if n.region != m.layout.name || m.nodes[n.address()] != nil {
				continue
			}
			options, err := d.layout.redis(n.nodeLayout).Options()
			if err != nil {
				continue // it could not have started
			}
			options.ReadTimeout = time.Second
			m.nodes[n.address()] = redis.NewClient(options)
			shards := &d.endpoints.Regions[i].Shards
			at := slices.IndexFunc(*shards, func(s ShardEndpoints) bool { return s.Name == n.shard })
			if at < 0 {
				at = len(*shards)
				*shards = append(*shards, ShardEndpoints{Pool: n.pool, Name: n.shard})
			}
			(*shards)[at].Nodes = append((*shards)[at].Nodes, NodeEndpoints{Address: n.address(), Role: "down"})
		}
	}
}
