package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newHealth() *cobra.Command {
	var timeout time.Duration
	var with tlsFlags
	cmd := &cobra.Command{
		Use:   "health URL",
		Short: "Fail unless a page answers, for health checks in containers",
		Long:  "Fail unless a page answers with status 200. It is for the health checks of containers, which need no other program for it then.",
		Example: `  cachemesh health http://127.0.0.1:9902/readyz     # a sidecar that serves
  cachemesh health http://127.0.0.1:18080/readyz    # a control plane that serves
  cachemesh health https://127.0.0.1:18080/readyz --tls-ca ca.pem --tls-server-name controlplane`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if u, err := url.Parse(args[0]); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				return usage("%q: want a URL such as http://127.0.0.1:9902/readyz", args[0])
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
			if err != nil {
				return err
			}
			client, err := with.client(with.orEnvironment())
			if err != nil {
				return err
			}
			defer client.CloseIdleConnections()
			resp, err := client.Do(req)
			if err := mistrust("the server", err); err != nil {
				return err
			}
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
				return fmt.Errorf("%s answers %s: %s", args[0], resp.Status, strings.TrimSpace(string(text)))
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "how long to wait for the answer")
	with.register(cmd, "the server's", "the system's")
	return cmd
}
