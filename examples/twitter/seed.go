package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

func seedCommand() *cobra.Command {
	var db string
	var world workload.Parameters
	cmd := &cobra.Command{
		Use:     "seed --db URL",
		Short:   "Fill an empty database with users, followers and tweets",
		Example: "  twitter seed --db sqlite:twitter.db --regions us-east,eu-west",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case world.Users < 2:
				return errors.New("--users: at least 2")
			case world.Tweets < 1:
				return errors.New("--tweets: at least 1")
			case len(world.Regions) == 0 || slices.Contains(world.Regions, ""):
				return errors.New("--regions: name them, with commas in between")
			}
			return failed(seed(cmd.Context(), db, world, cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&db, "db", "", "database: sqlite:PATH or postgres://...")
	f.IntVar(&world.Users, "users", 2000, "number of users")
	f.IntVar(&world.Tweets, "tweets", 20000, "number of tweets")
	f.StringSliceVar(&world.Regions, "regions", []string{"us-east", "eu-west"}, "home regions, which the users are spread over")
	f.Uint64Var(&world.Seed, "seed", 1, "the same seed makes the same world")
	cmd.MarkFlagRequired("db")
	return cmd
}

func seed(ctx context.Context, url string, world workload.Parameters, progress io.Writer) error {
	db, err := store.Open(ctx, url, 0)
	if err != nil {
		return err
	}
	defer db.Close()
	seeded, err := db.Seeded(ctx)
	if err != nil {
		return err
	}
	if seeded == world.String() {
		fmt.Fprintln(progress, "already seeded with", seeded)
		return nil
	}
	if seeded != "" {
		return fmt.Errorf("the database was seeded with %s: ask for the same, or name another database", seeded)
	}
	start := time.Now()
	err = db.Seed(ctx, workload.NewWorld(world, start), func(table string, rows int) {
		fmt.Fprintf(progress, "%-9s %6d rows\n", table, rows)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "seeded in %.1f s\n", time.Since(start).Seconds())
	return nil
}
