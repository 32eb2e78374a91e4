package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the time that all threads of the processes, ended ones included, have spent on a processor. It is
// read from each process's CPU clock (clock_getcpuclockid in POSIX), which counts nanoseconds where
// /proc/PID/stat counts ticks of 10 ms.
func cpuTime(pids ...int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		// The id of a process's clock, as the kernel's posix-timers.h makes it: the inverted pid above three
		// bits, of which 2 (CPUCLOCK_SCHED) selects the scheduler's count.
		clock := int32(^pid)<<3 | 2
		var ts unix.Timespec
		if err := unix.ClockGettime(clock, &ts); err != nil {
			return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// cpuTimes is the cpuTime of each process.
func cpuTimes(pids ...int) ([]time.Duration, error) {
	var times []time.Duration
	for _, pid := range pids {
		t, err := cpuTime(pid)
		if err != nil {
			return nil, err
		}
		times = append(times, t)
	}
	return times, nil
}

// usage is the CPU time that each party has used up to a moment.
type usage struct {
	at                   time.Time
	proxy, redis, client time.Duration
}

func readUsage(proxy, redis, client []int) (u usage, err error) {
	u.at = time.Now()
	for _, party := range []struct {
		used *time.Duration
		pids []int
	}{{&u.proxy, proxy}, {&u.redis, redis}, {&u.client, client}} {
		if *party.used, err = cpuTime(party.pids...); err != nil {
			return u, err
		}
	}
	return u, nil
}

// perOperation is in microseconds.
func perOperation(used time.Duration, operations int) float64 {
	return used.Seconds() * 1e6 / float64(operations)
}
