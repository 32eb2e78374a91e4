package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

func (o Options) consul() bool { return o.Membership == "consul" }

// consulServer is the Consul server of the region with this index, joined over WAN with the others'.
func (o Options) consulServer(region int) process.Consul {
	const http, rpc, lan, wan = 8500, 8300, 8301, 8302 // Consul's own ports
	port := func(p, region int) int { return p + 10*region + o.PortOffset }
	s := process.Consul{Datacenter: regions[region], Dir: filepath.Join(o.Dir, "logs"),
		HTTP: port(http, region), RPC: port(rpc, region), LAN: port(lan, region), WAN: port(wan, region)}
	for i := range regions {
		if i != region {
			s.JoinWAN = append(s.JoinWAN, port(wan, i))
		}
	}
	return s
}

func (o Options) consulAddresses(r regionLayout) []string {
	if !o.consul() {
		return nil
	}
	var all []string
	for _, port := range []int{r.consul.HTTP, r.consul.RPC, r.consul.LAN, r.consul.WAN} {
		all = append(all, fmt.Sprintf("127.0.0.1:%d", port))
	}
	return all
}

// startConsul starts the regions' Consul servers, empty ones. It returns none without Consul.
func (d *Demo) startConsul(ctx context.Context) (map[string]*ConsulEndpoints, error) {
	servers := map[string]*ConsulEndpoints{}
	if !d.layout.options.consul() {
		return servers, nil
	}
	d.layout.options.Notes("starting %d Consul servers", len(d.layout.regions))
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range d.layout.regions {
		// What another run registered is not here any more.
		if err := os.RemoveAll(r.consul.Data()); err != nil {
			return nil, err
		}
		command, err := r.consul.Command()
		if err != nil {
			return nil, err
		}
		endpoints := &ConsulEndpoints{Address: r.consul.Address(), Data: r.consul.Data(), Command: command}
		servers[r.name] = endpoints
		group.Go(func() error {
			p, err := r.consul.Start(ctx)
			if err != nil {
				return err
			}
			d.keep(p)
			endpoints.PID = p.PID()
			return nil
		})
	}
	return servers, group.Wait()
}

// register registers every node with its region's Consul server.
func (d *Demo) register(ctx context.Context) error {
	if !d.layout.options.consul() {
		return nil
	}
	for _, r := range d.layout.regions {
		client, err := consul.New(mesh.ConsulSpec{Address: r.consul.Address()})
		if err != nil {
			return err
		}
		defer client.Close()
		for _, n := range r.nodes {
			registration := mesh.Registration{ID: fmt.Sprintf("%s-%d", n.shard, n.port), Pool: n.pool, Shard: n.shard, Address: n.address()}
			if err := client.Register(ctx, registration); err != nil {
				return err
			}
		}
	}
	return nil
}
