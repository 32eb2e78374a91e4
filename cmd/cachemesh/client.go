package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/demo"
	"github.com/cachemesh/cachemesh/mesh"
)

// defaultDir is where the demo lives unless --dir says otherwise, and so where commands look for a mesh.
const defaultDir = ".demo"

// commandTimeout is how long a command may take before the control plane counts as lost.
const commandTimeout = 90 * time.Second

// meshFlags say which running mesh a command is about.
type meshFlags struct {
	dir           string
	controlplanes []string
	tls           tlsFlags
}

func (m *meshFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&m.dir, "dir", "", "folder of a running demo (default "+defaultDir+", if a mesh runs from it)")
	f.StringSliceVar(&m.controlplanes, "controlplane", nil, "URL of a region's control plane, once for each region (or CACHEMESH_CONTROLPLANE, separated by commas)")
	m.tls.register(cmd, "the control planes'", "--dir's, else the system's")
	cmd.MarkFlagDirname("dir")
}

// client speaks TLS to https URLs as the flags, the environment or the demo's folder say.
func (m *meshFlags) client() (*http.Client, error) {
	files := m.tls.orEnvironment()
	if fromDemo := m.dir != "" || os.Getenv("CACHEMESH_CONTROLPLANE") == ""; fromDemo && files.CA == "" && len(m.controlplanes) == 0 {
		if e, err := demo.ReadEndpoints(cmp.Or(m.dir, defaultDir)); err == nil {
			files.CA = e.CA
		}
	}
	return m.tls.client(files)
}

// urls finds the control planes, one a region, the first region's first.
func (m *meshFlags) urls() ([]string, error) {
	switch {
	case len(m.controlplanes) > 0:
		return checkURLs("--controlplane", m.controlplanes)
	case m.dir != "":
		return urlsOf(m.dir)
	case os.Getenv("CACHEMESH_CONTROLPLANE") != "":
		return checkURLs("CACHEMESH_CONTROLPLANE", strings.Split(os.Getenv("CACHEMESH_CONTROLPLANE"), ","))
	}
	if urls, err := urlsOf(defaultDir); err == nil {
		return urls, nil
	}
	return nil, usage("no mesh to ask: name one with --dir DIR, --controlplane URL or CACHEMESH_CONTROLPLANE, or start one with `cachemesh demo`")
}

func urlsOf(dir string) ([]string, error) {
	e, err := demo.ReadEndpoints(dir)
	if err != nil {
		return nil, err
	}
	var urls []string
	for _, r := range e.Regions {
		urls = append(urls, r.Controlplane.HTTP)
	}
	return urls, nil
}

func checkURLs(flag string, urls []string) ([]string, error) {
	for i, u := range urls {
		parsed, err := url.Parse(strings.TrimSpace(u))
		if err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
			return nil, usage("%s %q: want a URL such as http://127.0.0.1:18080", flag, u)
		}
		urls[i] = strings.TrimSuffix(parsed.String(), "/")
	}
	return urls, nil
}

// get reads one page of a control plane's API.
func get[T any](ctx context.Context, m *meshFlags, base, path string) (T, error) {
	var v T
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	body, err := m.open(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return v, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&v); err != nil {
		return v, fmt.Errorf("%s%s: %w", base, path, err)
	}
	return v, nil
}

// post has a region do something and waits until it is done. A control plane that does not lead sends it on.
func post[T any](ctx context.Context, m *meshFlags, base, path string, arguments any) (T, error) {
	var v T
	text, err := json.Marshal(arguments)
	if err != nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	body, err := m.open(ctx, http.MethodPost, base+path, text)
	if err != nil {
		return v, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&v); err != nil {
		return v, fmt.Errorf("%s%s: %w: see `cachemesh events` for whether it was done", base, path, err)
	}
	return v, nil
}

// open sends a request, with a body of JSON if there is one, and returns the body of an answer that says that all is well.
func (m *meshFlags) open(ctx context.Context, method, url string, body []byte) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/json")
	}
	client, err := m.client()
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err := mistrust("the control plane", err); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("the control plane does not answer (its sidecars keep serving): %w", err)
	}
	if response.StatusCode == http.StatusOK {
		return answerBody{response.Body, client}, nil
	}
	defer client.CloseIdleConnections()
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 256<<10))
	var refusal struct{ Error string }
	if json.Unmarshal(text, &refusal) == nil && refusal.Error != "" && method == http.MethodPost {
		return nil, errors.New(refusal.Error)
	}
	return nil, fmt.Errorf("%s answers %s: %s", url, response.Status, strings.TrimSpace(string(text)))
}

// answerBody is an answer that closes its client's connection with it.
type answerBody struct {
	io.ReadCloser
	client *http.Client
}

func (a answerBody) Close() error {
	defer a.client.CloseIdleConnections()
	return a.ReadCloser.Close()
}

// topologyOf asks for the topology of a region, or of the first if none is named.
func (m *meshFlags) topologyOf(ctx context.Context, region string) (mesh.Topology, error) {
	urls, err := m.urls()
	if err != nil {
		return mesh.Topology{}, err
	}
	var names []string
	var failed error
	for _, u := range urls {
		t, err := get[mesh.Topology](ctx, m, u, "/v1/topology")
		if err != nil {
			if failed = err; region == "" {
				return t, err
			}
			continue
		}
		if region == "" || t.Region == region {
			return t, nil
		}
		names = append(names, t.Region)
	}
	if failed != nil {
		return mesh.Topology{}, failed
	}
	return mesh.Topology{}, usage("there is no region %q: the mesh has %s", region, strings.Join(names, ", "))
}

// statuses asks every control plane; one that does not answer is an error beside the others' statuses.
func (m *meshFlags) statuses(ctx context.Context) ([]controlplane.Status, []error, error) {
	urls, err := m.urls()
	if err != nil {
		return nil, nil, err
	}
	var all []controlplane.Status
	var failed []error
	for _, u := range urls {
		s, err := get[controlplane.Status](ctx, m, u, "/v1/status")
		if err != nil {
			failed = append(failed, err)
			continue
		}
		all = append(all, s)
	}
	return all, failed, nil
}
