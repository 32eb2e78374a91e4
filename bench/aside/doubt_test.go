package aside

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

func TestWhatIsOldWithinTheBoundIsNotStale(t *testing.T) {
	e := &entry{}
	e.acked = []acked{{1, time.Now().Add(-2 * time.Second)}, {2, time.Now()}}
	if got := e.oldest(time.Second); got != 1 {
		t.Errorf("the oldest is %d, want 1", got)
	}
	if got := e.oldest(0); got != 2 {
		t.Errorf("the oldest is %d, want 2: nothing is allowed", got)
	}
}

func TestWhatFailedIsInDoubt(t *testing.T) {
	e := &entry{}
	e.end(3, true, errors.New("lost"))
	e.end(4, true, nil)
	if floor := e.oldest(0); floor != 4 || !e.doubts(3) || e.doubts(2) {
		t.Errorf("the floor is %d; 3 is in doubt: %v, 2 is: %v", floor, e.doubts(3), e.doubts(2))
	}
}

func TestWhatStaysOldIsSeen(t *testing.T) {
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	started, err := process.Redis{Port: ports[0], Dir: t.TempDir()}.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer started.Stop(5 * time.Second)
	client := redis.NewClient(&redis.Options{Addr: process.Redis{Port: ports[0]}.Address(), MaxRetries: -1})
	defer client.Close()
	a := New(Plan{Keys: 3, Bound: time.Hour}, []*redis.Client{client}, []*redis.Client{client})
	if err := a.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.entries[1].version = 1
	a.entries[1].end(1, true, nil) // and is not in the cache
	if err := a.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := a.Findings(); len(found) != 1 || found[0].Key != name(1) || found[0].Floor != 1 {
		t.Errorf("found %+v", found)
	}
	if err := a.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := client.Exists(t.Context(), name(0), name(1), name(2)).Val(); n != 2 {
		t.Errorf("%d keys are left, want all but what was old", n)
	}
}
