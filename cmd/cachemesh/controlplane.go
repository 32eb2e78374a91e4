package main

import (
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/controlplane"
)

func newControlplane() *cobra.Command {
	var c controlplane.Config
	var logs logFlags
	var clock fastClock
	cmd := &cobra.Command{
		Use:   "controlplane --config mesh.yaml",
		Short: "Serve one region's routes to its sidecars",
		Long: `Serve one region's routes to its sidecars over xDS, and what is known of them over HTTP.

The file is watched: a change is in effect within a second, and a broken one changes nothing. Several control
planes may serve one region. When none runs, sidecars keep serving what they have.`,
		Example: "  cachemesh controlplane --config mesh.yaml --region us-east",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.File == "" {
				return usage("--config is missing: name the mesh.yaml to serve")
			}
			var err error
			if c.Logger, err = newLogger(cmd.ErrOrStderr(), logs.format, logs.level); err != nil {
				return err
			}
			c.Version, c.Now = version, clock.now
			return controlplane.Run(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.File, "config", "", "the mesh.yaml to serve")
	f.StringVar(&c.Region, "region", "", "region to serve; may be left out when the file has one")
	f.StringVar(&c.XDS, "xds", "127.0.0.1:18000", "IP:port where sidecars connect")
	f.StringVar(&c.HTTP, "http", "127.0.0.1:18080", "IP:port of the HTTP API and metrics")
	f.StringVar(&c.Advertise, "advertise", "", "URL of the HTTP API as the region's other control planes and operators reach it (default: of --http)")
	f.StringVar(&c.Consul, "consul", "", "address of this region's Consul, instead of the one in the mesh.yaml's membership.consul (or CONSUL_HTTP_ADDR)")
	f.StringVar(&c.State, "state", "", "folder that keeps what must survive a restart; without membership.consul, nodes are managed only with it")
	f.StringVar(&c.TLS.Cert, "tls-cert", "", "PEM file with this control plane's certificate, for xDS and HTTP; taken anew when it rotates, like the others")
	f.StringVar(&c.TLS.Key, "tls-key", "", "PEM file with its key")
	f.StringVar(&c.TLS.CA, "tls-client-ca", "", "PEM file with the authority of sidecars' certificates: each then needs one with its own name")
	f.BoolVar(&c.TLS.HTTPClients, "http-client-auth", false, "clients of --http need a certificate, too")
	f.StringVar((*string)(&c.TLS.Identity), "identity", string(certs.SPIFFE), "how a certificate names its sidecar: spiffe (URI spiffe://cachemesh/REGION/NAME) or dns (a DNS name)")
	f.BoolVar(&c.Insecure, "insecure", false, "allow plaintext listeners beyond loopback, on a network that you trust")
	f.Var(&clock, "warming-clock", "by which warming plans' times go by, for the benchmark of a day")
	f.MarkHidden("warming-clock")
	cmd.MarkFlagFilename("config", "yaml", "yml")
	cmd.MarkFlagDirname("state")
	for _, flag := range []string{"tls-cert", "tls-key", "tls-client-ca"} {
		cmd.MarkFlagFilename(flag, "pem", "crt", "key")
	}
	cmd.RegisterFlagCompletionFunc("identity", cobra.FixedCompletions([]string{string(certs.SPIFFE), string(certs.DNS)}, cobra.ShellCompDirectiveNoFileComp))
	logs.register(cmd)
	return cmd
}
