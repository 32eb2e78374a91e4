package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/cachemesh/cachemesh/envoy"
)

// laneSockets has the sockets of lanes bound before Envoy hears of them, and unbound when it can know them no more. They are in a
// folder of this agent's own: one that takes the place of another binds lanes of its own, to which endpoints move Envoy while
// the other still answers.
type laneSockets struct {
	folder string   // such as lanes-1, in the sidecar's
	within *os.File // the folder, open, since a socket's address has no room for long paths
	log    *slog.Logger

	// bind listens at path for the writes of a shard. It must not wait: Envoy gets nothing meanwhile.
	bind func(shard, path string) error
	// unbind listens no longer. Connections end by themselves: Envoy closes one when its last request is answered.
	unbind func(shard string)
	// drain accepts no connection any more, and returns when the last has ended, or ctx has.
	drain func(ctx context.Context)

	mu      sync.Mutex
	unnamed map[string]bool // the shards that are bound: whether endpoints did not name their lane at the last sweep
}

const lanesPrefix = "lanes-"

// newLaneSockets makes the agent's folder in dir, for this user alone. After an agent that is gone it is that one's folder, where
// Envoy looks for them; beside one that still answers, whose place this one takes, it is a new one.
func newLaneSockets(dir string, beside bool, log *slog.Logger) (*laneSockets, error) {
	last := 0
	for _, n := range laneFolders(dir) {
		last = max(last, n)
	}
	if beside || last == 0 {
		last++
	}
	l := &laneSockets{folder: lanesPrefix + strconv.Itoa(last), log: log, unnamed: map[string]bool{},
		bind: func(string, string) error { return errors.New("this agent carries no writes") }, unbind: func(string) {}, drain: func(context.Context) {}}
	path := filepath.Join(dir, l.folder)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	var err error
	l.within, err = os.Open(path)
	return l, err
}

// laneFolders are the numbers of the agents' folders in dir.
func laneFolders(dir string) []int {
	entries, _ := os.ReadDir(dir) // without any, the first is made, or fails to be
	var all []int
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), lanesPrefix); ok {
			if n, err := strconv.Atoi(rest); err == nil && n > 0 {
				all = append(all, n)
			}
		}
	}
	return all
}

// tidy removes the folders of agents before, once Envoy has this one's lanes.
func (l *laneSockets) tidy(dir string) {
	for _, n := range laneFolders(dir) {
		if name := lanesPrefix + strconv.Itoa(n); name != l.folder {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				l.log.Warn("the lanes of an agent before are not removed", "error", err)
			}
		}
	}
}

// apply binds the lanes that endpoints name. Call it before Envoy gets them.
func (l *laneSockets) apply(endpoints []*discovery.Resource) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for shard := range lanesOf(endpoints) {
		if _, bound := l.unnamed[shard]; bound {
			continue
		}
		path := fmt.Sprintf("/proc/self/fd/%d/%s", l.within.Fd(), filepath.Base(envoy.LanePath(shard)))
		// An agent that was killed leaves its sockets.
		err := os.Remove(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = l.bind(shard, path)
		}
		if err != nil {
			l.log.Error("a shard has no lane: writes to it fail", "shard", shard, "error", err)
			continue
		}
		l.unnamed[shard] = false
	}
}

// sweep unbinds the lanes that endpoints did not name this time nor the last.
func (l *laneSockets) sweep(endpoints []*discovery.Resource) {
	named := lanesOf(endpoints)
	l.mu.Lock()
	defer l.mu.Unlock()
	for shard, unnamed := range l.unnamed {
		if l.unnamed[shard] = !named[shard]; unnamed && !named[shard] {
			delete(l.unnamed, shard)
			l.unbind(shard)
		}
	}
}

// shards are those whose lanes are bound, sorted.
func (l *laneSockets) shards() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []string{}
	for shard := range l.unnamed {
		all = append(all, shard)
	}
	slices.Sort(all)
	return all
}

// close gives the folder back. Call it when nothing is bound any more.
func (l *laneSockets) close() { l.within.Close() }

// lanesOf are the shards of which endpoints name the lane.
func lanesOf(endpoints []*discovery.Resource) map[string]bool {
	all := map[string]bool{}
	for _, resource := range endpoints {
		listed, err := envoy.Endpoints(resource)
		if err != nil {
			continue // the stand-ins have said so
		}
		for _, e := range listed {
			if e.Lane {
				all[e.Shard] = true
			}
		}
	}
	return all
}

// placeLanes puts the lanes of endpoints into the folder.
func placeLanes(endpoints []*discovery.Resource, folder string) ([]*discovery.Resource, error) {
	placed := make([]*discovery.Resource, len(endpoints))
	for i, resource := range endpoints {
		var err error
		if placed[i], err = envoy.PlaceLanes(resource, folder); err != nil {
			return nil, err
		}
	}
	return placed, nil
}

// cutLaneVersions makes the versions of endpoints with which Envoy comes those of the control plane. Of lanes in another agent's folder
// Envoy is to get this one's.
func cutLaneVersions(versions map[string]string, folder string) {
	for name, placed := range versions {
		version, in := envoy.CutLaneVersion(placed)
		if in != "" && in != folder {
			version = unknownVersion
		}
		versions[name] = version
	}
}
