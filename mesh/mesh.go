// Package mesh is the model: what a mesh.yaml says (Mesh: regions, pools, routes, shards) and what
// follows from it for one region (Topology). It parses, validates and answers which route takes a key.
//
// It does no I/O and knows nothing of Envoy, Consul or Redis, and it imports no other package of cachemesh.
package mesh

import "time"

// APIVersion and Kind head every mesh.yaml.
const (
	APIVersion = "cachemesh.dev/v1"
	Kind       = "Mesh"
)

// ReservedPrefix begins the keys that cachemesh keeps for itself on the shards. Applications cannot reach them.
const ReservedPrefix = "cachemesh:"

// DefaultOpTimeout bounds one command at a shard. A hung primary must not hold requests for longer than
// its failover takes.
const DefaultOpTimeout = 500 * time.Millisecond

// Mesh is a whole mesh.yaml.
type Mesh struct {
	// Version of this format: cachemesh.dev/v1.
	APIVersion string `yaml:"apiVersion" jsonschema:"enum=cachemesh.dev/v1"`
	// Mesh.
	Kind string `yaml:"kind" jsonschema:"enum=Mesh"`
	// Longest time that a sidecar waits for a shard's reply to one command, such as 500ms (the default).
	OpTimeout time.Duration `yaml:"opTimeout,omitempty" jsonschema:"type=string,pattern=^[0-9]+(ms|s)$,example=500ms"`
	// How soon a node counts as down, and how much may go down before a person is asked.
	Health Health `yaml:"health,omitempty"`
	// Where the shards' nodes are known from. Left out: from this file.
	Membership Membership `yaml:"membership,omitempty"`
	// Whether MULTI, EXEC and DISCARD may be used: refused (the default), or lanes, which check that a transaction's keys share a
	// shard. With lanes the writes of every route go through the sidecars' agents.
	Transactions Transactions `yaml:"transactions,omitempty" jsonschema:"enum=refused,enum=lanes"`
	// The named sets of shards, and the key prefixes that each of them takes.
	Pools []PoolSpec `yaml:"pools" jsonschema:"minItems=1"`
	// The places that have shards of their own. In each, every pool needs at least one shard.
	Regions []RegionSpec `yaml:"regions" jsonschema:"minItems=1"`
	// What is loaded into the shards before anybody asks for it.
	Warming *Warming `yaml:"warming,omitempty"`

	at located
}

// PoolSpec is a pool as mesh.yaml states it, the same in every region.
type PoolSpec struct {
	// Name of the pool, such as timelines. Envoy's clusters carry it.
	Name string `yaml:"name" jsonschema:"pattern=^[a-z0-9]([a-z0-9-]{0\\,61}[a-z0-9])?$"`
	// How keys are spread over the pool's shards.
	Hashing Hashing `yaml:"hashing,omitempty"`
	// Who makes nodes primaries and replicas: manage (the default) is cachemesh, follow is another, such as Redis Sentinel.
	Failover Failover `yaml:"failover,omitempty" jsonschema:"enum=manage,enum=follow"`
	// How to log in to the pool's nodes; without it, plaintext and no password.
	Redis *RedisAccess `yaml:"redis,omitempty"`
	// The key prefixes that this pool takes. The longest prefix wins; "" takes every other key.
	Routes []Route `yaml:"routes" jsonschema:"minItems=1"`
}

// Hashing says how a pool's keys are spread over its shards.
type Hashing struct {
	// maglev (the default) or ring_hash.
	Algorithm Algorithm `yaml:"algorithm,omitempty" json:"algorithm" jsonschema:"enum=ring_hash,enum=maglev"`
	// Entries in the table of maglev (a prime; default 65537), fewest entries on the ring of ring_hash (default 65536).
	Size uint64 `yaml:"size,omitempty" json:"size" jsonschema:"minimum=1,maximum=8388608"`
}

// Algorithm is a way to spread keys.
type Algorithm string

// The algorithms that Envoy's Redis proxy offers for shards that are named.
const (
	RingHash Algorithm = "ring_hash"
	Maglev   Algorithm = "maglev"
)

// Route is a key prefix of a pool and the policies of its keys.
type Route struct {
	// Keys that begin with this belong to the route, unless a longer prefix takes them.
	Prefix string `yaml:"prefix" json:"prefix" jsonschema:"maxLength=256"`
	// How other regions learn of writes. local (the default): they do not. invalidate: the key is removed there.
	Coherence Coherence `yaml:"coherence,omitempty" json:"coherence" jsonschema:"enum=local,enum=invalidate"`
	// With invalidate, what a write means to other regions. refill: commands that remove a key, such as DEL, remove it there too, and others,
	// such as SET, fill this region's cache after a miss and stay here. update: every write removes the key there.
	Writes Writes `yaml:"writes,omitempty" json:"writes,omitempty" jsonschema:"enum=refill,enum=update"`
	// What the reply to a write waits for: primary (the default), or replica, which waits for a replica too, at most 200ms.
	Durability Durability `yaml:"durability,omitempty" json:"durability,omitempty" jsonschema:"enum=primary,enum=replica"`
	// How long after an invalidation a key that is filled again may hold an old value, because the database's replica lags: it then expires when
	// this time is over (default 3s; 0s turns it off).
	HoldOff time.Duration `yaml:"holdOff,omitempty" json:"hold_off_ns,omitempty" jsonschema:"type=string,pattern=^[0-9]+(ms|s)$,example=3s"`
}

// RegionSpec is a region as mesh.yaml states it.
type RegionSpec struct {
	// Name of the region, such as us-east.
	Name string `yaml:"name" jsonschema:"pattern=^[a-z0-9]([a-z0-9-]{0\\,61}[a-z0-9])?$"`
	// Consul datacenter in which the region's nodes register (default: the region's name).
	Datacenter string `yaml:"datacenter,omitempty" jsonschema:"pattern=^[a-z0-9]([a-z0-9-]{0\\,61}[a-z0-9])?$"`
	// Addresses (IP:port) at which the region's agents are started with --link, so that other regions can tell them of writes. Left out with
	// membership.consul.
	Links []string `yaml:"links,omitempty"`
	// Time zone of the region's people, such as Europe/Berlin, in which plans' times are meant (default UTC).
	Timezone string `yaml:"timezone,omitempty" jsonschema:"maxLength=64"`
	// Where the region is.
	Location *Location `yaml:"location,omitempty"`
	// The region's shards. With membership.auto others join them by registration.
	Shards []ShardSpec `yaml:"shards,omitempty"`
}

// ShardSpec is a shard as mesh.yaml states it.
type ShardSpec struct {
	// Pool that the shard belongs to.
	Pool string `yaml:"pool"`
	// Name of the shard, such as timelines-2. It is the shard's place on the ring: another name moves its keys.
	Name string `yaml:"name" jsonschema:"pattern=^[a-z0-9]([a-z0-9-]{0\\,61}[a-z0-9])?$"`
	// Share of the keys beside the pool's other shards (default 1).
	Weight uint32 `yaml:"weight,omitempty" jsonschema:"minimum=1,maximum=1024"`
	// Addresses (IP:port) of the shard's Redis processes, two or more for failover, which says who of them is primary. Left out
	// with membership.consul.
	Nodes []string `yaml:"nodes,omitempty"`
}

// Region returns the region of that name.
func (m *Mesh) Region(name string) (RegionSpec, bool) {
	for _, r := range m.Regions {
		if r.Name == name {
			return r, true
		}
	}
	return RegionSpec{}, false
}

// RegionNames lists the regions in the file's order.
func (m *Mesh) RegionNames() []string {
	names := make([]string, len(m.Regions))
	for i, r := range m.Regions {
		names[i] = r.Name
	}
	return names
}
