package main

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

// startShard runs one real Redis with all keys.
func startShard(t *testing.T) (shard, *process.Process) {
	t.Helper()
	var running programs
	t.Cleanup(running.stop)
	shards, err := startShards(t.Context(), &running, t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return shards[0], running[0]
}

func TestWorkloadHasEveryKeyOnce(t *testing.T) {
	for _, pipeline := range []int{1, 16} {
		w := newWorkload("SET", pipeline)
		seen := map[string]bool{}
		for _, request := range w.requests {
			for part := range strings.SplitSeq(string(request), "\r\n") {
				if strings.HasPrefix(part, "bench:") && !strings.Contains(part, " ") {
					seen[part] = true
				}
			}
		}
		if len(w.requests) != keyCount/pipeline || len(seen) != keyCount {
			t.Errorf("pipeline %d: %d batches of %d keys, want %d of %d", pipeline, len(w.requests), len(seen), keyCount/pipeline, keyCount)
		}
	}
}

func TestLoadOverBothTransports(t *testing.T) {
	s, _ := startShard(t)
	for _, e := range []endpoint{{"tcp", s.address}, {"unix", s.socket}} {
		for _, command := range []string{"GET", "SET"} {
			l, err := openLoad([]endpoint{e}, 10, newWorkload(command, 16))
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			for range 2 { // the second goes on with the batches under way
				if operations, err := l.closedLoop(20 * time.Millisecond); err != nil || operations == 0 || operations%16 != 0 {
					t.Errorf("%s over %s: %d operations, error %v", command, e.network, operations, err)
				}
			}
		}
	}
}

func TestWrongReplyIsAnError(t *testing.T) {
	s, _ := startShard(t)
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, step := range []struct{ command, want string }{
		{"SET " + key(7) + " other", "5\\r\\nother"},
		{"DEL " + key(7), "-1\\r\\n"},
		{"LPUSH " + key(7) + " x", "-WRONGTYPE"},
	} {
		if _, err := conn.Write([]byte(step.command + "\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		l, err := openLoad([]endpoint{{"tcp", s.address}}, 1, newWorkload("GET", 16))
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		if _, err := l.closedLoop(10 * time.Second); err == nil || !strings.Contains(err.Error(), step.want) {
			t.Errorf("after %s: error %v, want one that shows %q", step.command, err, step.want)
		}
	}
}

// A server that stalls must look bad for every request that was due meanwhile, not just for those under way.
func TestOpenLoopCountsFromTheIntendedTime(t *testing.T) {
	s, redis := startShard(t)
	const connections, rate = 10, 1000
	l, err := openLoad([]endpoint{{"tcp", s.address}}, connections, newWorkload("GET", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	const stall = 300 * time.Millisecond
	if err := redis.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(stall, func() { redis.Signal(syscall.SIGCONT) })
	latency, err := l.openLoop(rate, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got := latency.TotalCount(); got != rate {
		t.Errorf("%d batches, want %d: the schedule does not wait for replies", got, rate)
	}
	slow := int64(0)
	for _, bar := range latency.Distribution() {
		if bar.From > (stall / 3).Nanoseconds() {
			slow += bar.Count
		}
	}
	if want := int64(stall.Seconds() * rate / 2); slow < want {
		t.Errorf("%d batches took more than %s, want at least %d of those that were due in the stall", slow, stall/3, want)
	}
}

func TestCPUTimeAgreesWithTheTicks(t *testing.T) {
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
	}
	ticks, err := process.CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	got, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got < ticks/2 || got > 2*ticks+time.Second {
		t.Errorf("the CPU clock says %s, /proc/PID/stat %s", got, ticks)
	}
	if _, err := cpuTime(1 << 22); err == nil { // Linux's pids end below
		t.Error("no error for a process that is not there")
	}
}
