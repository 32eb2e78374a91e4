package load

import (
	"context"
	"sync"
	"time"
)

// pace spreads what a run loads over time, so that shards are not busy with much of it at once. The run's budget itself is kept in its queue.
type pace struct {
	rate float64 // keys a second

	mu   sync.Mutex
	next time.Time
}

// slack is how far ahead of its pace a run may be: waits that are shorter cost more than they are worth.
const slack = 5 * time.Millisecond

// wait waits after so many keys until it is time for more.
func (p *pace) wait(ctx context.Context, keys int) {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(keys) / p.rate * float64(time.Second)))
	ahead := p.next.Sub(now)
	p.mu.Unlock()
	if ahead > slack {
		pause(ctx, ahead)
	}
}
