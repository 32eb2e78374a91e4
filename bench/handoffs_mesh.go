package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/bench/aside"
	"github.com/cachemesh/cachemesh/process"
)

// handoffMesh is a region to whose ring a shard comes, and goes again. Whatever fails is mended before a round ends.
type handoffMesh struct {
	*meshRegions
	region *meshRegion
	dir    string
	local  bool
	spare  replicaSet // the shard that comes and goes
	app    *aside.App
	plain  []*redis.Client // the application's, one for each sidecar
}

func startHandoffMesh(ctx context.Context, dir, cachemesh string, coherent bool) (_ *handoffMesh, err error) {
	plan := regionsPlan{names: []string{region}, routes: localRoutes, shards: handoffShards, nodes: handoffNodes, sidecars: handoffSidecars, near: true}
	if coherent {
		plan.absent, plan.routes, plan.lanes, plan.link = []string{"away"}, coherentRoutes, true, true
	}
	m := &handoffMesh{dir: filepath.Join(dir, region), local: !coherent}
	if m.meshRegions, err = startRegions(ctx, dir, cachemesh, plan); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.stop()
		}
	}()
	m.region = m.regions[0]
	m.spare.name = shardName(handoffShards)
	ports, err := process.FreePorts(handoffNodes)
	if err != nil {
		return nil, err
	}
	for _, port := range ports {
		n, err := startNode(ctx, process.Redis{Port: port, Dir: m.dir, Managed: true})
		if err != nil {
			return nil, err
		}
		m.spare.nodes = append(m.spare.nodes, n)
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
	for _, n := range m.spare.nodes {
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
}

// state reads what is kept now. It is there while the control plane is not.
func (m *handoffMesh) state() (s ringState, err error) {
	data, err := os.ReadFile(filepath.Join(m.dir, "state", "state.json"))
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

// sets are the shards on the ring.
func (m *handoffMesh) sets() ([]replicaSet, error) {
	s, err := m.state()
	if err != nil {
		return nil, err
	}
	if s.has(m.spare.name) {
		return append(slices.Clone(m.region.sets), m.spare), nil
	}
	return m.region.sets, nil
}

// begin begins a handoff as an operator does.
func (m *handoffMesh) begin(ctx context.Context, kind string) error {
	body := map[string]any{"limits": map[string]any{"keys_per_second": handoffPace}}
	path := "/v1/shards/" + m.spare.name + "/remove"
	if kind == "add" {
		path = "/v1/pools/" + handoffPool + "/add"
		body["shard"] = m.spare.name
		var nodes []string
		for _, n := range m.spare.nodes {
			nodes = append(nodes, n.redis.Address())
		}
		body["nodes"] = nodes
	}
	return eventually(ctx, "begin a handoff", func(ctx context.Context) error {
		if s, err := m.state(); err != nil || s.step() != "" {
			return err
		}
		return m.post(ctx, path, body)
	})
}

func (m *handoffMesh) post(ctx context.Context, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+m.region.http+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(answer)))
	}
	return err
}

// ends returns when no handoff is under way.
func (m *handoffMesh) ends(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handoffWithin)
	defer cancel()
	_, err := m.reaches(ctx, ended)
	return err
}

// reaches returns when a handoff that has begun is in a step, or in a later one, and says in which.
func (m *handoffMesh) reaches(ctx context.Context, step string) (string, error) {
	for {
		s, err := m.state()
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

// waitFor waits for a moment of a handoff that has begun.
func (m *handoffMesh) waitFor(ctx context.Context, when moment) error {
	ctx, cancel := context.WithTimeout(ctx, handoffWithin)
	defer cancel()
	step, err := m.reaches(ctx, when.Step)
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
		s, err := m.state()
		if err != nil || slices.Contains([]string{"", "flipping", "purging", "undoing"}, s.step()) {
			return err
		}
		return m.post(ctx, "/v1/pools/"+handoffPool+"/abort", struct{}{})
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

// renew starts the nodes of the shard that is not on the ring as new ones.
func (m *handoffMesh) renew(ctx context.Context) error {
	for _, n := range m.spare.nodes {
		n.running.Kill()
		started, err := n.redis.Start(ctx)
		if err != nil {
			return err
		}
		n.running = started
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
