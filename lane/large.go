package lane

import (
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/resp"
)

// limits of a command that is passed on as it comes.
const (
	largest  = 512 << 20 // of one argument, as Redis's own limit
	longHead = 64 << 10  // name, key and their lengths
)

// large takes a command that is too long to be kept: its bytes go to the shard as they come, over a connection of their own, so that nobody
// waits for them. The connection's commands before it are answered first.
func (c *conn) large() error {
	if !c.quiet() {
		return net.ErrClosed
	}
	select {
	case c.s.streams <- struct{}{}:
	case <-c.s.ended:
		return net.ErrClosed
	}
	defer func() { <-c.s.streams }()
	c.scan.Reset()
	in := &stream{c: c}
	name, k, err := in.head()
	if err != nil {
		return err
	}
	s, known := specs[string(command{name, []resp.Span{{To: len(name)}}}.name(new([24]byte)))]
	refusal := ""
	switch {
	case c.tx != nil || !known || s.place != first || s.effect == stores || k == nil:
		refusal = "ERR a command of more than 1 MiB passes a lane only if its first argument is its only key, and outside of transactions"
		if c.tx != nil {
			c.tx.spoiled = true
		}
	case s.arity > 0 && in.count != s.arity || in.count < -s.arity:
		refusal = "ERR wrong number of arguments for '" + string(name) + "' command"
	case len(k) >= len(mesh.ReservedPrefix) && string(k[:len(mesh.ReservedPrefix)]) == mesh.ReservedPrefix:
		refusal = reserved
	}
	if refusal == "" {
		refusal, err = c.carryLarge(in, s, k)
		if err != nil {
			return err
		}
	}
	if refusal != "" {
		if err := in.rest(io.Discard); err != nil {
			return err
		}
		c.out = append(c.out, failure(refusal)...)
	}
	c.flush()
	return nil
}

// carryLarge passes a large command on and its reply back. A refusal means that nothing took effect.
func (c *conn) carryLarge(in *stream, s spec, k []byte) (refusal string, err error) {
	deadline := time.Now().Add(c.s.config.Timeout)
	c.policy = c.s.goBy()
	defer c.policy.large.Done()
	up, err := c.s.connectLarge(c.resp3, deadline)
	if errors.Is(err, errNull) {
		return string(noNode[1 : len(noNode)-2]), nil
	}
	if err != nil {
		return "ERR the shard's lane reaches no primary: " + err.Error() + "; nothing was written", nil
	}
	defer up.net.Close()
	done := s.effect
	if done == scripted || done == prunes || done == expires || done == expiresAt {
		done = removes
	}
	r := c.policy.route(k)
	remembered, removed := coherent(r, done)
	waits := r != nil && r.Durability == mesh.DurableReplica && done != reads
	moves := done != reads && c.policy.pair.Moves(k)
	if moves {
		if err := c.s.config.Both.Full(c.policy.pair); err != nil {
			return "ERR " + err.Error() + "; nothing was written", nil
		}
	}
	if remembered {
		c.executor.tail.add(k, removed)
	}
	to := &patientWriter{up.net}
	if _, err := to.Write(append([]byte(multi), in.seen...)); err != nil {
		return "ERR the shard did not take a large command: " + err.Error() + "; nothing was written", nil
	}
	var failedAt error
	if err := in.rest(&swallowing{to: to, failed: &failedAt}); err != nil {
		return "", err // a transaction without end is none
	}
	if failedAt != nil {
		c.out = append(c.out, failure("ERR the shard did not take a large command: "+failedAt.Error()+"; nothing was written")...)
		return "", nil
	}
	// What opens a hold-off is never so long.
	note := holdoff.Note{}
	if holdoff.Of(r) > 0 && done != reads {
		note.Written = [][]byte{k}
	}
	var out []byte
	if !note.Empty() {
		out = note.Append(out)
	}
	if removed {
		out = appendEntry(out, up.journal, c.s.config.Encode(nil, [][]byte{k}))
	}
	out = append(out, "*1\r\n$4\r\nEXEC\r\n"...)
	if waits {
		out = appendCommand(out, "WAIT", "1", patience(time.Now().Add(c.s.config.Timeout)))
	}
	_, err = to.Write(out)
	if err == nil {
		err = c.answerLarge(up, k, !note.Empty(), removed, waits, moves)
	}
	if moves {
		c.s.config.Both.Unlink(c.policy.pair, c.s.config.Shard, []handoff.Removal{{Key: k}})
	}
	if err != nil {
		if errors.Is(err, net.ErrClosed) {
			return "", err
		}
		c.s.unknown.Add(1)
		c.out = append(c.out, failure("ERR the shard did not answer its lane: "+err.Error()+"; it is not known whether the write took effect")...)
	}
	if remembered {
		c.executor.tail.add(k, removed) // what was marked meanwhile was before it
	}
	return "", nil
}

func (c *conn) answerLarge(up *upstream, k []byte, noted, removed, waits, moves bool) error {
	if err := up.net.SetReadDeadline(time.Now().Add(progress)); err != nil {
		return err
	}
	refusal := ""
	for range 2 + ones(noted) + ones(removed) {
		l, err := up.line()
		if err != nil {
			return err
		}
		if l[0] == '-' && refusal == "" {
			refusal = string(l[1 : len(l)-2])
		}
	}
	l, err := up.line()
	if err != nil {
		return err
	}
	if l[0] != '*' {
		if refusal == "" {
			refusal = string(l[1 : len(l)-2])
		}
		c.out = append(c.out, failure(refusal)...)
		return nil
	}
	start := len(c.out)
	to := sink{conn: c, b: &c.out}
	if waits || moves {
		to = sink{b: &c.out, limit: maxKept}
	}
	if err := up.forward(&to, 0); err != nil {
		if to.sent {
			return net.ErrClosed // half a reply must not be followed by another
		}
		c.out = c.out[:start]
		return err
	}
	if noted {
		v, err := up.value(0)
		if err != nil {
			return err
		}
		c.s.noted(v)
	}
	if removed {
		id, err := up.value(0)
		if err == nil && !isID(id) {
			c.s.gap(Gap{Epoch: up.id.epoch, Reason: GapLost, Removed: [][]byte{k}})
		}
	}
	if waits {
		if n, err := up.value(0); err != nil || n == "0" || isError(n) {
			c.s.unreplicated.Add(1)
			c.out = append(c.out[:start], notReplicated...)
		}
	}
	c.s.commands.Add(1)
	return nil
}

// connectLarge is connect for a connection of a large command's own.
func (s *Server) connectLarge(resp3 bool, deadline time.Time) (*upstream, error) {
	for {
		t := s.target.Load()
		if t.StandIn == mesh.Null {
			return nil, errNull
		}
		err := errors.New("its switch takes too long")
		if t.StandIn != mesh.Hold || !s.held(t) {
			var up *upstream
			if up, err = s.dial(&t.View, resp3, deadline); err == nil {
				return up, nil
			}
		}
		if !time.Now().Before(deadline) {
			return nil, err
		}
		s.pause(deadline)
	}
}

// patientWriter writes as long as there is progress.
type patientWriter struct{ to net.Conn }

func (w *patientWriter) Write(b []byte) (int, error) {
	if err := w.to.SetWriteDeadline(time.Now().Add(progress)); err != nil {
		return 0, err
	}
	return w.to.Write(b)
}

// swallowing goes on after a failure as if nothing had happened: the command must be read to its end in any case.
type swallowing struct {
	to     io.Writer
	failed *error
}

func (w *swallowing) Write(b []byte) (int, error) {
	if *w.failed == nil {
		_, *w.failed = w.to.Write(b)
	}
	return len(b), nil
}

// stream reads one command from a connection, beginning with what is in its buffer.
type stream struct {
	c     *conn
	count int    // of its arguments, with the name
	left  int    // that are to come
	seen  []byte // what head read
}

// next is a byte. The peer must not stop within a command for long.
func (s *stream) next() (byte, error) {
	c := s.c
	if c.r == c.w {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	b := c.in[c.r]
	c.r++
	return b, nil
}

func (s *stream) fill() error {
	c := s.c
	n, err := c.peer.readWithin(c.in, stalled)
	c.r, c.w = 0, n
	return err
}

// stalled is how long a peer may stop within a large command.
const stalled = 2 * time.Second

func (s *stream) length(kind byte) (int, error) {
	var line []byte
	for {
		b, err := s.next()
		if err != nil {
			return 0, err
		}
		line = append(line, b)
		if b == '\n' {
			break
		}
		if len(line) > 16 {
			return 0, errProtocol
		}
	}
	s.seen = append(s.seen, line...)
	if len(line) < 4 || line[0] != kind || line[len(line)-2] != '\r' {
		return 0, errProtocol
	}
	n, err := strconv.ParseUint(string(line[1:len(line)-2]), 10, 40)
	if err != nil || n > largest {
		return 0, errProtocol
	}
	return int(n), nil
}

// head reads the count, the name and the first argument, as far as they are short.
func (s *stream) head() (name, k []byte, err error) {
	for s.count == 0 {
		s.seen = s.seen[:0]
		if s.count, err = s.length('*'); err != nil {
			return nil, nil, err
		}
	}
	s.left = s.count
	for i := range min(s.count, 2) {
		n, err := s.length('$')
		if err != nil {
			return nil, nil, err
		}
		if n > longHead {
			return name, nil, s.skip(n + 2)
		}
		at := len(s.seen)
		for range n + 2 {
			b, err := s.next()
			if err != nil {
				return nil, nil, err
			}
			s.seen = append(s.seen, b)
		}
		s.left--
		if part := s.seen[at : at+n : at+n]; i == 0 {
			name = append([]byte(nil), part...)
		} else {
			k = append([]byte(nil), part...)
		}
	}
	return name, k, nil
}

// skip passes over an argument that is too long for a head.
func (s *stream) skip(n int) error {
	s.left--
	return s.pass(io.Discard, n)
}

// rest passes what is left of the command on.
func (s *stream) rest(to io.Writer) error {
	for ; s.left > 0; s.left-- {
		s.seen = s.seen[:0]
		n, err := s.length('$')
		if err != nil {
			return err
		}
		if _, err := to.Write(s.seen); err != nil {
			return err
		}
		if err := s.pass(to, n+2); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) pass(to io.Writer, n int) error {
	c := s.c
	for n > 0 {
		if c.r == c.w {
			if err := s.fill(); err != nil {
				return err
			}
		}
		part := c.in[c.r:min(c.w, c.r+n)]
		if _, err := to.Write(part); err != nil {
			return err
		}
		c.r += len(part)
		n -= len(part)
	}
	return nil
}
