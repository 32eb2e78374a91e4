package lane

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/resp"
	"github.com/cachemesh/cachemesh/sidecar/null"
)

// Bounds of what one connection takes.
const (
	firstBuffer = 16 << 10
	maxBuffered = 1 << 20 // longer commands are passed on as they come
	maxArgs     = 1 << 20
	maxBacklog  = 1 << 20 // of replies that the peer does not take, before its commands wait
	maxReplies  = 8 << 20 // of the same, before the lane waits
)

// conn is a connection of Envoy's. Its goroutine reads; who answers writes: whoever is at the shard while commands are outstanding, and the
// goroutine itself otherwise.
type conn struct {
	s    *Server
	peer *peer

	in       []byte
	r, w     int // what is unread in in
	scan     resp.Scanner
	executor *executor
	policy   *policy
	resp3    bool
	keys     []key
	tx       *transaction
	held     bool // the executor's lock
	added    int  // items since

	since  time.Time // when what was read last may have come
	behind bool      // there was no room for so long that what is read next is old, too

	out []byte // replies, of who answers

	mu          sync.Mutex
	changed     *sync.Cond
	outstanding int
	backlog     []byte // what the peer did not take yet
	draining    bool   // a goroutine writes backlog
	dead        bool
}

func newConn(s *Server, n *net.UnixConn) (*conn, error) {
	p, err := newPeer(n)
	if err != nil {
		return nil, err
	}
	c := &conn{s: s, peer: p, in: make([]byte, firstBuffer), executor: s.executors[0]}
	c.changed = sync.NewCond(&c.mu)
	return c, nil
}

// serve reads until the connection ends.
func (c *conn) serve() {
	defer c.close()
	for {
		if err := c.room(); err != nil {
			c.refuse("ERR " + err.Error())
			return
		}
		if !c.read() {
			return
		}
		if err := c.process(); err != nil {
			var broken *resp.Error
			if errors.As(err, &broken) {
				c.refuse("ERR " + err.Error())
			}
			return
		}
		if !c.patient() {
			return
		}
	}
}

// read waits for more bytes. There are none any more if it says false.
func (c *conn) read() bool {
	n, waited, err := c.peer.read(c.in[c.w:])
	if err != nil {
		return false
	}
	c.w += n
	if waited || !c.behind {
		c.since = time.Now()
	}
	c.behind = c.behind && !waited && c.w == len(c.in)
	return true
}

// process takes all commands that are there whole.
func (c *conn) process() error {
	defer c.release()
	for c.r < c.w {
		n, err := c.scan.Next(c.in[c.r:c.w], maxArgs)
		if err != nil {
			return err
		}
		if n == 0 {
			if c.scan.Needs() <= maxBuffered {
				break
			}
			c.release()
			if err := c.large(); err != nil {
				return err
			}
			c.since = time.Now() // what follows came behind it
			continue
		}
		cmd := command{c.in[c.r : c.r+n], c.scan.Args}
		c.r += n
		if err := c.take(cmd); err != nil {
			return err
		}
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	return nil
}

// room makes some for more bytes, or says that there is none.
func (c *conn) room() error {
	if c.r > 0 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	if len(c.in) > firstBuffer && c.w <= firstBuffer/2 {
		c.s.buffers.Add(firstBuffer - int64(len(c.in)))
		c.in = append(make([]byte, 0, firstBuffer), c.in[:c.w]...)[:firstBuffer]
	}
	if cap(c.scan.Args) > maxItems && c.w == 0 {
		c.scan = resp.Scanner{}
	}
	if c.w < len(c.in) {
		return nil
	}
	more := max(2*len(c.in), min(c.scan.Needs(), maxBuffered))
	if more > 2*maxBuffered {
		return errors.New("a command has too many arguments")
	}
	if c.s.buffers.Add(int64(more-len(c.in))) > maxBuffers {
		c.s.buffers.Add(int64(len(c.in) - more))
		return errors.New("a lane has no memory left for unfinished commands")
	}
	grown := make([]byte, more)
	c.w = copy(grown, c.in[:c.w])
	c.in = grown
	return nil
}

// hold makes the executor's batch this connection's to add to.
func (c *conn) hold() *batch {
	e := c.executor
	if c.held && e.pending.full() {
		c.release()
	}
	if !c.held {
		c.held = true
		c.policy = c.s.knownPolicy()
		e.mu.Lock()
		if p := c.s.policy.Load(); p.known {
			c.policy = p // what is added from now on goes by it
		}
		if e.pending.full() {
			began := time.Now()
			for e.pending.full() {
				e.space.Wait()
			}
			if time.Since(began) > atLeast {
				c.since, c.behind = began, true
			}
		}
	}
	if e.pending.empty() || c.since.Before(e.pending.since) {
		e.pending.since = c.since
	}
	c.added++
	return e.pending
}

// release lets the executor have what was added.
func (c *conn) release() {
	if !c.held {
		return
	}
	c.held = false
	e := c.executor
	if c.added > 0 {
		e.pending.bursts = append(e.pending.bursts, burst{c, c.added})
		c.mu.Lock()
		c.outstanding += c.added
		c.mu.Unlock()
		c.added = 0
		switch {
		case e.busy:
		case e.tick || e.due:
			e.work.Signal()
		default:
			e.carryPending()
			c.blind()
		}
	}
	e.mu.Unlock()
}

// blind takes into account that the connection was not read while its goroutine was at the shard.
func (c *conn) blind() {
	now := time.Now()
	if now.Sub(c.since) > atLeast {
		// What is there by now must be answered soon.
		c.since, c.behind = later(c.since, now.Add(-c.s.config.Timeout)), true
	}
}

// take is what becomes of one command.
func (c *conn) take(cmd command) error {
	var buffer [24]byte
	name := cmd.name(&buffer)
	s, known := specs[string(name)]
	if !known {
		return c.control(string(name), cmd)
	}
	b := c.hold()
	if !c.policy.known {
		c.wrong(b, "ERR the shard's lane does not know its shard")
		return nil
	}
	if !s.fits(cmd) {
		c.wrong(b, "ERR wrong number of arguments for '"+string(name)+"' command")
		return nil
	}
	from, end, step, ok := s.keys(cmd)
	if !ok {
		c.wrong(b, "ERR Number of keys can't be greater than number of args")
		return nil
	}
	it := item{conn: c, commands: 1}
	done := s.outcome(cmd, time.Duration(c.s.ahead.Load()))
	it.removal = done == removes && s.effect != scripted
	it.opens = s.opens(done)
	c.keys = c.keys[:0]
	for i := from; i < end; i += step {
		if refusal := c.touch(&it, cmd, i, done, i > from); refusal != "" {
			c.wrong(b, refusal)
			return nil
		}
	}
	if s.effect == stores && done != reads {
		c.keys = c.keys[:0]
		if refusal := c.touch(&it, cmd, stored(cmd), done, true); refusal != "" {
			c.wrong(b, refusal)
			return nil
		}
	}
	if c.tx != nil {
		if c.tx.add(it, cmd.raw, c.keys) {
			b.answer(c, queued)
		} else {
			c.wrong(b, "ERR a transaction of more than 1 MiB")
		}
		return nil
	}
	b.add(it, cmd.raw, c.keys)
	return nil
}

// Answers of Redis's own, which clients look for.
var (
	fine   = []byte("+OK\r\n")
	queued = []byte("+QUEUED\r\n")
)

const (
	crossSlot = "CROSSSLOT Keys in request don't hash to the same slot"
	reserved  = `ERR keys under "` + mesh.ReservedPrefix + `" belong to cachemesh`
	execAbort = "EXECABORT Transaction discarded because of previous errors."
)

// touch notes the key that is argument i. other says that the command has more keys than this one. It returns what is wrong with it.
func (c *conn) touch(it *item, cmd command, i int, done effect, other bool) (refusal string) {
	k := cmd.arg(i)
	if bytes.HasPrefix(k, []byte(mesh.ReservedPrefix)) {
		return reserved
	}
	if other || c.tx != nil {
		if !c.together(cmd, k) {
			return crossSlot
		}
	}
	r := c.policy.route(k)
	remembered, removed := coherent(r, done)
	moves := done != reads && c.policy.pair.Moves(k)
	if remembered || moves {
		c.keys = append(c.keys, key{cmd.args[i].From, cmd.args[i].To, remembered, removed, moves, it.opens, holdoff.Of(r)})
	}
	if r != nil && r.Durability == mesh.DurableReplica && done != reads {
		it.waits = true
	}
	return ""
}

// together says whether a key is on the shard of the transaction's keys before, or of the command's first.
func (c *conn) together(cmd command, k []byte) bool {
	if c.policy.shard == nil {
		return true
	}
	if c.tx == nil {
		s := specs[string(cmd.name(new([24]byte)))]
		from, _, _, _ := s.keys(cmd)
		return c.policy.together(c.policy.homes(cmd.arg(from)).with(c.policy.homes(k)))
	}
	if c.tx.homes == nil {
		c.tx.homes = c.policy.homes(k)
	}
	c.tx.homes = c.tx.homes.with(c.policy.homes(k))
	return c.policy.together(c.tx.homes)
}

// wrong answers with an error, which also spoils a transaction.
func (c *conn) wrong(b *batch, text string) {
	if c.tx != nil {
		c.tx.spoiled = true
	}
	b.answer(c, failure(text))
}

// failure is an error reply, which is one line whatever the text.
func failure(text string) []byte { return []byte("-" + plain(text) + "\r\n") }

// transaction is what a client queues between MULTI and EXEC.
type transaction struct {
	it      item
	raw     []byte
	keys    []key
	homes   homes // of its keys
	spoiled bool
}

func (t *transaction) add(it item, raw []byte, keys []key) bool {
	if len(t.raw)+len(raw) > maxBuffered || t.it.commands >= maxItems {
		return false
	}
	base := len(t.raw)
	t.raw = append(t.raw, raw...)
	for _, k := range keys {
		k.from, k.to = base+k.from, base+k.to
		t.keys = append(t.keys, k)
	}
	t.it.commands++
	t.it.waits = t.it.waits || it.waits
	return true
}

// control is a command about the connection, or one that no lane takes.
func (c *conn) control(name string, cmd command) error {
	switch name {
	case "multi", "exec", "discard":
		b := c.hold()
		if len(cmd.args) != 1 {
			c.wrong(b, "ERR wrong number of arguments for '"+name+"' command")
			return nil
		}
		c.transact(b, name)
	case "hello":
		// The answers before are in the protocol before.
		c.release()
		if !c.quiet() {
			return net.ErrClosed
		}
		var out bytes.Buffer
		w := resp.NewWriter(&out)
		w.RESP3 = c.resp3
		null.Answer(w, arguments(cmd))
		_ = w.Flush() // into memory
		c.resp3 = w.RESP3
		c.executor = c.s.executors[0]
		if c.resp3 {
			c.executor = c.s.executors[1]
		}
		c.out = append(c.out, out.Bytes()...)
		c.flush()
	case "auth", "client", "ping", "echo", "select", "quit", "readonly":
		var out bytes.Buffer
		w := resp.NewWriter(&out)
		w.RESP3 = c.resp3
		null.Answer(w, arguments(cmd))
		_ = w.Flush()
		c.hold().answer(c, out.Bytes())
	default:
		if len(name) == 0 {
			name = "?"
		}
		c.wrong(c.hold(), "ERR unknown command '"+name+"', or one that lanes do not take: `cachemesh explain` says what to use instead")
	}
	return nil
}

func arguments(cmd command) [][]byte {
	args := make([][]byte, len(cmd.args))
	for i := range args {
		args[i] = cmd.arg(i)
	}
	return args
}

func (c *conn) transact(b *batch, name string) {
	switch {
	case name == "multi" && c.tx != nil:
		b.answer(c, failure("ERR MULTI calls can not be nested"))
	case name == "multi":
		c.tx = &transaction{it: item{conn: c, transaction: true}}
		b.answer(c, fine)
	case c.tx == nil:
		b.answer(c, failure("ERR "+map[string]string{"exec": "EXEC", "discard": "DISCARD"}[name]+" without MULTI"))
	case name == "discard":
		c.tx = nil
		b.answer(c, fine)
	case c.tx.spoiled:
		c.tx = nil
		b.answer(c, failure(execAbort))
	case c.tx.it.commands == 0:
		c.tx = nil
		b.answer(c, []byte("*0\r\n"))
	default:
		tx := c.tx
		c.tx = nil
		b.add(tx.it, tx.raw, tx.keys)
	}
}

// quiet waits until all is answered; it says whether the connection is of use.
func (c *conn) quiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.outstanding > 0 {
		c.changed.Wait()
	}
	return !c.dead
}

// taken waits while the peer has very much to take; it says whether the connection is of use.
func (c *conn) taken() bool { return c.until(maxReplies) }

// patient waits while the peer takes no answers; it says whether the connection is of use.
func (c *conn) patient() bool { return c.until(maxBacklog) }

func (c *conn) until(backlog int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.backlog) > backlog && !c.dead {
		c.changed.Wait()
	}
	return !c.dead
}

// refuse says why the connection ends.
func (c *conn) refuse(text string) {
	c.release()
	if c.quiet() {
		c.out = append(c.out, failure(text)...)
		c.flush()
	}
}

// finish is called when n items are answered: their replies are in out.
func (c *conn) finish(n int) {
	c.flush()
	c.mu.Lock()
	c.outstanding -= n
	if c.outstanding == 0 {
		c.changed.Broadcast()
	}
	c.mu.Unlock()
}

// flush sends out without waiting for the peer: what it does not take goes to backlog.
func (c *conn) flush() {
	if len(c.out) == 0 {
		return
	}
	defer func() {
		if cap(c.out) > maxBuffered {
			c.out = nil
		}
		c.out = c.out[:0]
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return
	}
	if c.draining {
		c.backlog = append(c.backlog, c.out...)
		return
	}
	n, err := c.peer.write(c.out)
	if err != nil {
		c.fail()
		return
	}
	if n < len(c.out) {
		c.backlog = append(c.backlog[:0], c.out[n:]...)
		c.draining = true
		c.s.running.Go(c.drain)
	}
}

// fail gives the connection up. The caller holds the lock.
func (c *conn) fail() {
	c.dead = true
	c.peer.Close()
	c.changed.Broadcast()
}

// unread is how long a peer may take no answer at all.
const unread = time.Second

// drain writes the backlog as the peer takes it.
func (c *conn) drain() {
	for {
		c.mu.Lock()
		part := c.backlog
		c.backlog = nil
		if len(part) == 0 || c.dead {
			c.draining = false
			c.backlog = nil
			c.changed.Broadcast()
			c.mu.Unlock()
			return
		}
		c.changed.Broadcast()
		c.mu.Unlock()
		if err := c.peer.drain(part, unread); err != nil {
			c.mu.Lock()
			c.fail()
			c.mu.Unlock()
			return
		}
	}
}

// close ends the connection once what is outstanding is answered.
func (c *conn) close() {
	c.release()
	c.quiet()
	c.mu.Lock()
	for c.draining && !c.dead {
		c.changed.Wait()
	}
	c.dead = true
	c.mu.Unlock()
	c.peer.Close()
	c.s.buffers.Add(firstBuffer - int64(len(c.in)))
	c.s.gone(c)
}
