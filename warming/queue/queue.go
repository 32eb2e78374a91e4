// Package queue is what is left to do of a run, and what was done, in Redis, on a shard of the region that is warmed. Control planes make a run's
// queue and read its progress; agents claim chunks from it. A chunk whose agent is gone is taken over, and what became of its keys is
// counted once, in one step with the chunk's end.
//
// On the shard that the pool's ring gives for cachemesh:warm:RUN, under keys that applications cannot reach:
//
//	cachemesh:warm:RUN         hash: state, counts, what the budget still owes
//	cachemesh:warm:RUN:chunks  stream with the consumer group "agents": the chunks that are not done
//	cachemesh:warm:RUN:sample  sorted set: some of the keys that were loaded, by a hash of the key, the least of all
//	cachemesh:warm:RUN:seen    hash: of those, KEY → what is known of its use
//	cachemesh:warm:RUN:look    which agent looked last, for a while
//
// It holds keys, never values, and at most a few chunks ahead of the agents: a chunk that lists keys names the next one when it is done listing.
package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/place"
)

const (
	// ChunkKeys is how many keys a chunk names at most, OriginKeys if the origin is asked for their values.
	ChunkKeys  = 512
	OriginKeys = 100
	// dead is how long nothing is heard of a chunk before another agent takes it over. KeepEvery is how often who works on one says so.
	dead      = 10 * time.Second
	KeepEvery = 2 * time.Second
	// keep is how long a queue that nobody removes stays.
	keep = 7 * 24 * time.Hour

	timeout = 2 * time.Second
)

// The reasons for which there is nothing to claim.
var (
	ErrGone   = errors.New("the run's queue is not there: its shard has lost it, or it was not begun")
	ErrPaused = errors.New("the run is paused")
	ErrOver   = errors.New("the run is over")
)

// Queue is a run's. Several goroutines may use it.
type Queue struct {
	pool string
	key  string
	at   func() *place.Map // the region's shards now; nil while they are not known

	sampling sampling

	mu     sync.Mutex
	shard  *place.Shard
	client *redis.Client
}

// New connects to nobody yet. at says what the region is like now.
func New(pool, run string, at func() *place.Map) *Queue {
	return &Queue{pool: pool, key: mesh.ReservedPrefix + "warm:" + run, at: at}
}

// Close ends the connections.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.disconnect()
}

func (q *Queue) disconnect() {
	if q.client != nil {
		q.client.Close()
	}
	q.client, q.shard = nil, nil
}

// connect returns a client of who is primary of the shard now.
func (q *Queue) connect() (*redis.Client, error) {
	m := q.at()
	if m == nil {
		return nil, errors.New("the region's shards are not known yet")
	}
	s := m.Own(q.pool, q.key)
	if s == nil {
		return nil, fmt.Errorf("pool %q has no shards", q.pool)
	}
	if s.Address == "" {
		return nil, fmt.Errorf("shard %s has no primary now", s.Name)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.client == nil || q.shard.Address != s.Address || q.shard.Epoch != s.Epoch {
		q.disconnect()
		q.shard, q.client = s, node.Primary(s.Address, s.Epoch, s.Access, timeout)
	}
	return q.client, nil
}

func (q *Queue) keys(suffixes ...string) []string {
	all := []string{q.key}
	for _, s := range suffixes {
		all = append(all, q.key+s)
	}
	return all
}

// run runs a script, whose reply is an array of strings. It fails with ErrGone if the script must have a queue and there is none.
func (q *Queue) run(ctx context.Context, s *redis.Script, args ...any) ([]string, error) {
	client, err := q.connect()
	if err != nil {
		return nil, err
	}
	reply, err := s.Run(ctx, client, q.keys(":chunks", ":sample", ":seen"), args...).StringSlice()
	if err != nil && redis.HasErrorPrefix(err, "GONE") {
		return nil, ErrGone
	}
	return reply, err
}

// Create makes the queue, unless it is there: of the keys that were named, or else of all that the source or the region says.
func (q *Queue) Create(ctx context.Context, r *warming.Run, keys []string) error {
	if err := r.Validate(); err != nil {
		return err
	}
	args := []any{keep.Milliseconds(), string(warming.Running), strconv.Itoa(len(keys)), ChunkSize(r)}
	if !r.Keys.Named {
		args = append(args, "c", "")
	}
	for part := range slices.Chunk(keys, ChunkSize(r)) {
		args = append(args, "k", packKeys(part))
	}
	_, err := q.run(ctx, createScript, args...)
	return err
}

// Set pauses, resumes or cancels a run. What agents work on they finish, or put back.
func (q *Queue) Set(ctx context.Context, s warming.State) error {
	_, err := q.run(ctx, setScript, string(s))
	return err
}

// Remove removes all of the queue.
func (q *Queue) Remove(ctx context.Context) error {
	client, err := q.connect()
	if err != nil {
		return err
	}
	return client.Unlink(ctx, q.keys(":chunks", ":sample", ":seen", ":look")...).Err()
}

// Chunk is a part of a run: keys, or what is listed from a cursor on.
type Chunk struct {
	ID     string
	Keys   [][]byte // nil if it lists
	Cursor string   // "" is the beginning
	Taken  bool     // from an agent that is gone

	charged string // what the budget was charged ahead
}

// Lists says whether the chunk is to be listed.
func (c *Chunk) Lists() bool { return c.Keys == nil }

// Claim takes a chunk for an agent. Without one, it says how long to wait before it is asked again, or fails with ErrGone, ErrPaused or ErrOver.
func (q *Queue) Claim(ctx context.Context, agent string, r *warming.Run) (*Chunk, time.Duration, error) {
	reply, err := q.run(ctx, claimScript, agent, dead.Milliseconds(), r.Budget.KeysPerSecond, r.Budget.BytesPerSecond, originPerSecond(r))
	if err != nil {
		return nil, 0, err
	}
	if len(reply) == 2 && reply[0] == "wait" {
		ms, err := strconv.ParseFloat(reply[1], 64)
		return nil, time.Duration(ms * float64(time.Millisecond)), err
	}
	if len(reply) != 5 || reply[0] != "chunk" {
		return nil, 0, state(reply)
	}
	c := &Chunk{ID: reply[1], Taken: reply[2] == "1", charged: reply[3]}
	kind, value := reply[4][:1], reply[4][1:]
	if kind == "c" {
		c.Cursor = value
		return c, 0, nil
	}
	c.Keys, err = unpackKeys([]byte(value))
	return c, 0, err
}

func state(reply []string) error {
	if len(reply) == 0 {
		return fmt.Errorf("the run's queue answers nothing")
	}
	switch warming.State(reply[0]) {
	case warming.Paused:
		return ErrPaused
	case warming.Done, warming.Cancelled, warming.Failed:
		return ErrOver
	}
	return fmt.Errorf("the run's queue answers %q", reply)
}

// originPerSecond is the run's budget of keys that are read from the application's database, 0 if none are.
func originPerSecond(r *warming.Run) int {
	if r.ReadsOrigin() {
		return r.Budget.OriginPerSecond
	}
	return 0
}

// Keep says that an agent still works on chunks. It returns those that it has lost to another.
func (q *Queue) Keep(ctx context.Context, agent string, ids []string) (lost []string, err error) {
	args := []any{agent}
	for _, id := range ids {
		args = append(args, id)
	}
	return q.run(ctx, keepScript, args...)
}

// Release puts a chunk back, so that any agent may take it at once.
func (q *Queue) Release(ctx context.Context, agent, id string) error {
	_, err := q.run(ctx, releaseScript, agent, id)
	return err
}

// Ahead says whether there is so much to be claimed that no more should become chunks now.
func (q *Queue) Ahead(ctx context.Context) (bool, error) {
	p, err := q.Progress(ctx)
	return p.Chunks > maxAhead, err
}

const maxAhead = 100

// Listed says where listing goes on after a chunk; without next, nowhere. Keys that it named become chunks. It returns what was said of the
// chunk first, maybe by an agent that is gone: that is what counts, and the chunk ends where that begins. queued says that its keys are chunks.
func (q *Queue) Listed(ctx context.Context, c *Chunk, r *warming.Run, next []string, total uint64, named [][]byte) (ends []string, queued bool, err error) {
	args := []any{c.ID, total, len(next)}
	for _, n := range next {
		args = append(args, n)
	}
	for keys := range slices.Chunk(named, ChunkSize(r)) {
		args = append(args, packKeys(keys))
	}
	reply, err := q.run(ctx, listedScript, args...)
	if err != nil || len(reply) == 0 {
		return nil, false, err
	}
	return reply[1:], reply[0] == "1", nil
}

// ChunkSize is how many keys a chunk of the run names at most.
func ChunkSize(r *warming.Run) int {
	if r.ReadsOrigin() {
		return OriginKeys
	}
	return ChunkKeys
}

// Done says what became of a chunk's keys, and ends it. It says false if another agent has done so before: then nothing is counted.
func (q *Queue) Done(ctx context.Context, c *Chunk, r *warming.Run, n warming.Counts, bytes uint64, samples []Sample) (bool, error) {
	args := []any{c.ID, c.charged, r.Budget.KeysPerSecond, r.Budget.BytesPerSecond, originPerSecond(r), bytes, keep.Milliseconds()}
	for _, v := range counts(&n) {
		args = append(args, *v)
	}
	for _, s := range samples {
		args = append(args, s.Hash>>hashShift, s.Key, s.seen())
	}
	reply, err := q.run(ctx, doneScript, args...)
	if err != nil {
		return false, err
	}
	if len(reply) != 2 {
		return false, state(reply)
	}
	q.sampling.set(reply[1])
	return reply[0] == "1", nil
}

// counts are a Counts' fields in the order of countFields.
func counts(c *warming.Counts) []*uint64 {
	return []*uint64{&c.Loaded, &c.There, &c.Refused, &c.Missing, &c.Failed, &c.Memory, &c.Bytes}
}

var countFields = []string{"loaded", "there", "refused", "missing", "failed", "memory", "bytes"}

// Tell notes a problem, for people; "" is none any more.
func (q *Queue) Tell(ctx context.Context, problem string) error {
	_, err := q.run(ctx, tellScript, problem[:min(len(problem), maxProblem)])
	return err
}

const maxProblem = 300

// Fill ends a run before its end: the shards have no room.
func (q *Queue) Fill(ctx context.Context) error {
	_, err := q.run(ctx, fullScript)
	return err
}

// Progress is how far a run is.
type Progress struct {
	State   warming.State // running, paused, cancelled, or done
	Counts  warming.Counts
	Total   uint64 // keys; an estimate until Listed; 0 is not known
	Listed  bool   // there is nothing more to be listed
	Full    bool   // it ended before its end, since the shards have no room
	Problem string // why it does not go on; "" if it does
	Chunks  int64  // that are not done
	Ended   time.Time
	Use     warming.Use
}

// Progress reads how far the run is.
func (q *Queue) Progress(ctx context.Context) (Progress, error) {
	client, err := q.connect()
	if err != nil {
		return Progress{}, err
	}
	all, err := progressScript.Run(ctx, client, q.keys(":chunks")).StringSlice()
	if err != nil {
		return Progress{}, err
	}
	h := make(map[string]string, len(all)/2)
	for i := 0; i+1 < len(all); i += 2 {
		h[all[i]] = all[i+1]
	}
	if h["state"] == "" {
		return Progress{}, ErrGone
	}
	number := func(field string) uint64 {
		n, _ := strconv.ParseUint(h[field], 10, 64) // what is not there is 0
		return n
	}
	p := Progress{State: warming.State(h["state"]), Total: number("total"), Listed: h["listing"] == "0", Full: h["full"] == "1", Problem: h["problem"], Chunks: int64(number("chunks")),
		Use: warming.Use{Sampled: number("sampled"), Read: number("read"), Evicted: number("evicted")}}
	for i, v := range counts(&p.Counts) {
		*v = number(countFields[i])
	}
	if ms := number("ended"); ms > 0 {
		p.Ended = time.UnixMilli(int64(ms))
	}
	if p.Total = max(p.Total, p.Counts.Keys()); p.Listed && p.Chunks == 0 {
		p.Total = p.Counts.Keys()
	}
	return p, nil
}

func packKeys[T string | []byte](keys []T) string {
	var b []byte
	for _, k := range keys {
		b = append(binary.AppendUvarint(b, uint64(len(k))), k...)
	}
	return string(b)
}

func unpackKeys(b []byte) ([][]byte, error) {
	keys := [][]byte{}
	for len(b) > 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 || uint64(len(b)-size) < n {
			return nil, errors.New("a chunk of the run's queue is damaged")
		}
		keys = append(keys, b[size:size+int(n)])
		b = b[size+int(n):]
	}
	return keys, nil
}
