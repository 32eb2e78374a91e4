package app

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

const loaderToken = "open sesame"

func TestLoader(t *testing.T) {
	r := startRegions(t, seeded(t, "us-east"), regionOptions{token: loaderToken}, "us-east")[0]
	var answer struct {
		Entries []loaderEntry
		Keys    []string
		Cursor  string
	}
	ask := func(query, body string) {
		t.Helper()
		status, text := r.doAs(t, loaderToken, "POST", loaderPath+query, body)
		if err := json.Unmarshal([]byte(text), &answer); status != http.StatusOK || err != nil {
			t.Fatalf("%s: %d %s", body, status, text)
		}
	}
	ask("", `{"keys":["tweet:7","user:3","tweet:99999","tweet:x","timeline:1","user:-1","nonsense"]}`)
	if len(answer.Entries) != 2 || answer.Entries[0].Key != "tweet:7" || answer.Entries[1].Key != "user:3" {
		t.Fatalf("entries %+v, want tweet 7 and user 3", answer.Entries)
	}
	for i, path := range []string{"/tweets/7", "/users/3"} {
		if _, want := r.do(t, "GET", path, ""); answer.Entries[i].Value != strings.TrimSpace(want) || answer.Entries[i].TTL <= 0 {
			t.Errorf("%+v, want the answer %s and a time to live", answer.Entries[i], want)
		}
	}
	ask("?list=trending", `{"prefix":"tweet:","region":"us-east","cursor":""}`)
	spread, err := r.store.Spread(t.Context(), "us-east", trendingTimelines, maxTrending)
	if err != nil || len(answer.Keys) == 0 || len(answer.Keys) != len(spread) || answer.Keys[0] != tweetKey(spread[0]) || answer.Cursor != "" {
		t.Errorf("%d trending keys and cursor %q, want %d, %v", len(answer.Keys), answer.Cursor, len(spread), err)
	}
	var stats Stats
	r.get(t, "/stats", &stats)
	if stats.LoaderReads != 3 {
		t.Errorf("%d reads for the loader, want one for tweets, one for users and one for the list", stats.LoaderReads)
	}
}

func TestLoaderRefuses(t *testing.T) {
	r := startRegions(t, seeded(t, "us-east"), regionOptions{token: loaderToken}, "us-east")[0]
	for _, c := range []struct {
		token, query, body string
		status             int
		answer             string
	}{
		{"", "", `{"keys":["tweet:7"]}`, 401, "bearer token"},
		{"open", "", `{"keys":["tweet:7"]}`, 401, "bearer token"},
		{loaderToken, "", `{`, 400, "JSON object"},
		{loaderToken, "", `{"keys":["` + strings.Repeat(`tweet:7","`, maxLoaderKeys) + `"]}`, 400, "at most 512"},
		{loaderToken, "", `{"keys":["` + strings.Repeat("x", maxLoaderBody) + `"]}`, 413, "larger than"},
		{loaderToken, "?list=other", `{"prefix":"tweet:","region":"us-east"}`, 400, "no list"},
		{loaderToken, "?list=trending", `{"prefix":"user:","region":"us-east"}`, 400, "no list"},
		{loaderToken, "?list=trending", `{"prefix":"tweet:"}`, 400, "region"},
	} {
		if status, answer := r.doAs(t, c.token, "POST", loaderPath+c.query, c.body); status != c.status || !strings.Contains(answer, c.answer) {
			t.Errorf("%.60s: %d %.200s, want %d with %s", c.body, status, answer, c.status, c.answer)
		}
	}
	if n := r.store.Reads(); n > 1 { // the users' homes, at the start
		t.Errorf("%d reads for what was refused", n-1)
	}
}
