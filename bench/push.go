package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

// pushPlan is how many sidecars are played and how often a change is pushed to them.
type pushPlan struct {
	streams []int
	rounds  int // each server is started, filled and measured once a round
	changes int // of each kind, a round
}

var (
	pushFull  = pushPlan{streams: []int{1000, 10000}, rounds: 3, changes: 3}
	pushQuick = pushPlan{streams: []int{100}, rounds: 1, changes: 1}
)

// The kinds of change: one shard's address, and the addresses of all shards of a pool.
var pushChanges = []string{"address", "pool"}

// pushResult is what `bench push` prints. The first fields are of the largest number of streams, by kind of change.
type pushResult struct {
	header
	Plan             map[string]any                               `json:"plan"`
	P99              map[string]float64                           `json:"p99_ms"`
	RatioSnapshot    map[string]float64                           `json:"cpu_ratio_vs_snapshotcache"`
	RatioGrouped     map[string]float64                           `json:"cpu_ratio_vs_grouped_snapshotcache"`
	ReconnectSeconds float64                                      `json:"reconnect_seconds"`
	ReconnectMemory  int64                                        `json:"reconnect_peak_memory_bytes"` // of the control plane's server
	Streams          map[string]map[string]map[string]*pushFigure `json:"streams"`                     // number → server → change

	Most string `json:"largest_number_of_streams"`
}

// pushFigure is of one server, one number of streams and one kind of change: medians over all changes.
type pushFigure struct {
	P50  float64   `json:"p50_ms"` // from the change until half of the streams have acknowledged it
	P99  float64   `json:"p99_ms"`
	Last float64   `json:"last_ms"`
	CPU  []float64 `json:"server_cpu_ms_rounds"` // for one change
	Sent float64   `json:"bytes_per_stream"`

	p50s, p99s, lasts, bytes []float64
}

func benchPush(ctx context.Context, s settings) (result, error) {
	began := time.Now()
	head, err := newHeader(ctx, "push", s.quick)
	if err != nil {
		return nil, err
	}
	plan := pushFull
	if s.quick {
		plan = pushQuick
	}
	r := &pushResult{header: head, Streams: map[string]map[string]map[string]*pushFigure{},
		Plan: map[string]any{"pools": pushPools, "shards_per_pool": pushShards, "rounds": plan.rounds, "changes_per_round": plan.changes}}
	for _, n := range plan.streams {
		r.Most = strconv.Itoa(n)
		servers := map[string]map[string]*pushFigure{}
		for _, kind := range pushKinds {
			servers[kind] = map[string]*pushFigure{}
			for _, change := range pushChanges {
				servers[kind][change] = &pushFigure{}
			}
		}
		r.Streams[r.Most] = servers
		for round := range plan.rounds {
			for _, i := range interleaved(len(pushKinds), round) {
				last := round == plan.rounds-1 && n == plan.streams[len(plan.streams)-1]
				if err := r.measure(ctx, s, pushKinds[i], n, plan.changes, last && pushKinds[i] == "cachemesh"); err != nil {
					return nil, fmt.Errorf("%s with %d streams: %w", pushKinds[i], n, err)
				}
				fmt.Fprintf(s.progress, "round %d of %d: %s with %d streams\n", round+1, plan.rounds, pushKinds[i], n)
			}
		}
		for _, changes := range servers {
			for _, f := range changes {
				f.P50, f.P99, f.Last = rounded(median(f.p50s)), rounded(median(f.p99s)), rounded(median(f.lasts))
				f.Sent = rounded(median(f.bytes))
			}
		}
	}
	servers := r.Streams[r.Most]
	r.P99, r.RatioSnapshot, r.RatioGrouped = map[string]float64{}, map[string]float64{}, map[string]float64{}
	for _, change := range pushChanges {
		ours := servers["cachemesh"][change]
		r.P99[change] = ours.P99
		r.RatioSnapshot[change] = rounded(pairedRatio(ours.CPU, servers["snapshotcache"][change].CPU))
		r.RatioGrouped[change] = rounded(pairedRatio(ours.CPU, servers["grouped_snapshotcache"][change].CPU))
	}
	r.Seconds = rounded(time.Since(began).Seconds())
	return r, nil
}

// measure starts a server and its streams, pushes the changes and, if asked, restarts the server under its streams.
func (r *pushResult) measure(ctx context.Context, s settings, kind string, streams, changes int, reconnect bool) error {
	ports, err := process.FreePorts(3)
	if err != nil {
		return err
	}
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	server, err := startSelf(ctx, s, "push-server", at(1), "--kind", kind, "--xds", at(0), "--control", at(1), "--streams", strconv.Itoa(streams))
	if err != nil {
		return err
	}
	defer func() { server.Stop(5 * time.Second) }()
	driver, err := startSelf(ctx, s, "push-driver", at(2), "--xds", at(0), "--control", at(2), "--streams", strconv.Itoa(streams))
	if err != nil {
		return err
	}
	defer driver.Stop(5 * time.Second)
	if _, err := ask(ctx, at(2), "/settled"); err != nil {
		return err
	}
	for i := range changes {
		for _, change := range pushChanges {
			f := r.Streams[strconv.Itoa(streams)][kind][change]
			if err := measureChange(ctx, f, server, at(1), at(2), change, i); err != nil {
				return err
			}
		}
	}
	if !reconnect {
		return nil
	}
	server.Kill()
	if _, err := ask(ctx, at(2), "/forget"); err != nil {
		return err
	}
	server, err = startSelf(ctx, s, "push-server", at(1), "--kind", kind, "--xds", at(0), "--control", at(1), "--streams", strconv.Itoa(streams))
	if err != nil {
		return err
	}
	up := time.Now()
	if _, err := ask(ctx, at(2), "/settled"); err != nil {
		return err
	}
	r.ReconnectSeconds = rounded(time.Since(up).Seconds())
	r.ReconnectMemory, err = peakMemory(server.PID())
	return err
}

func measureChange(ctx context.Context, f *pushFigure, server *process.Process, control, driver, change string, round int) error {
	if _, err := ask(ctx, driver, "/expect"); err != nil {
		return err
	}
	before, err := cpuTime(server.PID())
	if err != nil {
		return err
	}
	if _, err := ask(ctx, control, "/change?what="+change+"&round="+strconv.Itoa(round)); err != nil {
		return err
	}
	body, err := ask(ctx, driver, "/arrived")
	if err != nil {
		return err
	}
	after, err := cpuTime(server.PID())
	if err != nil {
		return err
	}
	var arrived pushArrivals
	if err := json.Unmarshal(body, &arrived); err != nil {
		return err
	}
	body, err = ask(ctx, control, "/changed")
	if err != nil {
		return err
	}
	var at int64
	if err := json.Unmarshal(body, &at); err != nil {
		return err
	}
	since := func(ns int64) float64 { return float64(ns-at) / 1e6 }
	f.p50s, f.p99s, f.lasts = append(f.p50s, since(arrived.P50)), append(f.p99s, since(arrived.P99)), append(f.lasts, since(arrived.Last))
	f.bytes = append(f.bytes, arrived.BytesPerStream)
	f.CPU = append(f.CPU, rounded((after-before).Seconds()*1e3))
	return nil
}

// startSelf runs this program again as one of the parties, so that its CPU time is its own.
func startSelf(ctx context.Context, s settings, command, control string, args ...string) (*process.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return process.Start(ctx, process.Spec{Name: command, Path: self, Args: append([]string{command}, args...), Log: filepath.Join(s.dir, command+".log"),
		Ready: func(ctx context.Context, _ int) error {
			_, err := ask(ctx, control, "/ready")
			return err
		}})
}

// ask tells a party something and waits for its answer.
func ask(ctx context.Context, address, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// peakMemory is the most resident memory that a process has had, in bytes.
func peakMemory(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if kilobytes, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kilobytes), "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", pid)
}

func (r *pushResult) markdown(w io.Writer) {
	r.header.markdown(w, "how fast a change reaches every sidecar")
	fmt.Fprintf(w, "%d pools of %d shards; played sidecars with a connection each, all acknowledging. After a restart of the control plane %s sidecars are back\nafter %.1f s, with a peak of %.0f MiB in the control plane.\n\n",
		pushPools, pushShards, r.Most, r.ReconnectSeconds, float64(r.ReconnectMemory)/(1<<20))
	fmt.Fprintln(w, "| sidecars | change | server | p50 ms | p99 ms | last ms | server CPU ms | bytes/sidecar |")
	fmt.Fprintln(w, "|--:|---|---|--:|--:|--:|--:|--:|")
	for _, n := range []string{"100", "1000", "10000"} {
		for _, change := range pushChanges {
			for _, kind := range pushKinds {
				if f := r.Streams[n][kind][change]; f != nil {
					fmt.Fprintf(w, "| %s | %s | %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", n, change, kind, f.P50, f.P99, f.Last, median(f.CPU), f.Sent)
				}
			}
		}
	}
}
