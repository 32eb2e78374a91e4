// Package process runs real programs on this machine for the demo, the tests and the benchmarks:
// it starts them, waits until they are ready, reads their CPU time and stops them by pid.
//
// It never touches a process that it did not start, and a child never outlives the program that
// started it: the kernel sends it SIGTERM when its parent dies.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Spec says what to run.
type Spec struct {
	Name string   // how errors call it
	Path string   // the program; see Find
	Args []string // without the program's name
	Dir  string   // working directory; "" is the caller's
	Env  []string // added to the caller's environment
	Log  string   // file that standard error, and standard output if Stdout is nil, is appended to; "" discards
	// Stdin is what the program reads from standard input; nil is nothing.
	Stdin io.Reader
	// Stdout receives standard output instead of Log.
	Stdout io.Writer
	// User is who it runs as; nil is who the caller is.
	User *syscall.Credential
	// Ready is polled until it returns nil; pid lets it make sure that it is this process that answers.
	// Nil means that the process is ready at once.
	Ready func(ctx context.Context, pid int) error
}

// Process is a running child.
type Process struct {
	spec Spec
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs the program and waits until it is ready, it exits, or ctx ends; in the last two cases it
// is stopped and the error carries the end of its log.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Dir = spec.Dir
	cmd.Env = append(os.Environ(), spec.Env...)
	// A group of its own keeps a terminal's Ctrl-C away from it: its parent decides when it stops.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM, Credential: spec.User}
	cmd.Stdin, cmd.Stdout = spec.Stdin, spec.Stdout
	if spec.Log != "" {
		f, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("%s: open its log: %w", spec.Name, err)
		}
		defer f.Close()
		cmd.Stderr = f
		if spec.Stdout == nil {
			cmd.Stdout = f
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	p := &Process{spec: spec, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := p.waitReady(ctx); err != nil {
		p.Stop(time.Second)
		return nil, err
	}
	return p, nil
}

func (p *Process) waitReady(ctx context.Context) error {
	if p.spec.Ready == nil {
		return nil
	}
	for {
		err := p.spec.Ready(ctx, p.PID())
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s exited before it was ready: %w%s", p.spec.Name, p.exit(), p.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (%w)%s", p.spec.Name, err, ctx.Err(), p.logTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// PID is the operating system's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Name is the Spec's.
func (p *Process) Name() string { return p.spec.Name }

// Done is closed when the process has exited.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is the exit error once Done is closed, nil for exit status 0.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Signal sends sig to the process.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop ends the process with SIGTERM, and with SIGKILL if it still runs after grace. A stopped
// process (SIGSTOP) is continued first. It returns when the process is gone.
func (p *Process) Stop(grace time.Duration) {
	p.Signal(syscall.SIGCONT)
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// Kill ends the process with SIGKILL and returns when it is gone.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

func (p *Process) exit() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

func (p *Process) logTail() string {
	if p.spec.Log == "" {
		return ""
	}
	data, err := os.ReadFile(p.spec.Log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return fmt.Sprintf("; %s ends with:\n  %s", p.spec.Log, strings.Join(lines, "\n  "))
}

// Find returns the path of a program: beside this executable, in .tools/bin of the working directory or a
// folder above it (where tools/install puts what it installs), or on PATH.
func Find(name string) (string, error) {
	if exe, err := os.Executable(); err == nil {
		if path, ok := executable(filepath.Join(filepath.Dir(exe), name)); ok {
			return path, nil
		}
		if path, ok := executable(filepath.Join(filepath.Dir(exe), "..", ".tools", "bin", name)); ok {
			return path, nil
		}
	}
	if dir, err := os.Getwd(); err == nil {
		for ; ; dir = filepath.Dir(dir) {
			if path, ok := executable(filepath.Join(dir, ".tools", "bin", name)); ok {
				return path, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed: run `make tools`, or put it on PATH", name)
	}
	return path, nil
}

func executable(path string) (string, bool) {
	info, err := os.Stat(path)
	return path, err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
