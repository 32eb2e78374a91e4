package test

import (
	"slices"
	"strings"
	"testing"
	"time"

	control "github.com/cachemesh/cachemesh/controlplane"
)

// What an operator removes reaches a region whose control plane is away, over the link, and one that is paused when it is resumed.
func TestWhatAnOperatorRemovesTravels(t *testing.T) {
	m := newLinkedRegions(t, 2)
	here, there := m.regions[0], m.regions[1]
	both := []string{"--controlplane", here.plane.url, "--controlplane", there.plane.url}
	command := func(args ...string) result {
		t.Helper()
		return cachemesh(t, append(args, both...)...)
	}

	m.set(t, "user:1")
	command("region", "pause", "there").want(t, 0)
	m.set(t, "user:2")
	if n, err := here.clients[0].Del(t.Context(), "user:2").Result(); err != nil || n != 1 {
		t.Fatalf("DEL: %d, %v", n, err)
	}
	if l, err := here.status(); err != nil || l.State != control.LinkPaused {
		t.Errorf("while it is paused: %+v, %v", l, err)
	}
	if n := there.clients[0].Exists(t.Context(), "user:2").Val(); n != 1 {
		t.Error("a removal reached a region that is paused")
	}
	if r := command("region", "status").want(t, 0); !strings.Contains(r.stdout, "paused") {
		t.Errorf("status does not tell of the pause: %s", r.stdout)
	}
	command("region", "resume", "there").want(t, 0)
	there.gone(t, 10*time.Second, "user:2")

	there.plane.process.Stop(0)
	r := command("region", "invalidate", "user:1").want(t, 1)
	if !strings.Contains(r.stderr, "there") || !strings.Contains(r.stderr, "the journals of here") {
		t.Errorf("with a control plane that is away: %s", r.stderr)
	}
	there.gone(t, 10*time.Second, "user:1")
	m.set(t, "user:3", "user:4")
	command("region", "invalidate", "--prefix", "user:3").want(t, 1)
	there.gone(t, 10*time.Second, "user:3")
	if n := there.clients[0].Exists(t.Context(), "user:4").Val(); n != 1 {
		t.Error("a prefix took another key")
	}
	command("flush", "all", "--yes").want(t, 1)
	there.gone(t, 10*time.Second, "user:4")
	here.gone(t, time.Second, "user:4")

	there.plane.start(t)
	there.waitLinked(t)
	events := cachemesh(t, "events", "--kind", "fence", "--controlplane", here.plane.url).want(t, 0).stdout
	if !strings.Contains(events, "region there removed") || slices.Contains(strings.Fields(events), "gap") {
		t.Errorf("the events are %s", events)
	}
}
