// Package envoy turns a region's topology into what Envoy understands: clusters, endpoints, listeners and
// the bootstrap. Building is pure and deterministic: the same topology gives the same bytes, and each
// resource's version is a hash of its content.
//
// It never talks to an Envoy, and it alone imports the Envoy protos that it builds.
package envoy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cachemesh/cachemesh/mesh"
)

// The resource types that cachemesh serves.
const (
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SecretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

// Resources is everything that a region's Envoys are served. Each slice is sorted by name and shared: do not change it.
type Resources struct {
	Version   string // hash of all names and versions
	Clusters  []*discovery.Resource
	Endpoints []*discovery.Resource // one for each cluster, under its name
	Secrets   []*discovery.Resource // those that clusters with TLS refer to: paths of files, and nothing that is in them
	Listeners []*discovery.Resource // without addresses: see PlaceListeners
	// Names lists, for each listener, the clusters that its routes name.
	Names map[string][]string
	// SecretNames lists, for each cluster with TLS, the secrets that it refers to.
	SecretNames map[string][]string
}

// Build makes the resources of a topology. It fails on what Envoy would refuse, or accept and then
// fail requests over: see Consistent.
func Build(t mesh.Topology) (*Resources, error) {
	r := &Resources{Names: map[string][]string{}, SecretNames: map[string][]string{}}
	var errs []error
	add := func(to *[]*discovery.Resource, name string, m validated) {
		resource, err := newResource(name, m)
		errs = append(errs, err)
		*to = append(*to, resource)
	}
	for _, p := range t.Pools {
		if _, err := Ring(p); err != nil {
			errs = append(errs, fmt.Errorf("pool %q: %w", p.Name, err))
		}
		var names []string
		for _, s := range secrets(p) {
			add(&r.Secrets, s.Name, s)
			names = append(names, s.Name)
		}
		for _, c := range clusters(p) {
			add(&r.Clusters, c.Name, c)
			r.SecretNames[c.Name] = names
		}
		for _, e := range endpoints(t, p) {
			add(&r.Endpoints, e.ClusterName, e)
		}
	}
	for _, l := range listeners(t) {
		add(&r.Listeners, l.Name, l)
		r.Names[l.Name] = clusterNames(t)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	r.seal()
	if err := r.Consistent(); err != nil {
		return nil, err
	}
	return r, nil
}

// Consistent says whether every cluster has its endpoints and every cluster that a route names exists.
// Envoy accepts a route to a cluster that does not exist, and fails its requests.
func (r *Resources) Consistent() error {
	clusters, endpoints := nameSet(r.Clusters), nameSet(r.Endpoints)
	for name := range clusters {
		if !endpoints[name] {
			return fmt.Errorf("cluster %q has no endpoints", name)
		}
	}
	for name := range endpoints {
		if !clusters[name] {
			return fmt.Errorf("endpoints %q belong to no cluster", name)
		}
	}
	for listener, names := range r.Names {
		for _, name := range names {
			if !clusters[name] {
				return fmt.Errorf("listener %q routes to cluster %q, which does not exist", listener, name)
			}
		}
	}
	return nil
}

// ByType returns the resources of a type, nil for a type that is not served.
func (r *Resources) ByType(typeURL string) []*discovery.Resource {
	switch typeURL {
	case ClusterType:
		return r.Clusters
	case EndpointType:
		return r.Endpoints
	case SecretType:
		return r.Secrets
	case ListenerType:
		return r.Listeners
	}
	return nil
}

// seal sorts the resources and computes the version of the whole.
func (r *Resources) seal() {
	h := sha256.New()
	for _, resources := range [][]*discovery.Resource{r.Clusters, r.Endpoints, r.Secrets, r.Listeners} {
		slices.SortFunc(resources, func(a, b *discovery.Resource) int { return cmp.Compare(a.Name, b.Name) })
		for _, resource := range resources {
			fmt.Fprintf(h, "%s\x00%s\x00", resource.Name, resource.Version)
		}
		h.Write([]byte{1})
	}
	r.Version = hex.EncodeToString(h.Sum(nil))[:12]
}

type validated interface {
	proto.Message
	ValidateAll() error
}

func newResource(name string, m validated) (*discovery.Resource, error) {
	if err := m.ValidateAll(); err != nil {
		return nil, fmt.Errorf("resource %q: %w", name, err)
	}
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("resource %q: %w", name, err)
	}
	return &discovery.Resource{Name: name, Version: contentHash(packed.Value), Resource: packed}, nil
}

func contentHash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// pack wraps a message of ours, which always marshals, and always into the same bytes.
func pack(m proto.Message) *anypb.Any {
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err)
	}
	return packed
}

func nameSet(resources []*discovery.Resource) map[string]bool {
	set := make(map[string]bool, len(resources))
	for _, r := range resources {
		set[r.Name] = true
	}
	return set
}

var (
	_ validated = (*clusterv3.Cluster)(nil)
	_ validated = (*endpointv3.ClusterLoadAssignment)(nil)
	_ validated = (*listenerv3.Listener)(nil)
)
