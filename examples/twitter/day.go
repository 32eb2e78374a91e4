package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	_ "time/tzdata" // zones are known on hosts without a database of them, too

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/examples/twitter/day"
	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

func dayCommand() *cobra.Command {
	var db, clock string
	var targets, zones []string
	c := day.Config{}
	cmd := &cobra.Command{
		Use:   "day --target REGION=URL... --zone REGION=ZONE... --db URL --clock START@SINCE*SPEED",
		Short: "Load the apps of several regions as a day does, whose hours pass in seconds",
		Long: `Load the apps of several regions as a day does, whose hours pass in seconds: each region's users sleep and get up by their own time zone; in the afternoon
users of the first region post from a place that is near to the last, and in the evening the user posts whom most follow. Each second's figures are a line of JSON.

The clock shows START at SINCE and runs SPEED times as fast as others. Load begins at once and ends a day after START.`,
		Example: "  twitter day --target us-east=http://127.0.0.1:8081 --target eu-west=http://127.0.0.1:8083 --zone us-east=America/New_York --zone eu-west=Europe/Paris \\\n    --db sqlite:twitter.db --clock '2026-01-12T00:00:00Z@2026-11-24T14:40:00Z*240'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if c.Clock, err = day.ParseClock(clock); err != nil {
				return fmt.Errorf("--clock: %w", err)
			}
			if c.Regions, err = dayRegions(targets, zones); err != nil {
				return err
			}
			if !(c.Peak > 0 && c.Peak <= 1e5) || !(c.Check >= 0 && c.Check <= 1) {
				return errors.New("--peak: above 0, up to 100000; --check: 0 to 1")
			}
			lines := json.NewEncoder(cmd.OutOrStdout())
			c.Tell = func(v any) { lines.Encode(v) }
			c.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return failed(runDay(cmd.Context(), c, db))
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&targets, "target", nil, "REGION=URL of an app; several a region are asked in turn")
	f.StringArrayVar(&zones, "zone", nil, "REGION=ZONE, such as eu-west=Europe/Paris")
	f.StringVar(&db, "db", "", "database, to know the users and to check against: sqlite:PATH or postgres://...")
	f.StringVar(&clock, "clock", "", "START@SINCE*SPEED, times as in 2026-01-12T00:00:00Z")
	f.Float64Var(&c.Peak, "peak", 200, "requests a second in each region when most is asked for")
	f.Float64Var(&c.Check, "check", 0.01, "share of the timelines, profiles and tweets to check, 0 to 1")
	for _, name := range []string{"target", "zone", "db", "clock"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}

// dayRegions are in the order in which they are named.
func dayRegions(targets, zones []string) ([]day.Region, error) {
	in := map[string]*time.Location{}
	for _, z := range zones {
		region, name, _ := strings.Cut(z, "=")
		zone, err := time.LoadLocation(name)
		if err != nil || name == "" {
			return nil, fmt.Errorf("--zone: %q is no REGION=ZONE such as eu-west=Europe/Paris", z)
		}
		in[region] = zone
	}
	var regions []day.Region
	for _, t := range targets {
		name, url, _ := strings.Cut(t, "=")
		if _, err := parseURL("--target", url); err != nil {
			return nil, err
		}
		if in[name] == nil {
			return nil, fmt.Errorf("--target: %q is of a region without a --zone", t)
		}
		if n := len(regions); n == 0 || regions[n-1].Name != name {
			regions = append(regions, day.Region{Name: name, Zone: in[name]})
		}
		last := &regions[len(regions)-1]
		last.Targets = append(last.Targets, strings.TrimSuffix(url, "/"))
	}
	return regions, nil
}

func runDay(ctx context.Context, c day.Config, url string) error {
	db, err := store.Open(ctx, url, 0)
	if err != nil {
		return err
	}
	defer db.Close()
	return day.Run(ctx, c, db)
}
