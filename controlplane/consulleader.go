package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/shards"
)

// elect keeps the session and the lock, alone. It returns when ctx ends, and gives the lock back before.
func (s *consulStore) elect(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		s.mu.Lock()
		var ask shards.Ask
		var wake time.Time
		look, settle := s.doubt, s.lease.Held() && (!s.settled || s.compare)
		if !look {
			ask, wake = s.lease.Next(time.Now())
		}
		s.mu.Unlock()
		var err error
		switch {
		case look:
			err = s.look(ctx)
		case ask != shards.Nothing:
			err = s.ask(ctx, ask)
		case settle && s.writing.TryLock():
			err = s.settle(ctx)
			s.writing.Unlock()
		default:
			if settle {
				wake = time.Now().Add(soon)
			}
			s.wait(ctx, time.Until(wake))
			continue
		}
		if ctx.Err() != nil {
			break
		}
		s.mu.Lock()
		s.electErr = err
		different := s.showAll()
		s.mu.Unlock()
		if different {
			changed()
		}
		if err != nil {
			s.reconnect()
			s.wait(ctx, afterFailure)
		}
	}
	s.leave(changed)
}

// wait ends early when a watch has news.
func (s *consulStore) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-s.poke:
	case <-timer.C:
	}
}

// reconnect makes a new client, which reads certificates anew.
func (s *consulStore) reconnect() {
	client, err := consul.New(s.config.spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.electErr = err
		return
	}
	s.client.Close()
	s.client = client
}

// keys are Consul's, for requests that are done when the context's time is up.
func (s *consulStore) keys(ctx context.Context) (consul.Keys, context.Context, context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, errors.New("no answer"))
	return s.client.Keys(s.config.datacenter), ctx, cancel
}

// ask asks Consul for what the lease wants, and tells it what came of that.
func (s *consulStore) ask(ctx context.Context, ask shards.Ask) error {
	keys, ctx, cancel := s.keys(ctx)
	defer cancel()
	sent := time.Now()
	session := s.lease.Session() // only this goroutine changes it
	switch ask {
	case shards.Open:
		session, err := keys.NewSession(ctx, "cachemesh control plane of "+s.config.region, s.config.terms.TTL, s.config.terms.LockDelay)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.lease.Opened(session, sent)
		s.mu.Unlock()
	case shards.Renew:
		return s.alive(keys.Renew(ctx, session))
	case shards.Acquire:
		s.beat++
		value, err := json.Marshal(lockValue{URL: s.config.advertise, Beat: s.beat})
		if err != nil {
			return err
		}
		ok, err := keys.Acquire(ctx, session, s.lockKey, value)
		if err != nil || !ok {
			s.mu.Lock()
			s.doubt = s.lease.Held()
			s.mu.Unlock()
			return s.alive(err)
		}
		s.mu.Lock()
		s.lease.Acquired(sent)
		s.mu.Unlock()
	case shards.Depose:
		return s.depose(ctx)
	}
	return nil
}

// alive tells the lease if an error means that its session has ended.
func (s *consulStore) alive(err error) error {
	if !errors.Is(err, consul.ErrNoSession) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease.Ended()
	return nil
}

// look reads who holds the lock.
func (s *consulStore) look(ctx context.Context) error {
	keys, ctx, cancel := s.keys(ctx)
	defer cancel()
	p, err := keys.Read(ctx, s.lockKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.lease.Unseen(time.Now())
		return err
	}
	s.doubt = false
	s.take(p)
	return nil
}

// depose ends the session of a leader that is silent, unless it is not.
func (s *consulStore) depose(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	holder, silent := s.lease.Holder(), s.lease.Silent(time.Now())
	s.mu.Unlock()
	if !silent {
		return nil
	}
	keys, ctx, cancel := s.keys(ctx)
	defer cancel()
	return keys.Destroy(ctx, holder)
}

// lockSeen takes in what the watch of the lock reports.
func (s *consulStore) lockSeen(p consul.Pair, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	if s.lockErr = err; err != nil {
		s.lease.Unseen(time.Now())
	} else if s.lease.Held() && p.Session != s.lease.Session() {
		s.doubt = true // what the watch saw may be older than the lock
	} else {
		s.take(p)
	}
	return s.showAll()
}

// take takes in what the lock holds, with mu held.
func (s *consulStore) take(p consul.Pair) {
	s.lease.Seen(p.Session, p.Index, time.Now())
	s.url = ""
	var v lockValue
	if p.Session != "" && json.Unmarshal(p.Value, &v) == nil {
		s.url = v.URL
	}
}

// leave stops to lead and lets another begin at once.
func (s *consulStore) leave(changed func()) {
	s.mu.Lock()
	session, held := s.lease.Session(), s.lease.Held()
	s.lease.Ended()
	s.url = ""
	s.showAll()
	s.mu.Unlock()
	changed()
	if session == "" {
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	keys, ctx, cancel := s.keys(context.Background())
	defer cancel()
	// What fails here Consul does by itself, later.
	if held {
		keys.Release(ctx, session, s.lockKey)
	}
	keys.Destroy(ctx, session)
}
