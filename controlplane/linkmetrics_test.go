package controlplane

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cachemesh/cachemesh/regions/journal"
)

func TestLinksAreMeasured(t *testing.T) {
	lag := 1250.0
	status := RegionsStatus{Region: "here", Links: []LinkStatus{{From: "here", To: "there", Pool: "users", State: LinkDown, Journals: []JournalStatus{
		{Shard: "users-0", Agent: "here-0", LagMS: &lag, Backlog: 7, Gaps: map[string]uint64{string(journal.Lost): 2}, Fences: []FenceStatus{{ID: "f"}}, Sent: 40},
		{Shard: "users-1"},
	}}}}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(linkCollector{func() RegionsStatus { return status }})
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	page := w.Body.String()
	for _, want := range []string{
		`cachemesh_link_backlog_entries{pool="users",shard="users-0",to="there"} 7`,
		`cachemesh_link_fences{pool="users",shard="users-0",to="there"} 1`,
		`cachemesh_link_fences{pool="users",shard="users-1",to="there"} 0`,
		`cachemesh_link_lag_seconds{pool="users",shard="users-0",to="there"} 1.25`,
		`cachemesh_link_read{pool="users",shard="users-0",to="there"} 1`,
		`cachemesh_link_read{pool="users",shard="users-1",to="there"} 0`,
		`cachemesh_link_removals_total{pool="users",shard="users-0",to="there"} 40`,
		`cachemesh_link_state{pool="users",state="down",to="there"} 1`,
		`cachemesh_link_state{pool="users",state="paused",to="there"} 0`,
		`cachemesh_link_state{pool="users",state="up",to="there"} 0`,
		`cachemesh_link_gaps_total{pool="users",reason="lost",shard="users-0",to="there"} 2`,
		`cachemesh_link_gaps_total{pool="users",reason="trimmed",shard="users-1",to="there"} 0`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if strings.Contains(page, `lag_seconds{pool="users",shard="users-1"`) {
		t.Error("a lag that is not known has a value")
	}
	if t.Failed() {
		t.Log(page)
	}
}
