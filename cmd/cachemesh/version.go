package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return out.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "cachemesh %s (%s, %s)\n", v["version"], v["go"], v["platform"])
			})
		},
	}
	out.register(cmd)
	return cmd
}
