package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/resp"
)

// ErrNotPrimary says that a node is not, or not any more, who takes the shard's writes.
var ErrNotPrimary = errors.New("the node is not the shard's primary")

// Primary returns a client that uses no node but the primary of its epoch.
func Primary(address string, epoch uint64, access *mesh.RedisAccess, timeout time.Duration) *redis.Client {
	o := Options(address, access, timeout)
	o.OnConnect = func(ctx context.Context, c *redis.Conn) error { return greetPrimary(ctx, c, epoch, nil) }
	return redis.NewClient(o)
}

// Writer returns such a client that Fence keeps out once a later login is wanted.
func Writer(address string, epoch, login uint64, access *mesh.RedisAccess, timeout time.Duration) *redis.Client {
	o := Options(address, access, timeout)
	o.OnConnect = func(ctx context.Context, c *redis.Conn) error { return greetPrimary(ctx, c, epoch, &login) }
	return redis.NewClient(o)
}

func greetPrimary(ctx context.Context, c *redis.Conn, epoch uint64, login *uint64) error {
	pipe := c.Pipeline()
	var least *redis.StringCmd
	if login != nil {
		pipe.ClientSetName(ctx, LoginName(*login)) // first: who is fenced is found by it
		least = pipe.Get(ctx, LoginKey)
	}
	role := pipe.Do(ctx, "ROLE")
	has := pipe.Get(ctx, EpochKey)
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	parts, err := role.Slice()
	if err != nil || len(parts) == 0 {
		return fmt.Errorf("%w: it is none", ErrNotPrimary)
	}
	if login != nil {
		if err := Fenced(*login, least.Val()); err != nil {
			return err
		}
	}
	return checkPrimary(parts[0], has.Val(), epoch)
}

func checkPrimary(role any, has string, epoch uint64) error {
	if role != "master" {
		return fmt.Errorf("%w: it is none", ErrNotPrimary)
	}
	if n, err := strconv.ParseUint(has, 10, 64); err == nil && n > epoch {
		return fmt.Errorf("%w: it is of epoch %d, and this is %d", ErrNotPrimary, n, epoch)
	}
	return nil
}

// Pipe is a connection to a primary for many commands at once: what is sent is RESP, and who sends it reads as many replies. One goroutine uses
// it at a time. After an error it is of no use any more.
type Pipe struct {
	conn    net.Conn
	r       *bufio.Reader
	timeout time.Duration
}

// OpenPipe connects to no node but the primary of its epoch. timeout bounds the dial, and each of Send and what is read after it.
func OpenPipe(ctx context.Context, address string, epoch uint64, access *mesh.RedisAccess, timeout time.Duration) (*Pipe, error) {
	conn, err := Dial(ctx, address, access, timeout)
	if err != nil {
		return nil, err
	}
	p := &Pipe{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), timeout: timeout}
	if err := p.greet(epoch, access); err != nil {
		conn.Close()
		return nil, fmt.Errorf("Redis at %s: %w", address, err)
	}
	return p, nil
}

func (p *Pipe) greet(epoch uint64, access *mesh.RedisAccess) error {
	user, secret, err := Credentials(access)
	if err != nil {
		return err
	}
	var out []byte
	if secret != "" && user != "" {
		out = resp.AppendCommand(out, "AUTH", user, secret)
	} else if secret != "" {
		out = resp.AppendCommand(out, "AUTH", secret)
	}
	if err := p.Send(resp.AppendCommand(resp.AppendCommand(out, "ROLE"), "GET", EpochKey)); err != nil {
		return err
	}
	if secret != "" {
		if _, err := p.Value(); err != nil {
			return fmt.Errorf("it refuses the login: %w", err)
		}
	}
	role, err := p.Value()
	if err != nil {
		return err
	}
	has, err := p.Value()
	if err != nil {
		return err
	}
	parts, _ := role.([]any)
	if len(parts) == 0 {
		return fmt.Errorf("%w: it is none", ErrNotPrimary)
	}
	text, _ := has.(string)
	return checkPrimary(parts[0], text, epoch)
}

// Close ends the connection.
func (p *Pipe) Close() { p.conn.Close() }

// Send sends commands. What they are answered with must fit in buffers, or be read meanwhile.
func (p *Pipe) Send(commands []byte) error {
	if err := p.conn.SetDeadline(time.Now().Add(p.timeout)); err != nil {
		return err
	}
	_, err := p.conn.Write(commands)
	return err
}

// Until bounds what is read from now on. Then the pipe is of no use any more.
func (p *Pipe) Until(deadline time.Time) error { return p.conn.SetReadDeadline(deadline) }

var errProtocol = errors.New("Redis answers in a way that is not its protocol")

// Line reads the line with which a reply begins, without its end. It is valid until the next read.
func (p *Pipe) Line() ([]byte, error) {
	l, err := p.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(l) < 3 || l[len(l)-2] != '\r' {
		return nil, errProtocol
	}
	return l[:len(l)-2], nil
}

// Length is what a line that begins so says: a bulk string's or an array's length, -1 for none, or an integer's value.
func Length(line []byte, kind byte) (int, error) {
	if line[0] != kind {
		if line[0] == '-' {
			return 0, redisError(line[1:])
		}
		return 0, errProtocol
	}
	digits, negative := line[1:], false
	if len(digits) > 0 && digits[0] == '-' {
		digits, negative = digits[1:], true
	}
	if len(digits) == 0 || len(digits) > 18 {
		return 0, errProtocol
	}
	n := 0
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, errProtocol
		}
		n = n*10 + int(d-'0')
	}
	if negative {
		n = -n
	}
	return n, nil
}

// Integer reads an integer.
func (p *Pipe) Integer() (int, error) {
	l, err := p.Line()
	if err != nil {
		return 0, err
	}
	return Length(l, ':')
}

// Array reads the beginning of an array, and returns how many replies follow.
func (p *Pipe) Array() (int, error) {
	l, err := p.Line()
	if err != nil {
		return 0, err
	}
	return Length(l, '*')
}

// Bulk reads the beginning of a bulk string, and returns how many bytes are to follow, for Take or Skip; -1 is that there is none.
func (p *Pipe) Bulk() (int, error) {
	l, err := p.Line()
	if err != nil {
		return 0, err
	}
	return Length(l, '$')
}

// Take reads the n bytes of a bulk string and appends them to b.
func (p *Pipe) Take(b []byte, n int) ([]byte, error) {
	if all := n + len("\r\n"); all <= p.r.Buffered() {
		has, err := p.r.Peek(all)
		if err != nil {
			return b, err
		}
		b = append(b, has[:n]...)
		_, err = p.r.Discard(all)
		return b, err
	}
	at := len(b)
	b = append(b, make([]byte, n)...)
	if err := p.full(b[at:]); err != nil {
		return b[:at], err
	}
	return b, p.Skip(0)
}

// Skip reads the n bytes of a bulk string, and forgets them.
func (p *Pipe) Skip(n int) error { return p.discard(n + len("\r\n")) }

// full fills b, for as long as something comes.
func (p *Pipe) full(b []byte) error {
	for len(b) > 0 {
		n, err := io.ReadFull(p.r, b[:min(len(b), progress)])
		if err != nil {
			return err
		}
		if b = b[n:]; len(b) > 0 {
			if err := p.conn.SetReadDeadline(time.Now().Add(p.timeout)); err != nil {
				return err
			}
		}
	}
	return nil
}

// progress is how much of a large value must come within a timeout.
const progress = 256 << 10

func (p *Pipe) discard(n int) error {
	for n > 0 {
		did, err := p.r.Discard(min(n, progress))
		if err != nil {
			return err
		}
		if n -= did; n > 0 {
			if err := p.conn.SetReadDeadline(time.Now().Add(p.timeout)); err != nil {
				return err
			}
		}
	}
	return nil
}

// redisError is what Redis answers with when it refuses a command.
type redisError string

func (e redisError) Error() string { return string(e) }

// Refused says whether an error is Redis's answer to a command, after which the connection is still of use.
func Refused(err error) bool {
	var e redisError
	return errors.As(err, &e)
}

// Value reads a reply of any kind that RESP2 has: a string, an integer, nil, or an array. What Redis refuses is an error.
func (p *Pipe) Value() (any, error) { return p.value(0) }

const (
	maxDepth  = 16
	maxString = 64 << 20
	maxArray  = 1 << 20
)

func (p *Pipe) value(depth int) (any, error) {
	l, err := p.Line()
	if err != nil {
		return nil, err
	}
	switch l[0] {
	case '+':
		return string(l[1:]), nil
	case '-':
		return nil, redisError(l[1:])
	case ':':
		return Length(l, ':')
	case '$':
		n, err := Length(l, '$')
		if err != nil || n < 0 {
			return nil, err
		}
		if n > maxString {
			return nil, errProtocol
		}
		b := make([]byte, n)
		if err := p.full(b); err != nil {
			return nil, err
		}
		return string(b), p.Skip(0)
	case '*':
		n, err := Length(l, '*')
		if err != nil || n < 0 {
			return nil, err
		}
		if n > maxArray || depth == maxDepth {
			return nil, errProtocol
		}
		all := make([]any, n)
		for i := range all {
			if all[i], err = p.value(depth + 1); err != nil && !Refused(err) {
				return nil, err
			} else if err != nil {
				all[i] = err
			}
		}
		return all, nil
	}
	return nil, errProtocol
}
