package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	control "github.com/cachemesh/cachemesh/controlplane"
)

// invocation is a cachemesh command that ends by itself.
type invocation struct {
	args  []string
	stdin string
	env   []string
	dir   string
}

// result is what a user and a script see of it.
type result struct {
	code           int
	stdout, stderr string
}

func cachemesh(t *testing.T, args ...string) result {
	t.Helper()
	return invocation{args: args}.run(t)
}

func (i invocation) run(t *testing.T) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, program(t), i.args...)
	command.Dir, command.Env = i.dir, append(os.Environ(), i.env...)
	command.Stdin = strings.NewReader(i.stdin)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("cachemesh %q: %v (%v)", i.args, err, ctx.Err())
	}
	return result{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// want checks the exit status and returns the result for more.
func (r result) want(t *testing.T, code int) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit status %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.stdout, r.stderr)
	}
	return r
}

// decode reads standard output as JSON.
func decode[T any](t *testing.T, r result) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("%v in: %s", err, r.stdout)
	}
	return v
}

type (
	regionStatus = control.Status
	alert        = control.Alert
)

type meshStatus struct {
	Regions []regionStatus `json:"regions"`
	Errors  []string       `json:"errors"`
}

// statusOf is what `cachemesh status` tells of a mesh of one region.
func statusOf(t *testing.T, flags ...string) regionStatus {
	t.Helper()
	s := decode[meshStatus](t, cachemesh(t, append([]string{"status", "-o", "json"}, flags...)...).want(t, 0))
	if len(s.Regions) != 1 || len(s.Errors) != 0 {
		t.Fatalf("status %+v, want one region and no errors", s)
	}
	return s.Regions[0]
}

// place is an element of what `where -o json` prints.
type place struct {
	Key       string  `json:"key"`
	KeyBase64 string  `json:"key_base64"`
	Region    string  `json:"region"`
	Pool      string  `json:"pool"`
	Route     *string `json:"route"`
	Shard     string  `json:"shard"`
	Primary   string  `json:"primary"`
	Error     string  `json:"error"`
}

// where asks for keys without NUL.
func (c *controlplane) where(t *testing.T, keys ...string) []place {
	t.Helper()
	i := invocation{args: []string{"where", "-0", "-o", "json", "--controlplane", c.url}, stdin: strings.Join(keys, "\x00") + "\x00"}
	places := decode[[]place](t, i.run(t).want(t, 0))
	if len(places) != len(keys) {
		t.Fatalf("%d places for %d keys", len(places), len(keys))
	}
	return places
}
