package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

const (
	pushPools  = 2
	pushShards = 64
	pushRegion = "home"
)

// pushKinds are the servers that are compared: ours, and go-control-plane's SnapshotCache with a snapshot for each node
// and with one for all.
var pushKinds = []string{"cachemesh", "snapshotcache", "grouped_snapshotcache"}

// pushTopology is the one that is pushed. Changing generation changes the addresses of the first shards of the first pool.
func pushTopology(changed int, generation int) mesh.Topology {
	t := mesh.Topology{Region: pushRegion, OpTimeout: time.Second}
	for p := range pushPools {
		pool := mesh.Pool{Name: fmt.Sprintf("pool-%d", p), Hashing: mesh.Hashing{Algorithm: mesh.RingHash, Size: 65536},
			Routes: []mesh.Route{{Prefix: fmt.Sprintf("p%d:", p), Coherence: mesh.Local}}}
		for i := range pushShards {
			octet := 1
			if p == 0 && i < changed {
				octet = 2 + generation%250
			}
			pool.Shards = append(pool.Shards, mesh.Shard{Name: fmt.Sprintf("pool-%d-%d", p, i), Weight: 1,
				Nodes: []mesh.Node{{Address: fmt.Sprintf("10.%d.%d.%d:6379", p, i, octet), Role: mesh.Primary}}})
		}
		t.Pools = append(t.Pools, pool)
	}
	return t
}

// pushTarget is a server that a topology can be set on.
type pushTarget struct {
	register func(context.Context, *grpc.Server)
	set      func(*envoy.Resources) error
}

func newPushTarget(kind string, streams int) (pushTarget, error) {
	switch kind {
	case "cachemesh":
		s := xds.NewServer(xds.Config{Region: pushRegion, RemoveAfter: 15 * time.Second, KeepGone: time.Minute})
		return pushTarget{register: s.Register, set: func(r *envoy.Resources) error { s.Set(r); return nil }}, nil
	case "snapshotcache":
		names := make([]string, streams)
		for i := range names {
			names[i] = pushNode(i)
		}
		return snapshotTarget(cache.IDHash{}, names), nil
	case "grouped_snapshotcache":
		return snapshotTarget(oneGroup{}, []string{"all"}), nil
	}
	return pushTarget{}, fmt.Errorf("no server of kind %q", kind)
}

type oneGroup struct{}

func (oneGroup) ID(*corev3.Node) string { return "all" }

// snapshotTarget sets a snapshot for each of the names, as a control plane does that has one for each of its nodes.
func snapshotTarget(hash cache.NodeHash, names []string) pushTarget {
	snapshots := cache.NewSnapshotCache(true, hash, nil)
	return pushTarget{
		register: func(ctx context.Context, g *grpc.Server) {
			discovery.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(ctx, snapshots, nil))
		},
		set: func(r *envoy.Resources) error {
			resources := map[string][]types.Resource{}
			for _, typeURL := range []string{envoy.ClusterType, envoy.EndpointType, envoy.ListenerType} {
				for _, packed := range r.ByType(typeURL) {
					m, err := packed.Resource.UnmarshalNew()
					if err != nil {
						return err
					}
					resources[typeURL] = append(resources[typeURL], m)
				}
			}
			for _, name := range names {
				snapshot, err := cache.NewSnapshot(r.Version, resources)
				if err != nil {
					return err
				}
				if err := snapshots.SetSnapshot(context.Background(), name, snapshot); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// pushServerCommand is one of the servers, in a process of its own.
func pushServerCommand() *cobra.Command {
	var kind, xdsAddress, control string
	var streams int
	cmd := &cobra.Command{Use: "push-server", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		target, err := newPushTarget(kind, streams)
		if err != nil {
			return err
		}
		resources, err := envoy.Build(pushTopology(0, 0))
		if err == nil {
			err = target.set(resources)
		}
		if err != nil {
			return failure{err}
		}
		listener, err := net.Listen("tcp", xdsAddress)
		if err != nil {
			return failure{err}
		}
		group, ctx := errgroup.WithContext(cmd.Context())
		g := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
		target.register(ctx, g)
		context.AfterFunc(ctx, g.Stop)
		group.Go(func() error { return g.Serve(listener) })
		var changedAt atomic.Int64
		mux := controlMux()
		mux.HandleFunc("/change", func(w http.ResponseWriter, req *http.Request) {
			round, _ := strconv.Atoi(req.FormValue("round"))
			// Kinds and rounds must not bring back an earlier content.
			shards, generation := 1, 2*round
			if req.FormValue("what") == "pool" {
				shards, generation = pushShards, 2*round+1
			}
			changedAt.Store(time.Now().UnixNano())
			resources, err := envoy.Build(pushTopology(shards, generation))
			if err == nil {
				err = target.set(resources)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
		mux.HandleFunc("/changed", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(changedAt.Load()) })
		group.Go(func() error { return serveControl(ctx, control, mux) })
		return group.Wait()
	}}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "which server")
	f.StringVar(&xdsAddress, "xds", "", "where it serves xDS")
	f.StringVar(&control, "control", "", "where it is told what to do")
	f.IntVar(&streams, "streams", 0, "how many nodes there are")
	return cmd
}

func pushNode(i int) string { return fmt.Sprintf("sidecar-%05d", i) }

func controlMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) {})
	return mux
}

func serveControl(ctx context.Context, address string, handler http.Handler) error {
	s := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { s.Close() })
	if err := s.ListenAndServe(); ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}
