package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestClientConfigPrintsProgramsThatWork runs what client-config prints as it is printed.
func TestClientConfigPrintsProgramsThatWork(t *testing.T) {
	t.Parallel()
	m := onePool(t, "", 2)
	s := m.startSidecar(t, "here-0", m.startControlplane(t))
	environment, err := clientEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for language, suffix := range map[string]string{"go": ".go", "python": ".py", "node": ".js", "java": ".java"} {
		var printed struct {
			Redis      string
			RedisRESP3 string `json:"redis_resp3"`
			Clients    []struct {
				Client, Version, Address, Run, Program string
				Protocol                               int
			}
		}
		out := cachemesh(t, "client-config", "--lang", language, "--sidecar", "http://"+s.metrics, "-o", "json").want(t, 0).stdout
		if err := json.Unmarshal([]byte(out), &printed); err != nil {
			t.Fatal(err)
		}
		if printed.Redis != s.redis || printed.RedisRESP3 != s.resp3 || len(printed.Clients) == 0 {
			t.Errorf("%s: %s and %s and %d clients, want %s and %s and some", language, printed.Redis, printed.RedisRESP3, len(printed.Clients), s.redis, s.resp3)
		}
		for _, c := range printed.Clients {
			if want := map[int]string{2: s.redis, 3: s.resp3}[c.Protocol]; c.Address != want {
				t.Errorf("%s for RESP%d is to use %s, want %s", c.Client, c.Protocol, c.Address, want)
			}
			if c.Run != "by the tests" {
				continue
			}
			ran++
			file := filepath.Join(m.dir, c.Client+suffix)
			if err := os.WriteFile(file, []byte(c.Program), 0o644); err != nil {
				t.Fatal(err)
			}
			if got, err := runClientProgram(t.Context(), environment, language, file); err != nil || got != "hello\n" {
				t.Errorf("%s prints %q, want hello: %v\n%s", c.Client, got, err, c.Program)
			}
			if version, err := installedVersion(t.Context(), environment, c.Client); err != nil || version != c.Version {
				t.Errorf("%s is said to have been run with %s, but is %q: %v", c.Client, c.Version, version, err)
			}
		}
	}
	if ran != 5 {
		t.Errorf("%d programs were run, want 5", ran)
	}
}

// runClientProgram returns its standard output. Warnings of a client, too, are errors here: its settings are to be right.
func runClientProgram(ctx context.Context, environment []string, language, file string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, map[string]string{"python": "python3", "node": "node"}[language], file)
	if language == "go" {
		command = exec.CommandContext(ctx, "go", "run", file)
	}
	command.Env = environment
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err == nil && stderr.Len() > 0 {
		err = errors.New("it complains")
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}

func installedVersion(ctx context.Context, environment []string, client string) (string, error) {
	node := "console.log(JSON.parse(require('fs').readFileSync(process.env.NODE_PATH + '/%s/package.json')).version)"
	var command *exec.Cmd
	switch client {
	case "go-redis":
		return moduleVersion(ctx, "github.com/redis/go-redis/v9")
	case "rueidis":
		return moduleVersion(ctx, "github.com/redis/rueidis")
	case "redis-py":
		command = exec.CommandContext(ctx, "python3", "-c", "import redis; print(redis.__version__)")
	case "ioredis":
		command = exec.CommandContext(ctx, "node", "-e", fmt.Sprintf(node, "ioredis"))
	case "node-redis":
		command = exec.CommandContext(ctx, "node", "-e", fmt.Sprintf(node, "redis"))
	default:
		return "", errors.New("it is not installed")
	}
	command.Env = environment
	out, err := command.Output()
	return strings.TrimSpace(string(out)), err
}

func TestClientConfigTakesThePortsFromWhereItIsTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	usual := invocation{args: []string{"client-config", "--lang", "python"}, dir: dir}.run(t).want(t, 0)
	if !strings.Contains(usual.stdout, "port=6380") || !strings.Contains(usual.stderr, "127.0.0.1:6380") {
		t.Errorf("without a mesh: %s\n%s\nwant port 6380", usual.stdout, usual.stderr)
	}
	endpoints := `{"regions": [{"name": "a", "sidecars": [{"name": "a-0", "redis": "127.0.0.1:7379", "redis_resp3": "127.0.0.1:7380"}]}]}`
	if err := os.WriteFile(filepath.Join(dir, "endpoints.json"), []byte(endpoints), 0o644); err != nil {
		t.Fatal(err)
	}
	rueidis := cachemesh(t, "client-config", "--lang", "go", "--client", "rueidis", "--dir", dir).want(t, 0)
	if !strings.Contains(rueidis.stdout, `"127.0.0.1:7380"`) || strings.Contains(rueidis.stdout, "go-redis") {
		t.Errorf("of a demo: %s\nwant rueidis at port 7380", rueidis.stdout)
	}
	for _, wrong := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "--lang is missing"},
		{[]string{"--lang", "cobol"}, 2, "go, python, node or java"},
		{[]string{"--lang", "go", "--client", "jedis"}, 2, "go-redis or rueidis"},
		{[]string{"--lang", "go", "--dir", dir, "--sidecar", "http://127.0.0.1:1"}, 2, "give one"},
		{[]string{"--lang", "go", "--sidecar", "127.0.0.1:9902"}, 2, "--sidecar"},
		{[]string{"--lang", "go", "--sidecar", "http://127.0.0.1:1"}, 1, "sidecar"},
		{[]string{"--lang", "go", "--dir", filepath.Join(dir, "none")}, 1, "no mesh runs from"},
	} {
		r := cachemesh(t, append([]string{"client-config"}, wrong.args...)...).want(t, wrong.code)
		if r.stdout != "" || !strings.Contains(r.stderr, wrong.says) {
			t.Errorf("%q: %q, %q, want it to say %q", wrong.args, r.stdout, r.stderr, wrong.says)
		}
	}
}
