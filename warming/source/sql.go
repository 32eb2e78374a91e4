package source

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // registers "pgx"
	"modernc.org/sqlite"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	sqlTimeout = 30 * time.Second
	// A page of a query has so many rows, or about so many bytes.
	sqlRows  = 500
	sqlBytes = 4 << 20
)

// database is a query's rows, in the order of their keys, so that any agent may go on after one of them.
type database struct {
	db       *sql.DB
	question string // with the key after which, the key up to which, and how many rows
	prefix   string
}

// A parameter that is NULL does not count. Bytes order keys, whatever the language of the database.
const (
	postgresPage = `SELECT * FROM (%s) AS warm WHERE ($1::text IS NULL OR warm.key::text COLLATE "C" > $1) AND ($2::text IS NULL OR warm.key::text COLLATE "C" <= $2) ORDER BY warm.key::text COLLATE "C" LIMIT $3`
	sqlitePage   = `SELECT * FROM (%s) AS warm WHERE (?1 IS NULL OR CAST(warm.key AS TEXT) > ?1) AND (?2 IS NULL OR CAST(warm.key AS TEXT) <= ?2) ORDER BY CAST(warm.key AS TEXT) LIMIT ?3`
)

func newDatabase(s *mesh.SQL, prefix string) (*database, error) {
	dsn, err := dsnOf(s)
	if err != nil {
		return nil, err
	}
	driver, page := "pgx", postgresPage
	if s.Driver == mesh.SQLite {
		driver, page = "sqlite", sqlitePage
		dsn = readOnly(dsn)
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, errors.New("the connection string of the database is not understood") // it may have a password
	}
	db.SetMaxOpenConns(2)
	db.SetConnMaxIdleTime(time.Minute)
	// A comment at the query's end must not take in the rest.
	return &database{db: db, question: fmt.Sprintf(page, s.Query+"\n"), prefix: prefix}, nil
}

func dsnOf(s *mesh.SQL) (string, error) {
	if s.DSNEnv != "" {
		dsn, ok := os.LookupEnv(s.DSNEnv)
		if !ok {
			return "", fmt.Errorf("the environment variable %s of dsnEnv is not set: set it for the sidecars", s.DSNEnv)
		}
		return dsn, nil
	}
	data, err := os.ReadFile(s.DSNFile)
	if err != nil {
		return "", fmt.Errorf("dsnFile: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// readOnly makes a connection string of SQLite's, or a path, one that only reads and waits for who writes.
func readOnly(dsn string) string {
	if !strings.HasPrefix(dsn, "file:") {
		dsn = "file:" + strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(strings.TrimPrefix(dsn, "sqlite:"))
	}
	separator := "?"
	if strings.Contains(dsn, "?") {
		separator = "&"
	}
	return dsn + separator + "_pragma=query_only(1)&_pragma=busy_timeout(5000)"
}

func (d *database) List(ctx context.Context, cursor, until string) (Page, error) {
	ctx, cancel := context.WithTimeout(ctx, sqlTimeout)
	defer cancel()
	p := Page{}
	p.Began = time.Now()
	last, rows, err := d.rows(ctx, cursor, until, &p.Batch)
	if err != nil {
		return Page{}, d.explain(ctx, err)
	}
	if rows {
		p.Next = []string{cursorOf(last)}
	}
	return p, nil
}

// A cursor that is not the beginning has a byte more than the key, which may be empty.
func cursorOf(key string) string { return "k" + key }

func parameter(cursor string) sql.NullString {
	key, ok := strings.CutPrefix(cursor, "k")
	return sql.NullString{String: key, Valid: ok}
}

// rows reads a page, and returns the last key and whether there may be more.
func (d *database) rows(ctx context.Context, cursor, until string, b *Batch) (last string, more bool, err error) {
	tx, err := d.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return "", false, err
	}
	defer tx.Rollback()
	rows, err := tx.QueryContext(ctx, d.question, parameter(cursor), parameter(until), sqlRows)
	if err != nil {
		return "", false, err
	}
	defer rows.Close()
	read, err := columns(rows)
	if err != nil {
		return "", false, err
	}
	n, size := 0, 0
	for rows.Next() {
		i, null, err := read()
		if err != nil {
			return "", false, err
		}
		key := string(i.Key)
		n++
		switch {
		case n > 1 && key == last: // a key has one value: the first
		case !strings.HasPrefix(key, d.prefix):
		case null:
			b.Missing++
		case len(i.Value) > MaxValue:
			b.Failed++
		default:
			b.Items = append(b.Items, i)
		}
		last = key
		if size += len(i.Key) + len(i.Value); size > sqlBytes {
			return last, true, nil
		}
	}
	return last, n == sqlRows, rows.Err()
}

// columns returns how to read a row.
func columns(rows *sql.Rows) (read func() (i Item, null bool, err error), err error) {
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	var key, value []byte
	var ttl sql.NullFloat64
	targets := make([]any, len(names))
	found := map[string]bool{}
	for n, name := range names {
		switch name = strings.ToLower(name); name {
		case "key":
			targets[n] = &key
		case "value":
			targets[n] = &value
		case "ttl":
			targets[n] = &ttl
		default:
			targets[n] = new(any)
		}
		found[name] = true
	}
	if !found["key"] || !found["value"] {
		return nil, fmt.Errorf("%w: the query has the columns %s: name them key, value and, if keys are to expire, ttl", ErrKeys, strings.Join(names, ", "))
	}
	return func() (Item, bool, error) {
		if err := rows.Scan(targets...); err != nil {
			return Item{}, false, fmt.Errorf("%w: the query's rows: %w", ErrKeys, err)
		}
		if key == nil {
			return Item{}, false, fmt.Errorf("%w: the query has a row whose key is NULL", ErrKeys)
		}
		if ttl.Valid && (ttl.Float64 <= 0 || ttl.Float64 > maxTTL.Seconds()) {
			return Item{}, false, fmt.Errorf("%w: the query gives key %.100q a ttl of %v seconds", ErrKeys, key, ttl.Float64)
		}
		i := Item{Key: key, Value: value, TTL: time.Duration(ttl.Float64 * float64(time.Second))}
		null := value == nil
		key, value = nil, nil
		return i, null, nil
	}, nil
}

// explain says whether the query is wrong, or the database cannot answer now.
func (d *database) explain(ctx context.Context, err error) error {
	if errors.Is(err, ErrKeys) {
		return err
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Classes 22 and 42 are of data and of the query.
		if strings.HasPrefix(pg.Code, "42") || strings.HasPrefix(pg.Code, "22") {
			return fmt.Errorf("%w: the query: %s (SQLSTATE %s)", ErrKeys, pg.Message, pg.Code)
		}
		return fmt.Errorf("the database: %s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		const wrong, cannotOpen = 1, 14
		if code := lite.Code() & 0xff; code == wrong {
			return fmt.Errorf("%w: the query: %w", ErrKeys, err)
		} else if code == cannotOpen {
			return fmt.Errorf("the database: %w: is its file where the agents are?", err)
		}
		return fmt.Errorf("the database: %w", err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the database gives no answer to the query within %v", sqlTimeout)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return errors.New("the database cannot be reached") // the error may have what is in the connection string
	}
	return fmt.Errorf("the database: %w", err)
}

func (d *database) Fetch(context.Context, [][]byte) (Batch, error) {
	return Batch{}, fmt.Errorf("%w: a query cannot be asked for single keys", ErrKeys)
}

func (d *database) Close() { d.db.Close() }
