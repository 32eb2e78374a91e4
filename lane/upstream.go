package lane

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/holdoff"
)

// Bounds of a connection to a shard, with its login.
const (
	dialAtMost  = 300 * time.Millisecond
	dialAtLeast = 50 * time.Millisecond
)

// identity is one life of a primary.
type identity struct {
	epoch   uint64
	address string
	runID   string
}

// upstream is a connection to the shard's primary. One goroutine uses it at a time.
type upstream struct {
	net     net.Conn
	socket  *socket // nil with TLS
	r       *bufio.Reader
	id      identity
	login   uint64
	journal string // the key
	used    time.Time

	replicas int       // that were online when it began
	joined   time.Time // the shard's writers
}

// errNotYet says that the node is not the primary that the lane should write to; another is to come.
var errNotYet = errors.New("the shard has no primary that takes writes")

// dial connects to a primary and logs in. It does not use one that another epoch is about, or that has restarted.
func (s *Server) dial(t *View, resp3 bool, deadline time.Time) (*upstream, error) {
	timeout := max(dialAtLeast, min(dialAtMost, time.Until(deadline)))
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := node.Dial(ctx, t.Address, t.Access, timeout)
	if err != nil {
		return nil, err
	}
	var direct *socket
	if plain, ok := conn.(*net.TCPConn); ok {
		if direct, err = newSocket(plain); err != nil {
			conn.Close()
			return nil, err
		}
		conn = eager{plain, direct}
	}
	up := &upstream{net: conn, socket: direct, r: bufio.NewReaderSize(steady{conn}, 64<<10), login: t.Login, journal: JournalKey(t.Epoch), used: time.Now()}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		conn.Close()
		return nil, err
	}
	if err := up.greet(s, t, resp3); err != nil {
		conn.Close()
		return nil, fmt.Errorf("Redis at %s: %w", t.Address, err)
	}
	return up, nil
}

func (up *upstream) greet(s *Server, t *View, resp3 bool) error {
	var out []byte
	user, password, err := node.Credentials(t.Access)
	if err != nil {
		return err
	}
	if password != "" {
		login := []string{"AUTH", password}
		if user != "" {
			login = []string{"AUTH", user, password}
		}
		out = appendCommand(out, login...)
	}
	// Who is fenced is found by this name, so it comes before what is asked.
	out = appendCommand(out, "CLIENT", "SETNAME", node.LoginName(t.Login))
	out = appendCommand(out, "GET", node.LoginKey)
	out = appendCommand(out, "INFO", "server")
	out = appendCommand(out, "ROLE")
	out = appendCommand(out, "GET", node.EpochKey)
	out = appendCommand(out, "TIME")
	policy := s.policy.Load()
	makes := policy.journals()
	// Before the first epoch there was nothing to be invalidated.
	holds := len(policy.holds) > 0 && t.Epoch != 1
	if makes {
		out = appendCommand(out, "EVAL", makeJournal, "2", up.journal+":made", up.journal, string(s.config.Encode(nil, nil)))
	}
	if holds {
		out = holdoff.AppendBegin(out, policy.holds)
	}
	if resp3 {
		out = appendCommand(out, "HELLO", "3")
	}
	asked := time.Now()
	if _, err := up.net.Write(out); err != nil {
		return err
	}
	if password != "" {
		if v, err := up.value(0); err != nil || v != "OK" {
			return fmt.Errorf("it refuses the login: %v %w", v, err)
		}
	}
	if _, err := up.text(); err != nil {
		return err
	}
	least, err := up.text()
	if err != nil {
		return err
	}
	info, err := up.text()
	if err != nil {
		return err
	}
	up.id = identity{t.Epoch, t.Address, node.Field(info, "run_id")}
	if up.id.runID == "" {
		return errors.New("INFO has no run_id: is this a Redis?")
	}
	role, err := up.value(0)
	if err != nil {
		return err
	}
	parts, _ := role.([]any)
	if len(parts) > 2 {
		replicas, _ := parts[2].([]any)
		up.replicas = len(replicas)
	}
	epoch, err := up.text()
	if err != nil {
		return err
	}
	clock, err := up.value(0)
	if err != nil {
		return err
	}
	s.setClock(clock, asked)
	if makes {
		// A journal that could not be made is missed when it is written to.
		if _, err := up.value(0); err != nil {
			return err
		}
	}
	if holds {
		v, err := up.value(0)
		if err != nil {
			return err
		}
		s.unnoted(v)
	}
	if resp3 {
		if v, err := up.value(0); err != nil || isError(v) {
			return fmt.Errorf("it does not speak RESP3: %v %w", v, err)
		}
	}
	if len(parts) == 0 || parts[0] != "master" {
		return fmt.Errorf("%w: this node is none", errNotYet)
	}
	if err := node.Fenced(t.Login, least); err != nil {
		return err
	}
	if n, err := strconv.ParseUint(epoch, 10, 64); err == nil && n > t.Epoch {
		return fmt.Errorf("%w: the node is of epoch %d already, and this is %d", errNotYet, n, t.Epoch)
	}
	return s.recognize(up.id)
}

// writer is the name of an executor among the shard's writers; "" is none.
func (s *Server) writer(resp3 bool) string {
	switch {
	case s.config.Writer == "" || !s.policy.Load().journals():
		return ""
	case resp3:
		return s.config.Writer + ":resp3"
	default:
		return s.config.Writer + ":resp2"
	}
}

// makeJournal makes an epoch's journal once: a lost one must be seen.
const makeJournal = `if redis.call('SET', KEYS[1], '1', 'NX') then redis.call('XADD', KEYS[2], '*', 'e', ARGV[1]) end`

// JournalKey is the key of an epoch's journal.
func JournalKey(epoch uint64) string {
	return mesh.ReservedPrefix + "journal:" + strconv.FormatUint(epoch, 10)
}

func (s *Server) setClock(reply any, asked time.Time) {
	parts, _ := reply.([]any)
	if len(parts) != 2 {
		return
	}
	seconds, _ := parts[0].(string)
	micros, _ := parts[1].(string)
	n, err := strconv.ParseInt(seconds, 10, 64)
	m, errMicros := strconv.ParseInt(micros, 10, 64)
	if err == nil && errMicros == nil {
		clock := time.Unix(n, m*1000)
		s.ahead.Store(int64(clock.Sub(asked)))
		s.follows(clock, asked)
	}
}

// alive says whether the connection may be used: the node has not closed it meanwhile.
func (up *upstream) alive() bool {
	return up.socket == nil || time.Since(up.used) < 10*time.Millisecond || up.socket.silent() // nothing is asked, so anything that comes is the end
}

func appendCommand(b []byte, args ...string) []byte {
	b = appendLength(b, '*', len(args))
	for _, a := range args {
		b = appendBulk(b, a)
	}
	return b
}

func appendLength(b []byte, kind byte, n int) []byte {
	return append(strconv.AppendInt(append(b, kind), int64(n), 10), '\r', '\n')
}

func appendBulk[T string | []byte](b []byte, value T) []byte {
	return append(append(appendLength(b, '$', len(value)), value...), '\r', '\n')
}

var errProtocol = errors.New("Redis answers in a way that is not its protocol")

// line reads one, with its end. It is valid until the next read.
func (up *upstream) line() ([]byte, error) {
	l, err := up.r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, errProtocol
		}
		return nil, err
	}
	if len(l) < 3 || l[len(l)-2] != '\r' {
		return nil, errProtocol
	}
	return l, nil
}

// length is what a line says after its type byte; -1 is nothing.
func length(l []byte) (int, error) {
	digits := l[1 : len(l)-2]
	if len(digits) == 2 && digits[0] == '-' && digits[1] == '1' {
		return -1, nil
	}
	n := 0
	for _, d := range digits {
		if d < '0' || d > '9' || n > 1<<40 {
			return 0, errProtocol
		}
		n = n*10 + int(d-'0')
	}
	if len(digits) == 0 {
		return 0, errProtocol
	}
	return n, nil
}

// sink is where replies go.
type sink struct {
	conn  *conn // that is sent some when there is much of it; nil keeps all
	b     *[]byte
	limit int // for one that keeps all
	sent  bool
}

// steady gives replies of which there is a lot the time that they take, as long as they come.
type steady struct{ net.Conn }

func (s steady) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if n >= 16<<10 && err == nil {
		err = s.SetReadDeadline(time.Now().Add(progress))
	}
	return n, err
}

// progress is how long a large value may stand still.
const progress = 400 * time.Millisecond

const (
	sendAt   = 256 << 10
	maxDepth = 64
)

var errTooMuch = errors.New("a reply is too large to be kept")

func (s *sink) enough() error {
	if s.conn == nil {
		if len(*s.b) > s.limit {
			return errTooMuch
		}
		return nil
	}
	if len(*s.b) >= sendAt {
		s.sent = true
		s.conn.flush()
		s.conn.taken()
	}
	return nil
}

// forward passes one reply on as it is.
func (up *upstream) forward(to *sink, depth int) error {
	if depth > maxDepth {
		return errProtocol
	}
	l, err := up.line()
	if err != nil {
		return err
	}
	kind := l[0]
	*to.b = append(*to.b, l...)
	switch kind {
	case '+', '-', ':', '_', '#', ',', '(':
		return nil
	case '$', '=', '!':
		n, err := length(l)
		if err != nil || n < 0 {
			return err
		}
		return up.copy(to, n+2)
	case '*', '~', '>', '%', '|':
		n, err := length(l)
		if err != nil {
			return err
		}
		if kind == '%' || kind == '|' {
			n *= 2
		}
		if kind == '|' {
			n++ // what it is about follows
		}
		for range max(n, 0) {
			if err := up.forward(to, depth+1); err != nil {
				return err
			}
		}
		return to.enough()
	}
	return errProtocol
}

func (up *upstream) copy(to *sink, n int) error {
	for n > 0 {
		if up.r.Buffered() == 0 {
			if _, err := up.r.Peek(1); err != nil {
				return err
			}
		}
		part, _ := up.r.Peek(min(n, up.r.Buffered()))
		*to.b = append(*to.b, part...)
		n -= len(part)
		_, _ = up.r.Discard(len(part)) // it is there
		if err := to.enough(); err != nil {
			return err
		}
	}
	return nil
}

// failed is an error reply.
type failed string

func isError(v any) bool {
	_, is := v.(failed)
	return is
}

// value reads one small reply: a string, a failed, or []any; nil for none.
func (up *upstream) value(depth int) (any, error) {
	if depth > 8 {
		return nil, errProtocol
	}
	l, err := up.line()
	if err != nil {
		return nil, err
	}
	switch rest := string(l[1 : len(l)-2]); l[0] {
	case '+', ':', ',', '(', '#':
		return rest, nil
	case '-':
		return failed(rest), nil
	case '_':
		return nil, nil
	case '$', '=':
		n, err := length(l)
		if err != nil || n < 0 {
			return nil, err
		}
		if n > 1<<20 {
			return nil, errProtocol
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(up.r, b); err != nil {
			return nil, err
		}
		return string(b[:n]), nil
	case '*', '~', '%':
		n, err := length(l)
		if err != nil || n < 0 {
			return nil, err
		}
		if l[0] == '%' {
			n *= 2
		}
		if n > 1<<16 {
			return nil, errProtocol
		}
		var all []any
		for range n {
			v, err := up.value(depth + 1)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		return all, nil
	}
	return nil, errProtocol
}

// text reads a string; "" for none. An error reply is an error.
func (up *upstream) text() (string, error) {
	v, err := up.value(0)
	if err != nil {
		return "", err
	}
	if f, is := v.(failed); is {
		if passes(string(f)) {
			return "", fmt.Errorf("%w: %s", errNotYet, f)
		}
		return "", errors.New(string(f))
	}
	s, _ := v.(string)
	return s, nil
}

// passes says whether an error is of a node that takes no writes now, whichever they are.
func passes(text string) bool {
	text = strings.TrimPrefix(text, "EXECABORT Transaction discarded because of: ")
	for _, code := range []string{"READONLY ", "MASTERDOWN ", "LOADING "} {
		if strings.HasPrefix(text, code) {
			return true
		}
	}
	return false
}
