package controlplane

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
)

var (
	poolLabels      = []string{"pool"}
	generationDesc  = prometheus.NewDesc("cachemesh_pool_generation", "Version of the pool's ring: it grows with each handoff.", poolLabels, nil)
	lateDesc        = prometheus.NewDesc("cachemesh_pool_late_sidecars", "Sidecars of which it is not known that they follow the pool's ring.", poolLabels, nil)
	stepDesc        = prometheus.NewDesc("cachemesh_handoff_step_seconds", "For how long the pool's handoff has been in its step; 0 for all other steps.", append(poolLabels, "step"), nil)
	waitsDesc       = prometheus.NewDesc("cachemesh_handoff_waits", "Sidecars that have yet to acknowledge the step of the pool's handoff, as its leader knows.", poolLabels, nil)
	handoffKeysDesc = prometheus.NewDesc("cachemesh_handoff_keys", "Keys of the pool's handoff, as its leader knows: moving, copied, copied again, waiting for a copy, left cold, removed since they changed elsewhere.", append(poolLabels, "of"), nil)
)

var handoffDescs = []*prometheus.Desc{generationDesc, lateDesc, stepDesc, waitsDesc, handoffKeysDesc}

// collect shows how far a pool's handoff is; zeros without one.
func (p PoolStatus) collect(now time.Time, gauge func(d *prometheus.Desc, value float64, labels ...string)) {
	gauge(generationDesc, float64(p.Generation), p.Pool)
	gauge(lateDesc, float64(len(p.Late)), p.Pool)
	h := p.Handoff
	if h == nil {
		h = &HandoffStatus{}
	}
	gauge(waitsDesc, float64(len(h.Waits)), p.Pool)
	for _, step := range mesh.HandoffSteps {
		seconds := 0.0
		if h.Step == step {
			seconds = h.in(now).Seconds()
		}
		gauge(stepDesc, seconds, p.Pool, string(step))
	}
	progress := h.Progress
	if progress == nil {
		progress = &handoff.Progress{}
	}
	for of, n := range map[string]int64{"moving": progress.Keys, "copied": progress.Copied, "again": progress.Again, "dirty": progress.Dirty,
		"cold": progress.Cold, "unlinked": progress.Unlinked} {
		gauge(handoffKeysDesc, float64(n), p.Pool, of)
	}
}
