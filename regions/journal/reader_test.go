package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
)

// server starts a real Redis and returns a client of it.
func server(t *testing.T, r process.Redis) *redis.Client {
	t.Helper()
	return redistest.Start(t, r).Client
}

// write journals a removal as a lane does.
func write(t *testing.T, c *redis.Client, epoch uint64, keys ...string) ID {
	t.Helper()
	raw := make([][]byte, len(keys))
	for i, k := range keys {
		raw[i] = []byte(k)
	}
	text, err := c.XAdd(t.Context(), &redis.XAddArgs{Stream: Key(epoch), NoMkStream: true, Values: []any{"e", Append(nil, raw)}}).Result()
	if err != nil {
		t.Fatal("no entry was written: ", err)
	}
	id, err := ParseID(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// read reads until it has so many keys or a gap, and returns both. It keeps the cursor as a region that confirms does.
func read(t *testing.T, r *Reader, want int) (keys []string, why Reason) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		b, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, rem := range b.Removals {
			keys = append(keys, string(rem.Key))
		}
		if err := r.shard.Advance(ctx, r.region, b.To); err != nil {
			t.Fatal(err)
		}
		if b.Gap != "" {
			return keys, b.Gap
		}
		if want > 0 && len(keys) >= want {
			return keys, ""
		}
	}
}

// quiet reads for so many batches and wants no gap.
func quiet(t *testing.T, r *Reader, batches int) {
	t.Helper()
	for range batches {
		b, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b.Gap != "" {
			t.Fatalf("a gap where there is none: %s after %v", b.Gap, b.From)
		}
		r.checked = time.Time{}
	}
}

// open is a reader that has begun.
func open(t *testing.T, c *redis.Client, epoch uint64, region string) *Reader {
	t.Helper()
	s := Open(c, epoch)
	if err := s.make(t.Context(), makeOnce); err != nil {
		t.Fatal(err)
	}
	return NewReader(s, c, region, false)
}

func TestEntriesAreReadInOrderAndOnce(t *testing.T) {
	c := server(t, process.Redis{})
	r := open(t, c, 1, "eu")
	var want []string
	for i := range 3000 {
		want = append(want, fmt.Sprint("user:", i))
		write(t, c, 1, want[i])
	}
	got, why := read(t, r, len(want))
	if d := cmp.Diff(want, got); d != "" || why != "" {
		t.Error(why, d)
	}
	quiet(t, r, 3)
	// One that comes while the reader waits is read at once.
	r.checked = time.Now()
	done := make(chan time.Duration)
	go func() {
		b, err := r.Next(t.Context())
		if err != nil || len(b.Removals) != 1 {
			t.Errorf("%d removals, %v", len(b.Removals), err)
		}
		done <- 0
	}()
	write(t, c, 1, "late")
	<-done
	// Another reader goes on where the first one was.
	if err := r.shard.Advance(t.Context(), "eu", r.at); err != nil {
		t.Fatal(err)
	}
	write(t, c, 1, "later")
	again := NewReader(r.shard, c, "eu", true)
	if got, why := read(t, again, 1); why != "" || !slices.Equal(got, []string{"later"}) {
		t.Errorf("%v %s", got, why)
	}
}

func TestTheRestOfAnEpochIsReadBeforeTheNext(t *testing.T) {
	c := server(t, process.Redis{})
	r := open(t, c, 1, "eu")
	write(t, c, 1, "a")
	read(t, r, 1)
	write(t, c, 1, "b")
	for _, epoch := range []uint64{2, 4} { // epoch 3 had no journal
		if err := Open(c, epoch).make(t.Context(), makeOnce); err != nil {
			t.Fatal(err)
		}
		write(t, c, epoch, fmt.Sprint("of ", epoch))
	}
	later := NewReader(Open(c, 4), c, "eu", true)
	got, why := read(t, later, 3)
	if d := cmp.Diff([]string{"b", "of 2", "of 4"}, got); d != "" || why != "" {
		t.Error(why, d)
	}
	quiet(t, later, 3)
	if err := later.shard.Advance(t.Context(), "eu", later.at); err != nil {
		t.Fatal(err)
	}
	if err := later.shard.Trim(t.Context(), []string{"eu"}, 0); err != nil {
		t.Fatal(err)
	}
	if n := c.Exists(t.Context(), Key(1), Key(1)+":made", Key(2)).Val(); n != 0 {
		t.Errorf("%d keys of old journals are left", n)
	}
	quiet(t, later, 2)
}

// A replica that takes over may lack entries that the region has already. That is no gap.
func TestAShorterJournalOfAnOldEpochIsNoGap(t *testing.T) {
	c := server(t, process.Redis{})
	r := open(t, c, 1, "eu")
	write(t, c, 1, "a")
	read(t, r, 1)
	at := r.at
	at.ID.Milliseconds += 1000
	at.Read += 3
	if err := r.shard.Advance(t.Context(), "eu", at); err != nil {
		t.Fatal(err)
	}
	later := open(t, c, 2, "eu")
	write(t, c, 2, "b")
	if got, why := read(t, later, 1); why != "" || !slices.Equal(got, []string{"b"}) {
		t.Errorf("%v %s", got, why)
	}
}

func TestGaps(t *testing.T) {
	for name, test := range map[string]struct {
		harm func(t *testing.T, c *redis.Client)
		want Reason
	}{
		"trimmed before it was read": {func(t *testing.T, c *redis.Client) {
			for range 5 {
				write(t, c, 1, "x")
			}
			c.XTrimMaxLen(t.Context(), Key(1), 2)
		}, Trimmed},
		"entries deleted in the middle": {func(t *testing.T, c *redis.Client) {
			write(t, c, 1, "x")
			id := write(t, c, 1, "y")
			write(t, c, 1, "z")
			c.XDel(t.Context(), Key(1), id.String())
		}, Trimmed},
		"emptied": {func(t *testing.T, c *redis.Client) {
			write(t, c, 1, "x")
			c.XTrimMaxLen(t.Context(), Key(1), 0)
		}, Trimmed},
		"deleted": {func(t *testing.T, c *redis.Client) { c.Del(t.Context(), Key(1)) }, Lost},
		"flushed": {func(t *testing.T, c *redis.Client) { c.FlushAll(t.Context()) }, Lost},
		"deleted with its mark and made again": {func(t *testing.T, c *redis.Client) {
			c.Del(t.Context(), Key(1), Key(1)+":made")
			if err := Open(c, 1).make(t.Context(), makeOnce); err != nil {
				t.Fatal(err)
			}
			write(t, c, 1, "x")
		}, Replaced},
		"made again by a slower clock": {func(t *testing.T, c *redis.Client) {
			c.Del(t.Context(), Key(1))
			c.XAdd(t.Context(), &redis.XAddArgs{Stream: Key(1), ID: "5-1", Values: []any{"e", Append(nil, nil)}})
		}, Replaced},
		"a foreign entry": {func(t *testing.T, c *redis.Client) {
			c.XAdd(t.Context(), &redis.XAddArgs{Stream: Key(1), Values: []any{"foreign", "entry"}})
		}, Unreadable},
		"a newer entry": {func(t *testing.T, c *redis.Client) {
			c.XAdd(t.Context(), &redis.XAddArgs{Stream: Key(1), Values: []any{"e", "\x02\x00"}})
		}, Unreadable},
		"no stream any more": {func(t *testing.T, c *redis.Client) { c.Set(t.Context(), Key(1), "x", 0) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := server(t, process.Redis{})
			r := open(t, c, 1, "eu")
			write(t, c, 1, "before")
			read(t, r, 1)
			test.harm(t, c)
			if test.want == "" {
				r.checked = time.Time{}
				if b, err := r.Next(t.Context()); err == nil {
					t.Fatalf("a key of another type is read as %+v", b)
				}
				return
			}
			if _, why := read(t, r, 0); why != test.want {
				t.Errorf("gap %q, want %q", why, test.want)
			}
			fences, err := r.shard.Fences(t.Context(), "eu")
			if err != nil || len(fences) != 1 || fences[0].Reason != test.want || time.Since(fences[0].Since) > time.Minute {
				t.Fatalf("fences %+v, %v", fences, err)
			}
			// One gap, one fence; what is written from now on is read, also by who takes over.
			quiet(t, r, 3)
			write(t, c, 1, "after")
			if keys, why := read(t, r, 1); why != "" || keys[len(keys)-1] != "after" {
				t.Errorf("afterwards: %v %s", keys, why)
			}
			write(t, c, 1, "later")
			if keys, why := read(t, NewReader(r.shard, c, "eu", true), 1); why != "" || keys[len(keys)-1] != "later" {
				t.Errorf("who takes over: %v %s", keys, why)
			}
			if err := r.shard.Confirm(t.Context(), "eu", fences[0].ID); err != nil {
				t.Fatal(err)
			}
			if left, err := r.shard.Fences(t.Context(), "eu"); err != nil || len(left) > 0 {
				t.Errorf("left: %v %v", left, err)
			}
		})
	}
}

func TestGapsAtTheBeginning(t *testing.T) {
	for name, test := range map[string]struct {
		epoch uint64
		past  bool
		harm  func(c *redis.Client)
		want  Reason
	}{
		"the first time":                     {epoch: 1},
		"without a manager":                  {epoch: 0},
		"the first time, and something went": {epoch: 1, want: Trimmed, harm: func(c *redis.Client) { c.XTrimMaxLen(context.Background(), Key(1), 1) }},
		"known, and its cursor is gone":      {epoch: 1, past: true, want: Forgotten},
		"a shard with a past":                {epoch: 3, past: true, want: Forgotten},
		"a shard that has none":              {epoch: 3},
		"a cursor of the future":             {epoch: 3, want: Forgotten, harm: func(c *redis.Client) { c.HSet(context.Background(), cursorsKey, "eu", "9 5-1 3") }},
		"the old journal is gone":            {epoch: 3, want: Lost, harm: func(c *redis.Client) { c.HSet(context.Background(), cursorsKey, "eu", "2 5-1 3") }},
		"the old journal was made, and is gone": {epoch: 3, want: Lost, harm: func(c *redis.Client) {
			c.HSet(context.Background(), cursorsKey, "eu", "2 0-0 0")
			c.Set(context.Background(), Key(2)+":made", "1", 0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := server(t, process.Redis{})
			r := open(t, c, test.epoch, "eu")
			r.past = test.past
			write(t, c, test.epoch, "x")
			if test.harm != nil {
				test.harm(c)
			}
			if test.want == "" {
				if keys, why := read(t, r, 1); why != "" || !slices.Equal(keys, []string{"x"}) {
					t.Errorf("%v %s", keys, why)
				}
			} else if _, why := read(t, r, 0); why != test.want {
				t.Errorf("gap %q, want %q", why, test.want)
			}
			quiet(t, r, 3)
			write(t, c, test.epoch, "y")
			if keys, why := read(t, r, 1); why != "" || keys[len(keys)-1] != "y" {
				t.Errorf("afterwards: %v %s", keys, why)
			}
		})
	}
}

// Under every policy, what a full node does to its journal is seen.
func TestAJournalThatIsEvictedIsMissed(t *testing.T) {
	for _, policy := range []string{"allkeys-lru", "allkeys-lfu", "allkeys-random"} {
		t.Run(policy, func(t *testing.T) {
			c := server(t, process.Redis{MaxMemory: "6mb", Args: []string{"--maxmemory-policy", policy, "--lfu-log-factor", "0"}})
			r := open(t, c, 1, "eu")
			write(t, c, 1, "before")
			read(t, r, 1)
			value := make([]byte, 10_000)
			for i := range 20_000 {
				if err := c.Set(t.Context(), fmt.Sprint("k", i), value, 0).Err(); err != nil {
					t.Fatal(err)
				}
				if policy == "allkeys-lfu" { // which else removes what is new
					for range 10 {
						c.Get(t.Context(), fmt.Sprint("k", i))
					}
				}
				if i%100 == 0 && c.Exists(t.Context(), Key(1)).Val() == 0 {
					break
				}
			}
			if c.Exists(t.Context(), Key(1)).Val() == 1 {
				t.Fatal("it was not evicted")
			}
			_, why := read(t, r, 0)
			if why != Lost {
				t.Errorf("gap %q", why)
			}
		})
	}
}

// On a full node that evicts nothing, cursors move on and fences are kept.
func TestAFullNodeKeepsWhatMustNotBeLost(t *testing.T) {
	c := server(t, process.Redis{MaxMemory: "4mb", Args: []string{"--maxmemory-policy", "noeviction"}})
	r := open(t, c, 1, "eu")
	write(t, c, 1, "before")
	read(t, r, 1)
	value := make([]byte, 100_000)
	var err error
	for i := 0; err == nil && i < 200; i++ {
		err = c.Set(t.Context(), fmt.Sprint("k", i), value, 0).Err()
	}
	if err == nil {
		t.Fatal("it is not full")
	}
	if _, err := r.shard.Beat(t.Context()); err != nil {
		t.Error(err)
	}
	quiet(t, r, 2)
	if err := r.shard.Advance(t.Context(), "eu", r.at); err != nil {
		t.Error(err)
	}
	if err := r.shard.Fence(t.Context(), "eu", Fence{ID: "1", Reason: Refused, Since: time.Now()}); err != nil {
		t.Error(err)
	}
	if err := r.shard.Trim(t.Context(), []string{"eu"}, 0); err != nil {
		t.Error(err)
	}
}

func TestTrimKeepsWhatARegionHasNotRead(t *testing.T) {
	c := server(t, process.Redis{})
	near, far := open(t, c, 1, "near"), open(t, c, 1, "far")
	for i := range 10 {
		write(t, c, 1, fmt.Sprint(i))
	}
	read(t, near, 10)
	regions := []string{"near", "far"}
	length := func() int64 { return c.XLen(t.Context(), Key(1)).Val() }
	if err := near.shard.Trim(t.Context(), regions, 0); err != nil || length() != 11 {
		t.Errorf("%d entries are left although one region has read none: %v", length(), err)
	}
	if keys, why := read(t, far, 10); why != "" || len(keys) != 10 {
		t.Errorf("%v %s", keys, why)
	}
	if err := near.shard.Trim(t.Context(), regions, 0); err != nil || length() != 1 {
		t.Errorf("%d entries are left although both regions have read them: %v", length(), err)
	}
	quiet(t, near, 2)
	quiet(t, far, 2)

	// The bounds hold whatever regions have read.
	for range 200 {
		write(t, c, 1, "x")
	}
	if err := near.shard.trim(t.Context(), regions, 0, 100, MaxBytes); err != nil || length() != 100 {
		t.Errorf("%d entries are left, 100 may be: %v", length(), err)
	}
	big := string(make([]byte, 10_000))
	for range 50 {
		write(t, c, 1, big)
	}
	if err := near.shard.trim(t.Context(), regions, 0, 1000, 200_000); err != nil || length() > 100 {
		t.Errorf("%d entries are left: %v", length(), err)
	}
	if used := c.MemoryUsage(t.Context(), Key(1)).Val(); used > 300_000 {
		t.Errorf("it takes %d bytes", used)
	}
	if err := near.shard.Trim(t.Context(), regions, 2*MaxAge); err != nil || length() != 0 {
		t.Errorf("%d entries are left that are too old: %v", length(), err)
	}
	if _, why := read(t, near, 0); why != Trimmed {
		t.Errorf("gap %q", why)
	}
}

func TestCursorsNeverGoBack(t *testing.T) {
	c := server(t, process.Redis{})
	s := Open(c, 2)
	for _, step := range []struct {
		set, want string
	}{
		{"1 5-1 3", "1 5-1 3"}, {"1 5-0 2", "1 5-1 3"}, {"1 5-2 4", "1 5-2 4"}, {"1 10-0 5", "1 10-0 5"}, {"2 1-0 1", "2 1-0 1"}, {"1 99-0 9", "2 1-0 1"},
	} {
		at, err := ParseCursor(step.set)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Advance(t.Context(), "eu", at); err != nil {
			t.Fatal(err)
		}
		all, err := s.Cursors(t.Context())
		if err != nil || all["eu"].String() != step.want {
			t.Errorf("after %s: %v, want %s (%v)", step.set, all["eu"], step.want, err)
		}
	}
}

func TestBeat(t *testing.T) {
	c := server(t, process.Redis{})
	s := Open(c, 1)
	if _, err := s.Beat(t.Context()); err != nil {
		t.Error(err)
	}
	if n := c.Exists(t.Context(), Key(1)).Val(); n != 0 {
		t.Error("a heartbeat made a journal")
	}
	r := open(t, c, 1, "eu")
	ahead, err := s.Beat(t.Context())
	if err != nil || ahead.Abs() > time.Second {
		t.Errorf("ahead %v, %v", ahead, err)
	}
	b, err := r.Next(t.Context())
	for ; err == nil && b.Entries == 0; b, err = r.Next(t.Context()) {
	}
	if err != nil || b.Entries != 2 || len(b.Removals) != 0 || time.Since(b.Written) > time.Minute {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestAnOperatorsEntry(t *testing.T) {
	c := server(t, process.Redis{})
	s := Open(c, 1)
	at, err := s.Write(t.Context(), []Removal{{RemovePrefix, []byte("user:")}})
	if err != nil {
		t.Fatal(err)
	}
	if at.Epoch != 1 || at.ID == (ID{}) {
		t.Errorf("at %v", at)
	}
	c.Del(t.Context(), Key(1))
	if _, err := s.Write(t.Context(), nil); !errors.Is(err, redis.Nil) {
		t.Errorf("into a journal that is lost: %v", err)
	}
}
