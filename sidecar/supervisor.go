package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	adoptPatience = 2 * time.Second
	steadyLife    = 30 * time.Second // an Envoy that lived this long had no trouble starting
	healthEvery   = time.Second
	hungAfter     = 5 * time.Second
	maxLogSize    = 16 << 20 // bytes
)

// supervisor keeps one Envoy running until its context ends.
type supervisor struct {
	config Config
	launch launch
	admin  *admin
	log    *slog.Logger

	mu       sync.Mutex
	current  *envoyProcess // nil while there is none
	restarts map[string]int
	up       bool // its admin answers
}

func newSupervisor(c Config) (*supervisor, error) {
	l, err := newLaunch(c)
	if err != nil {
		return nil, err
	}
	return &supervisor{config: c, launch: l, admin: newAdmin(c.Admin), log: c.Logger, restarts: map[string]int{}}, nil
}

// run adopts or starts Envoy, starts it again whenever it ends, and when ctx ends drains and stops it, unless another agent takes over.
func (s *supervisor) run(ctx context.Context) error {
	p, err := s.first(ctx)
	if err != nil {
		return err
	}
	policy := newRestartPolicy()
	for {
		s.set(p)
		select {
		case <-p.exited:
		case <-ctx.Done():
			if context.Cause(ctx) == errSuperseded {
				s.set(nil)
				return nil // Envoy is the next agent's
			}
			s.drain(p)
			s.set(nil)
			return s.tidy()
		}
		s.set(nil)
		lived := time.Since(p.began)
		pause := policy.pause(lived)
		s.log.Error("Envoy ended; starting it again", "reason", p.reason, "pid", p.pid(), "lived", lived.Round(time.Millisecond),
			"pause", pause.Round(time.Millisecond), "log", lastWords(filepath.Join(s.config.Dir, logFile), p.logFrom))
		if p = s.restart(ctx, p.reason, pause, policy); p == nil {
			return s.tidy()
		}
	}
}

// first adopts the Envoy of an earlier agent or starts one.
func (s *supervisor) first(ctx context.Context) (*envoyProcess, error) {
	p, err := s.launch.adopt(ctx, adoptPatience)
	if err == nil {
		s.log.Info("adopted the Envoy of an earlier agent", "pid", p.pid())
		return p, nil
	}
	if !errors.Is(err, errNothingToAdopt) {
		s.log.Warn("starting a new Envoy", "because", err)
	}
	for _, address := range []string{s.config.Admin, s.config.Addresses.Redis, s.config.Addresses.RedisRESP3} {
		if err := unused(address); err != nil {
			return nil, err
		}
	}
	if p, err = s.launch.start(); err == nil {
		s.log.Info("started Envoy", "pid", p.pid())
	}
	return p, err
}

// unused tells a user of a port that another program has before Envoy fails over it.
func unused(address string) error {
	if address == "" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("%w: stop what listens there or choose another address", err)
	}
	return l.Close()
}

// restart starts Envoy after a pause, as often as it takes; nil when ctx ends before that.
func (s *supervisor) restart(ctx context.Context, reason string, pause time.Duration, policy *restartPolicy) *envoyProcess {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		s.rotateLog(ctx)
		p, err := s.launch.start()
		if err == nil {
			s.mu.Lock()
			s.restarts[reason]++
			s.mu.Unlock()
			s.log.Info("started Envoy", "pid", p.pid())
			return p
		}
		pause = policy.pause(0)
		s.log.Error("Envoy does not start", "error", err, "pause", pause.Round(time.Millisecond))
	}
}

// drain lets clients finish what they wait for and ends Envoy.
func (s *supervisor) drain(p *envoyProcess) {
	ctx, cancel := context.WithTimeout(context.Background(), s.config.DrainTimeout)
	defer cancel()
	if err := s.admin.drain(ctx); err != nil {
		s.log.Warn("Envoy does not drain", "error", err)
	} else {
		s.waitIdle(ctx, p)
	}
	p.stop(stopGrace)
}

// waitIdle returns when no application is connected, Envoy has ended or ctx has.
func (s *supervisor) waitIdle(ctx context.Context, p *envoyProcess) {
	for {
		n, err := s.admin.connections(ctx)
		if err == nil && n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			s.log.Warn("stopping Envoy while applications are connected", "connections", n)
			return
		case <-p.exited:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tidy removes what an ended Envoy leaves, so that nobody takes it for a living one.
func (s *supervisor) tidy() error {
	var errs []error
	for _, path := range append(s.config.redisSockets(), filepath.Join(s.config.Dir, recordFile)) {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// watch looks after the health and the log of whatever Envoy there is, until ctx ends.
func (s *supervisor) watch(ctx context.Context) error {
	answered := time.Now()
	hung := false
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		_, err := s.admin.state(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.mu.Lock()
		alive := s.current != nil
		s.up = alive && err == nil
		s.mu.Unlock()
		if err == nil || !alive {
			answered = time.Now()
		}
		// Ending an Envoy that hangs would break connections that may yet recover: say it, and leave it alone.
		if now := alive && time.Since(answered) >= hungAfter; now != hung {
			hung = now
			if hung {
				s.log.Error("Envoy's admin interface does not answer", "for", time.Since(answered).Round(time.Second), "error", err)
			} else {
				s.log.Info("Envoy's admin interface answers again")
			}
		}
		s.rotateLog(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// rotateLog keeps at most two log files of about maxLogSize.
func (s *supervisor) rotateLog(ctx context.Context) {
	path := filepath.Join(s.config.Dir, logFile)
	info, err := os.Stat(path)
	if err != nil || info.Size() < maxLogSize {
		return
	}
	if err := os.Rename(path, path+".1"); err != nil {
		s.log.Warn("Envoy's log is not rotated", "error", err)
		return
	}
	if s.process() != nil { // the next one opens a new file by itself
		if err := s.admin.reopenLogs(ctx); err != nil {
			s.log.Warn("Envoy does not reopen its log", "error", err)
			return
		}
	}
	s.log.Info("rotated Envoy's log", "file", path)
}

// lastWords is the line of Envoy's log, as far as it was written after offset from, that tells best why it ended.
func lastWords(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	if from > info.Size() {
		from = 0 // the log was rotated meanwhile
	}
	const most = 16 << 10 // more than a backtrace
	from = max(from, info.Size()-most)
	data, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	for _, line := range lines {
		// What follows the first critical line is its backtrace.
		if strings.Contains(line, "[critical]") {
			return line
		}
	}
	return lines[len(lines)-1]
}

func (s *supervisor) set(p *envoyProcess) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = p
	s.up = s.up && p != nil
}

func (s *supervisor) process() *envoyProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// restartCount is how often Envoy was started again.
func (s *supervisor) restartCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	for _, n := range s.restarts {
		total += n
	}
	return total
}

func (s *supervisor) status() EnvoyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := EnvoyStatus{Up: s.up, Restarts: maps.Clone(s.restarts)}
	if s.current != nil {
		st.PID, st.Adopted = s.current.pid(), s.current.adopted
	}
	return st
}

// restartPolicy decides how long to wait before Envoy is started again: not at all after its first crash, then
// longer and longer until one has lived for a while.
type restartPolicy struct {
	backoff *backoff.ExponentialBackOff
	crashed bool
}

func newRestartPolicy() *restartPolicy {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 100 * time.Millisecond
	b.Multiplier = 2
	b.MaxInterval = 5 * time.Second
	b.RandomizationFactor = 0.2
	b.Reset()
	return &restartPolicy{backoff: b}
}

func (p *restartPolicy) pause(lived time.Duration) time.Duration {
	if lived >= steadyLife {
		p.backoff.Reset()
		p.crashed = false
	}
	if !p.crashed {
		p.crashed = true
		return 0
	}
	return min(p.backoff.NextBackOff(), 5*time.Second)
}
