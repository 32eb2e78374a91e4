package controlplane

import (
	"context"
	"time"

	"github.com/cachemesh/cachemesh/warming"
)

// match asks the rules about an event.
func (w *warmer) match(data []byte) {
	if !w.leading {
		return // who leads has it, too
	}
	e, err := warming.ParseEvent(data)
	if err != nil {
		w.counted.bad.Add(1)
		return
	}
	for name, p := range w.plans {
		keys, err := p.Match(w.region, e)
		if err != nil {
			if w.failed[name]++; w.failed[name]&(w.failed[name]-1) == 0 { // the first, and fewer and fewer of the same
				w.log.Warn("a rule fails on an event", "plan", name, "error", err, "times", w.failed[name])
			}
			continue
		}
		if len(keys) == 0 {
			continue
		}
		w.matched[name]++
		w.want(name, keys)
	}
}

// want has keys loaded by the plan's next run.
func (w *warmer) want(plan string, keys []string) {
	p := w.pending[plan]
	if p == nil {
		p = &pendingKeys{has: map[string]bool{}}
		w.pending[plan] = p
	}
	for _, key := range keys {
		switch {
		case p.has[key]:
		case len(p.keys) == warming.MaxNamed:
			w.counted.keysDropped.Add(1)
		default:
			p.keys, p.has[key] = append(p.keys, key), true
		}
	}
}

// drain begins runs for the keys that rules want loaded: one at a time a plan. What comes meanwhile is the next one's.
func (w *warmer) drain(ctx context.Context) {
	for _, name := range w.names() {
		p, wanted := w.plans[name], w.pending[name]
		if wanted == nil || w.book.Active(name) != nil {
			continue
		}
		if err := w.begin(ctx, p.Run(w.region, time.Now()), p.Trigger(), time.Time{}, wanted.keys); err != nil {
			w.refused(name, err)
			continue
		}
		delete(w.pending, name)
	}
}
