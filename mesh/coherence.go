package mesh

import (
	"fmt"
	"time"
)

// Coherence is how other regions learn of a route's writes.
type Coherence string

// Local keeps writes in their region; Invalidate removes keys in the others when they are written.
const (
	Local      Coherence = "local"
	Invalidate Coherence = "invalidate"
)

// Writes is what a write of an invalidate route means for other regions.
type Writes string

// Refill is for caches that are filled after a miss: only removals remove a key elsewhere. With Update every write does.
const (
	Refill Writes = "refill"
	Update Writes = "update"
)

// Durability is what the reply to a write waits for.
type Durability string

// DurablePrimary is the primary alone; DurableReplica is a replica of it too.
const (
	DurablePrimary Durability = "primary"
	DurableReplica Durability = "replica"
)

// Transactions says whether MULTI may be used, and how.
type Transactions string

// TransactionsRefused refuses MULTI; TransactionsLanes checks it in lanes, which the writes of all routes then take.
const (
	TransactionsRefused Transactions = "refused"
	TransactionsLanes   Transactions = "lanes"
)

const (
	// DefaultHoldOff is longer than most databases' replicas lag.
	DefaultHoldOff = 3 * time.Second
	maxHoldOff     = 10 * time.Minute
	// unset tells a hold-off that mesh.yaml does not state from one of 0.
	unset = -1
)

// UnmarshalYAML leaves a hold-off that is not stated unset.
func (r *Route) UnmarshalYAML(decode func(any) error) error {
	type plain Route
	p := plain{HoldOff: unset}
	if err := decode(&p); err != nil {
		return err
	}
	*r = Route(p)
	return nil
}

func (r *Route) setDefaults(t Transactions) {
	if r.Coherence == "" {
		r.Coherence = Local
	}
	if r.HoldOff == unset {
		r.HoldOff = 0
		if r.Coherence == Invalidate && r.Writes == Refill {
			r.HoldOff = DefaultHoldOff
		}
	}
	if r.Durability == "" && (r.Coherence == Invalidate || t == TransactionsLanes) {
		r.Durability = DurablePrimary
	}
}

func (v *validation) coherence(field string, r Route, t Transactions) {
	const coherent = "add coherence: invalidate, or remove this"
	switch {
	case r.Coherence == Invalidate && r.Writes == "":
		v.add(field+".writes", "write refill if the application fills its cache after a miss and deletes keys when they change; write update if it sets keys to new values",
			"is missing, and only you know what a SET on this route means for other regions")
	case r.Coherence == Local && r.Writes != "":
		v.add(field+".writes", coherent, "no other region learns of this route's writes")
	}
	if r.Coherence == Local && r.HoldOff != 0 {
		v.add(field+".holdOff", coherent, "nothing invalidates this route's keys")
	}
	if r.Coherence == Invalidate && r.Writes == Update && r.HoldOff != 0 {
		v.add(field+".holdOff", "write writes: refill, or remove this", "on this route a SET is a new value and no refill, so nothing is suspect after an invalidation")
	}
	if r.HoldOff < 0 || r.HoldOff > maxHoldOff {
		v.add(field+".holdOff", "choose from 0s, which is none, to 600s", "%s is out of range", r.HoldOff)
	}
	if r.Coherence == Local && r.Durability != "" && t != TransactionsLanes {
		v.add(field+".durability", "add coherence: invalidate to the route or transactions: lanes to the mesh, or remove this", "nothing waits for this route's writes")
	}
}

// links checks where a region's agents listen for others.
func (v *validation) links(field string, r RegionSpec, m *Mesh) {
	if m.Membership.Consul != nil {
		if len(r.Links) > 0 {
			v.add(field, "remove it: agents with --link are found as the service cachemesh-link, or remove membership.consul", "the links of region %q come from Consul", r.Name)
		}
		return
	}
	for i, address := range r.Links {
		f := fmt.Sprintf("%s[%d]", field, i)
		if err := checkAddress(address); err != nil {
			v.add(f, "write the IP:port of an agent's --link, such as 10.0.0.5:7946", "%q: %s", address, err)
			continue
		}
		v.once("address", address, f, "an agent's link has an address of its own")
	}
	if len(r.Links) > 0 || len(m.Regions) == 1 {
		return
	}
	const remedy = "write the IP:port at which agents of this region are started with --link"
	switch {
	case m.coherent():
		v.add(field, remedy, "no other region could tell region %q of its writes", r.Name)
	case m.fromRegions():
		v.add(field, remedy, "no other region could take values from region %q", r.Name)
	}
}

// coherent says whether a route's writes concern other regions.
func (m *Mesh) coherent() bool {
	for _, p := range m.Pools {
		for _, r := range p.Routes {
			if r.Coherence == Invalidate {
				return true
			}
		}
	}
	return false
}

// otherLinks are the links of the regions but one, nil if neither a route nor warming concerns other regions. A region whose links register
// elsewhere has none here.
func (m *Mesh) otherLinks(region string) map[string][]string {
	if !m.coherent() && m.Warming == nil {
		return nil
	}
	links := map[string][]string{}
	for _, r := range m.Regions {
		if r.Name != region {
			links[r.Name] = append([]string{}, r.Links...)
		}
	}
	return links
}

// OnLanes says whether a route's writes go through lanes.
func (t Topology) OnLanes(r Route) bool {
	return t.Transactions == TransactionsLanes || r.Coherence == Invalidate
}

// PoolOnLanes says whether any of a pool's routes is on lanes.
func (t Topology) PoolOnLanes(p Pool) bool {
	for _, r := range p.Routes {
		if t.OnLanes(r) {
			return true
		}
	}
	return false
}

// HasLanes says whether any route is on lanes.
func (t Topology) HasLanes() bool {
	for _, p := range t.Pools {
		if t.PoolOnLanes(p) {
			return true
		}
	}
	return false
}
