package consul_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// keysOf opens a session too, once the server that was just started has its own node in the catalogue.
func keysOf(t *testing.T, spec mesh.ConsulSpec) (consul.Keys, string) {
	t.Helper()
	keys := client(t, spec).Keys("east")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		session, err := keys.NewSession(ctx, "test", 10*time.Second, time.Second)
		if err == nil {
			return keys, session
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func acquire(t *testing.T, keys consul.Keys, session string, want bool) {
	t.Helper()
	if ok, err := keys.Acquire(t.Context(), session, "lock", []byte("of "+session)); ok != want || err != nil {
		t.Fatalf("acquire: %t, %v, want %t", ok, err, want)
	}
}

func TestALockHasOneHolderAndWritesDependOnIt(t *testing.T) {
	t.Parallel()
	s := servers(t, "east")[0]
	start(t, s)
	keys, one := keysOf(t, mesh.ConsulSpec{Address: s.Address()})
	_, two := keysOf(t, mesh.ConsulSpec{Address: s.Address()})
	acquire(t, keys, one, true)
	acquire(t, keys, one, true)
	acquire(t, keys, two, false)
	if p, err := keys.Read(t.Context(), "lock"); err != nil || p.Session != one || string(p.Value) != "of "+one {
		t.Errorf("the lock: %+v, %v", p, err)
	}

	if p, err := keys.Read(t.Context(), "key"); err != nil || p.Index != 0 || p.Value != nil || p.Session != "" {
		t.Errorf("no key: %+v, %v", p, err)
	}
	index, err := keys.Write(t.Context(), "key", []byte("1"), 0, one, "lock")
	if err != nil || index == 0 {
		t.Fatalf("write: %d, %v", index, err)
	}
	next, err := keys.Write(t.Context(), "key", []byte("2"), index, one, "lock")
	if err != nil || next <= index {
		t.Fatalf("write after %d: %d, %v", index, next, err)
	}
	for name, c := range map[string]struct {
		value         string
		index         uint64
		session, lock string
		want          error
	}{
		"must not exist":      {"x", 0, one, "lock", consul.ErrConflict},
		"an old index":        {"x", index, one, "lock", consul.ErrConflict},
		"another's lock":      {"x", next, two, "lock", consul.ErrNotHeld},
		"neither lock nor it": {"x", index, two, "lock", consul.ErrNotHeld},
		"nobody's lock":       {"x", next, one, "none", consul.ErrNotHeld},
		"too large":           {strings.Repeat("x", 600_000), next, one, "lock", consul.ErrTooLarge},
	} {
		if got, err := keys.Write(t.Context(), "key", []byte(c.value), c.index, c.session, c.lock); !errors.Is(err, c.want) || got != 0 {
			t.Errorf("%s: %d, %v, want %v", name, got, err, c.want)
		}
	}
	if p, err := keys.Read(t.Context(), "key"); err != nil || string(p.Value) != "2" || p.Index != next {
		t.Errorf("the key: %+v, %v", p, err)
	}

	// A lock that is released is free at once, one whose session ends is not.
	if err := errors.Join(keys.Renew(t.Context(), one), keys.Release(t.Context(), one, "lock"), keys.Destroy(t.Context(), one)); err != nil {
		t.Fatal(err)
	}
	acquire(t, keys, two, true)
	ended := time.Now()
	if err := errors.Join(keys.Destroy(t.Context(), two), keys.Destroy(t.Context(), two)); err != nil {
		t.Fatal(err)
	}
	if err := keys.Renew(t.Context(), two); !errors.Is(err, consul.ErrNoSession) {
		t.Errorf("renew: %v", err)
	}
	if _, err := keys.Write(t.Context(), "key", nil, next, two, "lock"); !errors.Is(err, consul.ErrNotHeld) {
		t.Errorf("write with a session that has ended: %v", err)
	}
	_, three := keysOf(t, mesh.ConsulSpec{Address: s.Address()})
	for ok := false; !ok; {
		if ok, err = keys.Acquire(t.Context(), three, "lock", nil); err != nil || time.Since(ended) > 30*time.Second {
			t.Fatal(ok, err)
		}
	}
	if waited := time.Since(ended); waited < time.Second {
		t.Errorf("the lock's delay was %s, want 1 s", waited)
	}
	if ok, err := keys.Acquire(t.Context(), two, "lock", nil); ok || !errors.Is(err, consul.ErrNoSession) {
		t.Errorf("acquire with a session that has ended: %t, %v", ok, err)
	}
}

func TestAKeyIsWatchedThroughARestartAndAWipe(t *testing.T) {
	t.Parallel()
	s := servers(t, "east")[0]
	p := start(t, s)
	keys, session := keysOf(t, mesh.ConsulSpec{Address: s.Address()})
	acquire(t, keys, session, true)
	type report struct {
		pair consul.Pair
		err  error
	}
	reports := make(chan report, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		consul.WatchKey(ctx, mesh.ConsulSpec{Address: s.Address()}, "east", "key", func(p consul.Pair, err error) { reports <- report{p, err} })
	}()
	t.Cleanup(func() { cancel(); <-done })
	await := func(what string, ok func(report) bool) {
		t.Helper()
		timeout := time.After(40 * time.Second)
		for {
			select {
			case r := <-reports:
				if ok(r) {
					return
				}
			case <-timeout:
				t.Fatalf("waited 40 s: %s", what)
			}
		}
	}
	holds := func(value string) func(report) bool {
		return func(r report) bool {
			return r.err == nil && (r.pair.Index > 0) == (value != "") && string(r.pair.Value) == value
		}
	}
	await("no key", holds(""))
	index, err := keys.Write(t.Context(), "key", []byte("1"), 0, session, "lock")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	await("the key", holds("1"))
	t.Logf("seen %s after it was written", time.Since(began))
	if _, err = keys.Write(t.Context(), "key", []byte("2"), index, session, "lock"); err != nil {
		t.Fatal(err)
	}
	await("its change", holds("2"))
	p.Kill()
	await("that Consul is gone", func(r report) bool { return r.err != nil && strings.Contains(r.err.Error(), "read key") })
	p = start(t, s)
	await("that Consul is back", holds("2"))
	if err := keys.Renew(t.Context(), session); err != nil {
		t.Errorf("a session ended with a restart: %v", err)
	}
	p.Kill()
	if err := os.RemoveAll(s.Data()); err != nil {
		t.Fatal(err)
	}
	start(t, s)
	await("that Consul was wiped", holds(""))
	keys, session = keysOf(t, mesh.ConsulSpec{Address: s.Address()})
	acquire(t, keys, session, true)
	if _, err = keys.Write(t.Context(), "key", []byte("3"), 0, session, "lock"); err != nil {
		t.Fatal(err)
	}
	await("the key in the wiped Consul", holds("3"))
}

func TestTheControlPlanesTokenMayLockAndWriteAndNothingElse(t *testing.T) {
	t.Parallel()
	s := servers(t, "east")[0]
	s.Args = []string{`-hcl=acl { enabled = true default_policy = "deny" tokens { initial_management = "` + management + `" agent = "` + management + `" } }`}
	start(t, s)
	file := filepath.Join(t.TempDir(), "token")
	token := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	token(management)
	spec := mesh.ConsulSpec{Address: s.Address(), TokenFile: file}
	keysOf(t, spec)
	token(newToken(t, s, policy(t, "controlplane-policy.hcl")))
	keys, session := keysOf(t, spec)
	const lock, key = "cachemesh/home/leader", "cachemesh/home/state"
	if ok, err := keys.Acquire(t.Context(), session, lock, nil); err != nil || !ok {
		t.Fatalf("acquire: %t, %v", ok, err)
	}
	if _, err := keys.Write(t.Context(), key, []byte("1"), 0, session, lock); err != nil {
		t.Errorf("write: %v", err)
	}
	if p, err := keys.Read(t.Context(), key); err != nil || string(p.Value) != "1" {
		t.Errorf("read: %+v, %v", p, err)
	}
	if err := keys.Renew(t.Context(), session); err != nil {
		t.Errorf("renew: %v", err)
	}
	denied := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "Permission denied") {
			t.Errorf("%s: error %v", what, err)
		}
	}
	_, err := keys.Acquire(t.Context(), session, "elsewhere", nil)
	denied("a lock elsewhere", err)
	_, err = keys.Write(t.Context(), "elsewhere", nil, 0, session, lock)
	denied("a write elsewhere", err)

	token(newToken(t, s, policy(t, "register-policy.hcl")))
	_, err = keys.NewSession(t.Context(), "test", 10*time.Second, time.Second)
	denied("a session with the registering token", err)
	denied("renewal with the registering token", keys.Renew(t.Context(), session))
	_, err = keys.Acquire(t.Context(), session, lock, nil)
	denied("a lock with the registering token", err)
	_, err = keys.Read(t.Context(), key)
	denied("reading with the registering token", err)
	_, err = keys.Write(t.Context(), key, nil, 0, session, lock)
	denied("a write with the registering token", err)
	denied("ending a session with the registering token", keys.Destroy(t.Context(), session))
	if err := client(t, mesh.ConsulSpec{Address: process.Consul{HTTP: 1}.Address()}).Keys("").Destroy(t.Context(), session); err == nil || !strings.Contains(err.Error(), "Consul at 127.0.0.1:1: end the session") {
		t.Errorf("no Consul: error %v", err)
	}
}
