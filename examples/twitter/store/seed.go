package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// World is what a database is seeded with. Users and tweets bring their ids, tweets in the order of theirs.
type World struct {
	Parameters string // tells this world from others
	Users      []User
	Follows    []Follow
	Tweets     []Tweet
}

// Follow says who follows whom.
type Follow struct{ Follower, Followee int64 }

// Seeded returns the parameters of the world in the database, "" if it holds none.
func (s *Store) Seeded(ctx context.Context) (string, error) {
	var parameters string
	err := s.db.QueryRowContext(ctx, `SELECT parameters FROM world`).Scan(&parameters)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read how the database was seeded: %w", err)
	}
	return parameters, nil
}

// Seed writes a world into an empty database, all or nothing. It calls progress after each table.
func (s *Store) Seed(ctx context.Context, w World, progress func(table string, rows int)) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	defer tx.Rollback()
	timelines := w.timelines()
	var tags []any
	for _, t := range w.Tweets {
		for _, tag := range Hashtags(t.Text) {
			tags = append(tags, t.At, tag, t.ID)
		}
	}
	for _, table := range []struct {
		name, columns string
		values        []any
	}{
		{"users", "id, name, home, bio, version", flatten(w.Users, func(u User) []any { return []any{u.ID, u.Name, u.Home, u.Bio, u.Version} })},
		{"follows", "follower_id, followee_id", flatten(w.Follows, func(f Follow) []any { return []any{f.Follower, f.Followee} })},
		{"tweets", "id, user_id, text, at", flatten(w.Tweets, func(t Tweet) []any { return []any{t.ID, t.User, t.Text, t.At} })},
		{"timelines", "user_id, tweet_id", timelines},
		{"hashtags", "at, tag, tweet_id", tags},
		{"world", "parameters", []any{w.Parameters}},
	} {
		n, err := insert(ctx, tx, table.name, table.columns, table.values)
		if err != nil {
			return fmt.Errorf("seed %s: %w", table.name, err)
		}
		progress(table.name, n)
	}
	if s.dialect.afterSeed != "" {
		if _, err := tx.ExecContext(ctx, s.dialect.afterSeed); err != nil {
			return fmt.Errorf("seed: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	return nil
}

// timelines returns the rows (user, tweet) of what Post would have left in timelines.
func (w World) timelines() []any {
	followers := make(map[int64][]int64)
	for _, f := range w.Follows {
		followers[f.Followee] = append(followers[f.Followee], f.Follower)
	}
	length := make(map[int64]int)
	var rows []any
	for i := len(w.Tweets) - 1; i >= 0; i-- {
		for _, f := range followers[w.Tweets[i].User] {
			if length[f] < TimelineLength {
				length[f]++
				rows = append(rows, f, w.Tweets[i].ID)
			}
		}
	}
	return rows
}

func flatten[T any](rows []T, columns func(T) []any) []any {
	var values []any
	for _, row := range rows {
		values = append(values, columns(row)...)
	}
	return values
}

// insert writes rows, given as one list of values, with as few statements as their parameters allow.
func insert(ctx context.Context, tx *sql.Tx, table, columns string, values []any) (rows int, err error) {
	width := strings.Count(columns, ",") + 1
	const batch = 200
	text := func(rows int) string {
		tuples := make([]string, rows)
		for i := range tuples {
			tuples[i] = "(" + placeholders(1+i*width, width) + ")"
		}
		return "INSERT INTO " + table + " (" + columns + ") VALUES " + strings.Join(tuples, ", ")
	}
	full, err := tx.PrepareContext(ctx, text(batch))
	if err != nil {
		return 0, err
	}
	defer full.Close()
	for rest := values; len(rest) > 0; {
		n := min(batch, len(rest)/width)
		if n == batch {
			_, err = full.ExecContext(ctx, rest[:n*width]...)
		} else {
			_, err = tx.ExecContext(ctx, text(n), rest[:n*width]...)
		}
		if err != nil {
			return rows, err
		}
		rows += n
		rest = rest[n*width:]
	}
	return rows, nil
}
