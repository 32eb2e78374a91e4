package sidecar

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/cachemesh/cachemesh/envoy"
)

// holdings follow one Envoy's delta stream to know which resources it has: those that it acknowledged.
// They do no I/O and are not safe for concurrent use.
type holdings struct {
	held    resources // what Envoy acknowledged
	saved   resources // the last complete set of those; nil for none
	changed time.Time // when held last changed, or the agent started
	stream  map[string]*subscription
}

// subscription is what one stream has said about one type.
type subscription struct {
	wildcard bool
	names    map[string]bool                              // that Envoy should have: subscribed to, or offered and rejected
	answered bool                                         // Envoy came with resources of the type, or has acknowledged an answer
	sent     map[string]*discovery.DeltaDiscoveryResponse // not yet acknowledged, by nonce
}

func newHoldings(saved resources) *holdings {
	return &holdings{held: resources{}, saved: saved, changed: time.Now()}
}

// begin forgets the stream before: another starts.
func (h *holdings) begin() { h.stream = map[string]*subscription{} }

// unknownVersion tells a control plane that Envoy has a resource, and to send it all the same.
const unknownVersion = "?"

// request notes what Envoy says. On a type's first request it replaces the versions of those resources whose content the
// agent does not know, so that they are sent again. It returns the response that Envoy rejects, nil if it rejects none.
func (h *holdings) request(req *discovery.DeltaDiscoveryRequest) (rejected *discovery.DeltaDiscoveryResponse) {
	sub, known := h.stream[req.TypeUrl]
	if !known {
		sub = h.subscribe(req)
		h.stream[req.TypeUrl] = sub
	}
	if resp := sub.sent[req.ResponseNonce]; resp != nil {
		delete(sub.sent, req.ResponseNonce)
		if req.ErrorDetail != nil {
			// Envoy may have taken some of them, but it keeps no version of any: none counts as acknowledged.
			rejected = resp
			for _, r := range resp.Resources {
				sub.names[r.Name] = true
			}
		} else {
			sub.answered = true
			h.apply(sub, resp)
		}
	}
	if !sub.wildcard {
		for _, name := range req.ResourceNamesSubscribe {
			sub.names[name] = true
		}
		for _, name := range req.ResourceNamesUnsubscribe {
			delete(sub.names, name)
			delete(h.held[req.TypeUrl], name)
		}
	}
	return rejected
}

func (h *holdings) subscribe(req *discovery.DeltaDiscoveryRequest) *subscription {
	sub := &subscription{
		wildcard: wildcard(req, true),
		names:    map[string]bool{},
		answered: len(req.InitialResourceVersions) > 0,
		sent:     map[string]*discovery.DeltaDiscoveryResponse{},
	}
	held := map[string]*discovery.Resource{}
	for name, version := range req.InitialResourceVersions {
		for _, source := range []resources{h.held, h.saved} {
			if r := source[req.TypeUrl][name]; r != nil && r.Version == version {
				held[name] = r
			}
		}
		if held[name] == nil {
			req.InitialResourceVersions[name] = unknownVersion
			sub.answered = false
		}
	}
	h.held[req.TypeUrl] = held
	return sub
}

// response notes what is sent to Envoy, as the control plane worded it.
func (h *holdings) response(resp *discovery.DeltaDiscoveryResponse) {
	if sub := h.stream[resp.TypeUrl]; sub != nil {
		sub.sent[resp.Nonce] = resp
	}
}

// savedNonce begins the nonces of responses that come from the agent while a control plane is relayed.
const savedNonce = "saved-"

// restore returns a response with the saved resources in place of rejected ones of which Envoy has nothing older, nil if
// there are none. An Envoy that has just started would otherwise be without a listener where its neighbours serve.
func (h *holdings) restore(rejected *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryResponse {
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: rejected.TypeUrl, Nonce: savedNonce + rejected.Nonce}
	for _, r := range rejected.Resources {
		saved := h.saved[rejected.TypeUrl][r.Name]
		if saved != nil && saved.Version != r.Version && h.held[rejected.TypeUrl][r.Name] == nil {
			resp.Resources = append(resp.Resources, saved)
		}
	}
	if len(resp.Resources) == 0 {
		return nil
	}
	return resp
}

func (h *holdings) apply(sub *subscription, resp *discovery.DeltaDiscoveryResponse) {
	for _, r := range resp.Resources {
		h.held.set(resp.TypeUrl, r)
	}
	for _, name := range resp.RemovedResources {
		delete(h.held[resp.TypeUrl], name)
		if sub.wildcard {
			delete(sub.names, name)
		}
	}
	if len(resp.Resources)+len(resp.RemovedResources) > 0 {
		h.changed = time.Now()
	}
}

// endpoints are the addresses of shards as Envoy has acknowledged them, "" where its clusters differ, and which shards have lanes. A
// resource of a kind that this agent does not know counts as none.
func (h *holdings) endpoints() (all map[string]string, lanes map[string]bool) {
	all, lanes = map[string]string{}, map[string]bool{}
	for _, r := range h.held[envoy.EndpointType] {
		listed, err := envoy.Endpoints(r)
		if err != nil {
			continue
		}
		for _, e := range listed {
			if e.Lane {
				lanes[e.Shard] = true
				continue
			}
			if address, ok := all[e.Shard]; ok && address != e.Address {
				e.Address = ""
			}
			all[e.Shard] = e.Address
		}
	}
	return all, lanes
}

// orders are the shards of Envoy's clusters with their weights, in the order that makes the ring, as Envoy has acknowledged them.
func (h *holdings) orders() map[string]string {
	all := map[string]string{}
	for name, r := range h.held[envoy.EndpointType] {
		if listed, err := envoy.Endpoints(r); err == nil {
			var order []string
			for _, e := range listed {
				order = append(order, place(e.Shard, e.Weight))
			}
			all[name] = strings.Join(order, " ")
		}
	}
	return all
}

// place is a shard's on a ring.
func place(shard string, weight uint32) string { return fmt.Sprintf("%s*%d", shard, weight) }

// mayHave are the resources of a type that Envoy has acknowledged, those on their way to it, and those that it gets when no control
// plane answers.
func (h *holdings) mayHave(typeURL string) []*discovery.Resource {
	var all []*discovery.Resource
	for _, source := range []resources{h.held, h.saved} {
		all = slices.AppendSeq(all, maps.Values(source[typeURL]))
	}
	if sub := h.stream[typeURL]; sub != nil {
		for _, resp := range sub.sent {
			all = append(all, resp.Resources...)
		}
	}
	return all
}

// complete says whether Envoy has all that it asked for: it could start again with just what it holds. A cluster whose
// endpoints are missing would keep a starting Envoy waiting; each has them under its own name.
func (h *holdings) complete() bool {
	for _, typeURL := range []string{envoy.ClusterType, envoy.ListenerType} {
		if sub := h.stream[typeURL]; sub == nil || !sub.answered {
			return false
		}
	}
	for name := range h.held[envoy.ClusterType] {
		if h.held[envoy.EndpointType][name] == nil {
			return false
		}
	}
	for typeURL, sub := range h.stream {
		if len(sub.sent) > 0 {
			return false
		}
		for name := range sub.names {
			if h.held[typeURL][name] == nil {
				return false
			}
		}
	}
	return true
}

// save returns the set to be saved, nil if the holdings are incomplete or what is saved already.
func (h *holdings) save() resources {
	if !h.complete() {
		return nil
	}
	set := resources{}
	for typeURL := range h.stream {
		set[typeURL] = maps.Clone(h.held[typeURL])
	}
	if h.saved != nil && set.version() == h.saved.version() {
		return nil
	}
	h.saved = set
	return set
}
