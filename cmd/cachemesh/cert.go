package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/certs"
)

func newCert() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make certificates for development",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCertDev())
	return cmd
}

func newCertDev() *cobra.Command {
	var d certs.Development
	var dir string
	var regions, names []string
	cmd := &cobra.Command{
		Use:   "dev --dir DIR",
		Short: "Make a development CA and certificates for all that a mesh needs",
		Long: `Make a development CA and certificates for control planes, sidecars, operators and Redis nodes. For development only: the
CA's key lies beside the others, and nothing can be revoked.

A sidecar's certificate carries the SPIFFE id spiffe://cachemesh/REGION/NAME, which control planes require of a sidecar
with that region and name. One is made for each name in each region.`,
		Example: "  cachemesh cert dev --dir certs --region us-east --name web-1 --name web-2 --host 10.0.0.5",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usage("--dir is missing: name the folder for the certificates")
			}
			if len(names) == 0 {
				host, err := os.Hostname()
				if err != nil {
					return usage("--name is missing, and the host has no name: %v", err)
				}
				names = []string{host}
			}
			for _, region := range regions {
				for _, name := range names {
					d.Sidecars = append(d.Sidecars, certs.Sidecar{Region: region, Name: name})
				}
			}
			made, err := certs.WriteDevelopment(dir, d)
			if err != nil {
				return err
			}
			printMade(cmd.OutOrStdout(), dir, made)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "folder for the certificates, made if missing")
	f.StringSliceVar(&regions, "region", []string{"home"}, "region of the sidecars, once for each")
	f.StringSliceVar(&names, "name", nil, "name of a sidecar in each region, once for each (default: the host's name)")
	f.StringSliceVar(&d.Hosts, "host", nil, "name or address of control planes and Redis nodes beside localhost, once for each")
	f.BoolVar(&d.Force, "force", false, "replace certificates that are there")
	cmd.MarkFlagDirname("dir")
	return cmd
}

func printMade(w io.Writer, dir string, made []certs.Made) {
	fmt.Fprintf(w, "For development only. In %s:\n", dir)
	t := newTable(w, "certificate, key", "for")
	for _, m := range made {
		t.AppendRow([]any{m.File, m.For})
	}
	t.Render()
}
