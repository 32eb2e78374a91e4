package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// A profile that is changed in one region is fresh in the other a moment later, though its cache had the one before. How far behind
// the regions are is shown meanwhile, and what they do for it counts as nobody's hits and misses.
func TestDemoKeepsItsRegionsCoherent(t *testing.T) {
	d := startDemo(t, "--no-load")
	here, there := d.endpoints.Regions[0], d.endpoints.Regions[1]
	ask := func(method, at, body string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, at, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		reply, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer reply.Body.Close()
		text, err := io.ReadAll(reply.Body)
		if err != nil || reply.StatusCode >= 300 {
			t.Fatalf("%s %s: %s, %s, %v", method, at, reply.Status, text, err)
		}
		return string(text)
	}
	const user = "/users/7"
	var took []time.Duration
	for i := range 100 {
		bio := fmt.Sprintf("changed %d times", i+1)
		for _, s := range there.Sidecars {
			ask(http.MethodGet, s.App+user, "") // fills the cache
		}
		body, _ := json.Marshal(map[string]string{"bio": bio})
		ask(http.MethodPatch, here.Sidecars[i%2].App+user, string(body))
		changed := time.Now()
		for !strings.Contains(ask(http.MethodGet, there.Sidecars[i%2].App+user, ""), bio) {
			if time.Since(changed) > 20*time.Second {
				t.Fatalf("after %d changes, the last is not seen in %s", i+1, there.Name)
			}
		}
		took = append(took, time.Since(changed))
	}
	slices.Sort(took)
	t.Logf("fresh in %s after %v (median), %v at most", there.Name, took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > 100*time.Millisecond {
		t.Errorf("a profile changed in %s is fresh in %s after %v", here.Name, there.Name, took)
	}
	var status struct {
		Links []struct {
			From  string   `json:"from"`
			To    string   `json:"to"`
			LagMS *float64 `json:"lag_ms"`
		} `json:"links"`
	}
	eventually(t, 20*time.Second, func() error {
		if err := json.Unmarshal([]byte(cachemesh(t, "region", "status", "--dir", d.dir, "-o", "json").want(t, 0).stdout), &status); err != nil {
			return err
		}
		for _, l := range status.Links {
			if l.LagMS == nil || *l.LagMS > 1000 {
				return fmt.Errorf("%+v", l)
			}
		}
		if len(status.Links) < 2 {
			return fmt.Errorf("%+v", status)
		}
		return nil
	})
	d.countsNothing(t)
}

// countsNothing checks that no node has hits or misses while nobody asks the applications anything.
func (d *demoRun) countsNothing(t *testing.T) {
	t.Helper()
	type primary struct{ Commands, Hits, Misses int64 }
	primaries := func() map[string]primary {
		var all struct {
			Regions []struct {
				Shards []struct {
					Nodes []struct {
						Address, Role string
						primary
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(cachemesh(t, "status", "--dir", d.dir, "-o", "json").want(t, 0).stdout), &all); err != nil {
			t.Fatal(err)
		}
		found := map[string]primary{}
		for _, r := range all.Regions {
			for _, s := range r.Shards {
				for _, n := range s.Nodes {
					if n.Role == "primary" {
						found[n.Address] = n.primary
					}
				}
			}
		}
		return found
	}
	before := primaries()
	if len(before) != 12 {
		t.Fatalf("the status has these primaries: %v", before)
	}
	eventually(t, time.Minute, func() error {
		now := primaries()
		for address, n := range now {
			if was := before[address]; n.Hits != was.Hits || n.Misses != was.Misses {
				before = now
				return fmt.Errorf("%s had %+v and has %+v", address, was, n)
			} else if n.Commands < was.Commands+200 {
				return fmt.Errorf("%s has had %d commands", address, n.Commands-was.Commands)
			}
		}
		return nil
	})
}
