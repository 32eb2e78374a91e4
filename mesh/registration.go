package mesh

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Registration is a node as somebody registered it. Nothing of it has been checked.
type Registration struct {
	ID      string `json:"id"`
	Pool    string `json:"pool"`
	Shard   string `json:"shard"`
	Zone    string `json:"zone,omitempty"`
	Address string `json:"address"`         // IP:port of the Redis
	Agent   string `json:"agent,omitempty"` // where it is registered, such as a Consul node
	Check   string `json:"check,omitempty"` // what the catalogue's own check says: passing, warning or critical
}

// BadRegistration is a registration that is ignored, and why.
type BadRegistration struct {
	Registration
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

func (b BadRegistration) String() string {
	return fmt.Sprintf("registration %q: %s: %s", b.ID, b.Message, b.Remedy)
}

// namePattern is that of all names in mesh.yaml.
var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// problem says what is wrong with a registration by itself; the message is empty if nothing is.
func (r Registration) problem() (message, remedy string) {
	const names = "use 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends"
	switch {
	case r.Pool == "":
		return "names no pool", "register it with the meta key pool"
	case !namePattern.MatchString(r.Pool):
		return fmt.Sprintf("%q is no name for a pool", r.Pool), names
	case r.Shard == "":
		return "names no shard", "register it with the meta key shard"
	case !namePattern.MatchString(r.Shard):
		return fmt.Sprintf("%q is no name for a shard", r.Shard), names
	}
	if err := checkAddress(r.Address); err != nil {
		return fmt.Sprintf("address %q: %s", r.Address, err), "register it with an address as IP and a port"
	}
	return "", ""
}

// Validate says what is wrong with a registration by itself, before it is held against a mesh.
func (r Registration) Validate() error {
	if message, remedy := r.problem(); message != "" {
		return fmt.Errorf("%s: %s", message, remedy)
	}
	return nil
}

// Members sorts a region's catalogue into the nodes that the mesh can use, by pool, shard and address, and the registrations that
// it cannot. The catalogue comes oldest first: of two registrations that exclude each other the older one stands.
func (m *Mesh) Members(region string, catalogue []Registration) (members []Registration, bad []BadRegistration) {
	pools := map[string]bool{}
	for _, p := range m.Pools {
		pools[p.Name] = true
	}
	poolOf := map[string]string{} // by shard
	if spec, ok := m.Region(region); ok {
		for _, s := range spec.Shards {
			poolOf[s.Name] = s.Pool
		}
	}
	owner := map[string]Registration{} // by address
	for _, r := range catalogue {
		refuse := func(remedy, format string, args ...any) {
			bad = append(bad, BadRegistration{Registration: r, Message: fmt.Sprintf(format, args...), Remedy: remedy})
		}
		if message, remedy := r.problem(); message != "" {
			refuse(remedy, "%s", message)
			continue
		}
		pool, known := poolOf[r.Shard]
		first, taken := owner[r.Address]
		switch {
		case !pools[r.Pool]:
			refuse("register it with a pool of mesh.yaml", "there is no pool %q", r.Pool)
		case !known && !m.Membership.Auto:
			refuse("add the shard with `cachemesh shard add`, register the node for a shard that is there, or set membership.auto", "there is no shard %q in region %q", r.Shard, region)
		case known && pool != r.Pool:
			refuse("a shard's name belongs to one pool: register it with pool "+pool+", or with another shard", "shard %q belongs to pool %q, not %q", r.Shard, pool, r.Pool)
		case taken && first.Shard != r.Shard:
			refuse("a Redis process belongs to one shard: deregister one of them", "node %s is registered already for shard %q, as %q", r.Address, first.Shard, first.ID)
		case taken: // the same node twice
		default:
			poolOf[r.Shard], owner[r.Address] = r.Pool, r
			members = append(members, r)
		}
	}
	slices.SortFunc(members, func(a, b Registration) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Shard, b.Shard), strings.Compare(a.Address, b.Address))
	})
	slices.SortFunc(bad, func(a, b BadRegistration) int { return strings.Compare(a.ID, b.ID) })
	return members, bad
}
