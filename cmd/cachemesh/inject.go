package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/inject"
)

func newInject() *cobra.Command {
	var o inject.Options
	var file string
	cmd := &cobra.Command{
		Use:   "inject -f FILE --region REGION --controlplane HOST:PORT",
		Short: "Add the sidecar to the pods of Kubernetes manifests",
		Long: `Add the sidecar, as a native sidecar container (Kubernetes 1.29 or later), to every pod of a YAML file: Pod, Deployment, StatefulSet,
DaemonSet, ReplicaSet, Job and CronJob. It asks no cluster. The rest of the file stays as it is, and injecting again
replaces the sidecar of before.

The application reaches Redis at 127.0.0.1:6379 (RESP2) and :6380 (RESP3), and at /run/cachemesh/redis.sock and redis-resp3.sock, if
the pod's securityContext has an fsGroup.`,
		Example: "  cachemesh inject -f app.yaml --region us-east --controlplane cachemesh-us-east:18000 | kubectl apply -f -",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case file == "":
				return usage("-f is missing: name the YAML file to inject, or - for standard input")
			case o.Region == "":
				return usage("--region is missing: name the region that the pods run in")
			case len(o.ControlPlanes) == 0:
				return usage("--controlplane is missing: name HOST:PORT of at least one control plane of the region")
			}
			data, err := readFile(cmd.InOrStdin(), file)
			if err != nil {
				return err
			}
			out, pods, err := inject.Manifests(file, data, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d injected\n", file, pods)
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "filename", "f", "", "YAML file; - is standard input")
	f.StringVar(&o.Region, "region", "", "region that the pods run in")
	f.StringSliceVar(&o.ControlPlanes, "controlplane", nil, "HOST:PORT of the region's control planes, the preferred one first")
	f.StringVar(&o.Image, "image", "cachemesh:"+version, "image of the sidecar")
	f.StringVar(&o.TLSSecret, "tls-secret", "", "Secret whose ca.crt signed the control planes' certificates")
	f.StringVar(&o.TLSIssuer, "tls-issuer", "", "cert-manager issuer, NAME or ClusterIssuer/NAME, of a certificate for each pod")
	f.Uint16Var(&o.Link, "link", 0, "port at which pods listen for sidecars of other regions, such as 7946; needs --tls-issuer (default: none)")
	f.StringVar(&o.RedisSecret, "redis-secret", "", "Secret to mount at /etc/cachemesh/redis, for the files that mesh.yaml names")
	cmd.MarkFlagFilename("filename", "yaml", "yml")
	return cmd
}
