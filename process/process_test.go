package process_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

func TestRedisPrimaryAndReplica(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ports, err := process.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	primary, err := process.Redis{Port: ports[0], Dir: dir}.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer primary.Stop(time.Second)
	replica, err := process.Redis{Port: ports[1], Dir: dir, ReplicaOf: ports[0]}.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer replica.Stop(time.Second)

	if _, err := (process.Redis{Port: ports[0], Dir: dir}).Start(ctx); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second Redis on the port: error %v, want one that shows the log's reason", err)
	}
	if err := primary.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	primary.Stop(time.Second)
	if syscall.Kill(primary.PID(), 0) == nil {
		t.Error("a stopped (SIGSTOP) process outlived Stop")
	}
}

func TestManagedRedis(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	r := process.Redis{Port: ports[0], Dir: t.TempDir(), Managed: true}
	// What another run has left is not its data.
	left := filepath.Join(r.Dir, fmt.Sprintf("redis-%d.rdb", r.Port))
	if err := os.WriteFile(left, []byte("no RDB file, at which Redis would end"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := r.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(time.Second)
	options, err := r.Options()
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	if err := client.Get(ctx, "k").Err(); !redis.IsMasterDownError(err) {
		t.Errorf("GET: %v, want MASTERDOWN", err)
	}
	if err := client.Set(ctx, "k", "v", 0).Err(); err == nil {
		t.Error("it takes writes")
	}
}

func TestCPUGrowsWithWork(t *testing.T) {
	before, err := process.CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for after := before; after < before+50*time.Millisecond; {
		if after, err = process.CPU(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStartReportsTheLogOfAProgramThatExits(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	_, err := process.Start(t.Context(), process.Spec{
		Name: "sh", Path: "/bin/sh", Args: []string{"-c", "echo out of luck >&2; exit 3"}, Log: log,
		Ready: func(context.Context, int) error { return os.ErrNotExist },
	})
	if err == nil || !strings.Contains(err.Error(), "out of luck") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v, want the exit status and the log's end", err)
	}
}

func TestFindNamesTheRemedy(t *testing.T) {
	if _, err := process.Find("no-such-program"); err == nil || !strings.Contains(err.Error(), "make tools") {
		t.Errorf("error %v, want a remedy", err)
	}
}
