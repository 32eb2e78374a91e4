package sidecar

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// handler serves /metrics, /healthz, /readyz and /status, and takes /v1/events.
func (a *agent) handler() http.Handler {
	registry := prometheus.NewRegistry()
	// Envoy's own metrics have these labels from its bootstrap.
	prometheus.WrapRegistererWith(prometheus.Labels{"region": a.config.Region, "sidecar": a.config.Name}, registry).MustRegister(collector{a})
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	own := promhttp.HandlerFor(registry, promhttp.HandlerOpts{DisableCompression: true})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, req *http.Request) {
		envoys, err := a.supervisor.admin.prometheus(req.Context())
		// The text format is the one to which Envoy's metrics can be appended.
		req.Header.Del("Accept")
		own.ServeHTTP(w, req)
		if err == nil {
			w.Write(envoys)
		}
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, req *http.Request) {
		if err := a.ready(req); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(a.status())
	})
	mux.HandleFunc("POST /v1/events", a.reporting.warmth.events.post)
	return mux
}

// ready says what keeps applications from being served, nil for nothing.
func (a *agent) ready(req *http.Request) error {
	if a.supervisor.process() == nil {
		return errors.New("no Envoy runs")
	}
	state, err := a.supervisor.admin.state(req.Context())
	if err != nil {
		return fmt.Errorf("the admin interface of Envoy does not answer: %w", err)
	}
	if state != "LIVE" {
		return fmt.Errorf("the state of Envoy is %s", state)
	}
	// Whether a listener is up shows best where applications would see it.
	for _, at := range a.config.redisListeners() {
		conn, err := net.DialTimeout(at.Network(), at.String(), time.Second)
		if err != nil {
			return fmt.Errorf("the listener is not up: %w", err)
		}
		conn.Close()
	}
	return nil
}
