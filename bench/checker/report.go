package checker

import (
	"cmp"
	"slices"
	"time"
)

// Report is what came of a run.
type Report struct {
	Seed    uint64  `json:"seed"`
	Writes  Writes  `json:"writes"`
	PubSub  bool    `json:"pubsub"`
	Seconds float64 `json:"seconds"`

	Acked     int64 `json:"acknowledged"` // changes
	Retries   int64 `json:"failed_tries"` // of invalidations, each tried again
	Abandoned int64 `json:"abandoned"`    // changes that were never acknowledged
	Skipped   int64 `json:"skipped"`      // turns whose key had to be left alone

	Reads         int64 `json:"reads"`
	Hits          int64 `json:"hits"`
	FailedReads   int64 `json:"failed_reads"`
	Refills       int64 `json:"refills"`
	FailedRefills int64 `json:"failed_refills"`
	LateRefills   int64 `json:"late_refills"` // taken back

	Looks       int64 `json:"looks"` // at changes when their bound was over, one in each region
	FailedLooks int64 `json:"failed_looks"`

	StaleReads int64   `json:"stale_reads"`     // reads and looks that saw a value older than the bound
	Late       int     `json:"late"`            // values that went after the bound
	Lost       int     `json:"lost"`            // values that never went, of which the region was never told
	Outlived   int     `json:"outlived"`        // values that never went, and may have come after the invalidation
	Longest    float64 `json:"longest_seconds"` // the oldest value that went
	// Findings are those values, the first thousand.
	Findings []Finding `json:"findings,omitempty"`
}

const mostFindings = 1000

// report is of what has happened up to now.
func (c *checker) report() *Report {
	n := &c.count
	r := &Report{Seed: c.Seed, Writes: c.Writes, PubSub: c.PubSub, Seconds: time.Since(c.began).Seconds(),
		Acked: n.acked.Load(), Retries: n.retries.Load(), Abandoned: n.abandoned.Load(), Skipped: n.skipped.Load(),
		Reads: n.reads.Load(), Hits: n.hits.Load(), FailedReads: n.failedReads.Load(),
		Refills: n.refills.Load(), FailedRefills: n.failedRefills.Load(), LateRefills: n.lateRefills.Load(),
		Looks: n.looks.Load(), FailedLooks: n.failedLooks.Load(), StaleReads: n.staleReads.Load()}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.findings {
		switch f.Ended {
		case "gone":
			r.Late++
			r.Longest = max(r.Longest, f.Age)
		case "lost":
			r.Lost++
		case "outlived":
			r.Outlived++
		}
		r.Findings = append(r.Findings, *f)
	}
	slices.SortFunc(r.Findings, func(a, b Finding) int { return cmp.Or(a.Acked.Compare(b.Acked), cmp.Compare(a.Region, b.Region)) })
	r.Findings = r.Findings[:min(len(r.Findings), mostFindings)]
	return r
}
