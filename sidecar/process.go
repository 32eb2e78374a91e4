package sidecar

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/process"
)

// The files of an Envoy in Config.Dir.
const (
	bootstrapFile = "bootstrap.json"
	recordFile    = "envoy.json"
	logFile       = "envoy.log"
)

// envoyProcess is an Envoy that this agent started or took over.
type envoyProcess struct {
	handle  *os.Process
	began   time.Time
	logFrom int64 // size of the log when it began
	adopted bool
	exited  chan struct{}
	reason  string // why it ended, once exited is closed
}

// record tells an agent's next life which Envoy is its own. Pid and start time together name a process for good.
type record struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // clock ticks since boot
	Admin     string `json:"admin"`
	Config    string `json:"config"` // hash of all that Envoy was started with
}

// launch is how to start one sidecar's Envoy.
type launch struct {
	dir, path string
	args      []string
	bootstrap []byte
	hash      string
	admin     string
}

func newLaunch(c Config) (launch, error) {
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapConfig{
		ID: c.Name, Region: c.Region, Zone: c.Zone, XDS: "unix:" + xdsSocket, Admin: c.Admin,
	})
	if err != nil {
		return launch{}, fmt.Errorf("bootstrap: %w", err)
	}
	l := launch{
		dir: c.Dir, path: c.Envoy, bootstrap: bootstrap, admin: c.Admin,
		args: []string{
			"--config-path", filepath.Join(c.Dir, bootstrapFile), "--concurrency", strconv.Itoa(c.Concurrency),
			"--disable-hot-restart", "--drain-time-s", "2", "--drain-strategy", "immediate",
			"--log-path", filepath.Join(c.Dir, logFile), "--log-level", "warning",
		},
	}
	identity, err := json.Marshal([]any{string(bootstrap), c.Addresses, l.path, l.args})
	if err != nil {
		return launch{}, err
	}
	sum := sha256.Sum256(identity)
	l.hash = hex.EncodeToString(sum[:])
	return l, nil
}

// start runs Envoy in a session of its own, so that it outlives the agent and a terminal, and records it.
func (l launch) start() (*envoyProcess, error) {
	if err := renameio.WriteFile(filepath.Join(l.dir, bootstrapFile), l.bootstrap, 0o600); err != nil {
		return nil, fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(l.dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open Envoy's log: %w", err)
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(l.path, l.args...)
	cmd.Dir = l.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	p := &envoyProcess{handle: cmd.Process, began: time.Now(), logFrom: info.Size(), exited: make(chan struct{})}
	go func() {
		// The exit status says more than the error.
		_ = cmd.Wait()
		p.reason = exitReason(cmd.ProcessState)
		close(p.exited)
	}()
	if err := l.record(p.handle.Pid); err != nil {
		p.stop(0)
		return nil, fmt.Errorf("record Envoy's process: %w", err)
	}
	return p, nil
}

func (l launch) record(pid int) error {
	started, err := process.StartTime(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(record{PID: pid, StartTime: started, Admin: l.admin, Config: l.hash})
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(l.dir, recordFile), data, 0o600)
}

// exitReason is the name of the signal that ended a process, or its exit code.
func exitReason(state *os.ProcessState) string {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return unix.SignalName(status.Signal())
	}
	return "exit " + strconv.Itoa(state.ExitCode())
}

// errNothingToAdopt says that no Envoy of an earlier agent is alive.
var errNothingToAdopt = errors.New("no Envoy of an earlier agent is alive")

// adopt takes over the Envoy that an earlier agent in this directory started. If it runs otherwise than l says, or
// its admin does not answer within patience, it is ended and the error says why.
func (l launch) adopt(ctx context.Context, patience time.Duration) (*envoyProcess, error) {
	data, err := os.ReadFile(filepath.Join(l.dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNothingToAdopt
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.PID <= 0 {
		return nil, fmt.Errorf("%s is damaged, so no earlier Envoy can be found", recordFile)
	}
	p, err := attach(r)
	if err != nil {
		return nil, err
	}
	if err := l.recognize(ctx, p, r, patience); err != nil {
		p.stop(stopGrace)
		return nil, fmt.Errorf("the Envoy of an earlier agent (pid %d) is not taken over: %w", r.PID, err)
	}
	return p, nil
}

// attach follows a process that is not a child.
func attach(r record) (*envoyProcess, error) {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, errNothingToAdopt
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", r.PID, err)
	}
	// Both handles were opened before the start time is compared, so they mean the process that it proves.
	handle, err := os.FindProcess(r.PID)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if started, err := process.StartTime(r.PID); err != nil || started != r.StartTime {
		unix.Close(fd)
		return nil, errNothingToAdopt
	}
	p := &envoyProcess{handle: handle, began: time.Now(), adopted: true, exited: make(chan struct{})}
	go func() {
		defer unix.Close(fd)
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		// Only a parent learns how a process ended.
		p.reason = "unknown"
		close(p.exited)
	}()
	return p, nil
}

// recognize returns nil if the recorded Envoy is what l would start and its admin answers.
func (l launch) recognize(ctx context.Context, p *envoyProcess, r record, patience time.Duration) error {
	if r.Config != l.hash {
		return errors.New("it was started with another configuration")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		path, err := newAdmin(r.Admin).configPath(ctx)
		if err == nil {
			if want := filepath.Join(l.dir, bootstrapFile); path != want {
				return fmt.Errorf("an Envoy of %s answers on %s, want one of %s", path, r.Admin, want)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its admin interface does not answer: %w", err)
		case <-p.exited:
			return errors.New("it has exited already")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *envoyProcess) pid() int { return p.handle.Pid }

// stopGrace is how long Envoy may take to exit after SIGTERM.
const stopGrace = 2 * time.Second

// stop ends the process with SIGTERM, and with SIGKILL if it still runs after grace, and returns when it is gone.
func (p *envoyProcess) stop(grace time.Duration) {
	_ = p.handle.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(grace):
		_ = p.handle.Kill()
		<-p.exited
	}
}
