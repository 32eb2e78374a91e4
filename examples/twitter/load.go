package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/examples/twitter/load"
	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

type loadOptions struct {
	load.Config
	region, db, output, arrivals, mix string
	users                             int
}

func loadCommand() *cobra.Command {
	var o loadOptions
	cmd := &cobra.Command{
		Use:   "load --targets URL,... --region NAME --db URL",
		Short: "Load a region's apps and check answers against the database",
		Long: `Load a region's apps with requests at a given rate, whatever the answers' latency, and check a share of the answers
against the database. Popularity, sizes and operations are those of caches in production. Exit status 1 tells of errors or
wrong answers.`,
		Example: "  twitter load --targets http://127.0.0.1:8081 --region us-east --db sqlite:twitter.db --rate 700 --for 60s --check 0.01",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mix, err := o.validate()
			if err != nil {
				return err
			}
			return failed(runLoad(cmd.Context(), o, mix, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Targets, "targets", nil, "URLs of the region's apps, asked in turn")
	f.StringVar(&o.region, "region", "", "region whose users ask")
	f.StringVar(&o.db, "db", "", "database, to know the users and to check against: sqlite:PATH or postgres://...")
	f.Float64Var(&o.Rate, "rate", 700, "requests a second")
	f.DurationVar(&o.For, "for", 0, "how long; 0 is until interrupted")
	f.IntVar(&o.users, "users", 0, "how many of the region's users ask; 0 is all")
	f.Float64Var(&o.Check, "check", 0.01, "share of the timelines, profiles and tweets to check, 0 to 1")
	f.DurationVar(&o.MaxStaleness, "max-staleness", 0, "how long after its replacement a profile may be answered; 0 asks again for a second until an answer is right")
	f.StringVar(&o.mix, "mix", "default", "default, read-heavy, races (changes and reads of few profiles), or the number of a measured cluster")
	f.StringVar(&o.arrivals, "arrivals", "poisson", "poisson or fixed")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	for _, name := range []string{"targets", "region", "db"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}

func (o *loadOptions) validate() (workload.Mix, error) {
	for i, target := range o.Targets {
		if u, err := url.Parse(target); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("--targets: %q is no URL such as http://127.0.0.1:8081", target)
		}
		o.Targets[i] = strings.TrimSuffix(target, "/")
	}
	switch {
	case len(o.Targets) == 0:
		return nil, errors.New("--targets: at least one")
	case !(o.Rate > 0 && o.Rate <= 1e6):
		return nil, errors.New("--rate: above 0, up to 1000000")
	case o.For < 0:
		return nil, errors.New("--for: 0 or more")
	case o.MaxStaleness < 0 || o.MaxStaleness > time.Minute:
		return nil, errors.New("--max-staleness: 0s to 1m")
	case o.users < 0:
		return nil, errors.New("--users: 0 or more")
	case !(o.Check >= 0 && o.Check <= 1):
		return nil, errors.New("--check: 0 to 1")
	case o.output != "text" && o.output != "json":
		return nil, errors.New("--output: text or json")
	case o.arrivals != "poisson" && o.arrivals != "fixed":
		return nil, errors.New("--arrivals: poisson or fixed")
	}
	o.Fixed = o.arrivals == "fixed"
	mix, err := workload.ParseMix(o.mix)
	if err != nil {
		return nil, fmt.Errorf("--mix: %w", err)
	}
	return mix, nil
}

func runLoad(ctx context.Context, o loadOptions, mix workload.Mix, out, notes io.Writer) error {
	db, err := store.Open(ctx, o.db, 0)
	if err != nil {
		return err
	}
	defer db.Close()
	homes, err := db.Homes(ctx)
	if err != nil {
		return err
	}
	newest, err := db.NewestTweet(ctx)
	if err != nil {
		return err
	}
	gen, err := workload.NewGenerator(mix, workload.Population{Homes: homes, Region: o.region, Users: o.users, Newest: newest}, rand.Uint64())
	if err != nil {
		return err
	}
	print := printText
	if o.output == "json" {
		print = printJSON
	}
	o.Report = func(i load.Interval) { print(out, i) }
	o.Log = slog.New(slog.NewTextHandler(notes, nil))
	total := load.Run(ctx, o.Config, gen, db)
	print(out, total)
	if total.Errors > 0 || total.Wrong > 0 {
		return fmt.Errorf("%d errors and %d wrong answers", total.Errors, total.Wrong)
	}
	return nil
}

func printJSON(out io.Writer, i load.Interval) {
	json.NewEncoder(out).Encode(i)
}

func printText(out io.Writer, i load.Interval) {
	at := (time.Duration(i.T) * time.Second).String()
	if i.Final {
		at = "total"
	}
	stalest := ""
	if i.Stalest > 0 {
		stalest = fmt.Sprintf("  stalest %.0f ms", i.Stalest)
	}
	fmt.Fprintf(out, "%6s  %8d requests  %7.1f/s  p50 %7.2f ms  p99 %7.2f ms  %d errors  %d checked  %d wrong%s\n",
		at, i.Requests, i.RPS, i.P50, i.P99, i.Errors, i.Checked, i.Wrong, stalest)
}
