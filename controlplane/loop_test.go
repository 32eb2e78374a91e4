package controlplane

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestABurstIsAppliedOnceItIsQuietAndNeverTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		updates, changed := make(chan update), make(chan struct{})
		start := time.Now()
		var applied []string
		var published []time.Duration
		done := make(chan error)
		go func() {
			done <- loop(ctx, updates, changed, func(u update) {
				applied = append(applied, fmt.Sprintf("%v at %s", u.err, time.Since(start)))
			}, func() { published = append(published, time.Since(start)) }, func() {})
		}()
		// Quiet after three: the last is applied 50 ms later.
		for i := range 3 {
			updates <- update{err: fmt.Errorf("%d", i)}
			time.Sleep(10 * time.Millisecond)
		}
		changed <- struct{}{} // another primary does not wait
		time.Sleep(time.Second)
		// Never quiet for 50 ms: what is newest is applied every 500 ms.
		for i := 3; i < 43; i++ {
			updates <- update{err: fmt.Errorf("%d", i)}
			time.Sleep(30 * time.Millisecond)
		}
		time.Sleep(time.Second)
		cancel()
		<-done
		want := []string{"2 at 70ms", "19 at 1.53s", "36 at 2.04s", "42 at 2.25s"}
		if fmt.Sprint(published) != "[30ms]" {
			t.Errorf("published at %v, want at 30ms", published)
		}
		if fmt.Sprint(applied) != fmt.Sprint(want) {
			t.Errorf("applied %v, want %v", applied, want)
		}
	})
}
