package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cachemesh/cachemesh/mesh"
)

// handler is the HTTP API. It only reads, save for the commands.
func (c *ControlPlane) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		version := c.xds.Version()
		if version == "" {
			writeJSON(w, http.StatusServiceUnavailable, map[string]string{"error": fmt.Sprintf("there is nothing to serve yet: %v", c.view.Load().problem)})
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"status": "ready", "version": version})
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, c.status())
	})
	mux.HandleFunc("GET /v1/topology", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, c.view.Load().topology)
	})
	mux.HandleFunc("GET /v1/sidecars", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, c.xds.Nodes())
	})
	mux.HandleFunc("GET /v1/shards", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, c.status().Shards)
	})
	mux.Handle("GET /v1/events", c.events)
	commands := commandAPI{topology: func() mesh.Topology { return c.view.Load().topology }, ask: c.manager.ask}
	commands.register(mux)
	invalidateAPI{commandAPI: commands, region: c.config.Region, leads: c.manager.leads, log: c.log}.register(mux)
	linksAPI{commands, c.links}.register(mux)
	warmingAPI{commands, c.warmer}.register(mux)
	mux.Handle("GET /v1/warming/keys", keysAPI{c.config.Region, commands.topology})
	handoffAPI{commands, c.manager.membership, func() []mesh.BadRegistration { return c.view.Load().membership.Problems }, c.manager.leads, c.manager.estimate}.register(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusNotFound, map[string]string{
			"error": "no such page: there are /healthz, /readyz, /metrics, /v1/status, /v1/topology, /v1/sidecars, /v1/shards, /v1/regions, /v1/warming, /v1/warming/runs, /v1/warming/keys and /v1/events for GET, " +
				"/v1/shards/SHARD/switch, /v1/shards/SHARD/restart, /v1/shards/SHARD/remove, /v1/shards/SHARD/weigh, /v1/pools/POOL/add, /v1/pools/POOL/plan, /v1/pools/POOL/abort, /v1/pools/POOL/accept, /v1/regions/invalidate, /v1/regions/pause, /v1/regions/resume, " +
				"/v1/warming/plans, /v1/warming/plans/PLAN/run, /v1/warming/plans/PLAN/remove, /v1/warming/copy, /v1/warming/runs/RUN/pause, /v1/warming/runs/RUN/resume and /v1/warming/runs/RUN/cancel for POST",
		})
	})
	return mux
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.Encode(v) // the client that went away needs no error
}
