package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// shelf keeps one thing beside the state, where the store keeps that. Only who leads may save; who comes to lead loads.
type shelf interface {
	// load is what was saved last; nil if nothing was.
	load(ctx context.Context) ([]byte, error)
	// save replaces it. It fails with errNotLeading or errConflict, or because it cannot be kept now.
	save(ctx context.Context, content []byte) error
}

// shelf of a fileStore is a file in its folder; without a folder it forgets.
func (s *fileStore) shelf(name string) shelf { return &fileShelf{store: s, name: name} }

type fileShelf struct {
	store   *fileStore
	name    string
	written record // what is kept without a folder, and the last revision
}

func (f *fileShelf) path() string { return filepath.Join(f.store.dir, f.name+".json") }

func (f *fileShelf) load(context.Context) ([]byte, error) {
	if f.store.dir == "" {
		return f.written.State, nil
	}
	data, err := os.ReadFile(f.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		f.written, err = parseRecord(data)
	}
	if err != nil {
		return nil, fmt.Errorf("--state: %s: %w: put back a copy of it, or remove it", f.path(), err)
	}
	return f.written.State, nil
}

func (f *fileShelf) save(_ context.Context, content []byte) error {
	next, err := newRecord(content, f.written.Revision+1, "")
	if err != nil {
		return err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	if !f.store.leading {
		return errNotLeading
	}
	if f.store.dir != "" {
		if err := f.store.holds(); err != nil {
			return fmt.Errorf("%w: %w", errNotLeading, err)
		}
		if err := next.save(f.path()); err != nil {
			return fmt.Errorf("--state: %w", err)
		}
	}
	f.written = next
	return nil
}

// shelf of a consulStore is a key beside the state's, written while the lock is held.
func (s *consulStore) shelf(name string) shelf {
	return &consulShelf{store: s, key: "cachemesh/" + s.config.region + "/" + name}
}

type consulShelf struct {
	store    *consulStore
	key      string
	index    uint64 // Consul's, of what was loaded or saved last
	revision uint64
}

func (c *consulShelf) load(ctx context.Context) ([]byte, error) {
	keys, ctx, cancel := c.store.keys(ctx)
	defer cancel()
	pair, err := keys.Read(ctx, c.key)
	if err != nil {
		return nil, err
	}
	c.index, c.revision = pair.Index, 0
	if pair.Index == 0 {
		return nil, nil
	}
	r, err := unpack(pair.Value)
	if err != nil {
		return nil, fmt.Errorf("Consul at %s: the key %s: %w: put back a copy of it, or remove it", c.store.config.spec.Address, c.key, err)
	}
	c.revision = r.Revision
	return r.State, nil
}

func (c *consulShelf) save(ctx context.Context, content []byte) error {
	c.store.mu.Lock()
	session, leads := c.store.lease.Session(), c.store.settled
	c.store.mu.Unlock()
	if !leads {
		return errNotLeading
	}
	r, err := newRecord(content, c.revision+1, session)
	if err != nil {
		return err
	}
	value, err := r.pack()
	if err != nil {
		return err
	}
	keys, ctx, cancel := c.store.keys(ctx)
	defer cancel()
	index, err := keys.Write(ctx, c.key, value, c.index, session, c.store.lockKey)
	if err != nil {
		return err
	}
	c.index, c.revision = index, r.Revision
	return nil
}
