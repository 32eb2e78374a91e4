// Twitter is a small application as cachemesh's users run them: timelines, profiles and tweets over HTTP, a database as
// source of truth, and a cache that it knows by the address of a Redis. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "twitter",
		Short:         "A Twitter-like application with a cache beside its database",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(seedCommand(), serveCommand(), loadCommand(), dayCommand())
	os.Exit(exitStatus(root.ExecuteContext(ctx)))
}

// failure is an error of what a command did; other errors are of how it was called.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

func failed(err error) error {
	if err == nil {
		return nil
	}
	return failure{err}
}

func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "twitter:", err)
	if errors.As(err, new(failure)) {
		return 1
	}
	return 2
}
