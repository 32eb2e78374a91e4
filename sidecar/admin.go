package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// admin is the client of Envoy's admin interface.
type admin struct {
	address string
	client  *http.Client
}

func newAdmin(address string) *admin {
	return &admin{address: address, client: &http.Client{Timeout: 2 * time.Second}}
}

func (a *admin) do(ctx context.Context, method, path string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+a.address+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func (a *admin) post(ctx context.Context, path string) error {
	code, body, err := a.do(ctx, http.MethodPost, path)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("the admin interface of Envoy answers %s with %d: %s", path, code, strings.TrimSpace(string(body)))
	}
	return err
}

// state is what /ready says: LIVE, INITIALIZING, DRAINING or PRE_INITIALIZING.
func (a *admin) state(ctx context.Context) (string, error) {
	_, body, err := a.do(ctx, http.MethodGet, "/ready")
	return strings.TrimSpace(string(body)), err
}

// configPath is the bootstrap file that the Envoy which answers was started with.
func (a *admin) configPath(ctx context.Context) (string, error) {
	_, body, err := a.do(ctx, http.MethodGet, "/server_info")
	if err != nil {
		return "", err
	}
	var info struct {
		CommandLineOptions struct {
			ConfigPath string `json:"config_path"`
		} `json:"command_line_options"`
	}
	if err := json.Unmarshal(body, &info); err != nil {
		return "", fmt.Errorf("/server_info of Envoy: %w", err)
	}
	return info.CommandLineOptions.ConfigPath, nil
}

// drain makes Envoy close each connection after its next reply, and its listeners when the drain time is over.
func (a *admin) drain(ctx context.Context) error { return a.post(ctx, "/drain_listeners?graceful") }

func (a *admin) reopenLogs(ctx context.Context) error { return a.post(ctx, "/reopen_logs") }

// connections is the number of connections that applications have to Envoy now.
func (a *admin) connections(ctx context.Context) (int, error) {
	_, body, err := a.do(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(`^listener\..*downstream_cx_active$`))
	if err != nil {
		return 0, err
	}
	return countConnections(string(body))
}

// countConnections adds up the listeners' own counts: those of their workers say the same again, and the
// admin listener's clients are no applications.
func countConnections(stats string) (int, error) {
	total := 0
	for line := range strings.Lines(stats) {
		name, value, found := strings.Cut(strings.TrimSpace(line), ": ")
		if !found || strings.HasPrefix(name, "listener.admin.") || strings.Contains(name, ".worker_") {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("the statistic %q: %w", line, err)
		}
		total += n
	}
	return total, nil
}

// prometheus is Envoy's own metrics.
func (a *admin) prometheus(ctx context.Context) ([]byte, error) {
	code, body, err := a.do(ctx, http.MethodGet, "/stats/prometheus?usedonly")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("the admin interface of Envoy answers /stats/prometheus with %d", code)
	}
	return body, err
}
