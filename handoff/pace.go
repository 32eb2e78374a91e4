package handoff

import (
	"cmp"
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/resp"
)

// Defaults of Limits.
const (
	defaultKeys  = 5_000
	defaultBytes = 64 << 20
	defaultCPU   = 0.7
)

func (l Limits) orDefaults() Limits {
	l.KeysPerSecond = cmp.Or(l.KeysPerSecond, defaultKeys)
	l.BytesPerSecond = cmp.Or(l.BytesPerSecond, defaultBytes)
	l.DonorCPU = cmp.Or(l.DonorCPU, defaultCPU)
	return l
}

// pace is how fast a handoff may copy. All donors have it in common.
type pace struct {
	limits Limits

	mu    sync.Mutex
	next  time.Time // when what is copied next may begin
	part  float64   // of the limits that donors' CPUs leave
	busy  map[string]float64
	tried time.Time
}

func newPace(l Limits) *pace { return &pace{limits: l, part: 1, busy: map[string]float64{}} }

// burst is for how long a pause is made up for.
const burst = 10 * time.Millisecond

// wait waits until so much may be copied.
func (p *pace) wait(ctx context.Context, keys int, bytes int64) error {
	p.mu.Lock()
	seconds := max(float64(keys)/float64(p.limits.KeysPerSecond), float64(bytes)/float64(p.limits.BytesPerSecond)) / p.part
	now := time.Now()
	if earliest := now.Add(-burst); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(time.Duration(seconds * float64(time.Second)))
	wait := p.next.Sub(now)
	p.mu.Unlock()
	return sleep(ctx, wait)
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const (
	// cpuEvery is how often a donor is asked what it uses.
	cpuEvery = 250 * time.Millisecond
	// slowest is the part of the limits that is copied however busy a donor is: a handoff must end.
	slowest = 0.02
)

// watchCPU slows copying down while a donor uses more than it may.
func (p *pace) watchCPU(ctx context.Context, donor *link) error {
	var last, at float64
	begun := time.Now()
	for {
		replies, err := donor.do(ctx, resp.AppendCommand(nil, "INFO", "cpu"), 1)
		if err != nil {
			return err
		}
		info := text(replies[0])
		user, _ := strconv.ParseFloat(node.Field(info, "used_cpu_user"), 64)
		system, _ := strconv.ParseFloat(node.Field(info, "used_cpu_sys"), 64)
		now := time.Since(begun).Seconds()
		if at > 0 {
			p.uses(donor.shard, (user+system-last)/(now-at))
		}
		last, at = user+system, now
		if err := sleep(ctx, cpuEvery); err != nil {
			return err
		}
	}
}

func (p *pace) uses(donor string, share float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy[donor] = share
	if share > p.limits.DonorCPU {
		p.part = max(slowest, p.part*max(0.5, p.limits.DonorCPU/share))
		p.tried = time.Now()
	} else if time.Since(p.tried) > 2*cpuEvery {
		p.part = min(1, p.part*1.1+0.01)
	}
}

// busiest is what the busiest donor uses of a core.
func (p *pace) busiest() (share float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.busy {
		share = max(share, s)
	}
	return share
}
