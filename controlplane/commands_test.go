package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// asked is a control plane's answer to commands, and what it was asked.
type asked struct {
	commands []shards.Command
	event    shards.Event
	err      error
}

func (a *asked) handler() http.Handler {
	topology := mesh.Topology{Pools: []mesh.Pool{{Name: "p", Shards: []mesh.Shard{{Name: "p-0"}}}}}
	mux := http.NewServeMux()
	commandAPI{topology: func() mesh.Topology { return topology }, ask: func(_ context.Context, c shards.Command) (shards.Event, error) {
		a.commands = append(a.commands, c)
		return a.event, a.err
	}}.register(mux)
	return mux
}

func command(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:40000"
	r.Header.Set("Content-Type", "application/json")
	return r
}

func answer1(h http.Handler, r *http.Request) (int, string, http.Header) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String(), w.Header()
}

func TestCommandsReachTheManager(t *testing.T) {
	for name, c := range map[string]struct {
		path, body string
		want       shards.Command
	}{
		"switch":             {"/v1/shards/p-0/switch", `{"to": "10.0.0.1:1", "force": true}`, shards.Command{Kind: shards.Switch, Pool: "p", Shard: "p-0", Node: "10.0.0.1:1", Force: true}},
		"switch to the best": {"/v1/shards/p-0/switch", `{}`, shards.Command{Kind: shards.Switch, Pool: "p", Shard: "p-0"}},
		"an empty body":      {"/v1/shards/p-0/switch", ``, shards.Command{Kind: shards.Switch, Pool: "p", Shard: "p-0"}},
		"restart":            {"/v1/shards/p-0/restart", `{"node": "10.0.0.1:1"}`, shards.Command{Kind: shards.Restarted, Pool: "p", Shard: "p-0", Node: "10.0.0.1:1"}},
		"accept":             {"/v1/pools/p/accept", `{}`, shards.Command{Kind: shards.Accepted, Pool: "p"}},
	} {
		a := asked{event: event(7)}
		code, body, _ := answer1(a.handler(), command("POST", c.path, c.body))
		if code != http.StatusOK || !strings.Contains(body, `"id": 7`) {
			t.Errorf("%s: answers %d %s", name, code, body)
		}
		if diff := cmp.Diff([]shards.Command{c.want}, a.commands); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestCommandsThatAreNotMeantAreRefused(t *testing.T) {
	change := func(f func(*http.Request)) *http.Request {
		r := command("POST", "/v1/shards/p-0/switch", `{}`)
		f(r)
		return r
	}
	for name, c := range map[string]struct {
		request *http.Request
		code    int
		want    string
	}{
		"another host":      {change(func(r *http.Request) { r.RemoteAddr = "10.1.2.3:4" }), 403, "--http-client-auth"},
		"another host, v6":  {change(func(r *http.Request) { r.RemoteAddr = "[2001:db8::1]:4" }), 403, "--http-client-auth"},
		"TLS without proof": {change(func(r *http.Request) { r.RemoteAddr, r.TLS = "10.1.2.3:4", &tls.ConnectionState{} }), 403, "--http-client-auth"},
		"a web page":        {change(func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:18080") }), 403, "Origin"},
		"a form":            {change(func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }), 415, "application/json"},
		"no type":           {change(func(r *http.Request) { r.Header.Del("Content-Type") }), 415, "application/json"},
		"not JSON":          {command("POST", "/v1/shards/p-0/switch", `to=x`), 400, "body"},
		"two objects":       {command("POST", "/v1/shards/p-0/switch", `{} {}`), 400, "follows"},
		"a list":            {command("POST", "/v1/shards/p-0/switch", `[]`), 400, "body"},
		"an unknown field":  {command("POST", "/v1/shards/p-0/switch", `{"too": "x"}`), 400, "too"},
		"a wrong type":      {command("POST", "/v1/shards/p-0/switch", `{"force": "yes"}`), 400, "force"},
		"too long":          {command("POST", "/v1/shards/p-0/switch", `{"to": "`+strings.Repeat("x", 5000)+`"}`), 413, "4096"},
		"no such shard":     {command("POST", "/v1/shards/p-9/switch", `{}`), 404, "p-9"},
		"no such pool":      {command("POST", "/v1/pools/q/accept", `{}`), 404, "q"},
		"no node":           {command("POST", "/v1/shards/p-0/restart", `{}`), 400, "node"},
		"GET":               {command("GET", "/v1/shards/p-0/switch", ``), 405, ""},
	} {
		var a asked
		code, body, _ := answer1(a.handler(), c.request)
		if code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: answers %d %s, want %d with %q", name, code, body, c.code, c.want)
		}
		if len(a.commands) != 0 {
			t.Errorf("%s: the manager was asked", name)
		}
	}
}

func TestCommandsFromThisHostOverIPv6(t *testing.T) {
	for _, from := range []string{"[::1]:5", "[::ffff:127.0.0.1]:5", "127.9.9.9:5"} {
		var a asked
		r := command("POST", "/v1/pools/p/accept", ``)
		r.RemoteAddr = from
		if code, body, _ := answer1(a.handler(), r); code != http.StatusOK {
			t.Errorf("from %s: %d %s", from, code, body)
		}
	}
}

func TestACommandGoesToWhoLeads(t *testing.T) {
	leader := asked{event: event(9)}
	there := httptest.NewServer(leader.handler())
	defer there.Close()
	follower := asked{err: notLeading{leader: there.URL, reason: errors.New("another leads")}}
	here := httptest.NewServer(follower.handler())
	defer here.Close()
	response, err := http.Post(here.URL+"/v1/shards/p-0/switch", "application/json", strings.NewReader(`{"to": "10.0.0.1:1"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK || len(leader.commands) != 1 || leader.commands[0].Node != "10.0.0.1:1" {
		t.Errorf("answers %s %s; the leader was asked %v", response.Status, body, leader.commands)
	}

	for want, err := range map[int]error{
		http.StatusServiceUnavailable: notLeading{reason: errors.New("Consul has no leader")},
		http.StatusConflict:           errors.New("p-0 has no replica that is synchronised"),
	} {
		a := asked{err: err}
		if code, body, _ := answer1(a.handler(), command("POST", "/v1/shards/p-0/switch", ``)); code != want || !strings.Contains(body, err.Error()) {
			t.Errorf("answers %d %s, want %d with %q", code, body, want, err)
		}
	}
}

func TestOnlyOperatorsCertificatesMayChangeAnything(t *testing.T) {
	dir := t.TempDir()
	ours := authority(t)
	certificates := source(t, issue(t, dir, "server", ours, certs.Leaf{Name: "first", Hosts: []string{"127.0.0.1"}, Server: true}))
	var a asked
	commands := a.handler()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = "10.1.2.3:4" // as from another host
		commands.ServeHTTP(w, r)
	}))
	server.TLS = certificates.Server(true)
	server.StartTLS()
	defer server.Close()
	for name, c := range map[string]struct {
		leaf certs.Leaf
		want int
	}{
		"operator": {certs.Leaf{Name: "operator", SPIFFE: []string{"operator"}}, http.StatusOK},
		"sidecar":  {certs.Leaf{Name: "web-1", SPIFFE: []string{"home", "web-1"}}, http.StatusForbidden},
		"anybody":  {certs.Leaf{Name: "anybody"}, http.StatusOK},
	} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: source(t, issue(t, dir, name, ours, c.leaf)).Client("")}}
		response, err := client.Post(server.URL+"/v1/pools/p/accept", "application/json", strings.NewReader(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		client.CloseIdleConnections()
		if response.StatusCode != c.want {
			t.Errorf("%s: answers %s %s, want %d", name, response.Status, body, c.want)
		}
	}
}
