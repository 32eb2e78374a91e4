package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	// askTimeout bounds a request to Consul: a leader has time for another before it must stop.
	askTimeout = time.Second
	// afterFailure is when something is tried again.
	afterFailure = 200 * time.Millisecond
	// soon is when a state that is being written is compared with Consul's.
	soon = 20 * time.Millisecond
)

// consulStore keeps the state in Consul, which says who leads. What it has seen last stays known while Consul is gone, also over a
// restart if there is a folder; and if Consul has lost the state, whoever leads writes it again.
type consulStore struct {
	shown
	config   consulStoreConfig
	lockKey  string
	stateKey string
	poke     chan struct{} // wakes elect
	copies   chan struct{} // wakes keep

	writing sync.Mutex // held while the state is written, or compared with what Consul has

	mu      sync.Mutex // never held while waiting
	client  *consul.Client
	lease   *shards.Lease
	settled bool   // since the lock was acquired, what Consul has was compared with what is known
	doubt   bool   // the lock may be lost, or seen too long ago
	compare bool   // the state in Consul may be another than what is known
	beat    uint64 // makes each content of the lock another
	record  record // the newest known
	index   uint64 // Consul's, of record; the leader's writes depend on it
	url     string // the leader's
	// What does not work now.
	electErr, lockErr, stateErr, copyErr error
}

type consulStoreConfig struct {
	spec       mesh.ConsulSpec
	datacenter string
	region     string
	advertise  string // URL
	dir        string // of the copy; "" keeps none
	terms      shards.Terms
}

// lockValue is what the lock's key holds.
type lockValue struct {
	URL  string `json:"url"`
	Beat uint64 `json:"beat"`
}

func newConsulStore(config consulStoreConfig) (*consulStore, error) {
	client, err := consul.New(config.spec)
	if err != nil {
		return nil, err
	}
	config.spec.Address = client.Address()
	prefix := "cachemesh/" + config.region + "/"
	s := &consulStore{
		config: config, lockKey: prefix + "leader", stateKey: prefix + "state", poke: make(chan struct{}, 1), copies: make(chan struct{}, 1),
		client: client, lease: shards.NewLease(config.terms),
	}
	if config.dir != "" {
		s.record, s.copyErr = readCopy(filepath.Join(config.dir, stateFile))
	}
	s.showAll()
	return s, nil
}

func readCopy(path string) (record, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	var r record
	if err == nil {
		r, err = parseRecord(data)
	}
	if err != nil {
		return record{}, fmt.Errorf("--state: %s: %w: it is written anew from what Consul has", path, err)
	}
	return r, nil
}

func (s *consulStore) run(ctx context.Context, changed func()) error {
	group, ctx := errgroup.WithContext(ctx)
	watch := func(key string, seen func(consul.Pair, error) bool) {
		group.Go(func() error {
			return consul.WatchKey(ctx, s.config.spec, s.config.datacenter, key, func(p consul.Pair, err error) {
				if seen(p, err) {
					changed()
				}
			})
		})
	}
	watch(s.lockKey, s.lockSeen)
	watch(s.stateKey, s.stateSeen)
	group.Go(func() error { s.elect(ctx, changed); return ctx.Err() })
	if s.config.dir != "" {
		group.Go(func() error { return s.keep(ctx, changed) })
	}
	return group.Wait()
}

// showAll shows what is known, with mu held, and says whether that is different.
func (s *consulStore) showAll() bool {
	// What is wrong with Consul shows everywhere at once: one of it is enough.
	wrong := cmp.Or(s.electErr, s.lockErr, s.stateErr)
	now := standing{record: s.record, leader: s.url, problem: errors.Join(wrong, s.copyErr)}
	if !s.lease.Held() {
		s.settled = false
	}
	if s.settled {
		now.until, now.leader = s.lease.Until(), s.config.advertise
	}
	return s.show(now)
}

func (s *consulStore) wake() { signal(s.poke) }

// stateSeen takes in what the watch of the state reports.
func (s *consulStore) stateSeen(p consul.Pair, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.stateErr = err
		return s.showAll()
	}
	if s.lease.Held() {
		if p.Index != s.index {
			s.compare = true
			s.wake()
		}
		return s.showAll()
	}
	r, err := s.decode(p)
	switch {
	case err != nil:
		s.stateErr = err
	case p.Index == 0 && s.record.Revision > 0:
		s.stateErr = fmt.Errorf("Consul at %s has lost the key %s: whoever leads next writes it again", s.config.spec.Address, s.stateKey)
	case r.Revision >= s.record.Revision || r.By == s.lease.Holder():
		// An older one counts if who leads now wrote it: then nobody knew the newer one when it mattered.
		s.adopt(r, p.Index)
	default:
		s.stateErr = fmt.Errorf("Consul at %s has revision %d of the key %s where %d was before: whoever leads next writes the newer again",
			s.config.spec.Address, r.Revision, s.stateKey, s.record.Revision)
	}
	return s.showAll()
}

// adopt makes a record the newest known, with mu held.
func (s *consulStore) adopt(r record, index uint64) {
	s.record, s.index, s.stateErr = r, index, nil
	signal(s.copies)
}

// settle compares what is known with what Consul has, with writing held. The newer counts; if Consul's is older, or lost, it is
// replaced.
func (s *consulStore) settle(ctx context.Context) error {
	keys, limited, cancel := s.keys(ctx)
	p, err := keys.Read(limited, s.stateKey)
	cancel()
	if err != nil {
		return err
	}
	there, err := s.decode(p)
	s.mu.Lock()
	known, session := s.record, s.lease.Session()
	if err == nil && there.Revision >= known.Revision {
		known = there
	}
	s.mu.Unlock()
	switch {
	case err != nil && known.Revision == 0:
		return err
	case err != nil || known.Revision != there.Revision:
		if known, err = newRecord(known.State, known.Revision+1, session); err != nil {
			return err
		}
		if p.Index, err = s.put(ctx, known, p.Index, session); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease.Held() && s.lease.Session() == session {
		s.settled, s.compare = true, false
	}
	s.adopt(known, p.Index)
	return nil
}

// put writes a record if the lock is held, and Consul has what it had at index.
func (s *consulStore) put(ctx context.Context, r record, index uint64, session string) (uint64, error) {
	value, err := r.pack()
	if err != nil {
		return 0, err
	}
	keys, ctx, cancel := s.keys(ctx)
	defer cancel()
	sent := time.Now()
	index, err = keys.Write(ctx, s.stateKey, value, index, session, s.lockKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.lease.Proved(session, sent)
	case errors.Is(err, consul.ErrNotHeld):
		s.doubt = true
	default:
		s.compare = true // it may have been written all the same
	}
	return index, err
}

func (s *consulStore) write(ctx context.Context, state []byte, revision uint64) (uint64, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	defer s.wake()
	s.mu.Lock()
	leads := s.settled && time.Now().Before(s.lease.Until())
	known, index, session := s.record.Revision, s.index, s.lease.Session()
	s.mu.Unlock()
	if !leads {
		return 0, errNotLeading
	}
	if revision != known {
		return 0, errConflict
	}
	next, err := newRecord(state, revision+1, session)
	if err != nil {
		return 0, err
	}
	index, err = s.put(ctx, next, index, session)
	switch {
	case errors.Is(err, consul.ErrNotHeld):
		return 0, fmt.Errorf("%w: %w", errNotLeading, err)
	case errors.Is(err, consul.ErrConflict):
		return 0, fmt.Errorf("%w: %w", errConflict, err)
	case err != nil:
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopt(next, index)
	s.showAll()
	return next.Revision, nil
}

// keep copies the newest state to the folder, until ctx ends.
func (s *consulStore) keep(ctx context.Context, changed func()) error {
	saved := record{}
	save := func() error {
		s.mu.Lock()
		next := s.record
		s.mu.Unlock()
		if next.Revision == 0 || next.Revision == saved.Revision && next.Sum == saved.Sum {
			return nil
		}
		err := os.MkdirAll(s.config.dir, 0o700)
		if err == nil {
			err = next.save(filepath.Join(s.config.dir, stateFile))
		}
		if err != nil {
			err = fmt.Errorf("--state: %w", err)
		} else {
			saved = next
		}
		s.mu.Lock()
		s.copyErr = err
		different := s.showAll()
		s.mu.Unlock()
		if different {
			changed()
		}
		return err
	}
	for {
		var again <-chan time.Time
		if err := save(); err != nil {
			again = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			save()
			return ctx.Err()
		case <-s.copies:
		case <-again:
		}
	}
}

// decode is the record in the state's key; the zero record if there is none.
func (s *consulStore) decode(p consul.Pair) (record, error) {
	if p.Index == 0 {
		return record{}, nil
	}
	r, err := unpack(p.Value)
	if err != nil {
		return record{}, fmt.Errorf("Consul at %s: the key %s: %w: if no leader replaces it, remove it, and the epochs that the nodes remember are taken", s.config.spec.Address, s.stateKey, err)
	}
	return r, nil
}
