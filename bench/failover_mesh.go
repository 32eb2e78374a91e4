package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

const failoverSidecars = 2

// failoverMesh is a control plane, sidecars and shards with a replica each.
type failoverMesh struct {
	control  controlPlane
	sidecars []sidecar
	sets     []replicaSet
	// By shard: keys that the ring places there.
	written, read [][]string
}

func startFailoverMesh(ctx context.Context, running *programs, dir string, plan failoverPlan) (*failoverMesh, error) {
	cachemesh, err := build(ctx, dir, "cachemesh", "cmd/cachemesh")
	if err != nil {
		return nil, err
	}
	ports, err := process.FreePorts(2 * shardCount)
	if err != nil {
		return nil, err
	}
	m := &failoverMesh{}
	addresses := make([][]string, shardCount)
	for i := range shardCount {
		set := replicaSet{name: shardName(i)}
		for _, port := range ports[2*i : 2*i+2] {
			n, err := startNode(ctx, process.Redis{Port: port, Dir: dir, Managed: true})
			if err != nil {
				return nil, errors.Join(err, m.stop())
			}
			set.nodes = append(set.nodes, n)
			addresses[i] = append(addresses[i], n.redis.Address())
		}
		m.sets = append(m.sets, set)
	}
	if err := m.start(ctx, running, dir, cachemesh, meshFile(addresses), plan); err != nil {
		return nil, errors.Join(err, m.stop())
	}
	return m, nil
}

// start runs everything but the nodes, and writes the keys that are read later.
func (m *failoverMesh) start(ctx context.Context, running *programs, dir, cachemesh, config string, plan failoverPlan) error {
	var err error
	if m.control, err = startControlPlane(ctx, running, dir, cachemesh, config); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for i := range failoverSidecars {
		s, err := startSidecar(ctx, running, dir, cachemesh, m.control.xds, fmt.Sprintf("bench-%d", i), servesMisses)
		if err != nil {
			return err
		}
		m.sidecars = append(m.sidecars, s)
	}
	if err := eventually(ctx, "the shards", m.settled); err != nil {
		return err
	}
	if err := m.place(ctx, plan); err != nil {
		return err
	}
	client := m.connect()[0]
	defer client.Close()
	for _, keys := range m.read {
		if _, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, key := range keys {
				p.Set(ctx, key, valueOf(key), 0)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("write the keys: %w", err)
		}
	}
	return nil
}

// servesMisses is ready when keys enough to meet every shard are answered.
func servesMisses(t target) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		client := failoverClient(t.tcp[0].address)
		defer client.Close()
		for i := range 100 {
			if err := client.Exists(ctx, key(i)).Err(); err != nil {
				return err
			}
		}
		return nil
	}
}

func (m *failoverMesh) stop() error {
	for _, set := range m.sets {
		for _, n := range set.nodes {
			n.stop()
		}
	}
	return nil
}

// place chooses keys for every shard by the ring.
func (m *failoverMesh) place(ctx context.Context, plan failoverPlan) error {
	t, err := m.topology(ctx)
	if err != nil {
		return err
	}
	r, err := envoy.Ring(t.Pools[0])
	if err != nil {
		return err
	}
	choose := func(prefix string, perShard int) [][]string {
		chosen := make([][]string, shardCount)
		for i, full := 0, 0; full < shardCount; i++ {
			k := fmt.Sprintf("%s:%07d", prefix, i)
			shard := r.Find([]byte(k))
			if len(chosen[shard]) == perShard {
				continue
			}
			if chosen[shard] = append(chosen[shard], k); len(chosen[shard]) == perShard {
				full++
			}
		}
		return chosen
	}
	m.written, m.read = choose("written", plan.writtenKeys), choose("read", plan.readKeys)
	return nil
}

// connect makes a client of each sidecar.
func (m *failoverMesh) connect() []*redis.Client {
	var clients []*redis.Client
	for _, s := range m.sidecars {
		clients = append(clients, failoverClient(s.tcp[0].address))
	}
	return clients
}

func (m *failoverMesh) topology(ctx context.Context) (t mesh.Topology, err error) {
	body, err := ask(ctx, m.control.http, "/v1/topology")
	if err != nil {
		return t, err
	}
	return t, json.Unmarshal(body, &t)
}

// settled is nil when every shard has a replica with all data, and the control plane sends requests to its primary.
func (m *failoverMesh) settled(ctx context.Context) error {
	t, err := m.topology(ctx)
	if err != nil {
		return err
	}
	for i, set := range m.sets {
		primary, _, _, err := set.synced(ctx)
		if err != nil {
			return err
		}
		shard := t.Pools[0].Shards[i]
		served, _ := shard.Primary()
		if served.Address != primary.redis.Address() || shard.StandIn != "" {
			return fmt.Errorf("%s: the control plane has %q (stand-in %q) as primary, not %s", set.name, served.Address, shard.StandIn, primary.redis.Address())
		}
	}
	return nil
}

// restore starts a node that was killed as whoever runs it would. The control plane does the rest.
func (m *failoverMesh) restore(ctx context.Context, n *redisNode, fault string) error {
	if fault != "kill" {
		return nil
	}
	started, err := n.redis.Start(ctx)
	if err == nil {
		n.running = started
	}
	return err
}

// moved counts, for each sidecar, the keys that are not answered by a node of the shard where the ring places them.
func (m *failoverMesh) moved(ctx context.Context) (moved, checked int, err error) {
	shardOf := map[string]int{}
	for i, set := range m.sets {
		for _, n := range set.nodes {
			if info, err := n.direct.InfoMap(ctx, "server").Result(); err == nil { // else it is the one that was killed
				shardOf[info["Server"]["run_id"]] = i
			}
		}
	}
	clients := m.connect()
	defer closeClients(clients)
	for _, client := range clients {
		for shard, keys := range m.read {
			replies := make([]*redis.Cmd, len(keys))
			if _, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i, key := range keys {
					replies[i] = p.Eval(ctx, `return string.match(redis.call('INFO','server'),'run_id:(%x+)')`, []string{key})
				}
				return nil
			}); err != nil {
				return 0, 0, err
			}
			for _, reply := range replies {
				node, err := reply.Text()
				if err != nil {
					return 0, 0, err
				}
				checked++
				if at, known := shardOf[node]; !known || at != shard {
					moved++
				}
			}
		}
	}
	return moved, checked, nil
}

// failoverEvent is an event of the control plane, as far as the benchmark reads it.
type failoverEvent struct {
	ID    uint64         `json:"id"`
	Time  time.Time      `json:"time"`
	Shard string         `json:"shard"`
	Kind  string         `json:"kind"`
	Steps []failoverStep `json:"steps"`
}

type failoverStep struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"` // since the change began
}

// step is when it was done.
func (e failoverEvent) step(name string) (ms float64, ok bool) {
	for _, s := range e.Steps {
		if s.Name == name {
			return s.MS, true
		}
	}
	return 0, false
}

// ended is when the old primary's epoch ended: when the new one was committed. An event's time is that of its last step.
func (e failoverEvent) ended() (time.Time, bool) {
	promoted, ok := e.step("promoted")
	if !ok {
		return time.Time{}, false
	}
	last := e.Steps[len(e.Steps)-1]
	return e.Time.Add(-time.Duration((last.MS - promoted) * float64(time.Millisecond))), true
}

// look counts keys that moved and asks the control plane what it knows of the failover of a shard at that time: when its epoch ended.
func (m *failoverMesh) look(ctx context.Context, r *failoverResult, f *failoverFigures, shard int, at time.Time) (time.Time, error) {
	moved, checked, err := m.moved(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("look where the keys are: %w", err)
	}
	r.KeysMoved += moved
	r.KeysChecked += checked
	event, err := m.failover(ctx, shard, at)
	if err != nil {
		return time.Time{}, err
	}
	if event == nil {
		f.Untold++
		return time.Time{}, nil
	}
	f.tell(*event, at)
	epoch, _ := event.ended()
	return epoch, nil
}

// failover returns the newest event of the shard's failovers, if it is younger than since; nil is that there is none.
func (m *failoverMesh) failover(ctx context.Context, shard int, since time.Time) (*failoverEvent, error) {
	body, err := ask(ctx, m.control.http, "/v1/events?kind=failover&shard="+shardName(shard))
	if err != nil {
		return nil, err
	}
	var newest *failoverEvent
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		var e failoverEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, err
		}
		if e.Time.After(since) {
			newest = &e
		}
	}
	return newest, lines.Err()
}
