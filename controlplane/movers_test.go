package controlplane

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// Moves may come faster than a mover takes them in. Neither who tells it of them nor the mover's end waits then.
func TestMovesInQuickSuccession(t *testing.T) {
	m := newMovers(slog.New(slog.DiscardHandler))
	spec := handoff.Spec{Pool: "p", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 1021}, Routes: []mesh.Route{{}},
		From: []mesh.Shard{{Name: "a", Weight: 1}}, To: []mesh.Shard{{Name: "a", Weight: 1}, {Name: "b", Weight: 1}}}
	m.spec = func(move shards.Move) (told, bool) { return told{Move: move, spec: spec}, true }
	m.moved = func(shards.Move, error) {}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		for i := range 20_000 {
			m.follow(ctx, &work, []shards.Move{{Pool: "p", Handoff: 1, Step: mesh.HandoffSteps[i%2]}})
		}
		cancel()
		work.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("moves or the end are not taken in")
	}
}
