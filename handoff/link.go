package handoff

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/resp"
)

const (
	dialWithin   = 2 * time.Second
	answerWithin = 5 * time.Second
	// largestReply bounds what is kept of one reply.
	largestReply = 640 << 20
)

// link is a connection to a shard's primary. Its commands are pipelined: several goroutines may use it, and replies come in order. Once it is
// lost it stays so.
type link struct {
	shard   string
	address string
	conn    net.Conn
	lfu     bool // the node knows how often its keys are used, and not when they last were
	// expiresFields says that fields of its hashes may have a time to live of their own.
	expiresFields bool

	changed func(key []byte) // is told each key that changed, nil for all; it must not wait

	mu      sync.Mutex // of writing, so that commands wait in the order in which they are sent
	waiting chan *call
	lost    chan struct{}
	once    sync.Once
	err     error // why it was lost
}

// call is commands that were sent together.
type call struct {
	replies []any
	want    int
	done    chan struct{}
}

// watching are what a link is to tell of; none is nothing.
type watching struct {
	prefixes []string
	changed  func(key []byte)
}

// dialLink connects to a primary as a Mover, which watches or not.
func dialLink(ctx context.Context, shard, address string, access *mesh.RedisAccess, w *watching) (*link, error) {
	return dial(ctx, shard, address, access, linkName, w)
}

// dialWriter connects to a primary as lanes do.
func dialWriter(ctx context.Context, shard string, p place) (*link, error) {
	l, err := dial(ctx, shard, p.address, p.access, node.LoginName(p.login), nil)
	if err != nil {
		return nil, err
	}
	least, err := ask(ctx, l, resp.AppendCommand(nil, "GET", node.LoginKey))
	if err == nil {
		err = node.Fenced(p.login, text(least))
	}
	if err != nil {
		l.close(err)
		return nil, fmt.Errorf("shard %s: %w", shard, err)
	}
	return l, nil
}

// dial connects to a primary and logs in. name is the connection's.
func dial(ctx context.Context, shard, address string, access *mesh.RedisAccess, name string, w *watching) (*link, error) {
	if address == "" {
		return nil, fmt.Errorf("shard %s has no primary", shard)
	}
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	conn, err := node.Dial(ctx, address, access, dialWithin)
	if err != nil {
		return nil, fmt.Errorf("shard %s: %w", shard, err)
	}
	l := &link{shard: shard, address: address, conn: conn, waiting: make(chan *call, 1024), lost: make(chan struct{}), changed: func([]byte) {}}
	if w != nil {
		l.changed = w.changed
	}
	go l.read()
	if err := l.greet(ctx, access, name, w); err != nil {
		l.close(err)
		return nil, fmt.Errorf("shard %s, Redis at %s: %w", shard, address, err)
	}
	return l, nil
}

func (l *link) greet(ctx context.Context, access *mesh.RedisAccess, name string, w *watching) error {
	user, password, err := node.Credentials(access)
	if err != nil {
		return err
	}
	hello := []string{"HELLO", "3"}
	if password != "" {
		if user == "" {
			user = "default"
		}
		hello = append(hello, "AUTH", user, password)
	}
	out := resp.AppendCommand(nil, hello...)
	out = resp.AppendCommand(out, "CLIENT", "SETNAME", name)
	const noTouch = 2 // from Redis 7.2 on: copying is no use of a key
	out = resp.AppendCommand(out, "CLIENT", "NO-TOUCH", "ON")
	out = resp.AppendCommand(out, "ROLE")
	out = resp.AppendCommand(out, "INFO", "memory")
	out = resp.AppendCommand(out, "INFO", "server")
	n := 6
	if w != nil {
		track := []string{"CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP"}
		for _, p := range w.prefixes {
			track = append(track, "PREFIX", p)
		}
		out = resp.AppendCommand(out, track...)
		n++
	}
	replies, err := l.do(ctx, out, n)
	if err != nil {
		return err
	}
	for i, v := range replies {
		if f, failed := v.(resp.Failure); failed && i != noTouch {
			return f
		}
	}
	if role, _ := replies[3].([]any); len(role) == 0 || text(role[0]) != "master" {
		return errors.New("it is no primary")
	}
	policy := node.Field(text(replies[4]), "maxmemory_policy")
	l.lfu, l.expiresFields = policy == "allkeys-lfu" || policy == "volatile-lfu", expiresFields(text(replies[5]))
	return nil
}

// linkName is that of links.
const linkName = "cachemesh-handoff"

// alone ends the links of another Mover: one that was stopped for a while must not go on with what it had read before.
func (l *link) alone(ctx context.Context) error {
	replies, err := l.do(ctx, resp.AppendCommand(resp.AppendCommand(nil, "CLIENT", "ID"), "CLIENT", "LIST"), 2)
	if err != nil {
		return err
	}
	own := fmt.Sprint(replies[0])
	for client := range node.Clients(text(replies[1])) {
		if client["name"] == linkName && client["id"] != own {
			if _, err := l.do(ctx, resp.AppendCommand(nil, "CLIENT", "KILL", "ID", client["id"]), 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// text is a string of either kind; "" is none.
func text(v any) string {
	switch s := v.(type) {
	case string:
		return s
	case []byte:
		return string(s)
	}
	return ""
}

// close loses the link.
func (l *link) close(why error) {
	l.once.Do(func() {
		l.err = why
		l.conn.Close()
		close(l.lost)
	})
}

// failure is why the link is of no use.
func (l *link) failure() error {
	return fmt.Errorf("shard %s, Redis at %s: %w", l.shard, l.address, l.err)
}

var errSlow = fmt.Errorf("no answer within %s", answerWithin)

// do sends commands, and returns as many replies. An error is the link's end.
func (l *link) do(ctx context.Context, commands []byte, replies int) ([]any, error) {
	c := &call{want: replies, replies: make([]any, 0, replies), done: make(chan struct{})}
	if err := l.send(ctx, commands, c); err != nil {
		return nil, err
	}
	patience := time.NewTimer(answerWithin)
	defer patience.Stop()
	for {
		select {
		case <-c.done:
			return c.replies, nil
		case <-l.lost:
			return nil, l.failure()
		case <-ctx.Done():
			l.close(ctx.Err()) // replies that nobody waits for would be taken for others'
			return nil, ctx.Err()
		case <-patience.C:
			l.close(errSlow)
		}
	}
}

func (l *link) send(ctx context.Context, commands []byte, c *call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.waiting <- c:
	case <-l.lost:
		return l.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := l.conn.SetWriteDeadline(time.Now().Add(answerWithin + time.Duration(len(commands)>>20)*time.Second/10))
	if err == nil {
		_, err = l.conn.Write(commands)
	}
	if err != nil {
		l.close(err)
		return l.failure()
	}
	return nil
}

// read takes replies and what the node says unasked, until the link is lost.
func (l *link) read() {
	r := bufio.NewReaderSize(l.conn, 64<<10)
	var c *call // that is being answered
	for {
		v, err := resp.ReadValue(r, largestReply)
		if err != nil {
			l.close(err)
			return
		}
		if p, unasked := v.(resp.Push); unasked {
			l.told(p)
			continue
		}
		if c == nil {
			select {
			case c = <-l.waiting:
			default:
				l.close(errors.New("it answers what it was not asked"))
				return
			}
		}
		if c.replies = append(c.replies, v); len(c.replies) == c.want {
			close(c.done)
			c = nil
		}
	}
}

func (l *link) told(p resp.Push) {
	if len(p) != 2 || text(p[0]) != "invalidate" {
		return
	}
	if p[1] == nil {
		l.changed(nil)
		return
	}
	keys, _ := p[1].([]any)
	for _, k := range keys {
		if key, is := k.([]byte); is {
			l.changed(key)
		}
	}
}

// ask sends one command and returns its reply, or Redis's error.
func ask(ctx context.Context, l *link, command []byte) (any, error) {
	replies, err := l.do(ctx, command, 1)
	if err != nil {
		return nil, err
	}
	if f, failed := replies[0].(resp.Failure); failed {
		return nil, f
	}
	return replies[0], nil
}

// scanned goes through what one of Redis's scans finds. command asks for what is at a cursor.
func scanned(ctx context.Context, l *link, command func(cursor string) []byte, each func(found []any) error) error {
	for cursor, first := "0", true; first || cursor != "0"; first = false {
		v, err := ask(ctx, l, command(cursor))
		if err != nil {
			return err
		}
		reply, _ := v.([]any)
		if len(reply) != 2 {
			return fmt.Errorf("shard %s: a scan answers with %d values", l.shard, len(reply))
		}
		cursor = text(reply[0])
		found, _ := reply[1].([]any)
		if err := each(found); err != nil {
			return err
		}
	}
	return nil
}

// ping drains the link: what changed before it was sent has been told when it returns.
func (l *link) ping(ctx context.Context) error {
	_, err := l.do(ctx, resp.AppendCommand(nil, "PING"), 1)
	return err
}

// unlink removes keys, and returns how many there were.
func (l *link) unlink(ctx context.Context, keys [][]byte) (n int64, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	replies, err := l.do(ctx, appendKeys(nil, "UNLINK", keys), 1)
	if err != nil {
		return 0, err
	}
	if f, failed := replies[0].(resp.Failure); failed {
		return 0, fmt.Errorf("shard %s, Redis at %s, UNLINK: %w", l.shard, l.address, f)
	}
	n, _ = replies[0].(int64)
	return n, nil
}

func appendKeys(b []byte, command string, keys [][]byte) []byte {
	b = resp.AppendBulk(resp.AppendArray(b, 1+len(keys)), command)
	for _, k := range keys {
		b = resp.AppendBulk(b, k)
	}
	return b
}
