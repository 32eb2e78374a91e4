package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachemesh/cachemesh/process"
)

// header opens every result: what was measured, where and when.
type header struct {
	Bench    string            `json:"bench"`
	Quick    bool              `json:"quick"`
	Date     time.Time         `json:"date"`
	Seconds  float64           `json:"duration_seconds"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
}

type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
}

func newHeader(ctx context.Context, name string, quick bool) (header, error) {
	h := header{Bench: name, Quick: quick, Date: time.Now().UTC().Truncate(time.Second), Versions: map[string]string{"go": runtime.Version()}}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return h, fmt.Errorf("uname: %w", err)
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return h, err
	}
	h.Machine = machine{CPU: cpuModel(string(cpuinfo)), Cores: runtime.NumCPU(), Kernel: unix.ByteSliceToString(uts.Release[:])}
	for program, flag := range map[string]string{"envoy": "--version", "redis-server": "--version", "nutcracker": "--version"} {
		path, err := process.Find(program)
		if err != nil {
			return h, err
		}
		out, err := exec.CommandContext(ctx, path, flag).CombinedOutput()
		if err != nil {
			return h, fmt.Errorf("%s %s: %w: %s", program, flag, err, out)
		}
		h.Versions[program] = versionIn(string(out))
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/redis/go-redis/v9" {
				h.Versions["go-redis"] = strings.TrimPrefix(module.Version, "v")
			}
		}
	}
	return h, nil
}

func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return "unknown CPU"
}

var dotted = regexp.MustCompile(`\d+\.\d+\.\d+`)

// versionIn finds the version in what a program says of itself.
func versionIn(text string) string { return dotted.FindString(text) }
