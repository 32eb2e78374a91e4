package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/process"
)

// startInSession starts the program in a session of its own, as a service has, and returns its pid.
//
// Linux shares its processors out between sessions first (sched_autogroup). A sidecar's Envoy has a session of its own, so that
// it outlives its agent; a peer in the benchmark's session would share that session's part with the client and Redis, be
// woken in their order and find other numbers of requests waiting: measured, the same Envoy with the same configuration
// gets half the throughput in one place and spends up to a fifth more CPU time an operation.
func startInSession(ctx context.Context, running *programs, dir string, spec process.Spec) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	file := filepath.Join(dir, filepath.Base(spec.Path)+".session")
	ready := spec.Ready
	spec.Ready = func(ctx context.Context, _ int) error {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if pid, err = strconv.Atoi(string(data)); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		return ready(ctx, pid)
	}
	spec.Args = append([]string{"session", file, spec.Path}, spec.Args...)
	spec.Path = self
	_, err = running.start(ctx, spec)
	return pid, err
}

// sessionCommand is the parent of a program with a session of its own: it lives as long as the program, and ends it when it is
// told to end.
func sessionCommand() *cobra.Command {
	return &cobra.Command{Use: "session FILE PROGRAM [ARG...]", Hidden: true, DisableFlagParsing: true, Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			program := exec.CommandContext(cmd.Context(), args[1], args[2:]...)
			program.Stdout, program.Stderr = os.Stdout, os.Stderr
			program.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
			program.Cancel = func() error { return program.Process.Signal(syscall.SIGTERM) }
			program.WaitDelay = 5 * time.Second
			if err := program.Start(); err != nil {
				return failure{fmt.Errorf("start %s: %w", args[1], err)}
			}
			writeErr := renameio.WriteFile(args[0], []byte(strconv.Itoa(program.Process.Pid)), 0o600)
			if writeErr != nil {
				program.Process.Kill()
			}
			if err := program.Wait(); err != nil && cmd.Context().Err() == nil {
				return failure{fmt.Errorf("%s: %w", args[1], err)}
			}
			if writeErr != nil {
				return failure{writeErr}
			}
			return nil
		}}
}
