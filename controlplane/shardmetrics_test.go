package controlplane

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachemesh/cachemesh/shards"
)

func TestEventsAreCountedOnceByWhoWasThere(t *testing.T) {
	h := newHistory(epochStart)
	l := openLog(t, "")
	l.observe = h.happened
	failover := shards.Event{ID: 1, Time: epochStart.Add(time.Second), Kind: shards.Failover, Steps: []shards.Step{{Name: "detected", MS: 300}, {Name: "acknowledged", MS: 350}}}
	before := shards.Event{ID: 2, Time: epochStart.Add(-time.Second), Kind: shards.Failover}
	l.append([]shards.Event{failover, before})
	l.append([]shards.Event{failover, {ID: 3, Time: epochStart.Add(2 * time.Second), Kind: shards.Switch, Steps: []shards.Step{{Name: "acknowledged", MS: 20}}}})
	registry := prometheus.NewRegistry()
	registry.MustRegister(h.events, h.failovers)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[shards.Kind]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "cachemesh_controlplane_events_total" {
				counted[shards.Kind(m.GetLabel()[0].GetValue())] = m.GetCounter().GetValue()
			} else if got := m.GetHistogram(); got.GetSampleCount() != 1 || got.GetSampleSum() != 0.35 {
				t.Errorf("%s has %d samples of %v in all, want one of 0.35", family.GetName(), got.GetSampleCount(), got.GetSampleSum())
			}
		}
	}
	for _, kind := range shards.Kinds {
		want := map[shards.Kind]float64{shards.Failover: 1, shards.Switch: 1}[kind]
		if got, ok := counted[kind]; !ok || got != want {
			t.Errorf("%v events of kind %s are counted, want %v", got, kind, want)
		}
	}
}
