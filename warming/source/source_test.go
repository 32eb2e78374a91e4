package source

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/warming"
)

func runWith(s mesh.Source, k warming.Keys) *warming.Run {
	return &warming.Run{ID: "plan-1", Plan: "plan", Region: "here", Pool: "tweets", Keys: k, Source: s,
		Budget: mesh.Budget{KeysPerSecond: 1, BytesPerSecond: 1, OriginPerSecond: 1, Concurrency: 1}}
}

// open makes a source.
func open(t *testing.T, s mesh.Source, k warming.Keys) Source {
	t.Helper()
	made, err := New(Config{Region: "here", Agent: "a"}, runWith(s, k))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(made.Close)
	return made
}

// all is what a source lists from its beginning, and the pages' cursors.
func all(t *testing.T, s Source) (items map[string]Item, named []string, cursors []string) {
	t.Helper()
	items = map[string]Item{}
	for cursor := ""; ; {
		p, err := s.List(t.Context(), cursor, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range p.Items {
			if _, twice := items[string(i.Key)]; twice {
				t.Errorf("%s is listed twice", i.Key)
			}
			items[string(i.Key)] = i
		}
		for _, k := range p.Named {
			named = append(named, string(k))
		}
		if len(p.Next) == 0 {
			return items, named, cursors
		}
		cursor = p.Next[0]
		cursors = append(cursors, cursor)
		if len(cursors) > 1000 {
			t.Fatal("the list has no end")
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnEndpointOfTheApplication(t *testing.T) {
	token := write(t, "secret\n")
	answer := func(w http.ResponseWriter, r *http.Request) {}
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(endpoint.Close)
	s := open(t, mesh.Source{Loader: &mesh.Loader{URL: endpoint.URL, TokenFile: token}}, warming.Keys{Prefix: "tweet:"})
	keys := [][]byte{[]byte("tweet:1"), []byte("tweet:2"), []byte("tweet:3")}
	says := func(status int, text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			w.Write([]byte(text))
		}
	}
	answer = says(200, `{"entries": [{"key": "tweet:2", "value": "two", "ttlMs": 5000}, {"key": "tweet:1", "value": "AAH/", "base64": true}]}`)
	b, err := s.Fetch(t.Context(), keys)
	if err != nil || len(b.Items) != 2 || b.Missing != 1 || string(b.Items[0].Value) != "two" || b.Items[0].TTL != 5*time.Second || string(b.Items[1].Value) != "\x00\x01\xff" || b.Items[1].TTL != 0 {
		t.Errorf("half a batch: %+v %v", b, err)
	}
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		keys   bool // whether it is about the keys
		text   string
	}{
		"garbage":               {says(200, "<html>"), true, "not as it should be"},
		"a key nobody asked of": {says(200, `{"entries": [{"key": "x", "value": ""}]}`), true, `"x"`},
		"a key twice":           {says(200, `{"entries": [{"key": "tweet:1", "value": ""}, {"key": "tweet:1", "value": ""}]}`), true, "twice"},
		"no value":              {says(200, `{"entries": [{"key": "tweet:1"}]}`), true, "no \"value\""},
		"a negative ttl":        {says(200, `{"entries": [{"key": "tweet:1", "value": "", "ttlMs": -1}]}`), true, "ttlMs of -1"},
		"not base64":            {says(200, `{"entries": [{"key": "tweet:1", "value": "!", "base64": true}]}`), true, "base64"},
		"nothing to find":       {says(404, "no such list"), true, "no such list"},
		"a redirect":            {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, true, "302"},
		"overload":              {says(503, "later"), false, "later"},
		"too many requests":     {says(429, ""), false, "429"},
		"100 MB": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"entries": [{"key": "tweet:1", "value": "`))
			for part := []byte(strings.Repeat("x", 1<<20)); r(w.Write(part)); {
			}
		}, true, "more than 16 MiB"},
		"an answer that breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Write([]byte(`{"entries": [`))
		}, false, "breaks off"},
	} {
		answer = test.answer
		b, err := s.Fetch(t.Context(), keys)
		if err == nil || errors.Is(err, ErrKeys) != test.keys || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %q, and about the keys: %v", name, err, test.text, test.keys)
		}
		if err == nil && len(b.Items) > 0 {
			t.Errorf("%s: there are items", name)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the token is told: %v", name, err)
		}
	}
	if err := os.WriteFile(token, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), keys); err == nil || errors.Is(err, ErrKeys) {
		t.Errorf("a wrong token: %v", err)
	}
}

// r says whether a write went well.
func r(_ int, err error) bool { return err == nil }

func TestAnEndpointThatHangs(t *testing.T) {
	release := make(chan struct{})
	endpoint := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(endpoint.Close)
	t.Cleanup(func() { close(release) })
	s := newLoader(endpoint.URL, "", "here", "")
	s.client.Timeout = 200 * time.Millisecond
	if _, err := s.Fetch(t.Context(), [][]byte{[]byte("a")}); err == nil || errors.Is(err, ErrKeys) {
		t.Errorf("got %v", err)
	}
}

func TestAnEndpointThatLists(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body [1000]byte
		n, _ := r.Body.Read(body[:])
		switch string(body[:n]) {
		case `{"cursor":"","prefix":"tweet:","region":"here"}`:
			w.Write([]byte(`{"keys": ["tweet:1", "tweet:2"], "cursor": "2"}`))
		case `{"cursor":"2","prefix":"tweet:","region":"here"}`:
			w.Write([]byte(`{"keys": ["tweet:3"], "cursor": ""}`))
		default:
			w.WriteHeader(400)
		}
	}))
	t.Cleanup(endpoint.Close)
	_, named, _ := all(t, open(t, mesh.Source{Loader: &mesh.Loader{URL: endpoint.URL}}, warming.Keys{Prefix: "tweet:"}))
	if fmt.Sprint(named) != "[tweet:1 tweet:2 tweet:3]" {
		t.Errorf("listed %v", named)
	}
}

func TestFiles(t *testing.T) {
	var keys, values strings.Builder
	const n = 3 * fileLines
	for i := range n {
		fmt.Fprintf(&keys, "tweet:%d\r\n", i)
		fmt.Fprintf(&values, `{"key": "tweet:%d", "value": "value %d", "ttlMs": 60000}`+"\n", i, i)
	}
	keys.WriteString("user:1\n\ntweet:last")
	s := open(t, mesh.Source{Region: "there"}, warming.Keys{Prefix: "tweet:", File: write(t, keys.String())})
	_, named, cursors := all(t, s)
	if len(named) != n+1 || named[n] != "tweet:last" || named[0] != "tweet:0" {
		t.Errorf("%d keys are listed, the last is %q", len(named), named[len(named)-1])
	}
	if p, err := s.List(t.Context(), cursors[0], cursors[1]); err != nil || len(p.Next) != 0 || string(p.Named[0]) != fmt.Sprint("tweet:", fileLines) || len(p.Named) != fileLines {
		t.Errorf("a part of it: %d keys, %v %v", len(p.Named), p.Next, err)
	}
	path := write(t, values.String())
	items, _, _ := all(t, open(t, mesh.Source{File: path}, warming.Keys{}))
	if i := items["tweet:4999"]; len(items) != n || string(i.Value) != "value 4999" || i.TTL != time.Minute {
		t.Errorf("%d items are listed: %+v", len(items), i)
	}
	for name, test := range map[string]struct{ path, text string }{
		"no file":  {path + "x", "no such file"},
		"a folder": {t.TempDir(), "not a file"},
		"no JSON":  {write(t, "{\"key\": \"a\", \"value\": \"b\"}\nnothing\n"), "at byte 27"},
		"no end":   {write(t, strings.Repeat("x", maxLine+1)), "more than"},
	} {
		_, err := open(t, mesh.Source{File: test.path}, warming.Keys{}).List(t.Context(), "", "")
		if !errors.Is(err, ErrKeys) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tweets fills a database with a table of tweets.
func tweets(t *testing.T, db *sql.DB, n int, insert string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE tweets (id bigint PRIMARY KEY, body text)"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), insert, n); err != nil {
		t.Fatal(err)
	}
}

const query = "SELECT 'tweet:' || id AS key, body AS value, 60 + id % 2 AS ttl FROM tweets -- all of them"

func checkTweets(t *testing.T, s Source, n int) {
	t.Helper()
	items, _, cursors := all(t, s)
	if i := items["tweet:7"]; len(items) != n || string(i.Value) != "body 7" || i.TTL != 61*time.Second {
		t.Errorf("%d items are listed: %+v", len(items), i)
	}
	p, err := s.List(t.Context(), cursors[0], cursors[1])
	if err != nil || len(p.Items) != sqlRows || "k"+string(p.Items[sqlRows-1].Key) != cursors[1] {
		t.Errorf("a part of it: %d items, %v", len(p.Items), err)
	}
}

func TestSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a?b.db")
	dsn := "file:" + strings.ReplaceAll(path, "?", "%3f")
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const n = 1500
	tweets(t, db, n, "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?) INSERT INTO tweets SELECT i, 'body ' || i FROM c")
	t.Setenv("WARM_DSN", dsn)
	from := func(query string) mesh.Source {
		return mesh.Source{SQL: &mesh.SQL{Driver: mesh.SQLite, DSNEnv: "WARM_DSN", Query: query}}
	}
	checkTweets(t, open(t, from(query), warming.Keys{Prefix: "tweet:"}), n)
	if items, _, _ := all(t, open(t, from("SELECT 'user:1' AS key, 'x' AS value UNION ALL SELECT 'tweet:1', x'00ff' UNION ALL SELECT 'tweet:2', NULL"), warming.Keys{Prefix: "tweet:"})); len(items) != 1 || string(items["tweet:1"].Value) != "\x00\xff" {
		t.Errorf("listed %v", items)
	}
	for name, test := range map[string]struct{ query, text string }{
		"no SQL":         {"SELEC 1", "syntax error"},
		"no such table":  {"SELECT key, value FROM missing", "no such table"},
		"other columns":  {"SELECT 1 AS key, 2 AS content", "columns key, content"},
		"a ttl of 0":     {"SELECT 'tweet:1' AS key, 2 AS value, 0 AS ttl", "ttl of 0"},
		"NULL for a key": {"SELECT NULL AS key, 2 AS value", "NULL"},
		"it writes":      {"SELECT 1 AS key, 2 AS value) AS x; DELETE FROM tweets; --", ""},
	} {
		_, err := open(t, from(test.query), warming.Keys{}).List(t.Context(), "", "")
		if err == nil || !strings.Contains(err.Error(), test.text) || test.text != "" && !errors.Is(err, ErrKeys) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var left int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM tweets").Scan(&left); err != nil || left != n {
		t.Errorf("%d rows are left of %d: %v", left, n, err)
	}
}

func TestPostgres(t *testing.T) {
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	// A folder that another user may enter.
	dir, err := os.MkdirTemp("", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	server := process.Postgres{Port: ports[0], Dir: dir}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := server.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.StopPostgres(p) })
	db, err := sql.Open("pgx", server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const n = 1500
	tweets(t, db, n, "INSERT INTO tweets SELECT i, 'body ' || i FROM generate_series(1, $1) AS i")
	dsn := write(t, server.URL()+"\n")
	from := func(query string) mesh.Source {
		return mesh.Source{SQL: &mesh.SQL{Driver: mesh.Postgres, DSNFile: dsn, Query: query}}
	}
	s := open(t, from(query), warming.Keys{Prefix: "tweet:"})
	checkTweets(t, s, n)
	if items, _, _ := all(t, open(t, from("SELECT id AS key, decode('00ff', 'hex') AS value FROM tweets WHERE id = 1"), warming.Keys{})); len(items) != 1 || string(items["1"].Value) != "\x00\xff" {
		t.Errorf("listed %v", items)
	}
	for name, test := range map[string]struct{ query, text string }{
		"no SQL":        {"SELEC 1", "42601"},
		"no such table": {"SELECT key, value FROM missing", "42P01"},
		"other columns": {"SELECT '1' AS key, 2 AS content", "columns key, content"},
		"bad data":      {"SELECT 'x' AS key, 1 / 0 AS value", "22012"},
	} {
		_, err := open(t, from(test.query), warming.Keys{}).List(t.Context(), "", "")
		if !errors.Is(err, ErrKeys) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := open(t, from("WITH gone AS (DELETE FROM tweets RETURNING id) SELECT 'x' AS key, 1 AS value"), warming.Keys{}).List(t.Context(), "", ""); err == nil {
		t.Error("a query may write")
	}
	process.StopPostgres(p)
	if _, err := s.List(t.Context(), "", ""); err == nil || errors.Is(err, ErrKeys) {
		t.Errorf("a database that is gone: %v", err)
	}
}
