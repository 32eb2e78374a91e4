package test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// checker counts one key up, through a sidecar and one request at a time. Each answer tells which process gave it and of which epoch,
// and what was there before, so that a wrong one shows:
//   - an epoch that goes back, or another process without another epoch, or two processes with the same one;
//   - a process that has not what it acknowledged before;
//   - anything that was never written.
//
// Errors are no answers. Writes that a new primary lacks are counted.
type checker struct {
	client   *redis.Client
	key      string
	told     *told
	stop     context.CancelFunc
	done     chan struct{}
	answered atomic.Int64
	errors   atomic.Int64
	lost     atomic.Int64 // acknowledged, and unknown to the primary after that

	// The checker's own until done is closed.
	last  answer
	read  string         // what GET said since
	acked map[int64]bool // by number
	open  map[int64]bool // without an answer: these may take effect at any time
	moves int            // to another process
	wrong []string
}

type answer struct {
	number int64
	epoch  uint64
	run    string
}

// told is what all checkers of a shard have heard.
type told struct {
	mu     sync.Mutex
	epochs map[uint64]string // the process that answered in each
}

func (t *told) by(epoch uint64, run string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if before, ok := t.epochs[epoch]; ok && before != run {
		return fmt.Errorf("epoch %d is that of %.6s and of %.6s", epoch, before, run)
	}
	t.epochs[epoch] = run
	return nil
}

const countUp = `local before = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return {before, redis.call('GET', 'cachemesh:epoch'), string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')}`

// startChecker begins one. Several have keys of their own.
func startChecker(t *testing.T, client *redis.Client, key string, all *told) *checker {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := &checker{client: client, key: key, told: all, stop: stop, done: make(chan struct{}), acked: map[int64]bool{}, open: map[int64]bool{}}
	go func() {
		defer close(c.done)
		ticker := time.NewTicker(3 * time.Millisecond)
		defer ticker.Stop()
		for n := int64(1); ctx.Err() == nil; n++ {
			c.count(n)
			<-ticker.C
		}
	}()
	t.Cleanup(func() { stop(); <-c.done })
	return c
}

func newTold() *told { return &told{epochs: map[uint64]string{}} }

func (c *checker) count(n int64) {
	reply, err := c.client.Eval(context.Background(), countUp, []string{c.key}, fmt.Sprintf("%s=%d", c.key, n)).Slice()
	if err != nil || len(reply) != 3 {
		c.open[n] = true
		c.errors.Add(1)
		return
	}
	text := func(i int) string { s, _ := reply[i].(string); return s }
	now := answer{number: n, run: text(2)}
	now.epoch, _ = strconv.ParseUint(text(1), 10, 64)
	c.judge(text(0), now)
	c.acked[n] = true
	c.last = now
	c.answered.Add(1)
	read, err := c.client.Get(context.Background(), c.key).Result()
	if c.read = read; errors.Is(err, redis.Nil) {
		c.read = "nothing"
	}
}

// judge compares an answer with those before.
func (c *checker) judge(before string, now answer) {
	if now.epoch > 0 {
		if err := c.told.by(now.epoch, now.run); err != nil {
			c.complain("%v", err)
		}
	}
	number := int64(0)
	if before != "" {
		value, ok := strings.CutPrefix(before, c.key+"=")
		var err error
		if number, err = strconv.ParseInt(value, 10, 64); !ok || err != nil || !c.acked[number] && !c.open[number] {
			c.complain("before %d there was %q, which nobody wrote", now.number, before)
		}
	}
	switch {
	case c.last.run == "" || c.last.run == now.run:
		if now.epoch < c.last.epoch {
			c.complain("epoch %d comes after %d", now.epoch, c.last.epoch)
		}
		if number != c.last.number && !c.open[number] {
			c.complain("%.6s had %q before %d, and had acknowledged %d", now.run, before, now.number, c.last.number)
		}
		if value, _ := strings.CutPrefix(c.read, c.key+"="); c.read != "" && value != fmt.Sprint(c.last.number) {
			c.complain("%.6s said %q to a GET, and had acknowledged %d", now.run, c.read, c.last.number)
		}
	default:
		if now.epoch <= c.last.epoch && now.epoch > 0 {
			c.complain("%.6s of epoch %d answers after %.6s of epoch %d", now.run, now.epoch, c.last.run, c.last.epoch)
		}
		c.moves++
		for n := number + 1; n <= c.last.number; n++ {
			if c.acked[n] {
				c.lost.Add(1)
			}
		}
	}
	if value, ok := strings.CutPrefix(c.read, c.key+"="); c.read != "" && c.read != "nothing" {
		if n, err := strconv.ParseInt(value, 10, 64); !ok || err != nil || !c.acked[n] && !c.open[n] {
			c.complain("GET said %q, which nobody wrote", c.read)
		}
	}
}

func (c *checker) complain(format string, args ...any) {
	c.wrong = append(c.wrong, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// waitMore waits for n more answers.
func (c *checker) waitMore(t *testing.T, n int64) {
	t.Helper()
	from := c.answered.Load()
	eventually(t, 20*time.Second, func() error {
		if got := c.answered.Load() - from; got < n {
			return fmt.Errorf("%d answers to %s, want %d; %d errors", got, c.key, n, c.errors.Load())
		}
		return nil
	})
}

// finish ends the checker and fails the test if an answer was wrong.
func (c *checker) finish(t *testing.T) {
	t.Helper()
	c.stop()
	<-c.done
	if len(c.wrong) > 0 {
		t.Errorf("%s: %d answers were wrong: %q", c.key, len(c.wrong), c.wrong[:min(5, len(c.wrong))])
	}
	if c.answered.Load() == 0 {
		t.Errorf("%s: no answer", c.key)
	}
	t.Logf("%s: %d answers, %d errors, %d moves, %d acknowledged writes lost", c.key, c.answered.Load(), c.errors.Load(), c.moves, c.lost.Load())
}
