package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// failoverResult is what `bench failover` prints. Maps by fault have kill and hang; what has no fault in its name is of these two.
type failoverResult struct {
	header
	Plan               map[string]any     `json:"plan"`
	KeysMoved          int                `json:"keys_moved"`
	KeysChecked        int                `json:"keys_checked"`
	P99                map[string]float64 `json:"unavailable_ms_p99"`
	P50                map[string]float64 `json:"unavailable_ms_p50"`
	Ratio              map[string]float64 `json:"ratio_vs_sentinel,omitempty"` // of the medians
	WrongPrimaryWrites int                `json:"wrong_primary_writes"`
	LostAckedWrites    int                `json:"lost_acked_writes"`
	AckedWrites        int                `json:"acked_writes"`
	OthersRatio        float64            `json:"others_p99_ratio"`
	OthersFailures     int                `json:"others_failures"`
	// Of rounds in which a primary that hung goes on while its sidecars still wait for its answers.
	PauseWrongWrites int                                    `json:"pause_wrong_primary_writes"`
	PauseLostWrites  int                                    `json:"pause_lost_acked_writes"`
	Contenders       map[string]map[string]*failoverFigures `json:"contenders"` // name → fault
}

// failoverFigures are those of one contender and one fault.
type failoverFigures struct {
	Rounds     []float64 `json:"unavailable_ms_rounds"`
	P50        float64   `json:"unavailable_ms_p50"`
	P99        float64   `json:"unavailable_ms_p99"`
	FirstReply float64   `json:"first_reply_ms"` // median, from the fault to the first acknowledgement by another process
	Failed     float64   `json:"failed_writes"`  // median of the rounds
	Acked      int       `json:"acked_writes"`
	Lost       int       `json:"lost_acked_writes"`
	Wrong      int       `json:"wrong_primary_writes"`
	NotEnded   int       `json:"rounds_that_did_not_end"` // they count as the limit
	Untold     int       `json:"rounds_without_event"`
	Unasked    int       `json:"failovers_without_fault"` // their rounds were begun again
	// Of the other shards, cachemesh only.
	OthersRatios  []float64 `json:"others_p99_ratio_rounds,omitempty"`
	OthersBefore  float64   `json:"others_p99_ms_before,omitempty"`
	OthersDuring  float64   `json:"others_p99_ms_during,omitempty"`
	OthersFailed  int       `json:"others_failures"`
	OthersFailure string    `json:"others_failure,omitempty"` // the last
	// Steps are what the control plane says of its failovers: medians of milliseconds since the primary's last good answer.
	Steps map[string]float64 `json:"steps_ms,omitempty"`
	// EpochEnded is the median of milliseconds from the fault until the old epoch ended.
	EpochEnded float64 `json:"epoch_ended_ms,omitempty"`

	firsts, failures, befores, durings, ends []float64
	steps                                    map[string][]float64
}

func newFailoverResult(head header, plan failoverPlan) *failoverResult {
	r := &failoverResult{header: head, Contenders: map[string]map[string]*failoverFigures{}, Plan: map[string]any{
		"shards": shardCount, "nodes_per_shard": 2, "sidecars": failoverSidecars, "rounds": plan.rounds, "sentinel_rounds": plan.sentinelRounds,
		"probe_interval_ms": milliseconds(plan.every), "health_interval_ms": milliseconds(mesh.DefaultInterval), "down_after_ms": milliseconds(mesh.DefaultDownAfter),
		"op_timeout_ms": milliseconds(mesh.DefaultOpTimeout), "client_timeout_ms": milliseconds(clientTimeout), "client_retries": 0,
		"sentinels": sentinelCount, "sentinel_quorum": sentinelQuorum, "sentinel_failover_timeout_ms": milliseconds(sentinelFailoverTimeout),
	}}
	names := []string{"cachemesh"}
	if plan.sentinelRounds > 0 {
		names = append(names, "sentinel")
	}
	for _, name := range names {
		r.Contenders[name] = map[string]*failoverFigures{}
		for _, fault := range faults {
			r.Contenders[name][fault] = &failoverFigures{steps: map[string][]float64{}}
		}
	}
	return r
}

// add takes in a round. Its fault hit process old at that time, whose epoch ended then; the zero time is not known. All was well again
// until the last.
func (f *failoverFigures) add(plan failoverPlan, at, until time.Time, old string, epoch time.Time, w *writer, b *bystander) {
	round := slices.DeleteFunc(slices.Clone(w.attempts), func(a attempt) bool { return a.done.Before(at.Add(-plan.before)) || a.done.After(until) })
	o := outageOf(round, old, epoch)
	for _, a := range w.attempts {
		if a.err == nil {
			f.Acked++
		}
	}
	f.Wrong += o.wrong
	f.failures = append(f.failures, float64(o.failures))
	unavailable := plan.limit
	if o.to.IsZero() {
		f.NotEnded++
		o.to = at.Add(plan.limit)
	} else {
		unavailable = o.to.Sub(o.from)
	}
	f.Rounds = append(f.Rounds, rounded(milliseconds(unavailable)))
	if !o.other.IsZero() {
		f.firsts = append(f.firsts, milliseconds(o.other.Sub(at)))
	}
	if len(b.keys) == 0 {
		return
	}
	for _, err := range b.failures(at) {
		f.OthersFailed++
		f.OthersFailure = err.Error()
	}
	// As many requests on both sides, so that both p99 are the same rank.
	window := plan.before * 4 / 5 // the first fifth is for connecting
	f.befores = append(f.befores, b.p99(at.Add(-window), at))
	f.durings = append(f.durings, b.p99(at, at.Add(max(window, o.to.Sub(at)))))
	f.OthersRatios = append(f.OthersRatios, rounded(f.durings[len(f.durings)-1]/f.befores[len(f.befores)-1]))
}

// last describes the last round.
func (f *failoverFigures) last() string {
	i := len(f.Rounds) - 1
	text := fmt.Sprintf("%.0f ms, %.0f failed writes", f.Rounds[i], f.failures[i])
	if len(f.befores) > 0 {
		text += fmt.Sprintf("; the others' p99 from %.2f to %.2f ms", f.befores[i], f.durings[i])
	}
	return text
}

// tell takes in what the control plane says of a failover.
func (f *failoverFigures) tell(e failoverEvent, at time.Time) {
	for _, s := range e.Steps {
		f.steps[s.Name] = append(f.steps[s.Name], s.MS)
	}
	if ended, ok := e.ended(); ok {
		f.ends = append(f.ends, milliseconds(ended.Sub(at)))
	}
}

// summarize makes the medians and sums of what the rounds have added.
func (r *failoverResult) summarize() {
	for _, byFault := range r.Contenders {
		for _, f := range byFault {
			f.P50, f.P99, f.Failed = medianOrZero(f.Rounds), quantileOrZero(f.Rounds, 0.99), medianOrZero(f.failures)
			f.FirstReply = medianOrZero(f.firsts)
			f.OthersBefore, f.OthersDuring, f.EpochEnded = medianOrZero(f.befores), medianOrZero(f.durings), medianOrZero(f.ends)
			f.Steps = map[string]float64{}
			for name, values := range f.steps {
				f.Steps[name] = rounded(median(values))
			}
		}
	}
	r.P99, r.P50, r.Ratio = map[string]float64{}, map[string]float64{}, map[string]float64{}
	var ratios []float64
	for fault, f := range r.Contenders["cachemesh"] {
		if fault == pause {
			r.PauseWrongWrites, r.PauseLostWrites = f.Wrong, f.Lost
			continue
		}
		r.P99[fault], r.P50[fault] = f.P99, f.P50
		if peer := r.Contenders["sentinel"]; peer != nil {
			r.Ratio[fault] = rounded(f.P50 / peer[fault].P50)
		}
		r.WrongPrimaryWrites += f.Wrong
		r.LostAckedWrites += f.Lost
		r.AckedWrites += f.Acked
		r.OthersFailures += f.OthersFailed
		ratios = append(ratios, f.OthersRatios...)
	}
	r.OthersRatio = rounded(median(ratios))
}

// medianOrZero is for what may have no value: JSON has no NaN.
func medianOrZero(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return rounded(median(values))
}

func quantileOrZero(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return rounded(quantile(values, q))
}

func (r *failoverResult) markdown(w io.Writer) {
	r.header.markdown(w, "a primary dies")
	ours := r.Contenders["cachemesh"]
	fmt.Fprintf(w, "%v shards with a replica each, %v sidecars, defaults; a write a millisecond to the victim's keys, retries off. Unavailable is from the last acknowledgement\n"+
		"before to the first that no failure followed. %d of %d keys moved; %d writes were acknowledged by a primary of the past, %d of %d were lost.\n"+
		"The other shards' p99 is %.2f of before (%.2f ms and %.2f ms), with %d failures. Redis Sentinel (%v processes, quorum %v) has the same time until a primary is down,\n"+
		"client and timeouts. In a pause the old primary goes on as soon as another has answered, and still finds requests that its sidecars wait for.\n\n",
		r.Plan["shards"], r.Plan["sidecars"], r.KeysMoved, r.KeysChecked, r.WrongPrimaryWrites, r.LostAckedWrites, r.AckedWrites,
		r.OthersRatio, ours["kill"].OthersDuring, ours["kill"].OthersBefore, r.OthersFailures, r.Plan["sentinels"], r.Plan["sentinel_quorum"])
	fmt.Fprintln(w, "| fault | | rounds | unavailable ms p50 | p99 | ratio to Sentinel | failed writes | lost acknowledged writes | wrong primary |")
	fmt.Fprintln(w, "|---|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, fault := range faults {
		for _, name := range slices.Sorted(maps.Keys(r.Contenders)) {
			f := r.Contenders[name][fault]
			ratio := ""
			if name == "cachemesh" && r.Ratio[fault] != 0 {
				ratio = fmt.Sprintf("%.2f", r.Ratio[fault])
			}
			fmt.Fprintf(w, "| %s | %s | %d | %.0f | %.0f | %s | %.0f | %d | %d |\n", fault, name, len(f.Rounds), f.P50, f.P99, ratio, f.Failed, f.Lost, f.Wrong)
		}
	}
}
