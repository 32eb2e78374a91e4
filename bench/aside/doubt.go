package aside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// acked is a change that was acknowledged.
type acked struct {
	version uint64
	at      time.Time
}

// Finding is a read of what was changed before it began.
type Finding struct {
	Time    time.Time `json:"time"`
	Key     string    `json:"key"`
	Version uint64    `json:"version"`
	Floor   uint64    `json:"floor"` // the oldest that it may be
	Acked   time.Time `json:"acked"` // when the floor was
	Through string    `json:"through"`
}

// oldest is the oldest version that may be read now. The entry is locked.
func (e *entry) oldest(bound time.Duration) uint64 {
	for len(e.acked) > 0 && time.Since(e.acked[0].at) >= bound {
		if e.acked[0].version > e.floor {
			e.floor, e.raised = e.acked[0].version, e.acked[0].at
		}
		e.acked = e.acked[1:]
	}
	return e.floor
}

func (e *entry) doubts(version uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.doubt, version)
}

// distrust has a version that was read and is stale be told of once, until it is settled.
func (e *entry) distrust(version uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doubt = append(e.doubt, version)
}

// stale says whether what was read of a key is older than it may be, and is no version in doubt.
func (a *App) stale(key int, text []byte, floor uint64, raised time.Time, client *redis.Client) bool {
	e := &a.entries[key]
	version, _, _ := bytes.Cut(text, []byte{' '})
	n, err := strconv.ParseUint(string(version), 10, 64)
	if err == nil && (n >= floor || e.doubts(n)) {
		return false
	}
	e.distrust(n)
	a.log.finding(Finding{Time: time.Now(), Key: name(key), Version: n, Floor: floor, Acked: raised, Through: client.Options().Addr})
	return true
}

// Look reads every key through every client, while nothing runs. What is old by then stays, whatever the bound.
func (a *App) Look(ctx context.Context) error {
	for _, client := range a.plain {
		var all []*redis.StringCmd
		_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for key := range a.entries {
				all = append(all, p.Get(ctx, name(key)))
			}
			return nil
		})
		if err != nil && !errors.Is(err, redis.Nil) {
			return fmt.Errorf("read all keys: %w", err)
		}
		for key, got := range all {
			e := &a.entries[key]
			e.mu.Lock()
			floor, raised := e.oldest(0), e.raised
			e.mu.Unlock()
			if text, err := got.Bytes(); err == nil {
				a.stale(key, text, floor, raised, client)
			}
		}
	}
	return nil
}

// Settle removes what is in doubt, once all that failed has been done or never will be. From then on nothing is in doubt.
func (a *App) Settle(ctx context.Context) error {
	for i := range a.entries {
		e := &a.entries[i]
		e.mu.Lock()
		doubtful := len(e.doubt) > 0
		e.mu.Unlock()
		if !doubtful {
			continue
		}
		version, ok := e.begin(true)
		for !ok {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
			version, ok = e.begin(true)
		}
		err := a.plain[i%len(a.plain)].Del(ctx, name(i)).Err()
		e.end(version, false, err)
		if err != nil {
			return fmt.Errorf("remove what is in doubt: %w", err)
		}
		e.mu.Lock()
		e.doubt = nil
		e.mu.Unlock()
	}
	return nil
}
