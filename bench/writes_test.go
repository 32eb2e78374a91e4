package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestWritesQuick(t *testing.T) {
	printed := quick(t, "writes")
	for _, field := range []string{"throughput_ratio", "p50_ratio"} {
		for _, pipeline := range []string{"p1", "p16"} {
			positive(t, field+" "+pipeline, printed[field].(map[string]any)[pipeline])
		}
	}
	ways := printed["ways"].(map[string]any)
	for _, way := range writesWays {
		for _, c := range writesCases {
			cell, _ := ways[way.name].(map[string]any)[c.name].(map[string]any)
			for _, field := range []string{"operations_per_second", "open_loop_p50_us", "envoy_cpu_us_per_write", "agent_cpu_us_per_write", "redis_cpu_us_per_write"} {
				positive(t, way.name+" "+c.name+" "+field, cell[field])
			}
		}
	}
	data, err := json.Marshal(printed)
	if err != nil {
		t.Fatal(err)
	}
	var r writesResult
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	r.markdown(&text)
	if rows := strings.Count(text.String(), ", pipeline "); rows != len(writesWays)*len(writesCases) {
		t.Errorf("the README has %d rows, want %d:\n%s", rows, len(writesWays)*len(writesCases), text.String())
	}
}
