package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/reports"
)

// witness probes the primaries that control planes ask about. Who asks is told of its own targets only; those that are the same
// to several are probed once.
type witness struct {
	mu     sync.Mutex
	probes map[question]*probe
}

// question is what makes two targets the same to a probe.
type question struct {
	address, runID, access string
	interval, downAfter    time.Duration
}

// probe asks one question again and again. witness.mu guards it.
type probe struct {
	question
	askers map[*asker]bool
	stop   context.CancelFunc
	silent *time.Timer // fires when there was no good answer for downAfter

	good  time.Time // of the last good answer, or of the start
	awake time.Time // when this process was last found to have stood still
	known bool      // there was an answer that counts, or none for downAfter
	down  bool
	err   error // of the last answer
}

// asker is one control plane with its targets.
type asker struct {
	targets []*reports.Target // guarded by witness.mu, as is of
	of      []*probe          // of each target
	wake    chan struct{}     // there is something to report
}

func newAsker() *asker { return &asker{wake: make(chan struct{}, 1)} }

func (a *asker) notify() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// ask makes the instructions' targets those of the asker, or says why it cannot, and then changes nothing.
func (w *witness) ask(a *asker, instructions *reports.Instructions) error {
	if err := instructions.Check(); err != nil {
		return err
	}
	accesses := map[string]*mesh.RedisAccess{"": nil}
	for i, t := range instructions.GetTargets() {
		if _, ok := accesses[t.GetAccess()]; ok {
			continue
		}
		access := new(mesh.RedisAccess)
		if json.Unmarshal([]byte(t.GetAccess()), access) != nil {
			return fmt.Errorf("targets[%d].access is not what this version understands", i)
		}
		accesses[t.GetAccess()] = access
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before := a.of
	a.targets, a.of = instructions.GetTargets(), nil
	wanted := map[*probe]bool{}
	for _, t := range a.targets {
		q := question{address: t.GetAddress(), runID: t.GetRunId(), access: t.GetAccess(),
			interval: time.Duration(instructions.GetIntervalMs()) * time.Millisecond, downAfter: time.Duration(instructions.GetDownAfterMs()) * time.Millisecond}
		p := w.probes[q]
		if p == nil {
			p = w.start(q, accesses[q.access])
		}
		p.askers[a] = true
		wanted[p] = true
		a.of = append(a.of, p)
	}
	w.leave(a, before, wanted)
	a.notify()
	return nil
}

// forget drops the asker's targets.
func (w *witness) forget(a *asker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := a.of
	a.targets, a.of = nil, nil
	w.leave(a, before, nil)
}

// leave ends the probes that nobody asks for any more. The caller holds the lock.
func (w *witness) leave(a *asker, before []*probe, wanted map[*probe]bool) {
	for _, p := range before {
		if wanted[p] {
			continue
		}
		delete(p.askers, a)
		if len(p.askers) == 0 && w.probes[p.question] == p {
			delete(w.probes, p.question)
			p.silent.Stop()
			p.stop()
		}
	}
}

// start begins a probe. The caller holds the lock.
func (w *witness) start(q question, access *mesh.RedisAccess) *probe {
	ctx, stop := context.WithCancel(context.Background())
	p := &probe{question: q, askers: map[*asker]bool{}, stop: stop, good: time.Now()}
	p.silent = time.AfterFunc(q.downAfter, func() { w.hush(p) })
	w.probes[q] = p
	go w.run(ctx, p, access)
	return p
}

// run asks until ctx ends. A question may take as long as it takes to be down, so that a slow answer is no missing one.
func (w *witness) run(ctx context.Context, p *probe, access *mesh.RedisAccess) {
	client := node.New(p.address, access, p.downAfter)
	defer client.Close()
	// Thousands of targets that came at once are not asked at once.
	next := time.NewTimer(rand.N(p.interval))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		next.Reset(p.interval)
		seen, err := client.Probe(ctx)
		if err == nil {
			err = p.judge(seen.RunID, seen.Role, seen.Of)
		}
		if ctx.Err() == nil {
			w.answered(p, err)
		}
	}
}

// judge says why an answer is not that of the primary that was asked for.
func (q question) judge(runID string, role mesh.Role, of string) error {
	switch {
	case q.runID != "" && runID != q.runID:
		return errors.New("it is another process than the one that has the data")
	case role != mesh.Primary:
		return fmt.Errorf("it is a replica of %s", of)
	}
	return nil
}

// answered notes an answer, good or bad.
func (w *witness) answered(p *probe, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.err = err
	if err != nil {
		return
	}
	p.good = time.Now()
	p.silent.Reset(p.downAfter)
	p.is(false)
}

// hush notes that there was no good answer for long, unless there was one just now.
func (w *witness) hush(p *probe) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	silence := now.Sub(p.good)
	if p.awake.After(p.good) {
		silence = now.Sub(p.awake)
	}
	switch {
	case silence < p.downAfter:
	case silence >= p.downAfter+p.interval: // the timer is late, so it was this process that was not there
		p.awake = now
		p.silent.Reset(p.downAfter)
	default:
		p.is(true)
	}
}

// is tells who asks of a change.
func (p *probe) is(down bool) {
	if p.known && p.down == down {
		return
	}
	p.known, p.down = true, down
	for a := range p.askers {
		a.notify()
	}
}

// verdicts are those on the asker's targets that there are, and whether one of them is down.
func (w *witness) verdicts(a *asker) (all []*reports.Verdict, down int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for i, p := range a.of {
		if !p.known {
			continue
		}
		t := a.targets[i]
		v := &reports.Verdict{Shard: t.GetShard(), Epoch: t.GetEpoch(), Address: t.GetAddress(), Down: p.down, SilentMs: uint64(now.Sub(p.good).Milliseconds())}
		switch {
		case p.err != nil:
			v.Error = reports.Shorten(strings.ToValidUTF8(p.err.Error(), "?"))
		case p.down:
			v.Error = "no answer"
		}
		if p.down {
			down++
		}
		all = append(all, v)
	}
	return all, down
}

// targets says how many the asker has.
func (w *witness) targets(a *asker) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(a.of)
}
