package checker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	_ "modernc.org/sqlite" // the database
)

// database has every version that a key ever had, with the time since which it can be seen, so that a replica that lags is a
// question about the past. Changes that come at the same time share a transaction.
type database struct {
	db      *sql.DB
	reads   *sql.Stmt
	changes chan changing
	done    chan struct{} // closed when no change is taken any more
}

type changing struct {
	key    int
	answer chan<- changed
}

type changed struct {
	version int64
	err     error
}

// together is how many changes one transaction has at most.
const together = 256

func openDatabase(file string) (*database, error) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(file + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_pragma=busy_timeout(10000)")
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	db.SetMaxOpenConns(5)
	if _, err := db.Exec(`CREATE TABLE history (key INTEGER, version INTEGER, since INTEGER, PRIMARY KEY (key, version)) WITHOUT ROWID`); err != nil {
		return nil, errors.Join(fmt.Errorf("database: %w", err), db.Close())
	}
	reads, err := db.Prepare(`SELECT version FROM history WHERE key = ? AND since <= ? ORDER BY version DESC LIMIT 1`)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database: %w", err), db.Close())
	}
	d := &database{db: db, reads: reads, changes: make(chan changing), done: make(chan struct{})}
	go d.write()
	return d, nil
}

// close is called when no change is under way.
func (d *database) close() error {
	close(d.changes)
	<-d.done
	return d.db.Close()
}

// change gives the key its next version and returns it once it is committed.
func (d *database) change(key int) (int64, error) {
	answer := make(chan changed, 1)
	d.changes <- changing{key, answer}
	c := <-answer
	return c.version, c.err
}

// read returns the key's version as a replica has it that is behind by lag; 0 is none.
func (d *database) read(ctx context.Context, key int, lag time.Duration) (version int64, err error) {
	err = d.reads.QueryRowContext(ctx, key, time.Now().Add(-lag).UnixMicro()).Scan(&version)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return version, err
}

func (d *database) write() {
	defer close(d.done)
	for first := range d.changes {
		batch := []changing{first}
	gather:
		for len(batch) < together {
			select {
			case next, open := <-d.changes:
				if !open {
					break gather
				}
				batch = append(batch, next)
			default:
				break gather
			}
		}
		versions, err := d.commit(batch)
		for i, c := range batch {
			if err != nil {
				c.answer <- changed{err: fmt.Errorf("database: %w", err)}
			} else {
				c.answer <- changed{version: versions[i]}
			}
		}
	}
}

func (d *database) commit(batch []changing) ([]int64, error) {
	tx, err := d.db.Begin()
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	versions := make([]int64, len(batch))
	for i, c := range batch {
		if err := tx.QueryRow(`INSERT INTO history SELECT ?1, coalesce(max(version), 0) + 1, ?2 FROM history WHERE key = ?1 RETURNING version`,
			c.key, time.Now().UnixMicro()).Scan(&versions[i]); err != nil {
			return nil, err
		}
	}
	return versions, tx.Commit()
}
