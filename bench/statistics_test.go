package main

import (
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		given := slices.Clone(test.values)
		if got := median(test.values); got != test.want {
			t.Errorf("median(%v) = %v, want %v", test.values, got, test.want)
		}
		if !slices.Equal(given, test.values) {
			t.Errorf("median reordered %v", given)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing = %v", got)
	}
}

// A round in which the machine is slow changes neither side's advantage, though it moves both medians.
func TestPairedRatio(t *testing.T) {
	a, b := []float64{10, 40, 11}, []float64{5, 20, 10}
	if got := pairedRatio(a, b); got != 2 {
		t.Errorf("pairedRatio(%v, %v) = %v, want 2", a, b, got)
	}
}

func TestInterleaved(t *testing.T) {
	if got := interleaved(4, 0); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("first round: %v", got)
	}
	if got := interleaved(4, 1); !slices.Equal(got, []int{3, 2, 1, 0}) {
		t.Errorf("second round: %v", got)
	}
}

func TestRounded(t *testing.T) {
	for in, want := range map[float64]float64{0: 0, 1.23456: 1.235, 98765: 98770, 0.00123456: 0.001235, -2.00004: -2} {
		if got := rounded(in); math.Abs(got-want) > 1e-12 {
			t.Errorf("rounded(%v) = %v, want %v", in, got, want)
		}
	}
}

func TestCPURatios(t *testing.T) {
	targets := map[string]map[string]map[string]*figures{
		"sidecar": {"tcp": {"get_p1": {CPURounds: []float64{4, 8, 5}}}, "unix": {}},
		"envoy":   {"tcp": {"get_p1": {CPURounds: []float64{6, 12, 10}}}, "unix": {}},
	}
	if got := cpuRatios(targets, "envoy", "sidecar")["tcp"]["get_p1"]; got != 1.5 {
		t.Errorf("ratio %v, want 1.5: the other's over ours", got)
	}
	if got := cpuRatios(targets, "twemproxy", "sidecar"); len(got) != 0 {
		t.Errorf("ratios to what was not measured: %v", got)
	}
}
