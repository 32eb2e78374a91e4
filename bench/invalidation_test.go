package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestInvalidationQuick(t *testing.T) {
	printed := quick(t, "invalidation")
	data, err := json.Marshal(printed)
	if err != nil {
		t.Fatal(err)
	}
	var r invalidationResult
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"lost", "lag_p99_beyond_delay_ms", "partition_drain_seconds", "pubsub_lost"} {
		if _, there := printed[field]; !there {
			t.Errorf("%s is missing", field)
		}
	}
	if r.Lost != 0 {
		t.Errorf("%d acknowledged invalidations are lost", r.Lost)
	}
	if r.PubSubLost == 0 {
		t.Error("Pub/Sub lost nothing in a partition: the benchmark sees no losses")
	}
	for _, delay := range []string{"0", "40"} {
		positive(t, "lag beyond the delay of "+delay, r.BeyondDelay[delay])
	}
	for name, f := range r.Lags["cachemesh"] {
		if f.Writes == 0 || f.P50 < f.Delay || f.P99 < f.P50 || f.P999 < f.P99 {
			t.Errorf("%s: no such lags: %+v", name, *f)
		}
	}
	for name, f := range r.Partitions {
		if f.Backlog == 0 || f.Writes < f.Backlog {
			t.Errorf("%s: no such partition: %+v", name, *f)
		}
	}
	var text bytes.Buffer
	r.markdown(&text)
	if rows := strings.Count(text.String(), "\n| 2 | "); rows != 4 {
		t.Errorf("the README has %d rows, want 4:\n%s", rows, text.String())
	}
}
