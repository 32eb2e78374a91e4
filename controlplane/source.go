package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/renameio/v2"

	"github.com/cachemesh/cachemesh/mesh"
)

// rereadEvery is for file systems that report no changes.
const rereadEvery = 10 * time.Second

// reading is what a file says: a mesh, or why there is none to be had.
type reading struct {
	mesh *mesh.Mesh
	err  error
}

// fileSource is a mesh.yaml that is watched. The last good one is kept in the state folder, so
// that a control plane that restarts beside a broken file goes on with it.
type fileSource struct {
	path  string
	state string
	log   *slog.Logger
	last  []byte
}

func (s *fileSource) lastGood() string { return filepath.Join(s.state, "mesh.yaml") }

// first reads the file or, when it is broken, the last good one. It fails when neither can be had.
func (s *fileSource) first() (reading, error) {
	if s.state != "" {
		if err := os.MkdirAll(s.state, 0o700); err != nil {
			return reading{}, fmt.Errorf("--state: %w", err)
		}
	}
	r, _ := s.read()
	if r.err == nil {
		return r, nil
	}
	if s.state == "" {
		return reading{}, r.err
	}
	data, err := os.ReadFile(s.lastGood())
	if err != nil {
		return reading{}, r.err
	}
	m, err := mesh.Load(s.lastGood(), data)
	if err != nil {
		return reading{}, errors.Join(r.err, err)
	}
	return reading{mesh: m, err: r.err}, nil
}

// read loads the file if it differs from what was read last.
func (s *fileSource) read() (r reading, changed bool) {
	data, err := os.ReadFile(s.path)
	if err != nil {
		data = []byte("\x00" + err.Error())
	}
	if s.last != nil && bytes.Equal(data, s.last) {
		return reading{}, false
	}
	s.last = data
	if err != nil {
		return reading{err: fmt.Errorf("read the mesh: %w", err)}, true
	}
	m, err := mesh.Load(s.path, data)
	if err != nil {
		return reading{err: err}, true
	}
	if s.state != "" {
		if err := renameio.WriteFile(s.lastGood(), data, 0o600); err != nil {
			s.log.Error("cannot keep the last good mesh", "error", err)
		}
	}
	return reading{mesh: m}, true
}

// watch sends a reading whenever the file changes, until ctx ends.
func (s *fileSource) watch(ctx context.Context, readings chan<- reading) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", s.path, err)
	}
	defer watcher.Close()
	// The folder, since editors and Kubernetes replace the file.
	if err := watcher.Add(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("watch %s: %w", filepath.Dir(s.path), err)
	}
	ticker := time.NewTicker(rereadEvery)
	defer ticker.Stop()
	for {
		if r, changed := s.read(); changed {
			select {
			case readings <- r:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case _, ok := <-watcher.Events:
			if !ok {
				return errors.New("the file watcher ended")
			}
		case err := <-watcher.Errors:
			s.log.Warn("file watcher", "error", err)
		}
	}
}
