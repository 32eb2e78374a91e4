package mesh

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"time"
)

const (
	// Envoy's limit. It must also be a prime, or the table would not be filled.
	maxMaglevSize = 5000011
	minOpTimeout  = time.Millisecond
	maxOpTimeout  = time.Minute
)

// validation collects problems; where remembers the field in which a name was first seen.
type validation struct {
	problems Problems
	where    map[string]string
}

func (v *validation) add(field, remedy, format string, args ...any) {
	v.problems = append(v.problems, Problem{Field: field, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// once reports a name that was seen before in the same scope.
func (v *validation) once(scope, value, field, remedy string) {
	key := scope + "\x00" + value
	if first, seen := v.where[key]; seen {
		v.add(field, remedy, "%s %q is there already, as %s", scope, value, first)
		return
	}
	v.where[key] = field
}

// validate returns what the schema cannot see: names that must differ or exist, and values that depend on others.
func (m *Mesh) validate() Problems {
	v := &validation{where: map[string]string{}}
	if m.OpTimeout < minOpTimeout || m.OpTimeout > maxOpTimeout {
		v.add("opTimeout", "choose from 1ms to 1m", "%s is out of range", m.OpTimeout)
	}
	v.health(m.Health)
	v.membership(m.Membership)
	for i, p := range m.Pools {
		v.pool(fmt.Sprintf("pools[%d]", i), p, m.Transactions)
	}
	for i, r := range m.Regions {
		v.region(fmt.Sprintf("regions[%d]", i), r, m)
	}
	v.warming(m)
	return v.problems
}

func (v *validation) pool(field string, p PoolSpec, t Transactions) {
	v.once("pool", p.Name, field+".name", "rename or remove one of them")
	v.hashing(field+".hashing", p.Hashing)
	v.access(field+".redis", p.Redis)
	for i, r := range p.Routes {
		f := fmt.Sprintf("%s.routes[%d]", field, i)
		v.once("prefix", r.Prefix, f+".prefix", "a prefix belongs to one route")
		if strings.HasPrefix(r.Prefix, ReservedPrefix) {
			v.add(f+".prefix", "use another prefix", "keys under %q belong to cachemesh", ReservedPrefix)
		}
		v.coherence(f, r, t)
	}
}

func (v *validation) hashing(field string, h Hashing) {
	if h.Algorithm == Maglev && (h.Size > maxMaglevSize || !new(big.Int).SetUint64(h.Size).ProbablyPrime(0)) {
		v.add(field+".size", fmt.Sprintf("use a prime of at most %d, such as 65537, or algorithm: ring_hash", maxMaglevSize), "%d is no size for a Maglev table", h.Size)
	}
}

func (v *validation) region(field string, r RegionSpec, m *Mesh) {
	v.once("region", r.Name, field+".name", "rename or remove one of them")
	v.once("datacenter", r.Datacenter, field+".datacenter", "a region has a Consul datacenter of its own")
	v.links(field+".links", r, m)
	v.place(field, r)
	shards := map[string]int{}
	known := map[string]bool{}
	for _, p := range m.Pools {
		known[p.Name] = true
	}
	for i, s := range r.Shards {
		f := fmt.Sprintf("%s.shards[%d]", field, i)
		shards[s.Pool]++
		if !known[s.Pool] {
			v.add(f+".pool", "name a pool of this file", "there is no pool %q", s.Pool)
		}
		v.once("shard of region "+r.Name, s.Name, f+".name", "a shard's name is its place on the ring: rename or remove one of them")
		v.nodes(f+".nodes", s, m.Membership)
		for j, address := range s.Nodes {
			n := fmt.Sprintf("%s.nodes[%d]", f, j)
			if err := checkAddress(address); err != nil {
				v.add(n, "write IP:port, such as 10.0.0.1:6379 or [::1]:6379", "%q: %s", address, err)
				continue
			}
			v.once("address", address, n, "a Redis process belongs to one shard")
		}
	}
	for _, p := range m.Pools {
		if shards[p.Name] == 0 && !m.Membership.Auto {
			v.add(field, "add a shard with pool: "+p.Name, "pool %q is empty in region %q", p.Name, r.Name)
		}
	}
}

func checkAddress(address string) error {
	a, err := netip.ParseAddrPort(address)
	switch {
	case err != nil:
		return fmt.Errorf("not an IP address and port")
	case a.Port() == 0:
		return fmt.Errorf("port 0 cannot be connected to")
	case a.Addr().IsUnspecified():
		return fmt.Errorf("this address names no host")
	case a.Addr().IsMulticast():
		return fmt.Errorf("a multicast address is no Redis")
	case a.Addr().Zone() != "":
		return fmt.Errorf("an IPv6 zone means something on one host only")
	}
	return nil
}
