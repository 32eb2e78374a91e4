package consul

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cachemesh/cachemesh/mesh"
)

// LinkService is the name under which control planes register where their region's agents listen for other regions. Its meta keys are region and
// agent.
const LinkService = "cachemesh-link"

const (
	// linkTTL is how long a registration is good without its control plane, and linkGone when Consul removes it then.
	linkTTL  = 30 * time.Second
	linkGone = 10 * time.Minute
)

// Links are where a region's agents listen for others, or why that is not known.
type Links struct {
	Addresses []string // IP:port, sorted
	Err       error
}

// WatchLinks reports a region's at once and after every answer and every failure to get one. It returns when ctx ends.
func WatchLinks(ctx context.Context, spec mesh.ConsulSpec, datacenter, region string, report func(Links)) error {
	query := func(ctx context.Context, c *Client, index uint64) (uint64, error) {
		o, err := c.options(ctx, datacenter)
		if err != nil {
			return 0, err
		}
		o.AllowStale, o.WaitIndex, o.WaitTime, o.Near = true, index, waitTime, "_agent"
		entries, meta, err := c.api.Health().Service(LinkService, "", false, o)
		if err == nil {
			err = usable(meta)
		}
		if err != nil {
			return 0, c.failed("list the service "+LinkService+" of datacenter "+datacenter, err)
		}
		report(Links{Addresses: linkAddresses(entries, region)})
		return meta.LastIndex, nil
	}
	return watch(ctx, spec, maxRetry, query, func(err error) { report(Links{Err: err}) })
}

// linkAddresses are those of a region whose control planes live, or, if none does, all.
func linkAddresses(entries []*api.ServiceEntry, region string) []string {
	var good, all []string
	for _, e := range entries {
		at, err := netip.ParseAddrPort(address(e.Service.Address, e.Service.Port))
		if err != nil || e.Service.Meta["region"] != region {
			continue
		}
		all = append(all, at.String())
		if e.Checks.AggregatedStatus() == api.HealthPassing {
			good = append(good, at.String())
		}
	}
	if len(good) == 0 {
		good = all
	}
	slices.Sort(good)
	return slices.Compact(good)
}

// RegisterLinks makes what this Consul agent knows of a region's links what is wanted: addresses by agent. Call it again within 30 s.
func (c *Client) RegisterLinks(ctx context.Context, region string, wanted map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.options(ctx, "")
	if err != nil {
		return err
	}
	there, err := c.api.Agent().ServicesWithFilterOpts(fmt.Sprintf("Service == %q and Meta.region == %q", LinkService, region), o)
	if err != nil {
		return c.failed("list the service "+LinkService, err)
	}
	var errs []error
	for id, s := range there {
		if at, ok := wanted[s.Meta["agent"]]; !ok || at != address(s.Address, s.Port) {
			errs = append(errs, c.api.Agent().ServiceDeregisterOpts(id, o))
			delete(there, id)
		}
	}
	for agent, at := range wanted {
		to, err := netip.ParseAddrPort(at)
		if err != nil {
			errs = append(errs, fmt.Errorf("agent %q listens at %q: want IP:port", agent, at))
			continue
		}
		id := strings.Join([]string{LinkService, region, agent}, "-")
		if there[id] == nil {
			service := &api.AgentServiceRegistration{ID: id, Name: LinkService, Address: to.Addr().String(), Port: int(to.Port()), Namespace: c.spec.Namespace,
				Meta:  map[string]string{"region": region, "agent": agent},
				Check: &api.AgentServiceCheck{CheckID: id, Name: "a control plane has a stream of the agent", TTL: linkTTL.String(), DeregisterCriticalServiceAfter: linkGone.String()}}
			if err := c.api.Agent().ServiceRegisterOpts(service, api.ServiceRegisterOpts{ReplaceExistingChecks: true, Token: o.Token}.WithContext(ctx)); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		errs = append(errs, c.api.Agent().UpdateTTLOpts(id, "", api.HealthPassing, o))
	}
	if err := errors.Join(errs...); err != nil {
		return c.failed("register the service "+LinkService, err)
	}
	return nil
}
