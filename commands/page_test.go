package commands_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cachemesh/cachemesh/commands"
)

var update = flag.Bool("update", false, "write docs/commands.md from the catalogue")

// TestPage keeps docs/commands.md equal to the catalogue; `go generate ./commands` writes it.
func TestPage(t *testing.T) {
	path := filepath.Join("..", "docs", "commands.md")
	want := page()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run `go generate ./commands`", err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/commands.md is stale: run `go generate ./commands`. Catalogue (-), page (+):\n%s", diff)
	}
}

func page() string {
	var b strings.Builder
	b.WriteString("<!-- Generated from commands/catalogue.go by `go generate ./commands`. Do not edit. -->\n" +
		"# Redis commands through the mesh\n\n" +
		"What Envoy 1.40 does with each command, and what to run instead of those that leak or lie when keys live on several\n" +
		"shards. `cachemesh explain COMMAND` says the same of one command, `cachemesh explain` of an error's text what it means.\n" +
		"Tests compare every entry with the real Envoy before two shards and with one Redis.\n\n" +
		"\"Way\" is where Envoy sends a command: by its first key on the **read** or the **write** way; **split** into one part a key;\n" +
		"to **one shard** of its own choice; nowhere, answered by Envoy (**local**). **read!** marks a command that changes data\n" +
		"and is sent the read way all the same, which is refused where a route is coherent.\n")
	for _, section := range []struct {
		verdict commands.Verdict
		title   string
		intro   string
	}{
		{commands.VerdictWorks, "Works", "Answers as one Redis would."},
		{commands.VerdictCareful, "Works with care", "Answers as one Redis would, within limits."},
		{commands.VerdictRefused, "Refused", "The listeners answer `" + commands.FaultError + "`, and nothing reaches a shard. The RESP3 listener lets `INFO` through."},
		{commands.VerdictUnknown, "Unknown to Envoy", "Envoy answers `ERR unknown command 'NAME', with args beginning with: ...`, and " +
			"nothing reaches a shard. The same\nholds for every command that this page does not name."},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| Commands | Way | Why | Instead |\n|---|---|---|---|\n", section.title, section.intro)
		for _, row := range rows(section.verdict) {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.Join(row.names, ", "), row.way, cell(row.why), cell(row.instead))
		}
	}
	return b.String()
}

type row struct {
	names             []string
	way, why, instead string
}

// rows puts commands about which the same is true into one row.
func rows(verdict commands.Verdict) []*row {
	var rows []*row
	byText := map[string]*row{}
	for _, c := range commands.All() {
		if c.Verdict != verdict {
			continue
		}
		way := string(c.Kind)
		if c.EnvoyReads && c.Kind == commands.KindRead {
			way += "!"
		}
		text := way + "|" + c.Why + "|" + c.Instead
		if byText[text] == nil {
			byText[text] = &row{way: way, why: c.Why, instead: c.Instead}
			rows = append(rows, byText[text])
		}
		byText[text].names = append(byText[text].names, "`"+strings.ToUpper(c.Name)+"`")
	}
	return rows
}

func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }
