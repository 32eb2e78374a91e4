package sidecar

import (
	"maps"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cachemesh/cachemesh/envoy"
)

// res is a resource whose content is its version.
func res(typeURL, name, version string) *discovery.Resource {
	return &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte(version)}}
}

func set(rs ...*discovery.Resource) resources {
	all := resources{}
	for _, r := range rs {
		all.set(r.Resource.TypeUrl, r)
	}
	return all
}

// String lists the resources as Type/name@version.
func (r resources) String() string {
	var all []string
	for _, resource := range r.sorted() {
		all = append(all, shortType(resource.Resource.TypeUrl)+"/"+resource.Name+"@"+resource.Version)
	}
	return strings.Join(all, " ")
}

// dialog plays an Envoy and a control plane against holdings.
type dialog struct {
	*holdings
	nonces int
}

func newDialog(saved resources) *dialog {
	d := &dialog{holdings: newHoldings(saved)}
	d.begin()
	return d
}

func (d *dialog) subscribe(typeURL string, have map[string]string, names ...string) *discovery.DeltaDiscoveryRequest {
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, InitialResourceVersions: have, ResourceNamesSubscribe: names}
	d.request(req)
	return req
}

func (d *dialog) respond(typeURL string, removed []string, rs ...*discovery.Resource) string {
	d.nonces++
	nonce := string(rune('a' + d.nonces))
	d.response(&discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, Resources: rs, RemovedResources: removed})
	return nonce
}

func (d *dialog) ack(typeURL, nonce string) {
	d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce})
}

func (d *dialog) nack(typeURL, nonce string) *discovery.DeltaDiscoveryResponse {
	return d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce, ErrorDetail: &rpcstatus.Status{Message: "no"}})
}

// want checks what would be saved now; "" for nothing new.
func (d *dialog) want(t *testing.T, when, want string) {
	t.Helper()
	if got := d.save().String(); got != want {
		t.Errorf("%s: saves %q, want %q", when, got, want)
	}
}

const (
	cds = envoy.ClusterType
	eds = envoy.EndpointType
	lds = envoy.ListenerType
)

// started is a dialog in which an Envoy has started and has one cluster, its endpoints and a listener.
func started(t *testing.T, saved resources) *dialog {
	d := newDialog(saved)
	d.subscribe(cds, nil)
	nonce := d.respond(cds, nil, res(cds, "c", "1"))
	d.want(t, "clusters sent", "")
	d.ack(cds, nonce)
	d.want(t, "clusters acknowledged", "")
	d.subscribe(eds, nil, "c")
	d.want(t, "endpoints subscribed", "")
	d.ack(eds, d.respond(eds, nil, res(eds, "c", "1")))
	d.want(t, "endpoints acknowledged", "")
	d.subscribe(lds, nil)
	d.want(t, "listeners subscribed", "")
	d.ack(lds, d.respond(lds, nil, res(lds, "l", "1")))
	d.want(t, "all acknowledged", "Cluster/c@1 ClusterLoadAssignment/c@1 Listener/l@1")
	d.want(t, "nothing new", "")
	return d
}

func TestHoldingsAreSavedOnlyWhenComplete(t *testing.T) {
	started(t, nil)
	started(t, set(res(cds, "old", "1"), res(lds, "old", "1")))
}

func TestHoldingsFollowChanges(t *testing.T) {
	d := started(t, nil)
	first, second := d.respond(cds, nil, res(cds, "d", "1")), d.respond(eds, nil, res(eds, "c", "2"))
	d.ack(eds, second)
	d.want(t, "a cluster is outstanding", "")
	d.ack(cds, first)
	d.want(t, "a cluster without endpoints", "")
	d.subscribe(eds, nil, "d")
	d.ack(eds, d.respond(eds, nil, res(eds, "d", "1")))
	d.want(t, "all there", "Cluster/c@1 Cluster/d@1 ClusterLoadAssignment/c@2 ClusterLoadAssignment/d@1 Listener/l@1")
}

func TestHoldingsForgetWhatIsRemoved(t *testing.T) {
	d := started(t, nil)
	d.ack(cds, d.respond(cds, []string{"c"}, res(cds, "d", "1")))
	d.request(&discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"d"}, ResourceNamesUnsubscribe: []string{"c"}})
	d.want(t, "endpoints of the new cluster are missing", "")
	d.ack(eds, d.respond(eds, nil, res(eds, "d", "1")))
	d.want(t, "all there", "Cluster/d@1 ClusterLoadAssignment/d@1 Listener/l@1")
}

func TestRejectedResourceDoesNotReplaceTheOldOne(t *testing.T) {
	d := started(t, nil)
	rejected := d.nack(lds, d.respond(lds, nil, res(lds, "l", "2")))
	if rejected == nil || rejected.Resources[0].Version != "2" {
		t.Errorf("rejected is %v", rejected)
	}
	d.want(t, "a rejected listener", "")
	if r := d.restore(rejected); r != nil {
		t.Errorf("restores %v to an Envoy that still has the old one", r)
	}
	d.ack(eds, d.respond(eds, nil, res(eds, "c", "2")))
	d.want(t, "other types go on", "Cluster/c@1 ClusterLoadAssignment/c@2 Listener/l@1")
}

func TestNewEnvoyThatRejectsGetsWhatIsSaved(t *testing.T) {
	d := newDialog(set(res(lds, "l", "1"), res(lds, "m", "1")))
	d.subscribe(cds, nil)
	d.ack(cds, d.respond(cds, nil))
	d.subscribe(lds, nil)
	rejected := d.nack(lds, d.respond(lds, nil, res(lds, "l", "2"), res(lds, "m", "1"), res(lds, "n", "1")))
	d.want(t, "an Envoy without listeners", "")
	restored := d.restore(rejected)
	if restored == nil || len(restored.Resources) != 1 || restored.Resources[0].Name != "l" || restored.Resources[0].Version != "1" {
		t.Fatalf("restores %v, want l as it is saved", restored)
	}
	d.response(restored)
	d.ack(lds, restored.Nonce)
	d.want(t, "m and n were rejected with l, and Envoy keeps no version of them", "")
}

func TestReturningEnvoyIsAskedNothingTwice(t *testing.T) {
	d := started(t, nil)
	d.begin()
	for typeURL, names := range map[string][]string{cds: nil, eds: {"c"}, lds: nil} {
		have := map[string]string{"c": "1"}
		if typeURL == lds {
			have = map[string]string{"l": "1"}
		}
		want := maps.Clone(have)
		if req := d.subscribe(typeURL, have, names...); !maps.Equal(req.InitialResourceVersions, want) {
			t.Errorf("%s: tells the control plane versions %v, want %v", shortType(typeURL), req.InitialResourceVersions, want)
		}
	}
	d.want(t, "all as before", "")
	d.ack(eds, d.respond(eds, nil, res(eds, "c", "2")))
	d.want(t, "a difference", "Cluster/c@1 ClusterLoadAssignment/c@2 Listener/l@1")
}

func TestUnknownContentIsAskedForAgain(t *testing.T) {
	d := newDialog(set(res(cds, "c", "1"), res(cds, "d", "1")))
	req := d.subscribe(cds, map[string]string{"c": "1", "d": "2", "e": "1"})
	want := map[string]string{"c": "1", "d": unknownVersion, "e": unknownVersion}
	if !maps.Equal(req.InitialResourceVersions, want) {
		t.Errorf("tells the control plane versions %v, want %v", req.InitialResourceVersions, want)
	}
	d.subscribe(lds, map[string]string{})
	d.ack(lds, d.respond(lds, nil))
	d.want(t, "clusters not yet answered", "")
	d.ack(cds, d.respond(cds, []string{"e"}, res(cds, "d", "2")))
	d.subscribe(eds, nil, "c", "d")
	d.ack(eds, d.respond(eds, nil, res(eds, "c", "1"), res(eds, "d", "1")))
	d.want(t, "all known", "Cluster/c@1 Cluster/d@2 ClusterLoadAssignment/c@1 ClusterLoadAssignment/d@1")
}

func TestSavedResourcesAnswerWithDifferences(t *testing.T) {
	saved := set(res(cds, "a", "1"), res(cds, "b", "1"), res(eds, "a", "1"), res(eds, "b", "1"))
	for name, test := range map[string]struct {
		req           *discovery.DeltaDiscoveryRequest
		first         bool
		want, removed string // names; "-" for no answer
	}{
		"everything":          {req: &discovery.DeltaDiscoveryRequest{TypeUrl: cds}, first: true, want: "a b"},
		"explicit wildcard":   {req: &discovery.DeltaDiscoveryRequest{TypeUrl: cds, ResourceNamesSubscribe: []string{"*"}}, first: true, want: "a b"},
		"only what differs":   {req: &discovery.DeltaDiscoveryRequest{TypeUrl: cds, InitialResourceVersions: map[string]string{"a": "1", "b": "0", "z": "1"}}, first: true, want: "b", removed: "z"},
		"nothing differs":     {req: &discovery.DeltaDiscoveryRequest{TypeUrl: cds, InitialResourceVersions: map[string]string{"a": "1", "b": "1"}}, first: true},
		"an acknowledgement":  {req: &discovery.DeltaDiscoveryRequest{TypeUrl: cds, ResponseNonce: "1"}, want: "-"},
		"by name":             {req: &discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"b"}}, first: true, want: "b"},
		"by name, known":      {req: &discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"b"}, InitialResourceVersions: map[string]string{"b": "1"}}, first: true, want: "-"},
		"by name, not there":  {req: &discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"z"}}, first: true, removed: "z"},
		"another name, later": {req: &discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"a"}}, want: "a"},
		"a type without any":  {req: &discovery.DeltaDiscoveryRequest{TypeUrl: lds}, first: true},
	} {
		t.Run(name, func(t *testing.T) {
			resp := saved.answer(test.req, test.first)
			if (resp == nil) != (test.want == "-") {
				t.Fatalf("answers %v", resp)
			}
			if resp == nil {
				return
			}
			var names []string
			for _, r := range resp.Resources {
				names = append(names, r.Name)
			}
			slices.Sort(names)
			if got := strings.Join(names, " "); got != test.want {
				t.Errorf("answers with %q, want %q", got, test.want)
			}
			if got := strings.Join(resp.RemovedResources, " "); got != test.removed {
				t.Errorf("removes %q, want %q", got, test.removed)
			}
		})
	}
}
