package consul_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/consul"
	"github.com/cachemesh/cachemesh/mesh"
)

func TestLinksAreFoundFromTheOtherDatacenter(t *testing.T) {
	all := servers(t, "east", "west")
	start(t, all[0])
	start(t, all[1])
	c := client(t, mesh.ConsulSpec{Address: all[0].Address()})
	seen := make(chan consul.Links, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		consul.WatchLinks(ctx, mesh.ConsulSpec{Address: all[1].Address()}, "east", "us-east", func(l consul.Links) { seen <- l })
	}()
	defer func() { cancel(); <-done }()
	until := func(want ...string) {
		t.Helper()
		var last consul.Links
		for deadline := time.After(30 * time.Second); ; {
			select {
			case last = <-seen:
				if last.Err == nil && slices.Equal(last.Addresses, want) {
					return
				}
			case <-deadline:
				t.Fatalf("%v, want %v", last, want)
			}
		}
	}
	for _, wanted := range []map[string]string{
		{"a": "127.0.0.1:7001", "b": "127.0.0.1:7002"},
		{"a": "127.0.0.1:7001", "b": "127.0.0.1:7009"}, // it moved
		{"b": "127.0.0.1:7009"},
	} {
		if err := c.RegisterLinks(t.Context(), "us-east", wanted); err != nil {
			t.Fatal(err)
		}
		// Another region's are not mixed up with them.
		if err := c.RegisterLinks(t.Context(), "other", map[string]string{"a": "127.0.0.1:7100"}); err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, at := range wanted {
			want = append(want, at)
		}
		slices.Sort(want)
		until(want...)
	}
	if err := c.RegisterLinks(t.Context(), "us-east", map[string]string{"a": "nowhere"}); err == nil {
		t.Error("an address that is none is registered")
	}
}
