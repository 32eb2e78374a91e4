package test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// redisCLI is a redis-cli that reads commands from its standard input, as when a script feeds it.
type redisCLI struct {
	in     io.Writer
	out    *bufio.Scanner
	echoes int
}

func (c *clientCourse) redisCLI(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"-p", c.port}, args...)
	if c.resp3 {
		args = append([]string{"-3"}, args...)
	}
	return exec.CommandContext(ctx, "redis-cli", args...)
}

func (c *clientCourse) startRedisCLI(ctx context.Context) (*redisCLI, func(), error) {
	command := c.redisCLI(ctx)
	in, err := command.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	command.Stderr = command.Stdout
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	return &redisCLI{in: in, out: bufio.NewScanner(out)}, func() {
		in.Close()
		command.Wait()
	}, nil
}

// errClosed stands for what redis-cli reports of a connection that was closed: it repeats nothing, and connects again for the
// next command.
var errClosed = errors.New("the connection was closed")

// closed are the lines that say so: which one comes depends on whether the command was on its way already.
var closed = []string{"Error: Server closed the connection", "Error: Connection reset by peer", "Error: Broken pipe"}

// do runs a command and returns the lines that redis-cli prints: up to an echo, since an answer does not say where it ends.
func (r *redisCLI) do(command string) (string, error) {
	var lines []string
	var failed error
	end := r.echo(command)
	for r.out.Scan() {
		switch line := r.out.Text(); {
		case line == end:
			return strings.Join(lines, "\n"), failed
		case slices.Contains(closed, line):
			// The echo may be what was lost.
			failed, end = errClosed, r.echo("")
		default:
			lines = append(lines, line)
		}
	}
	return "", fmt.Errorf("%s: redis-cli has ended: %w", command, errors.Join(r.out.Err(), io.ErrUnexpectedEOF))
}

// echo sends a command and has redis-cli print a line after its answer.
func (r *redisCLI) echo(command string) (line string) {
	r.echoes++
	line = fmt.Sprint("end-of-answer-", r.echoes)
	fmt.Fprintf(r.in, "%s\nECHO %s\n", command, line) // a redis-cli that has ended prints nothing either
	return line
}

// repeated is do for what a script repeats when redis-cli tells it that the connection was closed.
func (r *redisCLI) repeated(command string) (string, error) {
	got, err := r.do(command)
	if errors.Is(err, errClosed) {
		got, err = r.do(command)
	}
	return got, err
}

func runRedisCLI(ctx context.Context, c *clientCourse) error {
	version, err := exec.CommandContext(ctx, "redis-cli", "--version").Output()
	if err != nil {
		return err
	}
	if words := strings.Fields(string(version)); len(words) > 1 {
		c.version = words[1]
	}
	r, stop, err := c.startRedisCLI(ctx)
	if err != nil {
		return err
	}
	defer stop()
	idle, stopIdle, err := c.startRedisCLI(ctx)
	if err != nil {
		return err
	}
	defer stopIdle()

	// Each command is followed by what must be printed; "@" stands for the prefix of the keys.
	play := func(lines ...string) (err error) {
		for i := 0; i < len(lines); i += 2 {
			command := strings.ReplaceAll(lines[i], "@", c.keys)
			got, failed := r.do(command)
			if failed == nil && got != lines[i+1] {
				failed = fmt.Errorf("%s prints %q, want %q", command, got, lines[i+1])
			}
			err = errors.Join(err, failed)
		}
		return err
	}
	number := func(command string, low, high int) error {
		got, err := r.do(command)
		if n, notNumber := strconv.Atoi(got); err == nil && (notNumber != nil || n <= low || n > high) {
			err = fmt.Errorf("%s prints %q, want more than %d, at most %d", command, got, low, high)
		}
		return err
	}
	c.row("strings", play("SET @s 1", "OK", "INCRBY @s 41", "42", "APPEND @s x", "3", "SET @s y NX", "", "GETDEL @s", "42x", "GET @s", ""))
	c.row("hashes", play("HSET @h a 1 b 2", "2", "HINCRBY @h a 2", "3", "HMGET @h a none", "3\n", "HGET @h b", "2", "HDEL @h a b", "2"))
	c.row("sorted sets", play("ZADD @z 1 a 2.5 b 3 c", "3", "ZRANGE @z 0 1", "a\nb", "ZSCORE @z b", "2.5", "ZINCRBY @z 4 a", "5",
		"ZREVRANK @z a", "0", "ZREMRANGEBYSCORE @z 2 3", "2", "ZCARD @z", "1"))
	c.row("pipelines", func() error {
		var commands bytes.Buffer
		for i := range 100 {
			name, value := c.keys+"p"+strconv.Itoa(i), strconv.Itoa(i)
			fmt.Fprintf(&commands, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, len(value), value)
		}
		pipe := c.redisCLI(ctx, "--pipe")
		pipe.Stdin = &commands
		// It ends with an empty line, which Redis overlooks and Envoy answers with an error.
		out, _ := pipe.CombinedOutput()
		if !strings.Contains(string(out), "errors: 1, replies: 101") {
			return fmt.Errorf("--pipe prints %q", out)
		}
		var written error
		for i := range 100 {
			written = errors.Join(written, play(fmt.Sprint("GET @p", i), strconv.Itoa(i)))
		}
		return written
	}())
	c.row("MGET, MSET", play("MSET @m1 a @m2 b @m3 c @m4 d", "OK", "MGET @m1 @m2 @m3 @m4 @none", "a\nb\nc\nd\n",
		"EXISTS @m1 @m2 @m3 @m4", "4", "DEL @m1 @m2 @m3 @m4", "4"))
	c.row("TTLs", func() error {
		t := c.keys + "t"
		return errors.Join(
			play("SET @t v EX 100", "OK"), number("TTL "+t, 0, 100), play("PEXPIRE @t 200000", "1"), number("PTTL "+t, 100_000, 200_000),
			play("PERSIST @t", "1", "TTL @t", "-1", "SET @t v PX 30", "OK"),
			expires(func() error {
				got, err := r.do("GET " + t)
				if err == nil && got == "" {
					err = errGone
				}
				return err
			}, errGone))
	}())
	c.row("scripts", func() error {
		err := play("EVALSHA "+strings.Repeat("0", 40)+" 1 @n", "NOSCRIPT No matching script. Please use EVAL.\n")
		for i := range 20 {
			a, b := fmt.Sprintf("@{%d}a", i), fmt.Sprintf("@{%d}b", i)
			err = errors.Join(err, play(fmt.Sprintf("EVAL %q 2 %s %s 5", addBoth+"@", a, b), "1", "MGET "+a+" "+b, "5\n1"))
		}
		return err
	}())
	c.row("big values", func() error {
		set := c.redisCLI(ctx, "-x", "SET", c.keys+"big")
		set.Stdin = strings.NewReader(bigValue)
		out, err := set.Output()
		get, getErr := c.redisCLI(ctx, "GET", c.keys+"big").Output()
		return errors.Join(is(strings.TrimSpace(string(out)), err)("OK"), is(strings.TrimSpace(string(get)), getErr)(bigValue),
			play("STRLEN @big", strconv.Itoa(len(bigValue)), "DEL @big", "1"))
	}())
	if got, err := idle.do("SET " + c.keys + "idle v"); err != nil || got != "OK" {
		return fmt.Errorf("SET prints %q: %w", got, err)
	}
	c.row("reconnect", errors.Join(
		c.through(func(i int) error {
			return errors.Join(is(r.repeated(fmt.Sprintf("SET %sr %d", c.keys, i)))("OK"), is(r.repeated("GET "+c.keys+"r"))(strconv.Itoa(i)))
		}),
		is(idle.repeated("GET "+c.keys+"idle"))("v"),
	))
	return nil
}

var errGone = errors.New("the key is gone")
