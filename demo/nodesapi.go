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

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// NodesRequest is the body of POST /v1/nodes, which starts Redis nodes for a new shard and answers with NodesAnswer. The demo owns its
// Redis processes, so who adds a shard without nodes asks it.
type NodesRequest struct {
	Region string `json:"region"`
	Pool   string `json:"pool"`
	Shard  string `json:"shard"`
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
	addresses, err := d.startShard(r.Context(), body)
	if err != nil {
		refuse(http.StatusConflict, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(NodesAnswer{addresses})
}

// startShard starts the nodes of another shard.
func (d *Demo) startShard(ctx context.Context, r NodesRequest) (addresses []string, err error) {
	i := slices.IndexFunc(d.layout.regions, func(l regionLayout) bool { return l.name == r.Region })
	if i < 0 {
		return nil, fmt.Errorf("there is no region %q in the demo", r.Region)
	}
	named := mesh.Registration{Pool: r.Pool, Shard: r.Shard, Address: "127.0.0.1:1"}
	if err := named.Validate(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	full := len(d.started) >= mostStarted*nodesPerShard
	d.mu.Unlock()
	if full {
		return nil, fmt.Errorf("the demo has started nodes for %d shards: name others with --node", mostStarted)
	}
	ports, err := process.FreePorts(nodesPerShard)
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
	return addresses, group.Wait()
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
