package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// output is the flag -o of a command that prints data.
type output string

func (o *output) register(cmd *cobra.Command, formats ...string) {
	if len(formats) == 0 {
		formats = []string{"table", "json", "yaml"}
	}
	*o = output(formats[0])
	cmd.Flags().VarP(&choice{value: (*string)(o), of: formats}, "output", "o", "how to print: "+oneOf(formats))
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// print writes v in the format that was chosen; asTable writes it for people.
func (o output) print(w io.Writer, v any, asTable func(io.Writer)) error {
	switch o {
	case "json", "yaml":
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if o == "yaml" {
			if data, err = yaml.JSONToYAML(data); err != nil {
				return err
			}
			_, err = w.Write(data)
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", data)
		return err
	}
	asTable(w)
	return nil
}

// choice is a flag that takes one of a few words.
type choice struct {
	value *string
	of    []string
}

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string   { return "format" }
func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("want %s", oneOf(c.of))
	}
	*c.value = s
	return nil
}

func oneOf(words []string) string {
	out := words[0]
	for i, w := range words[1:] {
		if i == len(words)-2 {
			out += " or " + w
		} else {
			out += ", " + w
		}
	}
	return out
}

// isTerminal says whether w is a terminal that a person looks at.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
}

// newTable is the table of every command: aligned columns, no lines around them.
func newTable(w io.Writer, header ...any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	if len(header) > 0 {
		t.AppendHeader(header)
	}
	return t
}

// colour paints a word on a terminal only.
func colour(w io.Writer, c text.Color, s string) string {
	if !isTerminal(w) {
		return s
	}
	return c.EscapeSeq() + s + text.Reset.EscapeSeq()
}

// age is a duration as people say it.
func age(since time.Time) string {
	d := time.Since(since)
	switch {
	case since.IsZero():
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// size is a number of bytes as people say it.
func size(bytes int64) string {
	const unit = 1024
	if bytes < unit {
		return fmt.Sprintf("%d B", bytes)
	}
	value, suffix := float64(bytes)/unit, 0
	for value >= unit {
		value, suffix = value/unit, suffix+1
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[suffix])
}

// newLogger writes a program's log to w: text for people, JSON for collectors.
func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usage("--log-level %q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return slog.New(slog.NewTextHandler(w, options)), nil
}

// logFlags are those of every long-running command.
type logFlags struct{ format, level string }

func (l *logFlags) register(cmd *cobra.Command) {
	l.format = "text"
	cmd.Flags().Var(&choice{value: &l.format, of: []string{"text", "json"}}, "log-format", "how to log to standard error: text or json")
	cmd.Flags().StringVar(&l.level, "log-level", "info", "what to log: debug, info, warn or error")
}
