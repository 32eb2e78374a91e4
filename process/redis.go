package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis describes a redis-server on loopback: in memory only, one I/O thread.
type Redis struct {
	Port      int
	Dir       string // working directory, made if missing; the log goes here
	ReplicaOf int    // port of its primary on loopback; 0 is none
	// Managed starts it as a replica of nobody that answers no reads, until a control plane says what it is. ReplicaOf is not used then.
	Managed   bool
	MaxMemory string // as in redis.conf; "" is no limit
	// PasswordFile holds the password of the only user; "" lets everybody in. Replicas have it in common with their primary.
	PasswordFile string
	User         string    // "" is Redis's default user; another turns that one off
	TLS          *RedisTLS // instead of plaintext; nil is plaintext
	Args         []string
}

// Address is where it listens.
func (r Redis) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.Port)) }

// Start runs the server and waits until it answers INFO; a replica that is not Managed, until it has its primary's data.
func (r Redis) Start(ctx context.Context) (*Process, error) {
	path, err := Find("redis-server")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("redis-%d", r.Port)
	// A replica's copy of its primary goes through this file. It must be no other node's, and a node that starts again begins empty.
	file := name + ".rdb"
	if err := os.Remove(filepath.Join(r.Dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	args := []string{"--port", strconv.Itoa(r.Port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
		"--dir", r.Dir, "--daemonize", "no", "--tcp-backlog", "511",
		"--dbfilename", file, "--rdb-del-sync-files", "yes", "--repl-diskless-sync-delay", "0"}
	switch {
	case r.Managed:
		args = append(args, "--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no")
	case r.ReplicaOf != 0:
		args = append(args, "--replicaof", "127.0.0.1", strconv.Itoa(r.ReplicaOf))
	}
	if r.MaxMemory != "" {
		args = append(args, "--maxmemory", r.MaxMemory, "--maxmemory-policy", "allkeys-lru")
	}
	secrets, err := r.secrets()
	if err != nil {
		return nil, err
	}
	args = append(append(args, r.TLS.args(r.Port)...), r.Args...)
	if secrets != nil {
		args = append(args, "-") // a configuration on standard input, where nobody else sees it
	}
	options, err := r.Options()
	if err != nil {
		return nil, err
	}
	// The client dials again by itself, and only once a second after as many failures as it may have connections.
	options.PoolSize, options.DialerRetries, options.DialerRetryTimeout = 1000, 25, 20*time.Millisecond
	client := redis.NewClient(options)
	defer client.Close()
	return Start(ctx, Spec{
		Name: name, Path: path, Args: args, Stdin: bytes.NewReader(secrets), Log: filepath.Join(r.Dir, name+".log"),
		Ready: func(ctx context.Context, pid int) error {
			info, err := client.InfoMap(ctx, "server", "replication").Result()
			if err != nil {
				return err
			}
			if got := info["Server"]["process_id"]; got != strconv.Itoa(pid) {
				return fmt.Errorf("another Redis, process %s, answers on %s", got, r.Address())
			}
			if !r.Managed && r.ReplicaOf != 0 && info["Replication"]["master_link_status"] != "up" {
				return fmt.Errorf("replication from port %d is not up", r.ReplicaOf)
			}
			return nil
		},
	})
}
