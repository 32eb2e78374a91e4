package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
)

// consulFlags say how to reach Consul.
type consulFlags struct {
	spec mesh.ConsulSpec
	tls  mesh.ConsulTLS
}

func (c *consulFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.spec.Address, "consul", "", "address of a Consul agent or server (or CONSUL_HTTP_ADDR; default 127.0.0.1:8500)")
	f.StringVar(&c.spec.TokenFile, "token-file", "", "file with the ACL token (or CONSUL_HTTP_TOKEN_FILE, CONSUL_HTTP_TOKEN)")
	f.StringVar(&c.spec.Namespace, "namespace", "", "Consul namespace (or CONSUL_NAMESPACE)")
	f.StringVar(&c.tls.CAFile, "consul-ca", "", "certificates of Consul's authorities; turns TLS on (or CONSUL_CACERT, with CONSUL_HTTP_SSL=true)")
	f.StringVar(&c.tls.CertFile, "consul-cert", "", "this client's certificate for Consul (or CONSUL_CLIENT_CERT)")
	f.StringVar(&c.tls.KeyFile, "consul-key", "", "key of this client's certificate (or CONSUL_CLIENT_KEY)")
	for _, name := range []string{"token-file", "consul-ca", "consul-cert", "consul-key"} {
		cmd.MarkFlagFilename(name)
	}
}

func (c *consulFlags) client() (*consul.Client, error) {
	if c.tls != (mesh.ConsulTLS{}) {
		c.spec.TLS = &c.tls
	}
	return consul.New(c.spec)
}

func newShard() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shard",
		Short: "Add and remove shards, choose their primaries, restart their nodes, register them in Consul",
		Long: `Add shards to a pool and remove some without a cold cache (add, remove, weigh, plan, abort). Choose another primary for a shard (switch), restart a pool's nodes (roll), accept that nodes are gone (accept); register the
Redis nodes of shards in Consul, as the service ` + consul.Service + `, and list them.

All but the last ask a control plane: from its own host, or with an operator's certificate. A registration offers a node for a shard. Which shards are on a ring is what mesh.yaml says, unless membership.auto is set. A node
that Consul's check calls critical stays: the check is a hint.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newShardAdd(), newShardRemove(), newShardReplace(), newShardWeigh(), newShardPlan(), newShardAbort(), newShardSwitch(), newShardRoll(), newShardAccept(), newShardRegister(), newShardDeregister(), newShardList())
	return cmd
}

func newShardRegister() *cobra.Command {
	var from consulFlags
	var r mesh.Registration
	cmd := &cobra.Command{
		Use:     "register --pool POOL --shard SHARD --address IP:PORT",
		Short:   "Register a Redis node with a Consul agent",
		Long:    "Register a Redis node with a Consul agent of its region's datacenter, best the one on its host. Registering it again replaces what was registered.",
		Example: "  cachemesh shard register --pool timelines --shard timelines-0 --address 10.0.0.1:6379 --zone a",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.Validate(); err != nil {
				return usage("%v (--pool, --shard, --address)", err)
			}
			r.ID = cmp.Or(r.ID, registrationID(r.Shard, r.Address))
			client, err := from.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if err := client.Register(cmd.Context(), r); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "registered %s with the Consul agent at %s\n", r.ID, client.Address())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Pool, "pool", "", "pool of the shard")
	f.StringVar(&r.Shard, "shard", "", "shard that the node belongs to")
	f.StringVar(&r.Address, "address", "", "IP:port of the Redis")
	f.StringVar(&r.Zone, "zone", "", "zone in which the node is")
	f.StringVar(&r.ID, "id", "", "id of the registration (default: of the shard and the address)")
	from.register(cmd)
	return cmd
}

// registrationID is the id that a registration has unless another is chosen: the same node and shard give the same.
func registrationID(shard, address string) string {
	return shard + "-" + strings.Trim(strings.NewReplacer(":", "-", "[", "", "]", "").Replace(address), "-")
}

func newShardDeregister() *cobra.Command {
	var from consulFlags
	var id, shard, address string
	cmd := &cobra.Command{
		Use:   "deregister --id ID | --shard SHARD --address IP:PORT",
		Short: "Remove a node's registration from the Consul agent that has it",
		Example: `  cachemesh shard deregister --shard timelines-0 --address 10.0.0.1:6379
  cachemesh shard deregister --id timelines-0-10.0.0.1-6379`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (id == "") == (shard == "" || address == "") {
				return usage("name the registration with --id, or with --shard and --address")
			}
			client, err := from.client()
			if err != nil {
				return err
			}
			defer client.Close()
			id = cmp.Or(id, registrationID(shard, address))
			if err := client.Deregister(cmd.Context(), id); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "deregistered %s from the Consul agent at %s\n", id, client.Address())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&id, "id", "", "id of the registration")
	f.StringVar(&shard, "shard", "", "shard of the node, if it was registered without --id")
	f.StringVar(&address, "address", "", "IP:port of the node, if it was registered without --id")
	from.register(cmd)
	return cmd
}

// listed is a registration in the output of `shard list`.
type listed struct {
	Datacenter string `json:"datacenter"`
	mesh.Registration
	Problem string `json:"problem,omitempty"` // of the registration by itself
}

func newShardList() *cobra.Command {
	var from consulFlags
	var out output
	var datacenters []string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the nodes that are registered in Consul",
		Long:  "List the nodes that are registered in Consul, in all datacenters that the agent knows. What a mesh makes of them is shown by `cachemesh status`.",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := from.client()
			if err != nil {
				return err
			}
			defer client.Close()
			list, failed, err := listRegistrations(cmd.Context(), client, datacenters)
			if err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), list, func(w io.Writer) { printRegistrations(w, list) }); err != nil {
				return err
			}
			for _, err := range failed {
				fmt.Fprintln(cmd.ErrOrStderr(), "error:", err)
			}
			if len(failed) > 0 {
				return errReported
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&datacenters, "datacenter", nil, "list these only")
	out.register(cmd)
	from.register(cmd)
	return cmd
}

// listRegistrations asks every datacenter; one that does not answer is an error beside what the others say.
func listRegistrations(ctx context.Context, client *consul.Client, datacenters []string) (list []listed, failed []error, err error) {
	if len(datacenters) == 0 {
		if datacenters, err = client.Datacenters(ctx); err != nil {
			return nil, nil, err
		}
	}
	list = []listed{}
	for _, d := range datacenters {
		all, err := client.List(ctx, d)
		if err != nil {
			failed = append(failed, fmt.Errorf("datacenter %s: %w", d, err))
			continue
		}
		for _, r := range all {
			row := listed{Datacenter: d, Registration: r}
			if err := r.Validate(); err != nil {
				row.Problem = err.Error()
			}
			list = append(list, row)
		}
	}
	slices.SortStableFunc(list, func(a, b listed) int {
		return cmp.Or(strings.Compare(a.Datacenter, b.Datacenter), strings.Compare(a.Pool, b.Pool), strings.Compare(a.Shard, b.Shard), strings.Compare(a.Address, b.Address))
	})
	return list, failed, nil
}

func printRegistrations(w io.Writer, list []listed) {
	t := newTable(w, "datacenter", "pool", "shard", "node", "zone", "check", "id", "agent", "problem")
	for _, r := range list {
		t.AppendRow([]any{r.Datacenter, dash(r.Pool), dash(r.Shard), r.Address, dash(r.Zone), r.Check, r.ID, r.Agent, r.Problem})
	}
	t.Render()
}
