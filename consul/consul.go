// Package consul is membership in Consul: nodes register as the service cachemesh-shard, and a region's control planes watch
// who is registered in the region's datacenter. It alone imports Consul's API.
//
// It decides nothing: what a registration is good for, and whether a catalogue may be believed, is said elsewhere. No sidecar
// talks to Consul.
package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/cachemesh/cachemesh/mesh"
)

// Service is the name under which nodes register. Their meta keys are pool, shard and, if it matters, zone.
const Service = "cachemesh-shard"

const (
	// checkEvery is how often Consul tries to connect to a node that was registered here.
	checkEvery   = 5 * time.Second
	checkTimeout = time.Second
	callTimeout  = 10 * time.Second
)

// Client reaches the Consul of one region, and through it the other datacenters that it is joined with.
type Client struct {
	spec mesh.ConsulSpec
	api  *api.Client
	done func()
}

// New makes a client; it connects to nothing yet. What spec leaves out is as the environment variables of Consul's own
// client say. Certificates are read here, and not again.
func New(spec mesh.ConsulSpec) (*Client, error) {
	config := api.DefaultConfig()
	config.Address = cmp.Or(spec.Address, config.Address)
	config.Namespace = cmp.Or(spec.Namespace, config.Namespace)
	if t := spec.TLS; t != nil {
		config.Scheme = "https"
		config.TLSConfig = api.TLSConfig{Address: t.ServerName, CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile}
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("Consul at %s: %w", config.Address, err)
	}
	spec.Address, spec.Namespace = config.Address, config.Namespace
	return &Client{spec: spec, api: client, done: config.Transport.CloseIdleConnections}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.done() }

// Address is that of the Consul agent or server, as the file or the environment names it.
func (c *Client) Address() string { return c.spec.Address }

// options are those of every request. The token is read anew each time, so that it can be rotated.
func (c *Client) options(ctx context.Context, datacenter string) (*api.QueryOptions, error) {
	o := &api.QueryOptions{Datacenter: datacenter}
	if c.spec.TokenFile != "" {
		token, err := os.ReadFile(c.spec.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("Consul's token: %w", err)
		}
		o.Token = strings.TrimSpace(string(token))
	}
	return o.WithContext(ctx), nil
}

// Register registers a node with this Consul agent, which tries from then on to connect to it. The agent never deregisters a node
// whose check fails. An id that is registered already is replaced.
func (c *Client) Register(ctx context.Context, r mesh.Registration) error {
	address, err := netip.ParseAddrPort(r.Address)
	if err != nil {
		return fmt.Errorf("address %q: write IP:port", r.Address)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.options(ctx, "")
	if err != nil {
		return err
	}
	service := &api.AgentServiceRegistration{
		ID: r.ID, Name: Service, Address: address.Addr().String(), Port: int(address.Port()), Namespace: c.spec.Namespace,
		Meta: map[string]string{"pool": r.Pool, "shard": r.Shard},
		Check: &api.AgentServiceCheck{
			Name: "a connection to the Redis", TCP: address.String(), Interval: checkEvery.String(), Timeout: checkTimeout.String(),
		},
	}
	if r.Zone != "" {
		service.Meta["zone"] = r.Zone
	}
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true, Token: o.Token}.WithContext(ctx)
	if err := c.api.Agent().ServiceRegisterOpts(service, opts); err != nil {
		return c.failed("register "+r.ID, err)
	}
	return nil
}

// Deregister removes a registration from this Consul agent.
func (c *Client) Deregister(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.options(ctx, "")
	if err != nil {
		return err
	}
	err = c.api.Agent().ServiceDeregisterOpts(id, o)
	var status api.StatusError
	if errors.As(err, &status) && status.Code == 404 {
		return fmt.Errorf("%q is not registered with the Consul agent at %s: `cachemesh shard list` shows the ids, and with which agent to deregister them", id, c.spec.Address)
	}
	if err != nil {
		return c.failed("deregister "+id, err)
	}
	return nil
}

// Datacenters lists those that this Consul knows, the nearest first.
func (c *Client) Datacenters(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.options(ctx, "")
	if err != nil {
		return nil, err
	}
	var all []string
	if _, err := c.api.Raw().Query("/v1/catalog/datacenters", &all, o); err != nil {
		return nil, c.failed("list datacenters", err)
	}
	return all, nil
}

// List is a datacenter's catalogue as it is now; "" is the agent's own datacenter.
func (c *Client) List(ctx context.Context, datacenter string) ([]mesh.Registration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	catalogue, _, err := c.query(ctx, datacenter, 0)
	return catalogue, err
}

func (c *Client) failed(what string, err error) error {
	return fmt.Errorf("Consul at %s: %s: %w", c.spec.Address, what, err)
}
