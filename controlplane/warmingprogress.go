package controlplane

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/queue"
)

// queueReading is what a run's queue said.
type queueReading struct {
	run      string
	progress queue.Progress
	err      error
}

// look reads the queues of runs, beside the loop.
func (w *warmer) look(ctx context.Context) {
	if w.reading || time.Since(w.lastRead) < readProgress {
		return
	}
	w.lastRead = time.Now()
	use := time.Since(w.lastUse) >= readUse
	type asked struct {
		run   string
		queue *queue.Queue
	}
	var all []asked
	used := 0
	for i := range slices.Backward(w.book.Runs) {
		switch r := &w.book.Runs[i]; {
		case r.State == warming.Running || r.State == warming.Paused:
			all = append(all, asked{r.ID, w.queue(r)})
		case w.looked(r) && used < usedRuns:
			if used++; use {
				all = append(all, asked{r.ID, w.queue(r)})
			}
		case w.queues[r.ID] != nil && r.State.Over():
			w.queues[r.ID].Close()
			delete(w.queues, r.ID)
		}
	}
	if use {
		w.lastUse = time.Now()
	}
	if len(all) == 0 {
		return
	}
	w.reading = true
	go func() {
		answers := make([]queueReading, len(all))
		var group errgroup.Group
		group.SetLimit(8)
		for i, a := range all {
			group.Go(func() error {
				limited, cancel := context.WithTimeout(ctx, queueTimeout)
				defer cancel()
				p, err := a.queue.Progress(limited)
				answers[i] = queueReading{a.run, p, err}
				return nil
			})
		}
		group.Wait()
		w.read <- answers
	}()
}

// progressed takes in what queues said.
func (w *warmer) progressed(ctx context.Context, all []queueReading) {
	for _, a := range all {
		r := w.book.Find(a.run)
		if r == nil || !w.leading {
			continue
		}
		if r.State.Over() {
			if a.err == nil {
				r.Use = a.progress.Use // what is written down of it is written with the next change
			}
			continue
		}
		switch {
		case errors.Is(a.err, queue.ErrGone):
			w.lost(ctx, r)
			continue
		case a.err != nil:
			r.Problem = a.err.Error()
			continue
		}
		p := a.progress
		if n := p.Counts; n.Keys() >= r.Counts.Keys() { // else its queue was made anew
			w.totalsOf(r.Plan).Keys.Add(n.Since(r.Counts))
		}
		r.Counts, r.Use, r.Total, r.Full, r.Problem = p.Counts, p.Use, p.Total, p.Full, p.Problem
		switch {
		case p.State == warming.Done && p.Full:
			w.end(ctx, r.ID, warming.Done, "the shards have no room for the rest")
		case p.State == warming.Done:
			w.end(ctx, r.ID, warming.Done, "")
		case p.State.Over(): // its source will never say which keys there are
			w.end(ctx, r.ID, p.State, p.Problem)
		case p.State != r.State:
			w.set(ctx, r) // the shard was away when that was asked for, or a replica took over that did not know
		}
	}
}

// lost makes a run's queue anew that its shard has lost: what was loaded is there, or is loaded again.
func (w *warmer) lost(ctx context.Context, r *warming.Record) {
	if r.Keys.Named || r.Again >= madeAgain {
		w.end(ctx, r.ID, warming.Failed, "the shard that had its queue has lost it")
		return
	}
	w.log.Warn("a run's queue was lost, and is made anew", "run", r.ID)
	w.change(ctx, func(b *warming.Book) error {
		again := b.Find(r.ID)
		again.State, again.Counts, again.Again = warming.Waiting, warming.Counts{}, again.Again+1
		return nil
	}) // else with the next look
}

// set tells a run's queue what its record says.
func (w *warmer) set(ctx context.Context, r *warming.Record) {
	limited, cancel := context.WithTimeout(ctx, queueTimeout)
	defer cancel()
	if err := w.queue(r).Set(limited, r.State); err != nil && !errors.Is(err, queue.ErrGone) {
		r.Problem = err.Error()
	}
}

// steer pauses, resumes or cancels a run because an operator asks for it.
func (w *warmer) steer(ctx context.Context, id string, to warming.State) (warming.Record, error) {
	if err := w.change(ctx, func(b *warming.Book) error { return b.Set(id, to, time.Now()) }); err != nil {
		return warming.Record{}, err
	}
	r := w.book.Find(id)
	if to.Over() {
		w.ended(r)
	}
	w.log.Info("an operator steers a run of warming", "run", id, "to", to)
	w.set(ctx, r)
	w.tell()
	return *r, nil
}
