package controlplane

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cachemesh/cachemesh/shards"
)

var epochStart = time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.UTC)

func event(id uint64) shards.Event {
	return shards.Event{ID: id, Time: epochStart.Add(time.Duration(id) * time.Second), Region: "here", Pool: "p", Shard: fmt.Sprintf("p-%d", id%2),
		Kind: shards.Kinds[id%2], Epoch: id, Reason: "because", Steps: []shards.Step{{Name: "served", MS: 1.5}}}
}

func events(from, to uint64) (all []shards.Event) {
	for id := from; id <= to; id++ {
		all = append(all, event(id))
	}
	return all
}

func openLog(t *testing.T, folder string) *eventLog {
	t.Helper()
	l, err := openEvents(folder, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// fresh appends events and returns those that were new.
func (l *eventLog) fresh(all []shards.Event) (ids []uint64) {
	l.observe = func(e shards.Event) { ids = append(ids, e.ID) }
	l.append(all)
	return ids
}

func (l *eventLog) ids() (ids []uint64) {
	all, _, _ := l.from(0)
	for _, e := range all {
		ids = append(ids, e.ID)
	}
	return ids
}

func TestEventsSurviveARestartOnceEach(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	if fresh := l.fresh(events(1, 3)); len(fresh) != 3 {
		t.Errorf("%d events are new, want 3", len(fresh))
	}
	if fresh := l.fresh(events(2, 4)); !slices.Equal(fresh, []uint64{4}) {
		t.Errorf("new are %v, want 4 alone", fresh)
	}
	l = openLog(t, dir)
	all, _, _ := l.from(0)
	if diff := cmp.Diff(events(1, 4), all); diff != "" {
		t.Error(diff)
	}
	if fresh := l.fresh(events(1, 5)); len(fresh) != 1 {
		t.Errorf("after a restart %d events are new, want 1", len(fresh))
	}
	info, err := os.Stat(filepath.Join(dir, "events.jsonl"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
}

func TestEventsOfAStateThatBeganAnewAreNotTakenForOldOnes(t *testing.T) {
	l := openLog(t, t.TempDir())
	l.append(events(1, 3))
	again := event(2)
	again.Time = again.Time.Add(time.Hour)
	if fresh := l.fresh([]shards.Event{again}); len(fresh) != 1 {
		t.Fatal("an event with a number that was given before is not kept")
	}
	if got := l.ids(); !slices.Equal(got, []uint64{1, 2, 3, 2}) {
		t.Errorf("the events are %v", got)
	}
	if rest, _, _ := l.from(l.after(2)); len(rest) != 0 {
		t.Errorf("after the newest 2 there are %v", rest)
	}
}

func TestTornAndForeignLinesAreLeftOut(t *testing.T) {
	for name, spoil := range map[string]func(file string) string{
		"torn":      func(f string) string { return f[:len(f)-20] },
		"in middle": func(f string) string { return strings.Replace(f, "\n", "\n{\"id\":\n\x00\n", 1) },
		"empty":     func(f string) string { return "\n\n" + f },
		"no end":    func(f string) string { return strings.TrimSuffix(f, "\n") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			openLog(t, dir).append(events(1, 3))
			path := filepath.Join(dir, "events.jsonl")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(spoil(string(data))), 0o600); err != nil {
				t.Fatal(err)
			}
			openLog(t, dir).append(events(1, 4)) // the state still has them
			data, err = os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
			if len(lines) != 4 {
				t.Errorf("the file has %d lines, want 4:\n%s", len(lines), data)
			}
			for _, line := range lines {
				if !json.Valid([]byte(line)) {
					t.Errorf("the file has the line %q", line)
				}
			}
		})
	}
}

func TestTheLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	l.append(events(1, maxEvents+1))
	ids := l.ids()
	if len(ids) > maxEvents || len(ids) < maxEvents/2 || ids[len(ids)-1] != maxEvents+1 {
		t.Errorf("%d events are left, the last is %d", len(ids), ids[len(ids)-1])
	}
	if got := openLog(t, dir).ids(); !slices.Equal(got, ids) {
		t.Errorf("the file has %d events, memory %d", len(got), len(ids))
	}

	long := event(maxEvents + 2)
	long.Reason = strings.Repeat("x", 64<<10)
	for range 100 {
		long.ID++
		l.append([]shards.Event{long})
		if info, err := os.Stat(l.path); err != nil || info.Size() > maxEventsBytes {
			t.Fatalf("the file is %v, %v", info, err)
		}
	}
	if got := openLog(t, dir).ids(); got[len(got)-1] != long.ID {
		t.Errorf("the last event in the file is %d, want %d", got[len(got)-1], long.ID)
	}
}

func TestADiskThatWasFullLosesNothing(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	l.append(events(1, 2))
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	l.append(events(3, 4))
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	l.append(events(5, 5))
	if got := openLog(t, dir).ids(); !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
		t.Errorf("the file has %v", got)
	}
}

func getEvents(t *testing.T, url string) (int, []uint64, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		return response.StatusCode, nil, string(body)
	}
	if got := response.Header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("the type is %q", got)
	}
	var ids []uint64
	for line := range strings.Lines(string(body)) {
		var e shards.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ids = append(ids, e.ID)
	}
	return response.StatusCode, ids, ""
}

func TestEventsAreAskedFor(t *testing.T) {
	l := openLog(t, "")
	l.append(events(1, 6))
	server := httptest.NewServer(l)
	defer server.Close()
	for query, want := range map[string][]uint64{
		"":                                {1, 2, 3, 4, 5, 6},
		"since=4":                         {5, 6},
		"since=6":                         nil,
		"since=99":                        nil,
		"shard=p-1":                       {1, 3, 5},
		"pool=other":                      nil,
		"limit=2":                         {5, 6},
		"since=1&limit=2&shard=p-0":       {4, 6},
		"kind=" + string(shards.Failover): {1, 3, 5},
		"kind=failover&kind=bootstrap":    {1, 2, 3, 4, 5, 6},
		"follow=false":                    {1, 2, 3, 4, 5, 6},
	} {
		if code, got, body := getEvents(t, server.URL+"?"+query); code != http.StatusOK || !slices.Equal(got, want) {
			t.Errorf("?%s answers %d %v %s, want %v", query, code, got, body, want)
		}
	}
	for query, want := range map[string]string{
		"since=x": "since", "limit=0": "limit", "limit=-1": "limit", "follow=perhaps": "follow", "kind=x": "kind", "sinze=1": "sinze",
	} {
		if code, _, body := getEvents(t, server.URL+"?"+query); code != http.StatusBadRequest || !strings.Contains(body, want) {
			t.Errorf("?%s answers %d %s, want 400 with %q", query, code, body, want)
		}
	}
}

func TestFollowersGetWhatComes(t *testing.T) {
	l := openLog(t, "")
	l.append(events(1, 2))
	server := httptest.NewServer(l)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"?follow=true&shard=p-1&limit=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	next := func() uint64 {
		t.Helper()
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var e shards.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		return e.ID
	}
	if id := next(); id != 1 {
		t.Errorf("first comes %d, want 1", id)
	}
	l.append(events(3, 3))
	if id := next(); id != 3 {
		t.Errorf("then comes %d, want 3", id)
	}
	l.append(events(4, 7))
	if a, b := next(), next(); a != 5 || b != 7 {
		t.Errorf("then come %d and %d, want 5 and 7", a, b)
	}
}
