package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// ErrNotFound says that the database has no such row.
var ErrNotFound = errors.New("not found")

// beginRead counts a read query and waits for the imitated latency.
func (s *Store) beginRead(ctx context.Context) error {
	s.reads.Add(1)
	if s.latency == 0 {
		return nil
	}
	timer := time.NewTimer(s.latency)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// query runs a read query and calls scan for each row.
func (s *Store) query(ctx context.Context, stmt *sql.Stmt, scan func(*sql.Rows) error, args ...any) error {
	if err := s.beginRead(ctx); err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Homes returns the home region of every user.
func (s *Store) Homes(ctx context.Context) (map[int64]string, error) {
	homes := make(map[int64]string)
	err := s.query(ctx, s.stmts.homes, func(rows *sql.Rows) error {
		var id int64
		var home string
		err := rows.Scan(&id, &home)
		homes[id] = home
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the users' homes: %w", err)
	}
	return homes, nil
}

// Home returns the home region of a user, or ErrNotFound.
func (s *Store) Home(ctx context.Context, id int64) (string, error) {
	if err := s.beginRead(ctx); err != nil {
		return "", err
	}
	var home string
	if err := s.stmts.home.QueryRowContext(ctx, id).Scan(&home); err != nil {
		return "", fmt.Errorf("home of user %d: %w", id, notFound(err))
	}
	return home, nil
}

// User returns a user, or ErrNotFound.
func (s *Store) User(ctx context.Context, id int64) (User, error) {
	if err := s.beginRead(ctx); err != nil {
		return User{}, err
	}
	var u User
	if s.lag > 0 {
		then := time.Now().Add(-s.lag).UnixMilli()
		err := s.stmts.formerUser.QueryRowContext(ctx, id, then).Scan(&u.ID, &u.Name, &u.Home, &u.Bio, &u.Version)
		if !errors.Is(err, sql.ErrNoRows) {
			return u, err
		}
	}
	if err := s.stmts.user.QueryRowContext(ctx, id).Scan(&u.ID, &u.Name, &u.Home, &u.Bio, &u.Version); err != nil {
		return User{}, fmt.Errorf("user %d: %w", id, notFound(err))
	}
	return u, nil
}

// Replaced returns the bio of a former version of a user, and when it was replaced. It is ErrNotFound for the current one and for those of
// which the database knows nothing any more.
func (s *Store) Replaced(ctx context.Context, id, version int64) (bio string, at time.Time, err error) {
	var ms int64
	if err := s.stmts.replaced.QueryRowContext(ctx, id, version).Scan(&bio, &ms); err != nil {
		return "", at, fmt.Errorf("version %d of user %d: %w", version, id, notFound(err))
	}
	return bio, time.UnixMilli(ms), nil
}

// Timeline returns the ids of the newest tweets by those whom the user follows, newest first, at most TimelineLength.
func (s *Store) Timeline(ctx context.Context, user int64) ([]int64, error) {
	ids := make([]int64, 0, TimelineLength)
	err := s.query(ctx, s.stmts.timeline, func(rows *sql.Rows) error {
		var id int64
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	}, user, TimelineLength)
	if err != nil {
		return nil, fmt.Errorf("timeline of user %d: %w", user, err)
	}
	return ids, nil
}

// Many is how many rows can be read at once.
const Many = 500

// Tweets returns the tweets with these ids, in any order; unknown ids are left out. At most Many ids.
func (s *Store) Tweets(ctx context.Context, ids []int64) ([]Tweet, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	stmt, slots := s.stmts.tweets, TimelineLength
	if len(ids) > slots {
		stmt, slots = s.stmts.manyTweets, Many
	}
	args, err := fill(ids, slots)
	if err != nil {
		return nil, fmt.Errorf("read tweets: %w", err)
	}
	tweets := make([]Tweet, 0, len(ids))
	err = s.query(ctx, stmt, func(rows *sql.Rows) error {
		var t Tweet
		err := rows.Scan(&t.ID, &t.User, &t.Text, &t.At)
		tweets = append(tweets, t)
		return err
	}, args...)
	if err != nil {
		return nil, fmt.Errorf("read %d tweets: %w", len(ids), err)
	}
	return tweets, nil
}

// Users returns the users with these ids, in any order; unknown ids are left out. At most Many ids.
func (s *Store) Users(ctx context.Context, ids []int64) ([]User, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	args, err := fill(ids, Many)
	if err != nil {
		return nil, fmt.Errorf("read users: %w", err)
	}
	users := make([]User, 0, len(ids))
	err = s.query(ctx, s.stmts.manyUsers, func(rows *sql.Rows) error {
		var u User
		err := rows.Scan(&u.ID, &u.Name, &u.Home, &u.Bio, &u.Version)
		users = append(users, u)
		return err
	}, args...)
	if err != nil {
		return nil, fmt.Errorf("read %d users: %w", len(ids), err)
	}
	return users, nil
}

// fill makes one prepared statement serve every number of ids: the last one is repeated.
func fill(ids []int64, slots int) ([]any, error) {
	if len(ids) > slots {
		return nil, fmt.Errorf("%d at once: at most %d", len(ids), slots)
	}
	args := make([]any, slots)
	for i := range args {
		args[i] = ids[min(i, len(ids)-1)]
	}
	return args, nil
}

// Spread returns the ids of the tweets that are in the most timelines of a region's users, and in at least so many, those in the most first.
func (s *Store) Spread(ctx context.Context, region string, timelines, limit int) ([]int64, error) {
	ids := make([]int64, 0, limit)
	err := s.query(ctx, s.stmts.spread, func(rows *sql.Rows) error {
		var id int64
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	}, region, timelines, limit)
	if err != nil {
		return nil, fmt.Errorf("tweets in the timelines of %s: %w", region, err)
	}
	return ids, nil
}

// Followers returns the ids of a user's followers by their home region.
func (s *Store) Followers(ctx context.Context, user int64) (map[string][]int64, error) {
	followers := make(map[string][]int64)
	err := s.query(ctx, s.stmts.followers, func(rows *sql.Rows) error {
		var id int64
		var home string
		err := rows.Scan(&id, &home)
		followers[home] = append(followers[home], id)
		return err
	}, user)
	if err != nil {
		return nil, fmt.Errorf("followers of user %d: %w", user, err)
	}
	return followers, nil
}

// BestKnown returns the user whom most follow.
func (s *Store) BestKnown(ctx context.Context) (User, error) {
	if err := s.beginRead(ctx); err != nil {
		return User{}, err
	}
	var id int64
	if err := s.db.QueryRowContext(ctx, `SELECT followee_id FROM follows GROUP BY followee_id ORDER BY COUNT(*) DESC, followee_id LIMIT 1`).Scan(&id); err != nil {
		return User{}, fmt.Errorf("the best known user: %w", notFound(err))
	}
	return s.User(ctx, id)
}

// Trending returns the most used hashtags since then, most used first.
func (s *Store) Trending(ctx context.Context, since time.Time, limit int) ([]Trend, error) {
	trends := make([]Trend, 0, limit)
	err := s.query(ctx, s.stmts.trending, func(rows *sql.Rows) error {
		var t Trend
		err := rows.Scan(&t.Tag, &t.Tweets)
		trends = append(trends, t)
		return err
	}, since.UnixMilli(), limit)
	if err != nil {
		return nil, fmt.Errorf("trending hashtags: %w", err)
	}
	return trends, nil
}

// NewestTweet returns the highest tweet id, 0 if there is no tweet.
func (s *Store) NewestTweet(ctx context.Context) (int64, error) {
	if err := s.beginRead(ctx); err != nil {
		return 0, err
	}
	var id int64
	if err := s.db.QueryRowContext(ctx, `SELECT COALESCE(MAX(id), 0) FROM tweets`).Scan(&id); err != nil {
		return 0, fmt.Errorf("newest tweet: %w", err)
	}
	return id, nil
}

func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
