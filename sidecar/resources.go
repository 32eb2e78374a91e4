package sidecar

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/renameio/v2"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

// resources are xDS resources by type URL and name. A resource itself is never changed.
type resources map[string]map[string]*discovery.Resource

func (r resources) set(typeURL string, resource *discovery.Resource) {
	if r[typeURL] == nil {
		r[typeURL] = map[string]*discovery.Resource{}
	}
	r[typeURL][resource.Name] = resource
}

// sorted lists the resources by type and name.
func (r resources) sorted() []*discovery.Resource {
	var all []*discovery.Resource
	for _, named := range r {
		all = slices.AppendSeq(all, maps.Values(named))
	}
	slices.SortFunc(all, func(a, b *discovery.Resource) int {
		return cmp.Or(cmp.Compare(a.GetResource().GetTypeUrl(), b.GetResource().GetTypeUrl()), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// version is a hash of the types, names and versions: two sidecars with the same have the same resources.
func (r resources) version() string {
	h := sha256.New()
	for _, resource := range r.sorted() {
		fmt.Fprintf(h, "%s\x00%s\x00%s\x00", resource.GetResource().GetTypeUrl(), resource.Name, resource.Version)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// The saved file is
//
//	cachemesh-resources 1 SHA256\n   format and its version, hex digest of all that follows
//	(length message)*                length-delimited envoy.service.discovery.v3.Resource, sorted by type and name
//
// with the resources as the control plane sent them: listeners have no addresses of this sidecar.
const savedFormat = "cachemesh-resources 1 "

func (r resources) encode() ([]byte, error) {
	var body bytes.Buffer
	marshal := protodelim.MarshalOptions{MarshalOptions: proto.MarshalOptions{Deterministic: true}}
	for _, resource := range r.sorted() {
		if _, err := marshal.MarshalTo(&body, resource); err != nil {
			return nil, fmt.Errorf("resource %q: %w", resource.Name, err)
		}
	}
	return append([]byte(savedFormat+digest(body.Bytes())+"\n"), body.Bytes()...), nil
}

func decodeResources(data []byte) (resources, error) {
	header, body, _ := bytes.Cut(data, []byte("\n"))
	sum, ok := strings.CutPrefix(string(header), savedFormat)
	if !ok {
		return nil, errors.New("it does not begin as this version writes it")
	}
	if sum != digest(body) {
		return nil, errors.New("it is damaged: its digest does not match")
	}
	r := resources{}
	for in := bytes.NewReader(body); ; {
		resource := new(discovery.Resource)
		err := protodelim.UnmarshalOptions{MaxSize: int64(len(body))}.UnmarshalFrom(in, resource)
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		if err != nil {
			return nil, err
		}
		r.set(resource.GetResource().GetTypeUrl(), resource)
	}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func saveResources(path string, r resources) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, data, 0o600)
}

// loadResources returns what was saved, nil if nothing was.
func loadResources(path string) (resources, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := decodeResources(data)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, err)
	}
	return r, nil
}

// answer is the delta response with which these resources serve a request, nil if there is nothing to say.
// It carries only what differs from what Envoy says it has. first tells that the request is the stream's first for
// its type: without names it then subscribes to everything.
func (r resources) answer(req *discovery.DeltaDiscoveryRequest, first bool) *discovery.DeltaDiscoveryResponse {
	have := r[req.TypeUrl]
	known := req.InitialResourceVersions
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: req.TypeUrl}
	add := func(name string) {
		version, knows := known[name]
		switch resource, ok := have[name]; {
		case !ok:
			resp.RemovedResources = append(resp.RemovedResources, name)
		case !knows || version != resource.Version:
			resp.Resources = append(resp.Resources, resource)
		}
	}
	if wildcard(req, first) {
		names := maps.Clone(known)
		if names == nil {
			names = map[string]string{}
		}
		for name := range have {
			names[name] = ""
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			add(name)
		}
		// Envoy waits for this answer, even if it holds nothing.
		return resp
	}
	for _, name := range req.ResourceNamesSubscribe {
		add(name)
	}
	if len(resp.Resources)+len(resp.RemovedResources) == 0 {
		return nil
	}
	return resp
}

func wildcard(req *discovery.DeltaDiscoveryRequest, first bool) bool {
	return first && len(req.ResourceNamesSubscribe) == 0 || slices.Contains(req.ResourceNamesSubscribe, "*")
}
