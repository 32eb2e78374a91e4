package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/shards"
)

const (
	// tailOfEvents is how many events --follow begins with.
	tailOfEvents = 10
	// askAgain is how long to wait before a control plane that is lost is asked again.
	askAgain = time.Second
)

func newEvents() *cobra.Command {
	var from meshFlags
	var filter eventFilter
	var out output
	var follow bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened to the shards",
		Long: `Show what happened to the shards, pools and regions, the oldest first: failovers, planned switches, nodes that were lost or
came back, pools that were frozen. In brackets are a change's steps, with the time since it was decided.

Control planes keep the newest 10,000 events over restarts in their --state folders. With -o json, each line is an event.`,
		Example: `  cachemesh events --since 1h
  cachemesh events --follow --pool timelines --kind failover --kind switch
  cachemesh events -o json | jq 'select(.kind == "failover") | .steps[-1].ms'`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("limit") && follow && filter.since == 0 {
				filter.limit = tailOfEvents
			}
			if err := filter.check(cmd.Context(), &from); err != nil {
				return err
			}
			urls, err := from.urls()
			if err != nil {
				return err
			}
			printer := newEventPrinter(cmd.OutOrStdout(), out)
			last, failed := printEvents(cmd.Context(), &from, urls, filter, printer)
			for _, err := range failed {
				fmt.Fprintln(cmd.ErrOrStderr(), "error:", err)
			}
			if follow {
				return followEvents(cmd.Context(), &from, last, filter, printer, cmd.ErrOrStderr())
			}
			if len(failed) > 0 {
				return errReported
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on, until it is ended")
	f.StringVar(&filter.region, "region", "", "events of this region only")
	f.StringVar(&filter.pool, "pool", "", "events of this pool and its shards only")
	f.StringVar(&filter.shard, "shard", "", "events of this shard only")
	f.StringSliceVar(&filter.kinds, "kind", nil, "events of these kinds only, such as failover")
	f.DurationVar(&filter.since, "since", 0, "events of so long ago or less, such as 1h")
	f.IntVar(&filter.limit, "limit", 0, fmt.Sprintf("the newest so many of a region; 0 is all (default with --follow: %d)", tailOfEvents))
	out.register(cmd, "table", "json")
	from.register(cmd)
	from.completeNames(cmd, &filter.region)
	kinds := make([]string, len(shards.Kinds))
	for i, k := range shards.Kinds {
		kinds[i] = string(k)
	}
	cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// eventFilter is which events to show.
type eventFilter struct {
	region, pool, shard string
	kinds               []string
	since               time.Duration
	limit               int
}

func (f eventFilter) check(ctx context.Context, from *meshFlags) error {
	for _, k := range f.kinds {
		if !slices.Contains(shards.Kinds, shards.Kind(k)) {
			return usage("--kind %q: want one of %s", k, strings.Trim(fmt.Sprint(shards.Kinds), "[]"))
		}
	}
	if f.since < 0 || f.limit < 0 {
		return usage("--since and --limit may not be negative")
	}
	if f.region == "" {
		return nil
	}
	_, err := from.topologyOf(ctx, f.region)
	return err
}

// query is what the API filters by; the region and the time are left to takes.
func (f eventFilter) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"pool": f.pool, "shard": f.shard} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for _, k := range f.kinds {
		q.Add("kind", k)
	}
	return q
}

func (f eventFilter) takes(e shards.Event, now time.Time) bool {
	return (f.region == "" || e.Region == f.region) && (f.since == 0 || now.Sub(e.Time) <= f.since)
}

// eventSource is a control plane that is asked for events.
type eventSource struct {
	url  string
	last uint64 // id of the last event that it told, 0 if none
}

// printEvents prints what all control planes have, and returns where to go on.
func printEvents(ctx context.Context, from *meshFlags, urls []string, filter eventFilter, printer *eventPrinter) (sources []eventSource, failed []error) {
	var all []shards.Event
	now := time.Now()
	for _, u := range urls {
		source := eventSource{url: u}
		q := filter.query()
		if filter.limit > 0 {
			q.Set("limit", strconv.Itoa(filter.limit))
		}
		within, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := readEvents(within, from, u, q, func(e shards.Event) {
			source.last = e.ID
			if filter.takes(e, now) {
				all = append(all, e)
			}
		})
		cancel()
		if err != nil {
			failed = append(failed, err)
		}
		sources = append(sources, source)
	}
	slices.SortStableFunc(all, func(a, b shards.Event) int { return a.Time.Compare(b.Time) })
	for _, e := range all {
		printer.widen(e)
	}
	printer.begin()
	for _, e := range all {
		printer.print(e)
	}
	return sources, failed
}

// readEvents hands on the events of a control plane until it has no more, or with follow until ctx ends.
func readEvents(ctx context.Context, from *meshFlags, base string, q url.Values, take func(shards.Event)) error {
	body, err := from.open(ctx, "GET", base+"/v1/events?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: the events broke off: %w", base, err)
		}
		var e shards.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("%s: an event: %w", base, err)
		}
		take(e)
	}
}

// followEvents prints what happens from now on. A control plane that is lost is asked again, and goes on where it was.
func followEvents(ctx context.Context, from *meshFlags, sources []eventSource, filter eventFilter, printer *eventPrinter, notes io.Writer) error {
	began := time.Now()
	happened := make(chan shards.Event)
	lost := make(chan error)
	for _, source := range sources {
		go func() {
			for told := false; ; {
				q := filter.query()
				q.Set("follow", "true")
				if source.last > 0 {
					q.Set("since", strconv.FormatUint(source.last, 10))
				} else if filter.limit > 0 {
					q.Set("limit", strconv.Itoa(filter.limit))
				}
				err := readEvents(ctx, from, source.url, q, func(e shards.Event) {
					source.last, told = e.ID, false
					select {
					case happened <- e:
					case <-ctx.Done():
					}
				})
				if !told {
					told = true
					select {
					case lost <- cmp.Or(err, fmt.Errorf("%s has ended", source.url)):
					case <-ctx.Done():
					}
				}
				select {
				case <-time.After(askAgain):
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-happened:
			if filter.takes(e, began) {
				printer.print(e)
			}
		case err := <-lost:
			fmt.Fprintf(notes, "error: %v; it is asked again\n", err)
		}
	}
}

// eventPrinter prints events as they come, in columns, or as JSON. An event that several control planes tell is printed once.
type eventPrinter struct {
	w      io.Writer
	json   bool
	widths []int
	shown  map[string]bool
}

var eventColumns = []string{"TIME", "REGION", "POOL", "SHARD", "KIND", "EPOCH", "FROM", "TO", "REASON"}

func newEventPrinter(w io.Writer, out output) *eventPrinter {
	p := &eventPrinter{w: w, json: out == "json", widths: make([]int, len(eventColumns)), shown: map[string]bool{}}
	for i, c := range eventColumns {
		p.widths[i] = len(c)
	}
	for _, k := range shards.Kinds {
		p.widths[4] = max(p.widths[4], len(k))
	}
	return p
}

func eventRow(e shards.Event) []string {
	epoch := "-"
	if e.Epoch > 0 {
		epoch = strconv.FormatUint(e.Epoch, 10)
	}
	reason := e.Reason
	if len(e.Steps) > 0 {
		steps := make([]string, len(e.Steps))
		for i, s := range e.Steps {
			steps[i] = fmt.Sprintf("%s %s ms", s.Name, strconv.FormatFloat(s.MS, 'f', 1, 64))
		}
		reason += " [" + strings.Join(steps, ", ") + "]"
	}
	return []string{e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Region, dash(e.Pool), dash(e.Shard), string(e.Kind), epoch, dash(e.From), dash(e.To), reason}
}

// widen makes room for an event that is to be printed later.
func (p *eventPrinter) widen(e shards.Event) {
	for i, cell := range eventRow(e) {
		p.widths[i] = max(p.widths[i], utf8.RuneCountInString(cell))
	}
}

func (p *eventPrinter) print(e shards.Event) {
	key := fmt.Sprint(e.Region, " ", e.ID, " ", e.Time.UnixNano())
	if p.shown[key] {
		return
	}
	p.shown[key] = true
	if p.json {
		json.NewEncoder(p.w).Encode(e)
		return
	}
	p.widen(e)
	p.line(eventRow(e))
}

func (p *eventPrinter) begin() {
	if !p.json {
		p.line(eventColumns)
	}
}

func (p *eventPrinter) line(cells []string) {
	var line strings.Builder
	for i, cell := range cells {
		line.WriteString(cell)
		if i < len(cells)-1 {
			line.WriteString(strings.Repeat(" ", p.widths[i]-utf8.RuneCountInString(cell)+2))
		}
	}
	fmt.Fprintln(p.w, line.String())
}
