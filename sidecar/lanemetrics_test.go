package sidecar

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

type laneCollector struct{ *carrier }

func (laneCollector) Describe(chan<- *prometheus.Desc)       {}
func (l laneCollector) Collect(out chan<- prometheus.Metric) { l.collect(out) }

func TestLanesAreCounted(t *testing.T) {
	server := newRedis(t)
	p := startRedis(t, server)
	c := newCarrier("", slog.New(slog.DiscardHandler))
	defer c.close()
	topology := laned(server.Address())
	c.follow(&topology)
	path := filepath.Join(t.TempDir(), "lane")
	if err := c.bind("all-0", path); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: path, Protocol: 2, DisableIdentity: true, PoolSize: 1, MaxRetries: -1})
	defer client.Close()
	for range 3 {
		if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	p.Stop(time.Second)
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err == nil {
		t.Fatal("a write without a node succeeded")
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(laneCollector{c})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		if len(m.GetLabel()) != 1 || m.GetLabel()[0].GetValue() != "all-0" {
			t.Errorf("%s has the labels %v", f.GetName(), m.GetLabel())
		}
		got[strings.TrimPrefix(f.GetName(), "cachemesh_sidecar_lane_")] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	for name, want := range map[string]float64{"commands_total": 3, "batches_total": 3, "entries_total": 3, "errors_total": 1, "connections": 1, "gaps_total": 0, "unreplicated_total": 0} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
