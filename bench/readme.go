package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
)

const (
	resultsStart = "<!-- bench:start -->"
	resultsEnd   = "<!-- bench:end -->"
)

// rewriteResults replaces what stands between the two markers of the file with the results.
func rewriteResults(file string, results []result) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := bytes.Cut(text, []byte(resultsStart))
	_, after, ended := bytes.Cut(rest, []byte(resultsEnd))
	if !found || !ended {
		return fmt.Errorf("%s has no place for the results: add the lines %s and %s", file, resultsStart, resultsEnd)
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(resultsStart + "\n")
	for _, r := range results {
		r.markdown(&b)
	}
	b.WriteString(resultsEnd)
	b.Write(after)
	return renameio.WriteFile(file, b.Bytes(), 0o644, renameio.WithExistingPermissions())
}

// reportCommand makes the README's results of what single benchmarks have printed.
func reportCommand() *cobra.Command {
	var readme string
	cmd := &cobra.Command{Use: "report FILE...", Short: "Rewrite the results in README.md from results in files", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, files []string) error {
		read := map[string]result{}
		for _, file := range files {
			r, name, err := readResult(file)
			if err != nil {
				return failure{fmt.Errorf("%s: %w", file, err)}
			}
			read[name] = r
		}
		var inOrder []result
		for _, b := range benches {
			if r := read[b.name]; r != nil {
				inOrder = append(inOrder, r)
			}
		}
		if err := rewriteResults(readme, inOrder); err != nil {
			return failure{err}
		}
		return nil
	}}
	cmd.Flags().StringVar(&readme, "readme", "README.md", "file whose results are rewritten")
	return cmd
}

func readResult(file string) (result, string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, "", err
	}
	var head header
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, "", err
	}
	for _, b := range benches {
		if b.name == head.Bench {
			r := b.empty()
			return r, b.name, json.Unmarshal(data, r)
		}
	}
	return nil, "", fmt.Errorf("no benchmark is called %q", head.Bench)
}

// markdown writes what every section begins with.
func (h header) markdown(w io.Writer, title string) {
	fmt.Fprintf(w, "\n#### `bench %s`: %s\n\n", h.Bench, title)
	fmt.Fprintf(w, "%s, %d cores, Linux %s; Envoy %s, Redis %s, twemproxy %s, %s, go-redis %s; %s.",
		h.Machine.CPU, h.Machine.Cores, h.Machine.Kernel, h.Versions["envoy"], h.Versions["redis-server"], h.Versions["nutcracker"],
		h.Versions["go"], h.Versions["go-redis"], h.Date.Format("2006-01-02"))
	if h.Quick {
		fmt.Fprint(w, " **A quick run: the figures mean nothing.**")
	}
	fmt.Fprint(w, "\n\n")
}

func (r *proxyResult) markdown(w io.Writer) {
	r.header.markdown(w, "what a request costs")
	fmt.Fprintf(w, "%d shards, %d-byte values, %v connections. CPU µs of the proxy for each operation, and that of the others over the sidecar's:\nabove 1 the sidecar is cheaper.\n\n",
		shardCount, valueBytes, r.Plan["connections"])
	fmt.Fprintln(w, "| | sidecar | plain Envoy | twemproxy | plain Envoy / sidecar | twemproxy / sidecar |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|")
	for _, transport := range transports {
		for _, c := range proxyCases {
			cell := func(name string) float64 { return r.Targets[name][transport][c.name].CPU }
			fmt.Fprintf(w, "| %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n", c.label(transport), cell("sidecar"), cell("envoy"), cell("twemproxy"),
				r.RatioNaive[transport][c.name], r.RatioTwemproxy[transport][c.name])
		}
	}
	fmt.Fprint(w, "\nThousand operations a second in a closed loop, and p50 / p99 in µs in an open loop at half of the slowest's rate:\n\n")
	fmt.Fprintln(w, "| | direct | sidecar | plain Envoy | twemproxy |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|")
	for _, transport := range transports {
		for _, c := range proxyCases {
			fmt.Fprintf(w, "| %s", c.label(transport))
			for _, name := range []string{"direct", "sidecar", "envoy", "twemproxy"} {
				f := r.Targets[name][transport][c.name]
				fmt.Fprintf(w, " | %.0f; %.0f / %.0f", f.Throughput/1000, f.P50, f.P99)
			}
			fmt.Fprintln(w, " |")
		}
	}
}

func (c proxyCase) label(transport string) string {
	where := "TCP"
	if transport == "unix" {
		where = "Unix socket"
	}
	return fmt.Sprintf("%s, %s, pipeline %d", where, c.command, c.pipeline)
}

func (r *clientResult) markdown(w io.Writer) {
	r.header.markdown(w, "go-redis with automatic pipelining")
	fmt.Fprintf(w, "%v goroutines, GET and SET 9:1, through the sidecar. CPU µs for each operation; automatic pipelining costs %.2f of what plain calls do\n(%.2f over RESP3).\n\n",
		r.Plan["goroutines"], r.Ratio, r.RatioRESP3)
	fmt.Fprintln(w, "| | operations/s | client | sidecar | Redis | sum |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|")
	for _, way := range []struct{ name, label string }{
		{"resp2", "RESP2, plain"}, {"resp2_autopipeline", "RESP2, automatic pipelining"},
		{"resp3", "RESP3, plain"}, {"resp3_autopipeline", "RESP3, automatic pipelining"},
	} {
		f := r.Ways[way.name]
		fmt.Fprintf(w, "| %s | %.0f | %.2f | %.2f | %.2f | %.2f |\n", way.label, f.Throughput, f.ClientCPU, f.SidecarCPU, f.RedisCPU, median(f.Sums))
	}
}

func (r *twitterResult) markdown(w io.Writer) {
	r.header.markdown(w, "an application with a slow database")
	fmt.Fprintf(w, "%v requests/s of the read-heavy mix, database latency %v ms, %v s of warm-up for both. Hit rate %.3f; with the cache, %.3f of the database\nreads and %.3f of the mean latency.\n\n",
		r.Plan["requests_per_second"], r.Plan["database_latency_ms"], r.Plan["warm_up_seconds"], r.HitRate, r.ReadsRatio, r.LatencyRatio)
	fmt.Fprintln(w, "| | mean ms | p50 ms | p99 ms | database reads/request | errors | wrong of checked |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|--:|")
	for _, way := range []struct{ name, label string }{{"cached", "with the cache"}, {"no_cache", "without"}} {
		f := r.Ways[way.name]
		fmt.Fprintf(w, "| %s | %.2f | %.2f | %.2f | %.4f | %d | %d of %d |\n", way.label, f.Mean, f.P50, f.P99, f.ReadsPerRequest, f.Errors, f.Wrong, f.Checked)
	}
}
