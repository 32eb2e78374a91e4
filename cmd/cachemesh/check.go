package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane/xds"
	"github.com/cachemesh/cachemesh/process"
)

// finding is a line of `check`.
type finding struct {
	Subject string `json:"subject"`
	OK      bool   `json:"ok"`
	Detail  string `json:"detail"`
	Remedy  string `json:"remedy,omitempty"`
}

func newCheck() *cobra.Command {
	var out output
	var from meshFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check what this machine has installed and how a running mesh is",
		Long:  "Check that what cachemesh needs is installed and, if one is found, that a running mesh is well. Each line that is not fine has a remedy.",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			found := checkTools(cmd.Context())
			if _, err := from.urls(); err == nil {
				found = append(found, checkMesh(cmd.Context(), from)...)
			} else if from.dir != "" || len(from.controlplanes) > 0 {
				return err
			} else {
				fmt.Fprintln(cmd.ErrOrStderr(), "no running mesh was named or found, so only this machine is checked")
			}
			if err := out.print(cmd.OutOrStdout(), found, func(w io.Writer) { printFindings(w, found) }); err != nil {
				return err
			}
			for _, f := range found {
				if !f.OK {
					return errReported
				}
			}
			return nil
		},
	}
	out.register(cmd)
	from.register(cmd)
	return cmd
}

// envoyVersion is the Envoy whose placement of keys package ring reproduces.
const envoyVersion = "1.40"

func checkTools(ctx context.Context) []finding {
	var found []finding
	for _, tool := range []struct{ name, flag, want, need string }{
		{"envoy", "--version", "/" + envoyVersion + ".", "every sidecar runs one"},
		{"redis-server", "--version", "v=", "the demo runs its shards"},
	} {
		f := finding{Subject: tool.name, Remedy: "run `make tools`, or put it on PATH: " + tool.need}
		path, err := process.Find(tool.name)
		if err != nil {
			f.Detail = "not found"
			found = append(found, f)
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		text, err := exec.CommandContext(ctx, path, tool.flag).Output()
		cancel()
		f.Detail = path + ": " + strings.TrimSpace(string(text))
		f.OK = err == nil && strings.Contains(string(text), tool.want)
		if f.OK {
			f.Remedy = ""
		} else if tool.name == "envoy" {
			f.Remedy = "use Envoy " + envoyVersion + ": `make tools` installs it; keys may lie elsewhere with another"
		}
		found = append(found, f)
	}
	return found
}

func checkMesh(ctx context.Context, from meshFlags) []finding {
	regions, failed, err := from.statuses(ctx)
	if err != nil {
		return []finding{{Subject: "mesh", Detail: err.Error(), Remedy: "name it with --dir or --controlplane"}}
	}
	var found []finding
	for _, err := range failed {
		found = append(found, finding{Subject: "control plane", Detail: err.Error(), Remedy: "start it with `cachemesh controlplane`"})
	}
	for _, r := range regions {
		synced := 0
		for _, n := range r.Sidecars {
			if n.State == xds.Synced {
				synced++
			}
		}
		found = append(found, finding{Subject: r.Region + " control plane", OK: true, Detail: "serves " + r.Config.Version})
		found = append(found, finding{Subject: r.Region + " sidecars", OK: synced == len(r.Sidecars) && synced > 0,
			Detail: fmt.Sprintf("%d of %d are %s", synced, len(r.Sidecars), xds.Synced), Remedy: "see `cachemesh status`"})
		for _, a := range r.Alerts {
			found = append(found, finding{Subject: r.Region + " " + a.Subject, Detail: a.Message, Remedy: a.Remedy})
		}
	}
	for i := range found {
		if found[i].OK {
			found[i].Remedy = ""
		}
	}
	return found
}

func printFindings(w io.Writer, found []finding) {
	t := newTable(w, "", "subject", "detail", "remedy")
	for _, f := range found {
		mark := colour(w, text.FgGreen, "ok")
		if !f.OK {
			mark = colour(w, text.FgRed, "FAIL")
		}
		t.AppendRow([]any{mark, f.Subject, f.Detail, f.Remedy})
	}
	t.Render()
}
