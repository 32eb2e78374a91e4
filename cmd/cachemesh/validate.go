package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

// validation is what `validate -o json` prints.
type validation struct {
	File     string         `json:"file"`
	Valid    bool           `json:"valid"`
	Problems []mesh.Problem `json:"problems"`
	Routes   []routePolicy  `json:"routes"`
}

type routePolicy struct {
	Prefix    string `json:"prefix"`
	Pool      string `json:"pool"`
	Coherence string `json:"coherence"`
	// What follows is of routes on lanes only.
	Writes     string `json:"writes,omitempty"`
	Durability string `json:"durability,omitempty"`
	HoldOff    string `json:"hold_off,omitempty"`
	Algorithm  string `json:"algorithm"`
	Size       uint64 `json:"size"`
	OpTimeout  string `json:"op_timeout"`
}

func newValidate() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a mesh.yaml and print each route's effective policy",
		Long:  "Check a mesh.yaml. Every problem is named with its file, line, field and remedy. `-` is standard input.",
		Args:  args(cobra.ExactArgs(1)),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := readFile(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			v, failure := validate(args[0], data)
			if v.Valid || out != "table" {
				if err := out.print(cmd.OutOrStdout(), v, func(w io.Writer) { printRoutes(w, v.Routes) }); err != nil {
					return err
				}
			}
			if v.Valid {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s is valid\n", args[0])
				return nil
			}
			fmt.Fprintln(cmd.ErrOrStderr(), failure)
			return errReported
		},
	}
	out.register(cmd)
	return cmd
}

// validate loads a mesh and builds what every region's sidecars would get of it.
func validate(file string, data []byte) (validation, error) {
	v := validation{File: file, Problems: []mesh.Problem{}, Routes: []routePolicy{}}
	m, err := mesh.Load(file, data)
	if err != nil {
		var problems mesh.Problems
		if errors.As(err, &problems) {
			v.Problems = problems
		}
		return v, err
	}
	for _, region := range m.RegionNames() {
		if m.Membership.Auto {
			break // what its shards are is known when they have registered
		}
		topology, err := m.Topology(region)
		if err == nil {
			_, err = envoy.Build(topology)
		}
		if err != nil {
			v.Problems = append(v.Problems, mesh.Problem{File: file, Field: "region " + region, Message: err.Error()})
			return v, fmt.Errorf("%s: region %s: %w", file, region, err)
		}
	}
	if _, problems := warming.Compile(m); len(problems) > 0 {
		v.Problems = problems
		return v, problems
	}
	v.Valid = true
	for _, p := range m.Pools {
		for _, r := range p.Routes {
			policy := routePolicy{
				Prefix: r.Prefix, Pool: p.Name, Coherence: string(r.Coherence), Writes: string(r.Writes), Durability: string(r.Durability),
				Algorithm: string(p.Hashing.Algorithm), Size: p.Hashing.Size, OpTimeout: m.OpTimeout.String(),
			}
			if r.Coherence == mesh.Invalidate {
				policy.HoldOff = r.HoldOff.String()
			}
			v.Routes = append(v.Routes, policy)
		}
	}
	return v, nil
}

func printRoutes(w io.Writer, routes []routePolicy) {
	t := newTable(w, "prefix", "pool", "coherence", "algorithm", "size", "op timeout")
	for _, r := range routes {
		t.AppendRow([]any{prefixText(r.Prefix), r.Pool, coherenceText(r), r.Algorithm, r.Size, r.OpTimeout})
	}
	t.Render()
}

// coherenceText shows the policies of a coherent route with it.
func coherenceText(r routePolicy) string {
	text := r.Coherence
	if r.Writes != "" {
		text += ", " + r.Writes
	}
	if r.Durability == string(mesh.DurableReplica) {
		text += ", on a replica too"
	}
	switch r.HoldOff {
	case "":
	case "0s":
		text += ", no hold-off"
	default:
		text += ", hold-off " + r.HoldOff
	}
	return text
}

// prefixText shows the prefix that takes every other key so that it can be seen.
func prefixText(prefix string) string {
	if prefix == "" {
		return `""`
	}
	return prefix
}

func readFile(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

func newSchema() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the JSON Schema of mesh.yaml, for editors",
		Example: "  cachemesh schema > mesh.schema.json\n  # and in mesh.yaml: # yaml-language-server: $schema=mesh.schema.json",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(mesh.Schema)
			return err
		},
	}
}
