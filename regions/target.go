package regions

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/regions/writers"
)

const (
	// maxJobs is what may wait for a shard before who brings more waits too.
	maxJobs = 256
	// So many keys go to a shard at once, in commands of so many.
	maxKeys    = 4096
	keysAtOnce = 256
	// replicasWithin bounds how long removals wait for replicas. Those that no replica has by then are remembered.
	replicasWithin = 200 * time.Millisecond
	shardTimeout   = time.Second
	// maxUnconfirmed bounds what is remembered, in keys.
	maxUnconfirmed = 200_000
	// absent is how long a replica may confirm nothing before the others are enough.
	absent = 10 * time.Second
)

// place is where a shard's keys are.
type place struct {
	address  string
	epoch    uint64
	standIn  mesh.StandIn
	access   *mesh.RedisAccess
	login    uint64
	replicas int
}

func placeOf(p *mesh.Pool, s mesh.Shard) place {
	primary, _ := s.Primary()
	return place{address: primary.Address, epoch: s.Epoch, standIn: s.StandIn, access: p.Redis, login: p.Login, replicas: len(s.Nodes) - 1}
}

// removal is one key that is to go, and the route that takes it.
type removal struct {
	key   []byte
	route *mesh.Route
}

type job struct {
	removals []removal
	done     func()
}

// target removes keys at one shard, in the order in which it is told.
type target struct {
	applier *Applier
	shard   string
	place   atomic.Pointer[place]
	using   atomic.Pointer[place] // while it removes
	jobs    chan job
	ctx     context.Context
	close   context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed when the place is another

	// What follows is run's own.
	client      *redis.Client
	at          *place // of the last client that arrived
	unconfirmed []removal
	forgot      bool // of what replicas may lack, too much to remember
	confirmed   time.Time
	told        string // the last problem in the log
}

func newTarget(a *Applier, shard string, now place) *target {
	t := &target{applier: a, shard: shard, jobs: make(chan job, maxJobs), changed: make(chan struct{}), confirmed: time.Now()}
	t.ctx, t.close = context.WithCancel(context.Background())
	t.place.Store(&now)
	return t
}

// move says where the shard's keys are from now on.
func (t *target) move(now place) {
	if reflect.DeepEqual(*t.place.Load(), now) {
		return
	}
	t.place.Store(&now)
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
}

// pause waits a moment, or until the place is another.
func (t *target) pause(ctx context.Context) {
	t.mu.Lock()
	changed := t.changed
	t.mu.Unlock()
	select {
	case <-changed:
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
	case <-t.ctx.Done():
	}
}

func (t *target) submit(j job) {
	select {
	case t.jobs <- j:
	case <-t.ctx.Done():
		j.done() // the shard is no more, or nobody wants to know
	}
}

func (t *target) run() {
	defer t.disconnect()
	for {
		var all []job
		var removals []removal
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		if t.at != nil && t.at != t.place.Load() && !t.apply(nil) {
			t.drop()
			return
		}
		select {
		case j := <-t.jobs:
			all, removals = append(all, j), j.removals
		case <-changed:
			continue // a new primary must not keep old values until somebody removes something, nor miss this writer
		case <-t.ctx.Done():
			t.drop()
			return
		}
		for more := true; more && len(removals) < maxKeys; {
			select {
			case j := <-t.jobs:
				all, removals = append(all, j), append(slices.Clip(removals), j.removals...)
			default:
				more = false
			}
		}
		if !t.apply(removals) {
			t.drop()
			return
		}
		for _, j := range all {
			j.done()
		}
	}
}

// drop lets go of who waits for a shard that is no more. If the applier ends instead, acknowledgements that are still sent would lie.
func (t *target) drop() {
	t.applier.mu.Lock()
	closed := t.applier.closed
	t.applier.mu.Unlock()
	if closed {
		return
	}
	for {
		select {
		case j := <-t.jobs:
			j.done()
		default:
			return
		}
	}
}

// apply removes keys, however often it must try. It says false when the target is closed meanwhile.
func (t *target) apply(removals []removal) bool {
	defer t.using.Store(nil)
	for t.ctx.Err() == nil {
		now := t.place.Load()
		t.using.Store(now)
		switch now.standIn {
		case mesh.Null:
			// There is nothing. Who knows sooner than this agent that there is something again may fill it before.
			t.unconfirmed = append(t.unconfirmed, removals...)
			t.bound()
			t.disconnect()
			t.at = now
			return true
		case mesh.Hold:
			t.pause(t.ctx)
			continue
		}
		err := t.connect(now)
		if err == nil {
			err = t.remove(removals)
		}
		if err == nil {
			t.told = ""
			return true
		}
		if text := err.Error(); text != t.told && t.ctx.Err() == nil {
			t.told = text
			t.applier.log.Warn("removals of other regions wait for a shard", "shard", t.shard, "error", err)
		}
		t.disconnect()
		t.pause(t.ctx)
	}
	return false
}

func (t *target) disconnect() {
	if t.client != nil {
		t.client.Close()
		t.client = nil
	}
}

// connect makes the client that of the place. A new epoch's primary may have what was removed on the one before.
func (t *target) connect(now *place) error {
	if t.client != nil && t.at == now {
		return nil
	}
	t.disconnect()
	t.client = dialPrimary(now)
	before := t.at
	t.at = now
	if before == nil || before.epoch == now.epoch && before.address == now.address && before.standIn == now.standIn {
		return nil
	}
	t.confirmed = time.Now()
	if err := t.again(now); err != nil {
		t.at = before
		return err
	}
	return nil
}

// again removes what the place before may have kept to itself.
func (t *target) again(now *place) error {
	if t.forgot {
		if _, err := t.applier.sweep(t.ctx, now, func([]byte) bool { return true }, ""); err != nil {
			return err
		}
		t.forgot = false
	}
	all := t.unconfirmed
	t.unconfirmed = nil
	for part := range slices.Chunk(all, maxKeys) {
		if err := t.remove(part); err != nil {
			t.unconfirmed = all
			return err
		}
	}
	return nil
}

// remove sends the removals, and waits for replicas.
func (t *target) remove(removals []removal) error {
	pipe := t.client.Pipeline()
	if name := t.applier.writer; name != "" {
		// Each time, since the client may have another connection meanwhile.
		pipe.Do(t.ctx, asAny(writers.Join(name, t.at.epoch))...)
	}
	for part := range slices.Chunk(removals, keysAtOnce) {
		keys := make([]string, len(part))
		for i, r := range part {
			keys[i] = string(r.key)
		}
		pipe.Unlink(t.ctx, keys...)
	}
	// Who fills such a key again may still have read what was before.
	note := holdoff.Note{Link: true}
	for _, r := range removals {
		if d := holdoff.Of(r.route); d > 0 {
			note.Removed = append(note.Removed, holdoff.Mark{Key: r.key, For: d})
		}
	}
	if !note.Empty() {
		pipe.Do(t.ctx, note.Args()...)
	}
	if pipe.Len() == 0 {
		return nil
	}
	var replicas *redis.Cmd
	if t.at.replicas > 0 {
		replicas = pipe.Do(t.ctx, "WAIT", t.at.replicas, replicasWithin.Milliseconds())
	}
	// Before anything is sent, since of what fails nobody knows what was done.
	for _, r := range removals {
		t.unconfirmed = append(t.unconfirmed, removal{slices.Clone(r.key), r.route})
	}
	if _, err := pipe.Exec(t.ctx); err != nil {
		t.bound()
		return err
	}
	t.applier.removed.Add(uint64(len(removals)))
	t.confirm(replicas)
	return nil
}

// confirm forgets what replicas have.
func (t *target) confirm(replicas *redis.Cmd) {
	if replicas == nil {
		// Nobody could take over with older data.
		t.unconfirmed = t.unconfirmed[:0]
		return
	}
	n, _ := replicas.Int()
	switch {
	case n >= t.at.replicas:
		t.confirmed = time.Now()
	case n == 0 || time.Since(t.confirmed) < absent:
		t.bound()
		return
	}
	t.unconfirmed, t.forgot = t.unconfirmed[:0], false
}

func (t *target) bound() {
	if len(t.unconfirmed) > maxUnconfirmed {
		t.unconfirmed, t.forgot = nil, true
	}
}

// dialPrimary returns a client that uses no node but the primary of its epoch.
func dialPrimary(p *place) *redis.Client {
	return node.Writer(p.address, p.epoch, p.login, p.access, shardTimeout)
}

func asAny(words []string) []any {
	all := make([]any, len(words))
	for i, w := range words {
		all[i] = w
	}
	return all
}
