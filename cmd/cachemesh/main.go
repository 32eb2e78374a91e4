// Command cachemesh is the whole product in one binary: the control plane, the sidecar, the demo and the operator
// commands. This package only reads flags, files and the environment, wires packages together and prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set when the binary is built.
var version = "dev"

// errUsage marks an error of how a command was called.
var errUsage = errors.New("usage")

// errReported marks a failure that the command's own output has shown.
var errReported = errors.New("")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command and returns the exit status: 0 fine, 1 failed, 2 called wrongly.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "error: %v\nSee `%s --help`.\n", err, command.CommandPath())
		return 2
	case errors.Is(err, errReported):
		return 1
	default:
		fmt.Fprintf(stderr, "error: %v\n", err)
		return 1
	}
}

// usage is an error that ends in exit status 2.
func usage(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

type usageError struct{ text string }

func (e usageError) Error() string { return e.text }
func (e usageError) Unwrap() error { return errUsage }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "cachemesh",
		Short:         "A distributed cache behind one Redis address on localhost",
		Long:          "cachemesh routes the keys of plain Redis clients to shards through Envoy sidecars that a control plane keeps up to date.",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unknown command %q", args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err.Error()} })
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run a mesh:"}, &cobra.Group{ID: "operate", Title: "Look at a mesh:"})
	for _, c := range []*cobra.Command{newControlplane(), newSidecar(), newDemo()} {
		c.GroupID = "run"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{newStatus(), newEvents(), newShard(), newRegion(), newWarm(), newFlush(), newWhere(), newExplain(), newCheck(), newValidate(), newSchema(), newCert(), newInject(), newClientConfig()} {
		c.GroupID = "operate"
		root.AddCommand(c)
	}
	root.AddCommand(newHealth(), newVersion())
	return root
}

// args turns a cobra check of the arguments into a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err.Error()}
		}
		return nil
	}
}
