package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// store keeps a region's state and says whether this control plane leads. Only the leader writes.
type store interface {
	// run keeps what the other methods say fresh, and leads when it can, until ctx ends; then it lets another lead at once. When read,
	// leadsUntil, leader or problem come to say something else it calls changed, which must not block; but not for what write does.
	run(ctx context.Context, changed func()) error
	// read is the newest state that is known, JSON, and its revision; nil and 0 if there is none. It must not be changed.
	read() (state []byte, revision uint64)
	// write replaces the state of that revision (0: there is none) and returns the new revision. It fails with errConflict, with
	// errNotLeading, or because the state cannot be kept now; then read tells later whether it was written all the same.
	write(ctx context.Context, state []byte, revision uint64) (uint64, error)
	// leadsUntil is when this control plane must stop acting, unless this says something later by then, by the monotonic clock; zero if it does not lead.
	leadsUntil() time.Time
	// leader is the URL that the leader advertises; "" if it is not known.
	leader() string
	// problem is why the store does not work as it should; nil if it does.
	problem() error
	// shelf is where something else is kept, by its name. It may be used before run, and by one goroutine.
	shelf(name string) shelf
}

// advertised is the URL at which others reach this control plane's API. It is its name among them.
func (c Config) advertised() string {
	switch {
	case c.Advertise != "":
		return c.Advertise
	case c.TLS.Cert != "":
		return "https://" + c.HTTP
	}
	return "http://" + c.HTTP
}

// newStore chooses by where the membership is from.
func newStore(config Config, m *mesh.Mesh) (store, error) {
	advertise := config.advertised()
	if m.Membership.Consul == nil {
		return newFileStore(config.State, advertise), nil
	}
	spec := *m.Membership.Consul
	spec.Address = cmp.Or(config.Consul, spec.Address)
	region, ok := m.Region(config.Region)
	if !ok {
		_, err := m.Topology(config.Region)
		return nil, err
	}
	return newConsulStore(consulStoreConfig{spec: spec, datacenter: region.Datacenter, region: config.Region, advertise: advertise, dir: config.State, terms: shards.DefaultTerms})
}

var (
	errConflict   = errors.New("the state has another revision by now")
	errNotLeading = errors.New("this control plane does not lead its region")
)

// standing is what a store says, as one. It is replaced, never changed.
type standing struct {
	record  record
	until   time.Time
	leader  string
	problem error
}

// shown is the part of a store that answers without waiting for anything.
type shown struct{ now atomic.Pointer[standing] }

// show replaces what is shown, and says whether it is different.
func (s *shown) show(next standing) bool {
	last := s.now.Swap(&next)
	return last == nil || last.record.Revision != next.record.Revision || last.record.Sum != next.record.Sum || !last.until.Equal(next.until) ||
		last.leader != next.leader || fmt.Sprint(last.problem) != fmt.Sprint(next.problem)
}

func (s *shown) read() ([]byte, uint64) {
	now := s.now.Load()
	return now.record.State, now.record.Revision
}

func (s *shown) leadsUntil() time.Time { return s.now.Load().until }
func (s *shown) leader() string        { return s.now.Load().leader }
func (s *shown) problem() error        { return s.now.Load().problem }
