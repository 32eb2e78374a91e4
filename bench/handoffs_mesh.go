package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/bench/aside"
)

// handoffMesh is a region to whose ring a shard comes, and goes again. Whatever fails is mended before a round ends.
type handoffMesh struct {
	*meshRegions
	region *meshRegion
	spare  *comingShard
	local  bool
	app    *aside.App
	plain  []*redis.Client // the application's, one for each sidecar
	lapses []lapse         // that were inflicted
}

func startHandoffMesh(ctx context.Context, dir, cachemesh string, coherent bool) (_ *handoffMesh, err error) {
	plan := regionsPlan{names: []string{region}, routes: localRoutes, shards: handoffShards, nodes: handoffNodes, sidecars: handoffSidecars, near: true}
	if coherent {
		plan.absent, plan.routes, plan.lanes, plan.link = []string{"away"}, coherentRoutes, true, true
	}
	m := &handoffMesh{local: !coherent}
	if m.meshRegions, err = startRegions(ctx, dir, cachemesh, plan); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.stop()
		}
	}()
	m.region = m.regions[0]
	if m.spare, err = startComingShard(ctx, m.region, filepath.Join(dir, region)); err != nil {
		return nil, err
	}
	for _, s := range m.region.sidecars {
		m.plain = append(m.plain, patientClient(s.redis))
	}
	load := handoffLoad
	if m.local {
		load.Bound = localBound
	}
	m.app = aside.New(load, m.plain, m.plain)
	return m, eventually(ctx, "keys", m.app.Fill)
}

func (m *handoffMesh) stop() {
	closeClients(m.plain)
	m.meshRegions.stop()
	if m.spare != nil {
		m.spare.stop()
	}
}

// sets are the shards on the ring.
func (m *handoffMesh) sets() ([]replicaSet, error) {
	s, err := m.spare.state()
	if err != nil {
		return nil, err
	}
	if s.has(m.spare.name) {
		return append(slices.Clone(m.region.sets), m.spare.replicaSet), nil
	}
	return m.region.sets, nil
}

// waitFor waits for a moment of a handoff that has begun.
func (m *handoffMesh) waitFor(ctx context.Context, when moment) error {
	ctx, cancel := context.WithTimeout(ctx, handoffWithin)
	defer cancel()
	step, err := m.spare.reaches(ctx, when.Step)
	if err == nil && step == when.Step {
		err = sleep(ctx, time.Duration(when.After*float64(time.Second)))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // what follows says more
	}
	return err
}

// abort gives the handoff up at a moment, if it is not past its flip by then.
func (m *handoffMesh) abort(ctx context.Context, when moment) error {
	if err := m.waitFor(ctx, when); err != nil {
		return err
	}
	return eventually(ctx, "give the handoff up", func(ctx context.Context) error {
		s, err := m.spare.state()
		if err != nil || slices.Contains([]string{"", "flipping", "purging", "undoing"}, s.step()) {
			return err
		}
		return m.spare.post(ctx, "/v1/pools/"+handoffPool+"/abort", struct{}{})
	})
}

// whole returns when every shard on the ring has its primary and its replica.
func (m *handoffMesh) whole(ctx context.Context) error {
	sets, err := m.sets()
	if err != nil {
		return err
	}
	for _, set := range sets {
		if err := eventually(ctx, set.name, func(ctx context.Context) error { _, _, _, err := set.synced(ctx); return err }); err != nil {
			return err
		}
	}
	return nil
}

// describe is what the control plane says of the handoff, for who has to find out.
func (m *handoffMesh) describe(ctx context.Context) string {
	body, err := ask(ctx, m.region.http, "/v1/status")
	if err != nil {
		return err.Error()
	}
	var status struct {
		Pools, Alerts json.RawMessage
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return err.Error()
	}
	var brief bytes.Buffer
	for _, part := range []json.RawMessage{status.Pools, status.Alerts} {
		_ = json.Compact(&brief, part)
		brief.WriteByte(' ')
	}
	return brief.String()
}
