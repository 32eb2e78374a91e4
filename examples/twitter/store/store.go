// Package store is the database of the Twitter example: the source of truth for users, who follows whom,
// tweets and the timelines that are computed ahead. It speaks SQL to an embedded SQLite file, which several
// processes may share, or to Postgres; the two differ only in the dialect at the end of this file. It knows
// nothing of the cache.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // registers "pgx"
	_ "modernc.org/sqlite"             // registers "sqlite"
)

// TimelineLength is how many tweets a timeline keeps, the newest first.
const TimelineLength = 20

// User is a row of users and, as JSON, the API's profile. Version counts the changes of the bio.
type User struct {
	ID      int64  `json:"id"`
	Name    string `json:"name"`
	Home    string `json:"home"`
	Bio     string `json:"bio"`
	Version int64  `json:"version"`
}

// Tweet is a row of tweets and, as JSON, the API's tweet. A tweet never changes. At is in milliseconds since 1970.
type Tweet struct {
	ID   int64  `json:"id"`
	User int64  `json:"user"`
	Text string `json:"text"`
	At   int64  `json:"at"`
}

// Trend is a hashtag and how many tweets used it.
type Trend struct {
	Tag    string `json:"tag"`
	Tweets int64  `json:"tweets"`
}

// Store is a database that is safe for concurrent use.
type Store struct {
	db *sql.DB
	// writer is a pool of its own: with SQLite it has one connection, for the one writer that SQLite allows, so that
	// writers wait here and not each on a connection that a reader could use.
	writer  *sql.DB
	dialect dialect
	latency time.Duration
	lag     time.Duration
	stmts   statements
	reads   atomic.Int64
	writes  atomic.Int64
}

// Open opens the database at url, sqlite:PATH or postgres://..., and makes the tables that are missing. Every
// read query first sleeps for latency, so that a distant or busy database can be imitated.
func Open(ctx context.Context, url string, latency time.Duration) (*Store, error) {
	driver, source, d := "sqlite", "", sqlite
	switch {
	case strings.HasPrefix(url, "sqlite:") && len(url) > len("sqlite:"):
		escaped := strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(strings.TrimPrefix(url, "sqlite:"))
		// Immediate transactions take the write lock first, so none has to be given up for another's write.
		source = "file:" + escaped + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_txlock=immediate"
	case strings.HasPrefix(url, "postgres://"), strings.HasPrefix(url, "postgresql://"):
		driver, source, d = "pgx", url, postgres
	default:
		return nil, fmt.Errorf("database %q: use sqlite:PATH or postgres://USER@HOST/NAME", url)
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	writer, err := sql.Open(driver, source)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	writer.SetMaxOpenConns(d.writers)
	writer.SetMaxIdleConns(d.writers)
	s := &Store{db: db, writer: writer, dialect: d, latency: latency}
	if err := s.prepare(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

const connections = 8

// Lag makes User answer as a replica of the database would that lags so much; 0 is the primary. Call it before the first query.
func (s *Store) Lag(by time.Duration) { s.lag = by }

// Close closes the connections.
func (s *Store) Close() error { return errors.Join(s.db.Close(), s.writer.Close()) }

// Ping returns an error when the database does not answer.
func (s *Store) Ping(ctx context.Context) error { return s.db.PingContext(ctx) }

// Reads is how many read queries were sent since Open.
func (s *Store) Reads() int64 { return s.reads.Load() }

// Writes is how many writing transactions were begun since Open.
func (s *Store) Writes() int64 { return s.writes.Load() }

// statements are prepared once. $1 means the same in SQLite and Postgres.
type statements struct {
	homes, home, user, formerUser, replaced, timeline, tweets, followers, trending, manyUsers, manyTweets, spread *sql.Stmt

	keepBio, setBio, forgetBios, addTweet, addToTimelines, trimTimelines, addHashtag *sql.Stmt
}

// prepare makes the missing tables and the statements.
func (s *Store) prepare(ctx context.Context) error {
	for _, table := range s.dialect.schema() {
		if _, err := s.writer.ExecContext(ctx, table); err != nil {
			return fmt.Errorf("make the tables: %w", err)
		}
	}
	st := &s.stmts
	for _, p := range []struct {
		db   *sql.DB
		stmt **sql.Stmt
		text string
	}{
		{s.db, &st.homes, `SELECT id, home FROM users`},
		{s.db, &st.home, `SELECT home FROM users WHERE id = $1`},
		{s.db, &st.user, `SELECT id, name, home, bio, version FROM users WHERE id = $1`},
		{s.db, &st.formerUser, `SELECT u.id, u.name, u.home, c.bio, c.version FROM changes c JOIN users u ON u.id = c.user_id
			WHERE c.user_id = $1 AND c.at > $2 ORDER BY c.version LIMIT 1`},
		{s.db, &st.replaced, `SELECT bio, at FROM changes WHERE user_id = $1 AND version = $2`},
		{s.db, &st.timeline, `SELECT tweet_id FROM timelines WHERE user_id = $1 ORDER BY tweet_id DESC LIMIT $2`},
		{s.db, &st.tweets, `SELECT id, user_id, text, at FROM tweets WHERE id IN (` + placeholders(1, TimelineLength) + `)`},
		{s.db, &st.followers, `SELECT u.id, u.home FROM follows f JOIN users u ON u.id = f.follower_id WHERE f.followee_id = $1`},
		{s.db, &st.manyUsers, `SELECT id, name, home, bio, version FROM users WHERE id IN (` + placeholders(1, Many) + `)`},
		{s.db, &st.manyTweets, `SELECT id, user_id, text, at FROM tweets WHERE id IN (` + placeholders(1, Many) + `)`},
		{s.db, &st.spread, `SELECT t.tweet_id FROM timelines t JOIN users u ON u.id = t.user_id WHERE u.home = $1
			GROUP BY t.tweet_id HAVING COUNT(*) >= $2 ORDER BY COUNT(*) DESC, t.tweet_id DESC LIMIT $3`},
		{s.db, &st.trending, `SELECT tag, COUNT(*) FROM hashtags WHERE at >= $1 GROUP BY tag ORDER BY COUNT(*) DESC, tag LIMIT $2`},

		{s.writer, &st.keepBio, `INSERT INTO changes (user_id, version, bio, at) SELECT id, version, bio, CAST($1 AS BIGINT) FROM users WHERE id = $2`},
		{s.writer, &st.forgetBios, `DELETE FROM changes WHERE user_id = $1 AND at < $2`},
		{s.writer, &st.setBio, `UPDATE users SET bio = $1, version = version + 1 WHERE id = $2`},
		{s.writer, &st.addTweet, `INSERT INTO tweets (user_id, text, at) VALUES ($1, $2, $3) RETURNING id`},
		{s.writer, &st.addToTimelines, `INSERT INTO timelines (user_id, tweet_id)
			SELECT follower_id, CAST($1 AS BIGINT) FROM follows WHERE followee_id = $2 RETURNING user_id`},
		// One tweet came into each timeline, so at most one is too old for it.
		{s.writer, &st.trimTimelines, `DELETE FROM timelines WHERE (user_id, tweet_id) IN (
			SELECT f.follower_id, (SELECT t.tweet_id FROM timelines t WHERE t.user_id = f.follower_id
				ORDER BY t.tweet_id DESC LIMIT 1 OFFSET $1)
			FROM follows f WHERE f.followee_id = $2)`},
		{s.writer, &st.addHashtag, `INSERT INTO hashtags (tag, tweet_id, at) VALUES ($1, $2, $3)`},
	} {
		stmt, err := p.db.PrepareContext(ctx, p.text)
		if err != nil {
			return fmt.Errorf("prepare %q: %w", p.text, err)
		}
		*p.stmt = stmt
	}
	return nil
}

// placeholders returns "$first, $first+1, ...", n of them.
func placeholders(first, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "$%d", first+i)
	}
	return b.String()
}

// dialect is where SQLite and Postgres differ.
type dialect struct {
	writers   int    // connections that may write at the same time
	tweetID   string // type of a key that the database numbers itself
	clustered string // table option: keep the rows in the order of the primary key
	// lockPosts makes the tweets' numbers grow in the order in which they are committed: one post at a time. SQLite
	// has one writer anyway.
	lockPosts string
	lockUser  string // makes the changes of one user follow one another
	// afterSeed sets the numbering behind the rows that seeding wrote with numbers of its own.
	afterSeed string
}

var (
	sqlite   = dialect{writers: 1, tweetID: "INTEGER PRIMARY KEY", clustered: "WITHOUT ROWID"}
	postgres = dialect{
		writers:   connections,
		tweetID:   "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
		lockPosts: "SELECT pg_advisory_xact_lock(1)",
		lockUser:  "SELECT 1 FROM users WHERE id = $1 FOR UPDATE",
		afterSeed: "SELECT setval(pg_get_serial_sequence('tweets', 'id'), (SELECT MAX(id) FROM tweets))",
	}
)

func (d dialect) schema() []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS world (parameters TEXT NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS users (id BIGINT PRIMARY KEY, name TEXT NOT NULL, home TEXT NOT NULL,
			bio TEXT NOT NULL, version BIGINT NOT NULL) ` + d.clustered,
		// What a bio was before, and when it was replaced.
		`CREATE TABLE IF NOT EXISTS changes (user_id BIGINT, version BIGINT, bio TEXT NOT NULL, at BIGINT NOT NULL,
			PRIMARY KEY (user_id, version)) ` + d.clustered,
		`CREATE TABLE IF NOT EXISTS follows (followee_id BIGINT, follower_id BIGINT,
			PRIMARY KEY (followee_id, follower_id)) ` + d.clustered,
		`CREATE TABLE IF NOT EXISTS tweets (id ` + d.tweetID + `, user_id BIGINT NOT NULL, text TEXT NOT NULL,
			at BIGINT NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS timelines (user_id BIGINT, tweet_id BIGINT,
			PRIMARY KEY (user_id, tweet_id)) ` + d.clustered,
		`CREATE TABLE IF NOT EXISTS hashtags (at BIGINT, tag TEXT, tweet_id BIGINT,
			PRIMARY KEY (at, tag, tweet_id)) ` + d.clustered,
	}
}
