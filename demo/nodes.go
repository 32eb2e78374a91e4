package demo

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/process"
)

// startNodes starts all Redis nodes. What each of them is, the control planes say.
func (d *Demo) startNodes(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, r := range d.layout.regions {
		for _, n := range r.nodes {
			group.Go(func() error {
				p, err := d.layout.redis(n).Start(ctx)
				if err != nil {
					return err
				}
				d.keep(p)
				d.setPID(n, p)
				d.tended.Go(func() { d.tend(n, p) })
				return nil
			})
		}
	}
	return group.Wait()
}

// tend starts a node again whenever it ended because somebody asked it to, as whoever runs a node is expected to. One that was killed
// stays away.
func (d *Demo) tend(n nodeLayout, p *process.Process) {
	for {
		select {
		case <-p.Done():
		case <-d.running.Done():
			return
		}
		if p.Err() != nil {
			return
		}
		ctx, cancel := context.WithTimeout(d.running, startTimeout)
		next, err := d.layout.redis(n).Start(ctx)
		cancel()
		switch {
		case d.running.Err() != nil: // the demo ended meanwhile
			if err == nil {
				next.Stop(time.Second)
			}
			d.replace(p)
			return
		case err != nil:
			d.layout.options.Notes("%s ended as it was asked to, and could not be started again: %v", p.Name(), err)
			return
		}
		d.replace(p, next)
		d.setPID(n, next)
		p = next
	}
}

func (d *Demo) setPID(n nodeLayout, p *process.Process) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pids[n.address()] = p.PID()
}

// replace puts another process, or none, in the place of one that ended as it was asked to.
func (d *Demo) replace(old *process.Process, next ...*process.Process) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.processes, old)
	d.processes = slices.Replace(d.processes, i, i+1, next...)
}

// settle waits until each shard has a primary, and its other nodes have the primary's data. It returns the nodes' roles by address.
func (d *Demo) settle(ctx context.Context) (map[string]string, error) {
	roles := map[string]string{}
	for _, r := range d.layout.regions {
		for _, n := range r.nodes {
			options, err := d.layout.redis(n).Options()
			if err != nil {
				return nil, err
			}
			client := redis.NewClient(options)
			defer client.Close()
			for roles[n.address()] == "" {
				info, err := client.InfoMap(ctx, "replication").Result()
				if err != nil {
					return nil, err
				}
				switch replication := info["Replication"]; {
				case replication["role"] == "master":
					roles[n.address()] = "primary"
				case replication["master_link_status"] == "up":
					roles[n.address()] = "replica"
				default:
					select {
					case <-ctx.Done():
						return nil, fmt.Errorf("the control plane of %s has not told Redis at %s what it is: %w", r.name, n.address(), ctx.Err())
					case <-time.After(20 * time.Millisecond):
					}
				}
			}
		}
	}
	return roles, nil
}

func (d *Demo) shardEndpoints(r regionLayout, roles map[string]string) []ShardEndpoints {
	d.mu.Lock()
	defer d.mu.Unlock()
	var shards []ShardEndpoints
	for _, n := range r.nodes {
		if len(shards) == 0 || shards[len(shards)-1].Name != n.shard {
			shards = append(shards, ShardEndpoints{Pool: n.pool, Name: n.shard})
		}
		last := &shards[len(shards)-1]
		last.Nodes = append(last.Nodes, NodeEndpoints{Address: n.address(), Role: roles[n.address()], PID: d.pids[n.address()]})
	}
	return shards
}
