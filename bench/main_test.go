package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The benchmarks run their own program again, for the client and for sessions.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"client-load", "naive-copy", "session", "push-server", "push-driver"}, os.Args[1]) {
		main()
	}
	os.Exit(m.Run())
}

// quick runs a benchmark with the real programs and returns what it prints.
func quick(t *testing.T, name string) map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	if status := execute(ctx, []string{name, "--quick", "-o", "json"}, &stdout, &stderr); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr.String())
	}
	decoder := json.NewDecoder(&stdout)
	var printed map[string]any
	if err := decoder.Decode(&printed); err != nil {
		t.Fatal(err)
	}
	if decoder.More() {
		t.Error("more than one JSON object on standard output")
	}
	return printed
}

func positive(t *testing.T, name string, v any) {
	t.Helper()
	if x, ok := v.(float64); !ok || !(x > 0) {
		t.Errorf("%s is %v, want a number above 0", name, v)
	}
}

func TestProxyQuick(t *testing.T) {
	printed := quick(t, "proxy")
	for _, field := range []string{"ratio_vs_naive_cpu_per_op", "ratio_vs_twemproxy_cpu_per_op"} {
		for _, transport := range transports {
			cases, _ := printed[field].(map[string]any)[transport].(map[string]any)
			if len(cases) != len(proxyCases) {
				t.Errorf("%s over %s has %d cases, want %d", field, transport, len(cases), len(proxyCases))
			}
			for _, c := range proxyCases {
				positive(t, field+" "+transport+" "+c.name, cases[c.name])
			}
		}
	}
	for _, name := range []string{"direct", "sidecar", "envoy", "twemproxy"} {
		for _, transport := range transports {
			for _, c := range proxyCases {
				cell := printed["targets"].(map[string]any)[name].(map[string]any)[transport].(map[string]any)[c.name].(map[string]any)
				for _, field := range []string{"operations_per_second", "redis_cpu_us_per_op", "client_cpu_us_per_op", "open_loop_p50_us", "open_loop_p99_us"} {
					positive(t, name+" "+transport+" "+c.name+" "+field, cell[field])
				}
				if name != "direct" {
					positive(t, name+" "+transport+" "+c.name+" CPU", cell["cpu_us_per_op"])
				}
			}
		}
	}
}

func TestClientQuick(t *testing.T) {
	printed := quick(t, "client")
	positive(t, "autopipeline_cpu_ratio", printed["autopipeline_cpu_ratio"])
	positive(t, "autopipeline_cpu_ratio_resp3", printed["autopipeline_cpu_ratio_resp3"])
}

func TestTwitterQuick(t *testing.T) {
	printed := quick(t, "twitter")
	for _, field := range []string{"hit_rate", "db_reads_ratio", "mean_latency_ratio"} {
		positive(t, field, printed[field])
	}
	if ratio, _ := printed["db_reads_ratio"].(float64); ratio >= 1 {
		t.Errorf("db_reads_ratio %v: the cache saved nothing", ratio)
	}
}

func TestExitStatus(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"list"}, 0},
		{[]string{"nonsense"}, 2},
		{[]string{"proxy", "-o", "table"}, 2},
	} {
		if got := execute(t.Context(), test.args, &bytes.Buffer{}, &bytes.Buffer{}); got != test.want {
			t.Errorf("bench %s: status %d, want %d", strings.Join(test.args, " "), got, test.want)
		}
	}
}

func TestRewriteResults(t *testing.T) {
	head := header{Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Machine: machine{"Fast CPU", 2, "6.1.0"},
		Versions: map[string]string{"go": "go1.26.8", "envoy": "1.40.0", "redis-server": "7.0.15", "nutcracker": "0.5.0", "go-redis": "9.23.0"}}
	cell := func(cpu float64) map[string]*figures {
		cases := map[string]*figures{}
		for _, c := range proxyCases {
			cases[c.name] = &figures{CPU: cpu, Throughput: 90_000, P50: 100, P99: 900}
		}
		return cases
	}
	proxy := &proxyResult{header: head, Plan: map[string]any{"connections": 50},
		RatioNaive:     map[string]map[string]float64{"tcp": {"get_p1": 1.125}, "unix": {}},
		RatioTwemproxy: map[string]map[string]float64{"tcp": {"get_p1": 0.875}, "unix": {}},
		Targets:        map[string]map[string]map[string]*figures{}}
	proxy.Bench = "proxy"
	for name, cpu := range map[string]float64{"direct": 0, "sidecar": 8, "envoy": 9, "twemproxy": 7} {
		proxy.Targets[name] = map[string]map[string]*figures{"tcp": cell(cpu), "unix": cell(cpu)}
	}
	file := filepath.Join(t.TempDir(), "README.md")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + resultsStart + "\nold\n" + resultsEnd + "\nafter\n")
	var first []byte
	for range 2 {
		if err := rewriteResults(file, []result{proxy}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		} else if !bytes.Equal(got, first) {
			t.Errorf("writing the same results again changed the file:\n%s", got)
		}
	}
	for _, want := range []string{
		"before\n" + resultsStart + "\n", resultsEnd + "\nafter\n",
		"Fast CPU, 2 cores, Linux 6.1.0; Envoy 1.40.0, Redis 7.0.15, twemproxy 0.5.0, go1.26.8, go-redis 9.23.0; 2026-01-02.",
		"| TCP, GET, pipeline 1 | 8.00 | 9.00 | 7.00 | 1.12 | 0.88 |",
		"| Unix socket, SET, pipeline 16 | 90; 100 / 900 | 90; 100 / 900 | 90; 100 / 900 | 90; 100 / 900 |",
	} {
		if !strings.Contains(string(first), want) {
			t.Errorf("the file lacks %q:\n%s", want, first)
		}
	}
	if strings.Contains(string(first), "old") {
		t.Error("the old results are still there")
	}
	for _, text := range []string{"no markers", resultsStart + " no end", resultsEnd + resultsStart} {
		write(text)
		if err := rewriteResults(file, []result{proxy}); err == nil || !strings.Contains(err.Error(), resultsEnd) {
			t.Errorf("%q: error %v, want one that says what to add", text, err)
		}
	}
}

func TestVersions(t *testing.T) {
	for text, want := range map[string]string{
		"envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL":                "1.40.0",
		"Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64": "7.0.15",
		"This is nutcracker-0.5.0\nasync event backend: epoll":               "0.5.0",
	} {
		if got := versionIn(text); got != want {
			t.Errorf("versionIn(%q) = %q, want %q", text, got, want)
		}
	}
	if got := cpuModel("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"); got != "Some CPU @ 2 GHz" {
		t.Errorf("cpuModel = %q", got)
	}
}

func TestPushQuick(t *testing.T) {
	printed := quick(t, "push")
	for _, field := range []string{"p99_ms", "cpu_ratio_vs_snapshotcache", "cpu_ratio_vs_grouped_snapshotcache"} {
		for _, change := range pushChanges {
			values, _ := printed[field].(map[string]any)
			positive(t, field+" "+change, values[change])
		}
	}
	positive(t, "reconnect_seconds", printed["reconnect_seconds"])
	positive(t, "reconnect_peak_memory_bytes", printed["reconnect_peak_memory_bytes"])
}

// TestReport makes a README of a result that was printed, as TestAll does of one that was not.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	readme, file := filepath.Join(dir, "README.md"), filepath.Join(dir, "push.json")
	if err := os.WriteFile(readme, []byte("before\n"+resultsStart+"\n"+resultsEnd+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(quick(t, "push"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	if status := execute(t.Context(), []string{"report", "--readme", readme, file}, new(bytes.Buffer), &stderr); status != 0 {
		t.Fatalf("status %d: %s", status, stderr.String())
	}
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before", "after", "bench push", "| 100 | address | grouped_snapshotcache |"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the README lacks %q:\n%s", want, text)
		}
	}
}
