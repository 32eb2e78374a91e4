package aside

import (
	"errors"
	"testing"
	"time"
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
