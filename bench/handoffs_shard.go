package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

// comingShard is one that comes to a region's ring, and goes again.
type comingShard struct {
	replicaSet
	http string // of the region's control plane
	dir  string // of its state
}

func startComingShard(ctx context.Context, r *meshRegion, dir string) (*comingShard, error) {
	c := &comingShard{replicaSet{name: shardName(len(r.sets))}, r.http, filepath.Join(dir, "state")}
	ports, err := process.FreePorts(len(r.sets[0].nodes))
	if err != nil {
		return nil, err
	}
	for _, port := range ports {
		n, err := startNode(ctx, process.Redis{Port: port, Dir: dir, Managed: true})
		if err != nil {
			c.stop()
			return nil, err
		}
		c.nodes = append(c.nodes, n)
	}
	return c, nil
}

func (c *comingShard) stop() {
	for _, n := range c.nodes {
		n.stop()
	}
}

// ringState is what the control plane keeps, as far as it is looked at.
type ringState struct {
	Rings map[string]struct {
		Generation uint64
		Shards     []struct{ Shard string }
	}
	Handoffs map[string]struct {
		ID   uint64
		Step string
	}
	Events []struct {
		Time time.Time
		Kind string
	}
}

// state reads what is kept now. It is there while the control plane is not.
func (c *comingShard) state() (s ringState, err error) {
	data, err := os.ReadFile(filepath.Join(c.dir, "state.json"))
	if err != nil {
		return s, err
	}
	record := struct{ State *ringState }{&s}
	return s, json.Unmarshal(data, &record)
}

func (s ringState) generation() uint64 { return s.Rings[handoffPool].Generation }

// step is that of the handoff under way; "" is none.
func (s ringState) step() string { return s.Handoffs[handoffPool].Step }

func (s ringState) has(shard string) bool {
	return slices.ContainsFunc(s.Rings[handoffPool].Shards, func(p struct{ Shard string }) bool { return p.Shard == shard })
}

// begin begins a handoff as an operator does.
func (c *comingShard) begin(ctx context.Context, kind string) error {
	body := map[string]any{"limits": map[string]any{"keys_per_second": handoffPace}}
	path := "/v1/shards/" + c.name + "/remove"
	if kind == "add" {
		path = "/v1/pools/" + handoffPool + "/add"
		body["shard"] = c.name
		var nodes []string
		for _, n := range c.nodes {
			nodes = append(nodes, n.redis.Address())
		}
		body["nodes"] = nodes
	}
	return eventually(ctx, "begin a handoff", func(ctx context.Context) error {
		if s, err := c.state(); err != nil || s.step() != "" {
			return err
		}
		return c.post(ctx, path, body)
	})
}

// comeOrGo has the shard come to the ring, or go from it, and returns when that is over. Not to be begun, because of what else fails, is no error.
func (c *comingShard) comeOrGo(ctx context.Context) error {
	s, err := c.state()
	if err != nil {
		return err
	}
	kind := "remove"
	if !s.has(c.name) {
		kind = "add"
		if err := c.renew(ctx); err != nil {
			return err
		}
	}
	begun, cancel := context.WithTimeout(ctx, settleTimeout/4)
	defer cancel()
	if c.begin(begun, kind) != nil {
		return nil
	}
	return c.ends(context.WithoutCancel(ctx)) // bounded by itself
}

func (c *comingShard) post(ctx context.Context, path string, body any) error {
	_, err := command(ctx, c.http, path, body)
	return err
}

// ends returns when no handoff is under way.
func (c *comingShard) ends(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handoffWithin)
	defer cancel()
	_, err := c.reaches(ctx, ended)
	return err
}

// reaches returns when a handoff that has begun is in a step, or in a later one, and says in which.
func (c *comingShard) reaches(ctx context.Context, step string) (string, error) {
	for {
		s, err := c.state()
		switch now := s.step(); {
		case err != nil:
		case now == "":
			return ended, nil
		case step != ended && slices.Index(moving, now) >= slices.Index(moving, step):
			return now, nil
		}
		if err := sleep(ctx, 3*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// renew starts the nodes of the shard that is not on the ring as new ones.
func (c *comingShard) renew(ctx context.Context) error {
	for _, n := range c.nodes {
		n.running.Kill()
		started, err := n.redis.Start(ctx)
		if err != nil {
			return err
		}
		n.running = started
	}
	return nil
}
