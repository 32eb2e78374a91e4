package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cachemesh/cachemesh/envoy"
)

// pushArrivals says when the streams had acknowledged a change, in nanoseconds of the Unix clock.
type pushArrivals struct {
	P50, P99, Last int64
	BytesPerStream float64
}

// fleet plays sidecars: each has a connection and a stream of its own, subscribes as Envoy does and acknowledges.
type fleet struct {
	mu      sync.Mutex
	changed *sync.Cond
	members []*member
}

// member is one played sidecar.
type member struct {
	fleet    *fleet
	name     string
	versions map[string]map[string]string // of what it has, by type and name
	settled  bool                         // its stream is open and it has everything
	waiting  bool                         // for a change of endpoints
	arrived  int64
	bytes    int
}

func (f *fleet) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.changed.Broadcast()
}

// wait blocks until ok holds for every member.
func (f *fleet) wait(ctx context.Context, ok func(*member) bool) error {
	stop := context.AfterFunc(ctx, func() { f.update(func() {}) })
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := 0; i < len(f.members); {
		if ctx.Err() != nil {
			return fmt.Errorf("%d of %d streams got there: %w", i, len(f.members), ctx.Err())
		}
		if ok(f.members[i]) {
			i++
			continue
		}
		f.changed.Wait()
	}
	return nil
}

// run keeps a stream open until ctx ends.
func (m *member) run(ctx context.Context, client discovery.AggregatedDiscoveryServiceClient) {
	for ctx.Err() == nil {
		m.stream(ctx, client)
		m.fleet.update(func() { m.settled = false })
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *member) stream(ctx context.Context, client discovery.AggregatedDiscoveryServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	agent, err := structpb.NewStruct(map[string]any{envoy.MetadataKey: map[string]any{"agent": "bench"}})
	if err != nil {
		return err
	}
	node := &corev3.Node{Id: m.name, Locality: &corev3.Locality{Region: pushRegion}, Metadata: agent}
	subscribe := func(typeURL string, names ...string) error {
		err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNamesSubscribe: names, InitialResourceVersions: m.versions[typeURL]})
		node = nil
		return err
	}
	names := []string{}
	for p := range pushPools {
		names = append(names, fmt.Sprintf("pool-%d", p), fmt.Sprintf("pool-%d/writes", p))
	}
	returning := len(m.versions[envoy.ListenerType]) > 0
	err = errors.Join(subscribe(envoy.ClusterType), subscribe(envoy.EndpointType, names...), subscribe(envoy.ListenerType))
	for err == nil {
		resp := new(rawResponse)
		if err = stream.RecvMsg(resp); err != nil {
			return err
		}
		if err = stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.typeURL, ResponseNonce: resp.nonce}); err != nil {
			return err
		}
		m.fleet.update(func() { m.note(resp, returning) })
	}
	return err
}

// note takes in a response that was acknowledged. A new sidecar has everything with its listeners, one that returns with
// the first answer.
func (m *member) note(resp *rawResponse, returning bool) {
	if m.versions[resp.typeURL] == nil {
		m.versions[resp.typeURL] = map[string]string{}
	}
	for name, version := range resp.versions {
		m.versions[resp.typeURL][name] = version
	}
	m.settled = m.settled || returning || resp.typeURL == envoy.ListenerType
	m.bytes += resp.size
	if m.waiting && resp.typeURL == envoy.EndpointType {
		m.waiting, m.arrived = false, time.Now().UnixNano()
	}
}

// rawResponse is what is needed of a delta response, read without unpacking it: the driver shares the machine with the
// server that it measures.
type rawResponse struct {
	typeURL, nonce string
	versions       map[string]string
	size           int
}

func (r *rawResponse) parse(data []byte) error {
	*r = rawResponse{versions: map[string]string{}, size: len(data)}
	return fields(data, func(number protowire.Number, value []byte) error {
		switch number {
		case 2:
			var name, version string
			err := fields(value, func(number protowire.Number, value []byte) error {
				switch number {
				case 1:
					version = string(value)
				case 3:
					name = string(value)
				}
				return nil
			})
			r.versions[name] = version
			return err
		case 4:
			r.typeURL = string(value)
		case 5:
			r.nonce = string(value)
		}
		return nil
	})
}

// fields walks the length-delimited fields of a message.
func fields(data []byte, each func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
				return protowire.ParseError(n)
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := each(number, value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// driverCodec sends protobuf and receives rawResponse.
type driverCodec struct{}

func (driverCodec) Name() string { return "proto" }

func (driverCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(data)}, err
}

func (driverCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return v.(*rawResponse).parse(data.Materialize())
}

var _ encoding.CodecV2 = driverCodec{}

// pushDriverCommand is the fleet, in a process of its own.
func pushDriverCommand() *cobra.Command {
	var xdsAddress, control string
	var streams int
	cmd := &cobra.Command{Use: "push-driver", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		f := &fleet{}
		f.changed = sync.NewCond(&f.mu)
		for i := range streams {
			f.members = append(f.members, &member{fleet: f, name: pushNode(i), versions: map[string]map[string]string{}})
		}
		group, ctx := errgroup.WithContext(cmd.Context())
		for _, m := range f.members {
			conn, err := grpc.NewClient(xdsAddress, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(driverCodec{})),
				grpc.WithReadBufferSize(4<<10), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(),
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 2 * time.Second}, MinConnectTimeout: 5 * time.Second}))
			if err != nil {
				return failure{err}
			}
			defer conn.Close()
			group.Go(func() error {
				m.run(ctx, discovery.NewAggregatedDiscoveryServiceClient(conn))
				return nil
			})
		}
		group.Go(func() error { return serveControl(ctx, control, f.handler()) })
		return group.Wait()
	}}
	fl := cmd.Flags()
	fl.StringVar(&xdsAddress, "xds", "", "where the server is")
	fl.StringVar(&control, "control", "", "where it is told what to do")
	fl.IntVar(&streams, "streams", 0, "how many sidecars to play")
	return cmd
}

func (f *fleet) handler() http.Handler {
	mux := controlMux()
	waitFor := func(w http.ResponseWriter, req *http.Request, ok func(*member) bool) bool {
		err := f.wait(req.Context(), ok)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return err == nil
	}
	mux.HandleFunc("/settled", func(w http.ResponseWriter, req *http.Request) {
		waitFor(w, req, func(m *member) bool { return m.settled })
	})
	mux.HandleFunc("/forget", func(w http.ResponseWriter, _ *http.Request) {
		f.update(func() {
			for _, m := range f.members {
				m.settled = false
			}
		})
	})
	mux.HandleFunc("/expect", func(http.ResponseWriter, *http.Request) {
		f.update(func() {
			for _, m := range f.members {
				m.waiting, m.bytes = true, 0
			}
		})
	})
	mux.HandleFunc("/arrived", func(w http.ResponseWriter, req *http.Request) {
		if !waitFor(w, req, func(m *member) bool { return !m.waiting }) {
			return
		}
		f.mu.Lock()
		times := make([]int64, len(f.members))
		bytes := 0
		for i, m := range f.members {
			times[i] = m.arrived
			bytes += m.bytes
		}
		f.mu.Unlock()
		slices.Sort(times)
		n := len(times)
		json.NewEncoder(w).Encode(pushArrivals{P50: times[(n-1)/2], P99: times[(n*99+99)/100-1], Last: times[n-1], BytesPerStream: float64(bytes) / float64(n)})
	})
	return mux
}
