package controlplane

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/shards"
)

// ReshapeRequest is the body of POST /v1/pools/POOL/add, of /v1/shards/SHARD/remove and /v1/shards/SHARD/weigh, and, with Kind, of
// /v1/pools/POOL/plan. The first three begin a handoff and answer with its event; what becomes of it is in GET /v1/status.
type ReshapeRequest struct {
	Kind   shards.Reshape `json:"kind,omitempty"`
	Shard  string         `json:"shard,omitempty"` // to add; "" is chosen
	Nodes  []string       `json:"nodes,omitempty"` // of a shard to add, IP:port; none: those that are registered for it
	Weight uint32         `json:"weight,omitempty"`
	Limits shards.Limits  `json:"limits,omitzero"`
}

// PlanAnswer is the answer of POST /v1/pools/POOL/plan.
type PlanAnswer struct {
	Pool  string         `json:"pool"`
	Kind  shards.Reshape `json:"kind"`
	Shard string         `json:"shard"`
	Nodes []string       `json:"nodes,omitempty"` // that are registered for a shard to add
	handoff.Plan
}

// handoffAPI begins and ends handoffs.
type handoffAPI struct {
	commandAPI
	base     func() mesh.Topology // as the membership has it
	ignored  func() []mesh.BadRegistration
	leads    func() error
	estimate func(context.Context, mesh.Pool, []mesh.Shard, mesh.Topology) (handoff.Plan, error)
}

func (a handoffAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/pools/{pool}/add", func(w http.ResponseWriter, r *http.Request) {
		a.reshape(w, r, r.PathValue("pool"), shards.AddShard)
	})
	for _, kind := range []shards.Reshape{shards.RemoveShard, shards.WeighShard} {
		mux.HandleFunc("POST /v1/shards/{name}/"+string(kind), func(w http.ResponseWriter, r *http.Request) {
			if pool, ok := a.shard(w, r); ok {
				a.reshape(w, r, pool, kind)
			}
		})
	}
	mux.HandleFunc("POST /v1/pools/{pool}/abort", func(w http.ResponseWriter, r *http.Request) {
		if a.accepts(w, r, &struct{}{}) {
			a.run(w, r, shards.Command{Kind: shards.HandoffUndone, Pool: r.PathValue("pool")})
		}
	})
	mux.HandleFunc("POST /v1/pools/{pool}/plan", a.plan)
}

// reshape begins a handoff.
func (a handoffAPI) reshape(w http.ResponseWriter, r *http.Request, pool string, kind shards.Reshape) {
	var body ReshapeRequest
	if !a.accepts(w, r, &body) {
		return
	}
	if err := a.leads(); err != nil {
		a.refuse(w, r, err)
		return
	}
	body.Kind = kind
	if name := r.PathValue("name"); name != "" {
		body.Shard = name
	}
	p, _, err := a.next(pool, &body)
	if err == nil {
		err = body.Limits.Validate()
	}
	for _, address := range body.Nodes {
		if err == nil {
			err = empty(r.Context(), address, p.Redis)
		}
	}
	if err != nil {
		writeError(w, http.StatusConflict, err)
		return
	}
	a.run(w, r, shards.Command{Kind: shards.HandoffBegun, Pool: pool, Shard: body.Shard, Reshape: kind, Weight: body.Weight, Nodes: body.Nodes, Limits: body.Limits})
}

// plan says what a handoff would move.
func (a handoffAPI) plan(w http.ResponseWriter, r *http.Request) {
	var body ReshapeRequest
	if !a.accepts(w, r, &body) {
		return
	}
	p, to, err := a.next(r.PathValue("pool"), &body)
	if err != nil {
		writeError(w, http.StatusConflict, err)
		return
	}
	plan, err := a.estimate(r.Context(), p, to, a.topology())
	if err != nil {
		writeError(w, http.StatusConflict, err)
		return
	}
	answer := PlanAnswer{Pool: p.Name, Kind: body.Kind, Shard: body.Shard, Nodes: body.Nodes, Plan: plan}
	for _, pool := range a.base().Pools {
		for _, s := range pool.Shards {
			for _, n := range s.Nodes {
				if s.Name == body.Shard && body.Kind == shards.AddShard {
					answer.Nodes = append(answer.Nodes, n.Address)
				}
			}
		}
	}
	writeJSON(w, http.StatusOK, answer)
}

// next is a pool and the ring that it is to have. It fills in the name of a shard that is to be added. What only the leader can know is
// checked by shards.Manager.
func (a handoffAPI) next(pool string, body *ReshapeRequest) (p mesh.Pool, to []mesh.Shard, err error) {
	all := a.topology().Pools
	i := slices.IndexFunc(all, func(p mesh.Pool) bool { return p.Name == pool })
	if i < 0 {
		return p, nil, fmt.Errorf("there is no pool %q", pool)
	}
	p = all[i]
	to = slices.Clone(p.Shards)
	at := slices.IndexFunc(to, func(s mesh.Shard) bool { return s.Name == body.Shard })
	switch {
	case body.Kind == shards.AddShard:
		if err := a.name(p, body); err != nil {
			return p, nil, err
		}
		to = append(to, mesh.Shard{Name: body.Shard, Weight: max(body.Weight, 1)})
	case at < 0:
		return p, nil, fmt.Errorf("shard %q is not on the ring of pool %q", body.Shard, pool)
	case body.Kind == shards.RemoveShard:
		to = slices.Delete(to, at, at+1)
	case body.Kind == shards.WeighShard:
		to[at].Weight = body.Weight
	default:
		return p, nil, fmt.Errorf("kind %q: want add, remove or weigh", body.Kind)
	}
	if body.Weight > shards.MaxWeight || body.Weight == 0 && body.Kind == shards.WeighShard {
		return p, nil, fmt.Errorf("weight %d: choose 1 to %d", body.Weight, shards.MaxWeight)
	}
	next := p
	next.Shards = to
	if _, err := envoy.Ring(next); err != nil && len(to) > 0 {
		return p, nil, fmt.Errorf("pool %q cannot have that ring: %w", pool, err)
	}
	return p, to, nil
}

// name chooses which shard is added: one that the membership offers and that is not on the ring, or, with nodes, the next by number.
func (a handoffAPI) name(p mesh.Pool, body *ReshapeRequest) error {
	if body.Shard == "" {
		offered := slices.Sorted(maps.Keys(a.registered(p)))
		highest := -1
		for _, pool := range a.base().Pools {
			for _, s := range pool.Shards {
				if pool.Name == p.Name && !inMesh(p.Shards, s.Name) {
					offered = append(offered, s.Name)
				}
				highest = max(highest, ordinal(p.Name, s.Name))
			}
		}
		for _, s := range p.Shards {
			highest = max(highest, ordinal(p.Name, s.Name))
		}
		switch {
		case len(body.Nodes) > 0 || len(offered) == 0:
			body.Shard = fmt.Sprintf("%s-%d", p.Name, highest+1)
		case len(offered) == 1:
			body.Shard = offered[0]
		default:
			return fmt.Errorf("several shards have nodes and are not on the ring: name one: %s", strings.Join(offered, ", "))
		}
	}
	if len(body.Nodes) == 0 {
		body.Nodes = a.registered(p)[body.Shard]
	}
	for _, address := range body.Nodes {
		r := mesh.Registration{Pool: p.Name, Shard: body.Shard, Address: address}
		if err := r.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// registered are the nodes that are registered for shards of a pool which the mesh does not have: they are ignored until they are added.
func (a handoffAPI) registered(p mesh.Pool) map[string][]string {
	all := map[string][]string{}
	for _, r := range a.ignored() {
		if r.Pool == p.Name && r.Registration.Validate() == nil && !slices.ContainsFunc(a.base().Pools, func(o mesh.Pool) bool { return inMesh(o.Shards, r.Shard) }) && !inMesh(p.Shards, r.Shard) {
			all[r.Shard] = append(all[r.Shard], r.Address)
		}
	}
	return all
}

// ordinal is that of a shard whose name is its pool's and a number; -1 if it is not.
func ordinal(pool, shard string) int {
	rest, ok := strings.CutPrefix(shard, pool+"-")
	n, err := strconv.Atoi(rest)
	if !ok || err != nil || n < 0 {
		return -1
	}
	return n
}

const (
	askNode = 2 * time.Second
	// lookThrough bounds the keys of a node that are looked at: those of cachemesh's own are few.
	lookThrough = 10_000
)

// empty says why a node cannot be one of a new shard's: it does not answer, or has data.
func empty(ctx context.Context, address string, access *mesh.RedisAccess) error {
	ctx, cancel := context.WithTimeout(ctx, askNode)
	defer cancel()
	client := redis.NewClient(node.Options(address, access, askNode))
	defer client.Close()
	info, err := client.InfoMap(ctx, "keyspace", "replication").Result()
	if err != nil {
		return fmt.Errorf("Redis at %s does not answer: %w", address, err)
	}
	if len(info["Keyspace"]) == 0 {
		return nil
	}
	full := fmt.Errorf("Redis at %s has data: a new shard begins empty; name another, or empty it with FLUSHALL", address)
	if info["Replication"]["role"] != "master" {
		return full
	}
	for cursor, seen := uint64(0), 0; ; {
		keys, next, err := client.Scan(ctx, cursor, "", 1000).Result()
		if err != nil {
			return fmt.Errorf("Redis at %s: %w", address, err)
		}
		seen += len(keys)
		if seen > lookThrough || slices.ContainsFunc(keys, func(k string) bool { return !strings.HasPrefix(k, mesh.ReservedPrefix) }) {
			return full
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}
