package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/demo"
)

// askDemo has the demo that the flags are about start nodes, or stop one.
func (m *meshFlags) askDemo(ctx context.Context, r demo.NodesRequest) ([]string, error) {
	without := usage("name nodes for shard %s with --node", r.Shard)
	if len(m.controlplanes) > 0 || m.dir == "" && os.Getenv("CACHEMESH_CONTROLPLANE") != "" {
		return nil, without
	}
	e, err := demo.ReadEndpoints(cmp.Or(m.dir, defaultDir))
	if err != nil || e.Nodes == "" {
		return nil, without
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.Nodes, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("the demo does not answer: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the demo refuses: %s", strings.TrimSpace(string(body)))
	}
	var answer demo.NodesAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("the demo's answer: %w", err)
	}
	return answer.Nodes, nil
}
