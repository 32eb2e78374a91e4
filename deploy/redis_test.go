package deploy

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// startsAsReplicaOfNobody runs the command of a Redis node and checks that it comes up as docs/nodes.md says: as a replica of an address
// where nothing listens, that refuses reads, answers INFO, and lets any node of its pool take it for a replica.
func startsAsReplicaOfNobody(t *testing.T, who string, command []string, password string) {
	t.Helper()
	dir := t.TempDir()
	command = slices.Clone(command)
	if len(command) > 1 && command[1] == "/etc/redis/redis.conf" { // as the example's README writes it
		command[1] = filepath.Join(dir, "redis.conf")
		config := "requirepass " + password + "\nmasterauth " + password + "\n"
		if err := os.WriteFile(command[1], []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	var log bytes.Buffer
	redis := exec.Command(command[0], append(command[1:], "--port", port, "--bind", "127.0.0.1", "--dir", dir)...)
	redis.Stdout, redis.Stderr = &log, &log
	if err := redis.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		redis.Process.Kill()
		redis.Wait()
	}()
	ask := func(words ...string) string {
		cli := exec.Command("redis-cli", append([]string{"-p", port}, words...)...)
		if password != "" {
			cli.Env = append(os.Environ(), "REDISCLI_AUTH="+password)
		}
		out, _ := cli.CombinedOutput()
		return string(out)
	}
	for end := time.Now().Add(10 * time.Second); !strings.Contains(ask("info", "server"), "run_id:"); {
		if time.Now().After(end) {
			redis.Process.Kill()
			redis.Wait()
			t.Fatalf("%s: %v does not answer:\n%s", who, command, log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, line := range []string{"role:slave", "master_host:127.0.0.1", "master_port:1", "master_link_status:down"} {
		if info := ask("info", "replication"); !strings.Contains(info, line+"\r\n") {
			t.Errorf("%s: INFO lacks %s:\n%s", who, line, info)
		}
	}
	if reply := ask("get", "x"); !strings.HasPrefix(reply, "MASTERDOWN") {
		t.Errorf("%s: GET is answered %q", who, reply)
	}
	for name, want := range map[string]string{"save": "", "appendonly": "no", "repl-diskless-sync-delay": "0", "masterauth": password} {
		if got := ask("config", "get", name); got != name+"\n"+want+"\n" {
			t.Errorf("%s: CONFIG GET is %q, want %s %q", who, got, name, want)
		}
	}
}
