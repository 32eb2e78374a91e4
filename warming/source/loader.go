package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	loaderTimeout = 10 * time.Second
	// maxAnswer bounds what the endpoint answers, in bytes, and maxListed how many keys it lists at once.
	maxAnswer = 16 << 20
	maxListed = 10_000
)

// loader is the application's HTTP endpoint, see docs/loader.md.
type loader struct {
	url       string
	tokenFile string
	region    string // that is warmed
	prefix    string
	client    *http.Client
}

func newLoader(url, tokenFile, region, prefix string) *loader {
	return &loader{url: url, tokenFile: tokenFile, region: region, prefix: prefix, client: &http.Client{
		Timeout: loaderTimeout,
		// The token is for this endpoint and no other.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: loaderTimeout},
	}}
}

func (l *loader) List(ctx context.Context, cursor, _ string) (Page, error) {
	var answer struct {
		Keys   []string `json:"keys"`
		Cursor string   `json:"cursor"`
	}
	if err := l.post(ctx, map[string]string{"prefix": l.prefix, "region": l.region, "cursor": cursor}, &answer); err != nil {
		return Page{}, err
	}
	if n := len(answer.Keys); n > maxListed {
		return Page{}, l.bad("it lists %d keys, and may list %d at once", n, maxListed)
	}
	if answer.Cursor != "" && answer.Cursor == cursor {
		return Page{}, l.bad("its list goes on where it was")
	}
	var p Page
	for _, k := range answer.Keys {
		if k == "" || !strings.HasPrefix(k, l.prefix) {
			return Page{}, l.bad("it lists %.100q, which does not begin with %q", k, l.prefix)
		}
		p.Named = append(p.Named, []byte(k))
	}
	if answer.Cursor != "" {
		p.Next = []string{answer.Cursor}
	}
	return p, nil
}

func (l *loader) Fetch(ctx context.Context, keys [][]byte) (Batch, error) {
	b := Batch{Began: time.Now()}
	asked, names := make(map[string]bool, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		names[i] = string(k)
		asked[names[i]] = true
	}
	var answer struct {
		Entries []entry `json:"entries"`
	}
	if err := l.post(ctx, map[string][]string{"keys": names}, &answer); err != nil {
		return b, err
	}
	for _, e := range answer.Entries {
		if e.Key != nil && !asked[*e.Key] {
			return b, l.bad("it answers with key %.100q, which was not asked for, or twice", *e.Key)
		}
		if err := e.add(&b); err != nil {
			return b, l.bad("%w", err)
		}
		delete(asked, *e.Key)
	}
	b.Missing = len(asked)
	return b, nil
}

// bad is about what the endpoint says.
func (l *loader) bad(format string, args ...any) error {
	return fmt.Errorf("%w: loader %s: %w", ErrKeys, l.url, fmt.Errorf(format, args...))
}

func (l *loader) post(ctx context.Context, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(body))
	if err != nil {
		return l.bad("%w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	if l.tokenFile != "" {
		token, err := os.ReadFile(l.tokenFile)
		if err != nil {
			return fmt.Errorf("tokenFile: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	reply, err := l.client.Do(r)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	limited := &io.LimitedReader{R: reply.Body, N: maxAnswer + 1}
	data, err := io.ReadAll(limited)
	switch {
	case limited.N == 0:
		return l.bad("its answer has more than %d MiB", maxAnswer>>20)
	case err != nil:
		return fmt.Errorf("loader %s: its answer breaks off: %w", l.url, err)
	case reply.StatusCode == http.StatusOK:
		if err := json.Unmarshal(data, answer); err != nil {
			return l.bad("its answer is not as it should be: %w", err)
		}
		return nil
	}
	err = fmt.Errorf("loader %s: %s: %.200q", l.url, reply.Status, data)
	switch s := reply.StatusCode; {
	case s == http.StatusRequestTimeout || s == http.StatusTooManyRequests || s >= 500, s == http.StatusUnauthorized || s == http.StatusForbidden:
		return err // a token may be about to change
	}
	return errors.Join(ErrKeys, err)
}

func (l *loader) Close() { l.client.CloseIdleConnections() }
