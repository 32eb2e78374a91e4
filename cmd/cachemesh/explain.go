package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/commands"
)

// explanation is what `explain -o json` prints.
type explanation struct {
	Command    string `json:"command,omitempty"`
	Verdict    string `json:"verdict,omitempty"`
	Kind       string `json:"kind,omitempty"`
	Why        string `json:"why"`
	Instead    string `json:"instead,omitempty"`
	Error      string `json:"error,omitempty"`
	EnvoyReads bool   `json:"envoy_reads,omitempty"`
}

func newExplain() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "explain COMMAND | ERROR",
		Short: "Say what becomes of a Redis command, or what an error means, and what to do instead",
		Example: `  cachemesh explain MULTI
  cachemesh explain "no upstream host"
  cachemesh explain          # every command`,
		Args: args(cobra.ArbitraryArgs),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range commands.All() {
				names = append(names, c.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return printCatalogue(cmd, out)
			}
			asked := strings.Join(args, " ")
			e, known := explain(asked)
			if err := out.print(cmd.OutOrStdout(), e, func(w io.Writer) { printExplanation(w, e) }); err != nil {
				return err
			}
			if !known {
				return errReported
			}
			return nil
		},
	}
	out.register(cmd)
	return cmd
}

// explain takes a command's name, a whole command or the text of an error. known is false for what nothing can be said of
// but that Envoy does not know it.
func explain(asked string) (e explanation, known bool) {
	if meaning, ok := commands.ExplainError(asked); ok {
		return explanation{Error: asked, Why: meaning}, true
	}
	name, _, _ := strings.Cut(strings.TrimSpace(asked), " ")
	c := commands.Explain(name)
	known = slices.ContainsFunc(commands.All(), func(entry commands.Command) bool { return entry.Name == c.Name })
	return explanationOf(c), known
}

func explanationOf(c commands.Command) explanation {
	return explanation{
		Command: strings.ToUpper(c.Name), Verdict: string(c.Verdict), Kind: string(c.Kind),
		Why: c.Why, Instead: c.Instead, Error: c.Error, EnvoyReads: c.EnvoyReads,
	}
}

func printExplanation(w io.Writer, e explanation) {
	if e.Command == "" {
		printWrapped(w, e.Why)
		return
	}
	paint := map[string]text.Color{"works": text.FgGreen, "careful": text.FgYellow, "refused": text.FgRed, "unknown": text.FgRed}[e.Verdict]
	fmt.Fprintf(w, "%s: %s (%s)\n", e.Command, colour(w, paint, e.Verdict), e.Kind)
	for _, part := range []struct{ label, text string }{{"", e.Why}, {"Instead: ", e.Instead}, {"A client sees: ", e.Error}} {
		if part.text != "" {
			printWrapped(w, part.label+part.text)
		}
	}
}

func printWrapped(w io.Writer, s string) {
	for line := range strings.Lines(text.WrapSoft(s, 100)) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

func printCatalogue(cmd *cobra.Command, out output) error {
	list := []explanation{}
	for _, c := range commands.All() {
		list = append(list, explanationOf(c))
	}
	return out.print(cmd.OutOrStdout(), list, func(w io.Writer) {
		t := newTable(w, "command", "verdict", "goes", "why")
		for _, e := range list {
			t.AppendRow([]any{e.Command, e.Verdict, e.Kind, text.Trim(e.Why, 90)})
		}
		t.Render()
	})
}
