package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul/api"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// waitTime is how long a blocking query waits for a change. It bounds how long a Consul that lost its leader goes
	// unnoticed: a query that waits is not told.
	waitTime = 5 * time.Second
	// maxStale is how far behind its leader a server may be. Any server may answer, so that a region's control planes
	// do not depend on one; a leader's heartbeat comes several times a second.
	maxStale = 10 * time.Second
	// between paces queries while much is changing.
	between = 20 * time.Millisecond

	firstRetry = 100 * time.Millisecond
	maxRetry   = 5 * time.Second
)

// Catalogue is what a watch saw: who is registered, or why that is not known.
type Catalogue struct {
	Registrations []mesh.Registration // the oldest first
	Index         uint64              // Consul's, for this service
	Err           error
}

// Watch reports a datacenter's catalogue at once, whenever it changes, and after every answer and every failure to get one. It
// returns when ctx ends.
func Watch(ctx context.Context, spec mesh.ConsulSpec, datacenter string, report func(Catalogue)) error {
	query := func(ctx context.Context, c *Client, index uint64) (uint64, error) {
		catalogue, meta, err := c.query(ctx, datacenter, index)
		if err != nil {
			return 0, err
		}
		report(Catalogue{Registrations: catalogue, Index: meta.LastIndex})
		return meta.LastIndex, nil
	}
	return watch(ctx, spec, maxRetry, query, func(err error) { report(Catalogue{Err: err}) })
}

// watch runs blocking queries, each upon the index that the one before returned, until ctx ends.
func watch(ctx context.Context, spec mesh.ConsulSpec, maxRetry time.Duration, query blocking, failed func(error)) error {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = firstRetry, maxRetry
	for {
		err := follow(ctx, spec, func(ctx context.Context, c *Client, index uint64) (uint64, error) {
			next, err := query(ctx, c, index)
			if err == nil {
				retry.Reset()
			}
			return next, err
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failed(err)
		if err := sleep(ctx, retry.NextBackOff()); err != nil {
			return err
		}
	}
}

// blocking is a query that waits for something newer than index, and returns the index of what it got.
type blocking func(ctx context.Context, c *Client, index uint64) (uint64, error)

// follow queries until something fails. It begins without an index, since whatever answers may have another history than what
// failed before, and with a client of its own, so that certificates that were rotated are read again.
func follow(ctx context.Context, spec mesh.ConsulSpec, query blocking) error {
	c, err := New(spec)
	if err != nil {
		return err
	}
	defer c.Close()
	for index := uint64(0); ; {
		got, err := poll(ctx, c, query, index)
		if err != nil {
			return err
		}
		index = nextIndex(index, got)
		if err := sleep(ctx, between); err != nil {
			return err
		}
	}
}

// poll is one blocking query, which a connection that died silently cannot hold for ever.
func poll(ctx context.Context, c *Client, query blocking, index uint64) (uint64, error) {
	// Consul adds up to a sixteenth of the waiting time.
	ctx, cancel := context.WithTimeoutCause(ctx, waitTime+waitTime/16+callTimeout, errors.New("no answer"))
	defer cancel()
	return query(ctx, c, index)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// nextIndex is what the next query waits upon. An index that went backwards is that of a Consul that was restored or
// started anew: waiting for the old one to pass would miss changes.
func nextIndex(last, got uint64) uint64 {
	if got < last {
		return 0
	}
	return got
}

func (c *Client) query(ctx context.Context, datacenter string, index uint64) ([]mesh.Registration, *api.QueryMeta, error) {
	o, err := c.options(ctx, datacenter)
	if err != nil {
		return nil, nil, err
	}
	o.AllowStale, o.WaitIndex, o.WaitTime = true, index, waitTime
	// An answer that is sorted by distance comes from a server. Agents give others from a stream of theirs, without a word on
	// whether there is a leader.
	o.Near = "_agent"
	entries, meta, err := c.api.Health().Service(Service, "", false, o)
	if err == nil {
		err = usable(meta)
	}
	if err != nil {
		return nil, nil, c.failed("list the service "+Service, err)
	}
	return registrations(entries), meta, nil
}

// usable says why an answer must not be taken for the catalogue.
func usable(meta *api.QueryMeta) error {
	switch {
	case !meta.KnownLeader:
		return errors.New("its servers have no leader")
	case meta.LastContact > maxStale:
		return fmt.Errorf("the server that answered has not heard from its leader for %s", meta.LastContact)
	case meta.ResultsFilteredByACLs:
		return errors.New("the token may not see all of it: give it service:read and node:read")
	}
	return nil
}

// registrations are the service's instances, the oldest first.
func registrations(entries []*api.ServiceEntry) []mesh.Registration {
	slices.SortFunc(entries, func(a, b *api.ServiceEntry) int {
		return cmp.Or(cmp.Compare(a.Service.CreateIndex, b.Service.CreateIndex), strings.Compare(a.Service.ID, b.Service.ID),
			strings.Compare(a.Node.Node, b.Node.Node))
	})
	all := make([]mesh.Registration, len(entries))
	for i, e := range entries {
		all[i] = mesh.Registration{
			ID: e.Service.ID, Pool: e.Service.Meta["pool"], Shard: e.Service.Meta["shard"], Zone: e.Service.Meta["zone"],
			Address: address(cmp.Or(e.Service.Address, e.Node.Address), e.Service.Port), Agent: e.Node.Node, Check: e.Checks.AggregatedStatus(),
		}
	}
	return all
}

// address joins what was registered, also if it is no address.
func address(host string, port int) string {
	if ip, err := netip.ParseAddr(host); err == nil && port >= 0 && port <= 65535 {
		return netip.AddrPortFrom(ip, uint16(port)).String()
	}
	return host + ":" + strconv.Itoa(port)
}
