package store

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// remembered is for how long the database knows what was before a change: for longer than a replica may lag.
const remembered = 10 * time.Minute

// SetBio changes a user's bio and raises the version, or returns ErrNotFound.
func (s *Store) SetBio(ctx context.Context, user int64, bio string) error {
	s.writes.Add(1)
	if err := s.setBio(ctx, user, bio); err != nil {
		return fmt.Errorf("bio of user %d: %w", user, err)
	}
	return nil
}

func (s *Store) setBio(ctx context.Context, user int64, bio string) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if s.dialect.lockUser != "" {
		if _, err := tx.ExecContext(ctx, s.dialect.lockUser, user); err != nil {
			return err
		}
	}
	now := time.Now()
	if _, err := tx.StmtContext(ctx, s.stmts.keepBio).ExecContext(ctx, now.UnixMilli(), user); err != nil {
		return err
	}
	if _, err := tx.StmtContext(ctx, s.stmts.forgetBios).ExecContext(ctx, user, now.Add(-remembered).UnixMilli()); err != nil {
		return err
	}
	result, err := tx.StmtContext(ctx, s.stmts.setBio).ExecContext(ctx, bio, user)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return ErrNotFound
	}
	return tx.Commit()
}

// Post adds a tweet and puts it into the timelines of all followers, whom it returns, in one transaction.
func (s *Store) Post(ctx context.Context, user int64, text string, at time.Time) (Tweet, []int64, error) {
	s.writes.Add(1)
	t := Tweet{User: user, Text: text, At: at.UnixMilli()}
	followers, err := s.post(ctx, &t)
	if err != nil {
		return Tweet{}, nil, fmt.Errorf("post for user %d: %w", user, err)
	}
	return t, followers, nil
}

func (s *Store) post(ctx context.Context, t *Tweet) (followers []int64, err error) {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	if s.dialect.lockPosts != "" {
		if _, err := tx.ExecContext(ctx, s.dialect.lockPosts); err != nil {
			return nil, err
		}
	}
	if err := tx.StmtContext(ctx, s.stmts.addTweet).QueryRowContext(ctx, t.User, t.Text, t.At).Scan(&t.ID); err != nil {
		return nil, err
	}
	if followers, err = addToTimelines(ctx, tx.StmtContext(ctx, s.stmts.addToTimelines), t); err != nil {
		return nil, err
	}
	if _, err := tx.StmtContext(ctx, s.stmts.trimTimelines).ExecContext(ctx, TimelineLength, t.User); err != nil {
		return nil, err
	}
	for _, tag := range Hashtags(t.Text) {
		if _, err := tx.StmtContext(ctx, s.stmts.addHashtag).ExecContext(ctx, tag, t.ID, t.At); err != nil {
			return nil, err
		}
	}
	return followers, tx.Commit()
}

func addToTimelines(ctx context.Context, stmt *sql.Stmt, t *Tweet) (followers []int64, err error) {
	rows, err := stmt.QueryContext(ctx, t.ID, t.User)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		followers = append(followers, id)
	}
	return followers, rows.Err()
}

var hashtag = regexp.MustCompile(`#[\pL\pN_]+`)

// Hashtags returns the different hashtags of a text, in lower case and order, with their #.
func Hashtags(text string) []string {
	tags := hashtag.FindAllString(text, -1)
	for i, tag := range tags {
		tags[i] = strings.ToLower(tag)
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}
