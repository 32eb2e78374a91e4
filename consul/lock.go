package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cachemesh/cachemesh/mesh"
)

// What a lock or a write fails with, apart from a Consul that does not work.
var (
	ErrConflict  = errors.New("the key was changed by another")
	ErrNotHeld   = errors.New("the session does not hold the lock")
	ErrNoSession = errors.New("the session has ended")
	ErrTooLarge  = errors.New("too large for Consul")
)

// maxKeyRetry bounds the time between attempts to watch a key again.
const maxKeyRetry = 500 * time.Millisecond

// Pair is what a key holds.
type Pair struct {
	Value   []byte
	Index   uint64 // of the last change; 0 is a key that does not exist
	Session string // that has locked it; "" is none
}

// Keys are a datacenter's keys, sessions and locks. Sessions need an agent or a server of that datacenter itself.
type Keys struct {
	client     *Client
	datacenter string
}

// Keys reaches those of a datacenter; "" is the agent's own.
func (c *Client) Keys(datacenter string) Keys { return Keys{c, datacenter} }

// writing are the options of every request that changes something.
func (k Keys) writing(ctx context.Context) (*api.WriteOptions, error) {
	o, err := k.client.options(ctx, k.datacenter)
	if err != nil {
		return nil, err
	}
	return (&api.WriteOptions{Namespace: k.client.spec.Namespace, Datacenter: k.datacenter, Token: o.Token}).WithContext(ctx), nil
}

// NewSession opens a session that ends unless it is renewed within ttl (Consul may take twice as long), upon which its locks are
// released, and given to nobody for lockDelay. It depends on no health check, so that Consul does not end it at a whim of gossip.
func (k Keys) NewSession(ctx context.Context, name string, ttl, lockDelay time.Duration) (string, error) {
	o, err := k.writing(ctx)
	if err != nil {
		return "", err
	}
	session := &api.SessionEntry{Name: name, TTL: ttl.String(), LockDelay: lockDelay, Behavior: api.SessionBehaviorRelease}
	id, _, err := k.client.api.Session().CreateNoChecks(session, o)
	if err != nil && strings.Contains(err.Error(), "Missing node registration") {
		err = fmt.Errorf("%w: it must be an agent or a server of datacenter %s, and be in its catalogue", err, k.datacenter)
	}
	if err != nil {
		return "", k.client.failed("open a session", err)
	}
	return id, nil
}

// Renew fails with ErrNoSession if the session has ended.
func (k Keys) Renew(ctx context.Context, session string) error {
	err := k.put(ctx, "/v1/session/renew/"+session, nil, nil)
	if code(err) == http.StatusNotFound {
		err = ErrNoSession
	}
	return k.failed("renew the session", err)
}

// Destroy ends a session, whoever opened it. One that has ended is fine.
func (k Keys) Destroy(ctx context.Context, session string) error {
	return k.failed("end the session "+session, k.put(ctx, "/v1/session/destroy/"+session, nil, nil))
}

// Acquire locks a key and sets its value, also if the session holds the lock already. False says that another holds it, or did so until
// a moment ago. It fails with ErrNoSession if the session has ended.
func (k Keys) Acquire(ctx context.Context, session, key string, value []byte) (bool, error) {
	o, err := k.writing(ctx)
	if err != nil {
		return false, err
	}
	ok, _, err := k.client.api.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: session}, o)
	var status api.StatusError
	if errors.As(err, &status) && strings.Contains(status.Body, "invalid session") {
		err = ErrNoSession
	}
	return ok, k.failed("lock "+key, err)
}

// Release gives a lock back, for anyone to take at once.
func (k Keys) Release(ctx context.Context, session, key string) error {
	o, err := k.writing(ctx)
	if err != nil {
		return err
	}
	_, _, err = k.client.api.KV().Release(&api.KVPair{Key: key, Session: session}, o)
	return k.failed("release "+key, err)
}

// Read is what the key holds once all writes before it have taken effect.
func (k Keys) Read(ctx context.Context, key string) (Pair, error) {
	o, err := k.client.options(ctx, k.datacenter)
	if err != nil {
		return Pair{}, err
	}
	o.RequireConsistent = true
	pair, _, err := k.get(key, o)
	return pair, err
}

func (k Keys) get(key string, o *api.QueryOptions) (Pair, uint64, error) {
	pair, meta, err := k.client.api.KV().Get(key, o)
	if err == nil {
		err = usable(meta)
	}
	if err != nil {
		return Pair{}, 0, k.failed("read "+key, err)
	}
	if pair == nil {
		return Pair{}, meta.LastIndex, nil
	}
	return Pair{Value: pair.Value, Index: pair.ModifyIndex, Session: pair.Session}, meta.LastIndex, nil
}

// WatchKey reports what the key holds at once, whenever that changes, and after every answer and every failure to get one. It
// returns when ctx ends.
func WatchKey(ctx context.Context, spec mesh.ConsulSpec, datacenter, key string, report func(Pair, error)) error {
	query := func(ctx context.Context, c *Client, index uint64) (uint64, error) {
		o, err := c.options(ctx, datacenter)
		if err != nil {
			return 0, err
		}
		o.WaitIndex, o.WaitTime = index, waitTime
		pair, last, err := c.Keys(datacenter).get(key, o)
		if err == nil {
			report(pair, nil)
		}
		return last, err
	}
	return watch(ctx, spec, maxKeyRetry, query, func(err error) { report(Pair{}, err) })
}

// Write sets a key and returns its new index, if its index is still the one given (0: it must not exist) and the session still holds
// the lock; else it fails with ErrConflict or ErrNotHeld, and with ErrTooLarge if Consul does not take that much. After any
// other error the write may have taken effect, or may still.
func (k Keys) Write(ctx context.Context, key string, value []byte, index uint64, session, lock string) (uint64, error) {
	ops := api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVCheckSession, Key: lock, Session: session}},
		{KV: &api.KVTxnOp{Verb: api.KVCAS, Key: key, Value: value, Index: index}},
	}
	for _, op := range ops {
		op.KV.Namespace = k.client.spec.Namespace
	}
	var done api.TxnResponse
	err := k.put(ctx, "/v1/txn", ops, &done)
	switch code(err) {
	case http.StatusConflict:
		err = refused(err)
	case http.StatusRequestEntityTooLarge:
		err = fmt.Errorf("%w: %d bytes: raise txn_max_req_len and kv_max_value_size of its agents and servers: %w", ErrTooLarge, len(value), err)
	}
	if err == nil && (len(done.Results) != len(ops) || done.Results[1].KV == nil) {
		err = errors.New("the answer lacks the key's index")
	}
	if err != nil {
		return 0, k.failed("write "+key, err)
	}
	return done.Results[1].KV.ModifyIndex, nil
}

// refused says why a transaction of Write was.
func refused(err error) error {
	var status api.StatusError
	var answer api.TxnResponse
	if !errors.As(err, &status) || json.Unmarshal([]byte(status.Body), &answer) != nil || len(answer.Errors) == 0 {
		return err
	}
	switch first := answer.Errors[0]; {
	case strings.Contains(first.What, "Permission denied"):
		return errors.New(first.What)
	case first.OpIndex == 0:
		return ErrNotHeld
	default:
		return ErrConflict
	}
}

func (k Keys) put(ctx context.Context, path string, in, out any) error {
	o, err := k.writing(ctx)
	if err != nil {
		return err
	}
	_, err = k.client.api.Raw().Write(path, in, out, o)
	return err
}

func (k Keys) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return k.client.failed(what, err)
}

// code is the HTTP status of an error; 0 if it has none.
func code(err error) int {
	var status api.StatusError
	errors.As(err, &status)
	return status.Code
}
