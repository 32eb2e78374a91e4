package sidecar

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/regions"
	"github.com/cachemesh/cachemesh/reports"
)

// linkOf is an agent's link with the certificate of a sidecar in the folder; without a folder, in plaintext.
func linkOf(t *testing.T, dir, region, name string) *link {
	t.Helper()
	c := Config{Name: name, Region: region, Identity: certs.SPIFFE, Logger: slog.New(slog.DiscardHandler)}
	var source *certs.Source
	if dir != "" {
		base := filepath.Join(dir, region, name)
		c.TLS = certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: base + ".pem", Key: base + "-key.pem"}
		var err error
		if source, err = certs.Open(c.TLS, nil); err != nil {
			t.Fatal(err)
		}
	}
	l := newLink(c, "", source)
	t.Cleanup(l.close)
	return l
}

// certificates are those of sidecars a in here and b in there.
func certificates(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := certs.WriteDevelopment(dir, certs.Development{Sidecars: []certs.Sidecar{{Region: "here", Name: "a"}, {Region: "there", Name: "b"}}}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRegionsTrustTheirOwnOnly(t *testing.T) {
	ours, foreign := certificates(t), certificates(t)
	there := linkOf(t, ours, "there", "b")
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	there.config.Link = process.Redis{Port: ports[0]}.Address()
	listener, err := there.listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- there.run(ctx, listener) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for name, test := range map[string]struct {
		who    *link
		region string // that is meant
		says   *regions.Hello
		want   codes.Code
		text   string
	}{
		"a sidecar of another region":       {linkOf(t, ours, "here", "a"), "there", &regions.Hello{Region: "here", Agent: "a", To: "there"}, codes.Unavailable, "does not know its region's shards yet"},
		"under another name":                {linkOf(t, ours, "here", "a"), "there", &regions.Hello{Region: "here", Agent: "c", To: "there"}, codes.PermissionDenied, "needs spiffe://cachemesh/here/c"},
		"as another region":                 {linkOf(t, ours, "here", "a"), "there", &regions.Hello{Region: "far", Agent: "a", To: "there"}, codes.PermissionDenied, "needs spiffe://cachemesh/far/a"},
		"with a foreign certificate":        {linkOf(t, foreign, "here", "a"), "there", &regions.Hello{Region: "here", Agent: "a", To: "there"}, codes.Unavailable, "certificate"},
		"in plaintext":                      {linkOf(t, "", "here", "a"), "there", &regions.Hello{Region: "here", Agent: "a", To: "there"}, codes.Unavailable, ""},
		"to an agent of a region not meant": {linkOf(t, ours, "here", "a"), "far", &regions.Hello{Region: "here", Agent: "a", To: "far"}, codes.Unavailable, `region \"far\" is meant`},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := test.who.dial(test.region, there.config.Link)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			stream, err := regions.NewLinkClient(conn).Deliver(ctx)
			if err == nil {
				err = stream.Send(&regions.Batch{Hello: test.says})
			}
			if stream != nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != test.want || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %s: %s", err, test.want, test.text)
			}
		})
	}
	if _, err := linkOf(t, "", "here", "a").dial("there", "10.0.0.1:7946"); err == nil {
		t.Error("another host is spoken to in plaintext")
	}
}

func TestWhereALinkMayListen(t *testing.T) {
	for name, test := range map[string]struct {
		link     string
		tls      certs.Files
		insecure bool
		want     string // in the error; "" is none
	}{
		"nowhere":             {},
		"loopback":            {link: "127.0.0.1:7946"},
		"no address":          {link: "here:7946", want: "is not an IP:port"},
		"every address":       {link: "0.0.0.0:7946", insecure: true, want: "is not an IP:port"},
		"plaintext":           {link: "10.0.0.7:7946", want: "without TLS"},
		"plaintext, allowed":  {link: "10.0.0.7:7946", insecure: true},
		"with a certificate":  {link: "10.0.0.7:7946", tls: certs.Files{CA: "ca", Cert: "c", Key: "k"}},
		"without authorities": {link: "10.0.0.7:7946", tls: certs.Files{Cert: "c", Key: "k"}, want: "--tls-ca"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Config{Identity: certs.SPIFFE, Link: test.link, TLS: test.tls, Insecure: test.insecure}.validateLink()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestJournalsAreFollowedThatAnyControlPlaneNames(t *testing.T) {
	l := linkOf(t, "", "here", "a")
	has := func(want ...string) {
		t.Helper()
		l.mu.Lock()
		defer l.mu.Unlock()
		got := map[string]bool{}
		for _, f := range l.follows {
			for s := range f {
				got[s] = true
			}
		}
		if len(got) != len(want) {
			t.Errorf("followed are %v, want %v", got, want)
		}
		for _, s := range want {
			if !got[s] {
				t.Errorf("%s is not followed: %v", s, got)
			}
		}
	}
	one, two := new(int), new(string)
	l.follow(one, []*reports.Followed{{Shard: "s-0"}, {Shard: "s-1"}})
	l.follow(two, []*reports.Followed{{Shard: "s-1"}, {Shard: "s-2"}})
	has("s-0", "s-1", "s-2")
	l.forget(one)
	has("s-1", "s-2")
	l.forget(two)
	has("s-1", "s-2") // until somebody knows better
	l.follow(one, nil)
	has()
}
