package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
)

// watchEvery is how often --watch asks.
const watchEvery = time.Second

func newRegion() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "region",
		Short: "Show how regions learn of each other's writes, remove keys everywhere, pause a region",
		Long: `Show how regions learn of each other's writes (status), remove keys in all regions (invalidate), stop sending to a region and go on
(pause, resume).

invalidate, pause and resume ask control planes of all regions: from their own hosts, or with an operator's certificate.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRegionStatus(), newRegionInvalidate(), newRegionPause(), newRegionResume())
	return cmd
}

// regionsStatus is what `region status -o json` prints.
type regionsStatus struct {
	Links  []controlplane.LinkStatus `json:"links"`
	Errors []string                  `json:"errors"` // of control planes that did not answer
}

func newRegionStatus() *cobra.Command {
	var from meshFlags
	var out output
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how far each region has what the others wrote",
		Long: `Show a row for each pair of regions and each pool with coherent routes, as the first region's control plane knows it.

Lag is the age of the oldest entry of a journal that the other region lacks; backlog is how many entries it lacks. A gap is something
that a journal has lost; the other region then removes all keys that it may have been about, which is a fence. Gaps are counted since
the control plane runs; fences are those that are not carried out yet.

With --watch -o json, each line is one look.`,
		Example: `  cachemesh region status --watch
  cachemesh region status -o json | jq '.links[] | select(.lag_ms > 1000)'`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return watchRegions(cmd, &from, out)
			}
			s, err := from.regions(cmd.Context())
			if err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), s, func(w io.Writer) { printLinks(w, s.Links) }); err != nil {
				return err
			}
			for _, e := range s.Errors {
				fmt.Fprintln(cmd.ErrOrStderr(), "error:", e)
			}
			if len(s.Errors) > 0 {
				return errReported
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "look again every second, until it is ended")
	out.register(cmd)
	from.register(cmd)
	return cmd
}

// watchRegions shows the links until it is ended. Control planes that are lost are asked again.
func watchRegions(cmd *cobra.Command, from *meshFlags, out output) error {
	if out == "yaml" {
		return usage("--watch prints a table or json")
	}
	w := cmd.OutOrStdout()
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		s, err := from.regions(cmd.Context())
		if err != nil {
			return err
		}
		switch {
		case cmd.Context().Err() != nil:
			return nil
		case out == "json":
			if err := json.NewEncoder(w).Encode(s); err != nil {
				return err
			}
		default:
			if isTerminal(w) {
				fmt.Fprint(w, "\x1b[H\x1b[J") // from the top of the screen
			}
			printLinks(w, s.Links)
			for _, e := range s.Errors {
				fmt.Fprintln(w, "error:", e)
			}
			fmt.Fprintln(w)
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-ticker.C:
		}
	}
}

// regions asks every control plane for its region's links; one that does not answer is an error beside the others' links.
func (m *meshFlags) regions(ctx context.Context) (regionsStatus, error) {
	s := regionsStatus{Links: []controlplane.LinkStatus{}, Errors: []string{}}
	urls, err := m.urls()
	if err != nil {
		return s, err
	}
	var seen []string
	for _, u := range urls {
		r, err := get[controlplane.RegionsStatus](ctx, m, u, "/v1/regions")
		switch {
		case err != nil:
			s.Errors = append(s.Errors, err.Error())
		case !slices.Contains(seen, r.Region): // else another control plane of that region
			seen = append(seen, r.Region)
			s.Links = append(s.Links, r.Links...)
		}
	}
	sortLinks(s.Links)
	return s, nil
}

func sortLinks(links []controlplane.LinkStatus) {
	slices.SortStableFunc(links, func(a, b controlplane.LinkStatus) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To), strings.Compare(a.Pool, b.Pool))
	})
}

func printLinks(w io.Writer, links []controlplane.LinkStatus) {
	if len(links) == 0 {
		fmt.Fprintln(w, "no region learns of another's writes: no route has coherence: invalidate, or there is one region")
		return
	}
	t := newTable(w, "from", "to", "pool", "state", "lag", "backlog", "gaps", "fences", "problem")
	for _, l := range links {
		t.AppendRow([]any{l.From, l.To, l.Pool, linkText(w, l.State), lag(l.LagMS), l.Backlog, emphasized(w, l.Gaps), emphasized(w, uint64(l.Fences)), l.Problem})
	}
	t.Render()
}

func linkText(w io.Writer, s controlplane.LinkState) string {
	paint := text.FgRed
	switch s {
	case controlplane.LinkUp:
		paint = text.FgGreen
	case controlplane.LinkPaused:
		paint = text.FgYellow
	}
	return colour(w, paint, string(s))
}

// emphasized is a number that should be 0.
func emphasized(w io.Writer, n uint64) string {
	if n == 0 {
		return "0"
	}
	return colour(w, text.FgYellow, fmt.Sprint(n))
}

// lag is a time in milliseconds as people say it.
func lag(ms *float64) string {
	switch {
	case ms == nil:
		return "-"
	case *ms < 1000:
		return fmt.Sprintf("%.0f ms", *ms)
	case *ms < 60_000:
		return fmt.Sprintf("%.1f s", *ms/1000)
	}
	return (time.Duration(*ms) * time.Millisecond).Round(time.Second).String()
}
