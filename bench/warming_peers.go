package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/process"
)

const copiedPrefix = "item:"

func copiedKey(i int) string { return fmt.Sprintf("%s%08d", copiedPrefix, i) }

// copied is how long a copy took and what it cost.
type copied struct {
	keys                   int
	took                   time.Duration
	loader, source, target time.Duration // CPU time
}

func (c copied) cpu() time.Duration { return c.loader + c.source + c.target }

// writeCommands writes the SET of every key for which wanted, as redis-cli --pipe takes them.
func writeCommands(file string, keys int, value func(i int) []byte, wanted func(key string) bool) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	for i := range keys {
		if key := copiedKey(i); wanted(key) {
			v := value(i)
			fmt.Fprintf(w, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, len(v), v)
		}
	}
	return w.Flush()
}

// copiedValue gives every key a value of its own.
func copiedValue(bytes int) func(i int) []byte {
	filler := strings.Repeat("v", bytes)
	return func(i int) []byte {
		key := copiedKey(i)
		return []byte(key + filler[len(key):])
	}
}

// pipe has redis-cli write a file of commands to a Redis, and returns the CPU time that redis-cli took.
func pipe(ctx context.Context, file, address string) (time.Duration, error) {
	path, err := process.Find("redis-cli")
	if err != nil {
		return 0, err
	}
	commands, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer commands.Close()
	host, port, _ := strings.Cut(address, ":")
	cmd := exec.CommandContext(ctx, path, "-h", host, "-p", port, "--pipe")
	cmd.Stdin = commands
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "errors: 0,") {
		return 0, fmt.Errorf("redis-cli --pipe: %w: %s", err, out)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// warmingPeers are an own Redis to copy from and others to copy to.
type warmingPeers struct {
	dir, commands string
	keys          int
	source        *redisNode
}

func startWarmingPeers(ctx context.Context, dir string, keys, bytes int) (*warmingPeers, error) {
	p := &warmingPeers{dir: dir, commands: filepath.Join(dir, "commands"), keys: keys}
	if err := writeCommands(p.commands, keys, copiedValue(bytes), func(string) bool { return true }); err != nil {
		return nil, err
	}
	var err error
	if p.source, err = p.empty(ctx); err != nil {
		return nil, err
	}
	if _, err := pipe(ctx, p.commands, p.source.redis.Address()); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *warmingPeers) stop() { p.source.stop() }

func (p *warmingPeers) empty(ctx context.Context) (*redisNode, error) {
	ports, err := process.FreePorts(1)
	if err != nil {
		return nil, err
	}
	return startNode(ctx, process.Redis{Port: ports[0], Dir: p.dir})
}

// into measures what a copier costs that fills an empty Redis with so many keys.
func (p *warmingPeers) into(ctx context.Context, keys int, copier func(target string) (time.Duration, error)) (c copied, err error) {
	target, err := p.empty(ctx)
	if err != nil {
		return c, err
	}
	defer target.stop()
	began := time.Now()
	before, err := cpuTimes(p.source.running.PID(), target.running.PID())
	if err != nil {
		return c, err
	}
	if c.loader, err = copier(target.redis.Address()); err != nil {
		return c, err
	}
	c.keys, c.took = keys, time.Since(began)
	after, err := cpuTimes(p.source.running.PID(), target.running.PID())
	if err != nil {
		return c, err
	}
	c.source, c.target = after[0]-before[0], after[1]-before[1]
	if size, err := target.direct.DBSize(ctx).Result(); err != nil || size != int64(keys) {
		return c, fmt.Errorf("%d of %d keys were copied: %w", size, keys, err)
	}
	return c, nil
}

// floor is redis-cli --pipe, to which the keys and values are given in a file.
func (p *warmingPeers) floor(ctx context.Context) (copied, error) {
	return p.into(ctx, p.keys, func(target string) (time.Duration, error) { return pipe(ctx, p.commands, target) })
}

// naive is a program that gets a key and sets it, one after the other. It is given fewer keys, as it takes as long for each.
func (p *warmingPeers) naive(ctx context.Context, keys int) (copied, error) {
	self, err := os.Executable()
	if err != nil {
		return copied{}, err
	}
	return p.into(ctx, keys, func(target string) (time.Duration, error) {
		cmd := exec.CommandContext(ctx, self, "naive-copy", p.source.redis.Address(), target, fmt.Sprint(keys))
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("naive copier: %w: %s", err, out)
		}
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
	})
}

// naiveCopyCommand is run as a program of its own, so that its CPU time is its own.
func naiveCopyCommand() *cobra.Command {
	return &cobra.Command{Use: "naive-copy FROM TO KEYS", Hidden: true, Args: cobra.ExactArgs(3), RunE: func(cmd *cobra.Command, args []string) error {
		var keys int
		if _, err := fmt.Sscan(args[2], &keys); err != nil {
			return err
		}
		client := func(address string) *redis.Client {
			return redis.NewClient(&redis.Options{Addr: address, Protocol: 2, DisableIdentity: true})
		}
		from, to := client(args[0]), client(args[1])
		defer closeClients([]*redis.Client{from, to})
		for i := range keys {
			value, err := from.Get(cmd.Context(), copiedKey(i)).Bytes()
			if err == nil {
				err = to.Set(cmd.Context(), copiedKey(i), value, 0).Err()
			}
			if err != nil {
				return failure{err}
			}
		}
		return nil
	}}
}
