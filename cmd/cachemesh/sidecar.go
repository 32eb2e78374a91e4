package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/sidecar"
)

func newSidecar() *cobra.Command {
	var c sidecar.Config
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "sidecar --region REGION --controlplane HOST:PORT",
		Short: "Run an Envoy beside an application and keep it routed",
		Long: `Run an Envoy beside an application and keep it routed.

The application talks Redis to --redis (RESP2), --redis-resp3 (RESP3) or the Unix sockets redis.sock and
redis-resp3.sock in --dir. A crashed Envoy is restarted at once; one that outlives its agent is adopted; and when no
control plane answers, the last acknowledged routes serve from --dir.`,
		Example: "  cachemesh sidecar --region us-east --controlplane 10.0.0.5:18000 --dir /var/lib/cachemesh",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.Region == "" {
				return usage("--region is missing: name the region that this host is in")
			}
			if len(c.ControlPlanes) == 0 {
				return usage("--controlplane is missing: name HOST:PORT of at least one control plane of the region")
			}
			if c.Name == "" {
				host, err := os.Hostname()
				if err != nil {
					return usage("--name is missing, and the host has no name: %v", err)
				}
				c.Name = host
			}
			if c.Envoy == "" {
				path, err := process.Find("envoy")
				if err != nil {
					return err
				}
				c.Envoy = path
			}
			var err error
			if c.Logger, err = newLogger(cmd.ErrOrStderr(), logs.format, logs.level); err != nil {
				return err
			}
			c.Version = version
			return sidecar.Run(cmd.Context(), c)
		},
	}
	c.Addresses = envoy.DefaultAddresses
	f := cmd.Flags()
	f.StringVar(&c.Name, "name", "", "name of this sidecar, unique in its region (default: the host's name)")
	f.StringVar(&c.Region, "region", "", "region that this host is in")
	f.StringVar(&c.Zone, "zone", "", "zone that this host is in")
	f.StringVar(&c.Dir, "dir", filepath.Join(os.TempDir(), "cachemesh"), "folder for sockets, logs and the last acknowledged routes")
	f.BoolVar(&c.Replace, "replace", false, "take the place of the agent that runs in --dir, for an upgrade without a failed request; that one then ends")
	f.StringSliceVar(&c.ControlPlanes, "controlplane", nil, "HOST:PORT of the region's control planes, the preferred one first")
	f.StringVar(&c.TLS.CA, "tls-ca", "", "PEM file with the authority of the control planes' certificates; without the --tls flags, connections are plaintext")
	f.StringVar(&c.TLS.Cert, "tls-cert", "", "PEM file with this sidecar's certificate; reread at each connection, like the others")
	f.StringVar(&c.TLS.Key, "tls-key", "", "PEM file with its key")
	f.StringVar(&c.TLSServerName, "tls-server-name", "", "name in the control planes' certificate (default: the HOST of --controlplane)")
	f.StringVar(&c.Addresses.Redis, "redis", c.Addresses.Redis, "loopback IP:port for clients that speak RESP2")
	f.StringVar(&c.Addresses.RedisRESP3, "redis-resp3", c.Addresses.RedisRESP3, "loopback IP:port for clients that speak RESP3")
	f.StringVar(&c.Addresses.Socket, "redis-socket", "redis.sock", "Unix socket for RESP2, relative to --dir; empty for none")
	f.StringVar(&c.Addresses.SocketRESP3, "redis-resp3-socket", "redis-resp3.sock", "Unix socket for RESP3, relative to --dir; empty for none")
	f.StringVar(&c.Admin, "admin", "127.0.0.1:9901", "loopback IP:port of Envoy's admin pages")
	f.StringVar(&c.Metrics, "metrics", "127.0.0.1:9902", "IP:port of metrics and health: 0.0.0.0:9902 for a Prometheus on another host")
	f.StringVar(&c.Link, "link", "", "IP:port where agents of other regions tell this region what to invalidate; with it, this agent also tells them (TLS as for control planes)")
	f.StringVar(&c.EventsStream, "events-stream", "", "key of a Redis Stream to which the application adds events for the rules of warming plans; others come to /v1/events at --metrics, from this host only")
	f.StringVar((*string)(&c.Identity), "identity", string(certs.SPIFFE), "how certificates on the link name their sidecar: spiffe (URI spiffe://cachemesh/REGION/NAME) or dns (a DNS name)")
	f.BoolVar(&c.Insecure, "insecure", false, "allow --metrics and a plaintext --link beyond loopback, on a network that you trust")
	f.StringVar(&c.Envoy, "envoy", "", "the Envoy program (default: in the tools folder, or on PATH)")
	f.IntVar(&c.Concurrency, "concurrency", 1, "Envoy's worker threads; each has connections of its own to every shard")
	f.DurationVar(&c.DrainTimeout, "drain-timeout", 0, "how long a stopping sidecar waits for its clients (default 5s)")
	cmd.MarkFlagDirname("dir")
	cmd.MarkFlagFilename("envoy")
	for _, flag := range []string{"tls-ca", "tls-cert", "tls-key"} {
		cmd.MarkFlagFilename(flag, "pem", "crt", "key")
	}
	logs.register(cmd)
	return cmd
}
