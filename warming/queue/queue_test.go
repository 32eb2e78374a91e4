package queue

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/place"
)

// newQueue is a run's on a real Redis.
func newQueue(t *testing.T, r *warming.Run) (*Queue, *redis.Client) {
	t.Helper()
	node := redistest.Start(t, process.Redis{})
	m, err := place.New(&mesh.Topology{Region: "here", Pools: []mesh.Pool{{Name: "tweets", Hashing: mesh.Hashing{Algorithm: mesh.Maglev, Size: 65537},
		Routes: []mesh.Route{{Prefix: "tweet:"}}, Shards: []mesh.Shard{{Name: "tweets-0", Nodes: []mesh.Node{{Address: node.Address(), Role: mesh.Primary}}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	q := New(r.Pool, r.ID, func() *place.Map { return m })
	t.Cleanup(q.Close)
	return q, node.Client
}

func newRun() *warming.Run {
	return &warming.Run{ID: "plan-1", Plan: "plan", Region: "here", Pool: "tweets", Route: "tweet:", Keys: warming.Keys{Prefix: "tweet:", Named: true},
		Source: mesh.Source{Region: "there"}, State: warming.Running,
		Budget: mesh.Budget{KeysPerSecond: 1e6, BytesPerSecond: 1e9, OriginPerSecond: 1e6, Concurrency: 4}}
}

func named(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("tweet:%d", i)
	}
	return keys
}

// claim claims a chunk, as soon as there is one.
func claim(t *testing.T, q *Queue, agent string, r *warming.Run) *Chunk {
	t.Helper()
	for t.Context().Err() == nil {
		c, wait, err := q.Claim(t.Context(), agent, r)
		if err != nil {
			t.Fatal(err)
		}
		if c != nil {
			return c
		}
		select {
		case <-time.After(wait):
		case <-t.Context().Done():
		}
	}
	t.Fatal(t.Context().Err())
	return nil
}

func done(t *testing.T, q *Queue, c *Chunk, r *warming.Run, n warming.Counts) bool {
	t.Helper()
	first, err := q.Done(t.Context(), c, r, n, n.Bytes, nil)
	if err != nil {
		t.Fatal(err)
	}
	return first
}

func progress(t *testing.T, q *Queue) Progress {
	t.Helper()
	p, err := q.Progress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNamedKeysAreCountedOnce(t *testing.T) {
	r := newRun()
	q, _ := newQueue(t, r)
	keys := named(ChunkKeys + 100)
	for range 2 { // another control plane may say the same
		if err := q.Create(t.Context(), r, keys); err != nil {
			t.Fatal(err)
		}
	}
	a, b := claim(t, q, "a", r), claim(t, q, "b", r)
	if len(a.Keys) != ChunkKeys || len(b.Keys) != 100 || string(b.Keys[99]) != keys[len(keys)-1] {
		t.Fatalf("chunks of %d and %d keys", len(a.Keys), len(b.Keys))
	}
	if c, _, err := q.Claim(t.Context(), "c", r); c != nil || err != nil {
		t.Fatalf("there is a third chunk: %v %v", c, err)
	}
	if err := q.Release(t.Context(), "a", a.ID); err != nil {
		t.Fatal(err)
	}
	again := claim(t, q, "b", r)
	if again.ID != a.ID || !again.Taken {
		t.Fatalf("claimed %s after %s was put back", again.ID, a.ID)
	}
	if lost, err := q.Keep(t.Context(), "a", []string{a.ID}); err != nil || len(lost) != 1 {
		t.Errorf("a has lost %v, %v", lost, err)
	}
	if lost, err := q.Keep(t.Context(), "b", []string{again.ID, b.ID}); err != nil || len(lost) != 0 {
		t.Errorf("b has lost %v, %v", lost, err)
	}
	if !done(t, q, again, r, warming.Counts{Loaded: 500, There: 12, Bytes: 5000}) {
		t.Error("who has the chunk did not end it")
	}
	if done(t, q, a, r, warming.Counts{Loaded: ChunkKeys}) {
		t.Error("a chunk was ended twice")
	}
	if p := progress(t, q); p.State != warming.Running || p.Chunks != 1 || p.Total != uint64(len(keys)) {
		t.Errorf("progress before the end: %+v", p)
	}
	done(t, q, b, r, warming.Counts{Missing: 100})
	p := progress(t, q)
	if p.State != warming.Done || p.Ended.IsZero() || p.Counts != (warming.Counts{Loaded: 500, There: 12, Missing: 100, Bytes: 5000}) || p.Total != uint64(len(keys)) {
		t.Errorf("progress at the end: %+v", p)
	}
	if _, _, err := q.Claim(t.Context(), "a", r); !errors.Is(err, ErrOver) {
		t.Errorf("claiming from a run that is done: %v", err)
	}
}

func TestListingGoesOnOnce(t *testing.T) {
	r := newRun()
	r.Keys.Named = false
	q, _ := newQueue(t, r)
	if err := q.Create(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	first := claim(t, q, "a", r)
	if !first.Lists() || first.Cursor != "" {
		t.Fatalf("the first chunk: %+v", first)
	}
	listed := func(c *Chunk, next ...string) []string {
		t.Helper()
		got, _, err := q.Listed(t.Context(), c, r, next, 1000, nil)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := listed(first, "x 0", "y\n0"); len(got) != 2 {
		t.Fatalf("listing goes on at %q", got)
	}
	// Another agent took it over, and found another end.
	if got := listed(first, "z 0"); len(got) != 2 || got[0] != "x 0" || got[1] != "y\n0" {
		t.Fatalf("listing goes on at %q", got)
	}
	x, y := claim(t, q, "a", r), claim(t, q, "b", r)
	if x.Cursor != "x 0" || y.Cursor != "y\n0" {
		t.Fatalf("chunks %+v and %+v", x, y)
	}
	done(t, q, first, r, warming.Counts{Loaded: 1})
	if _, _, err := q.Listed(t.Context(), first, r, []string{"z 0"}, 0, nil); err == nil {
		t.Error("listing went on after a chunk that is done")
	}
	listed(x)
	if p := progress(t, q); p.Listed || p.Total != 1000 {
		t.Errorf("progress while listing: %+v", p)
	}
	listed(y)
	done(t, q, x, r, warming.Counts{Loaded: 2})
	if p := progress(t, q); !p.Listed || p.State != warming.Running {
		t.Errorf("progress after listing: %+v", p)
	}
	done(t, q, y, r, warming.Counts{Loaded: 3})
	if p := progress(t, q); p.State != warming.Done || p.Total != 6 || p.Counts.Loaded != 6 {
		t.Errorf("progress at the end: %+v", p)
	}
}

func TestStatesOfARun(t *testing.T) {
	r := newRun()
	q, _ := newQueue(t, r)
	if _, _, err := q.Claim(t.Context(), "a", r); !errors.Is(err, ErrGone) {
		t.Errorf("claiming from nothing: %v", err)
	}
	if _, err := q.Progress(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("progress of nothing: %v", err)
	}
	if err := q.Set(t.Context(), warming.Paused); !errors.Is(err, ErrGone) {
		t.Errorf("pausing nothing: %v", err)
	}
	if err := q.Create(t.Context(), r, named(10)); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		set  warming.State
		want error
	}{{warming.Paused, ErrPaused}, {warming.Running, nil}, {warming.Cancelled, ErrOver}, {warming.Running, ErrOver}} {
		if err := q.Set(t.Context(), step.set); err != nil {
			t.Fatal(err)
		}
		c, _, err := q.Claim(t.Context(), "a", r)
		if !errors.Is(err, step.want) {
			t.Errorf("claiming when %s: %v", step.set, err)
		}
		if c != nil {
			if err := q.Release(t.Context(), "a", c.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := q.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Progress(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("progress of what was removed: %v", err)
	}
	if _, err := q.Done(t.Context(), &Chunk{ID: "1-1", charged: "0"}, r, warming.Counts{}, 0, nil); !errors.Is(err, ErrGone) {
		t.Errorf("ending a chunk of what was removed: %v", err)
	}
	if _, err := q.Keep(t.Context(), "a", []string{"1-1"}); !errors.Is(err, ErrGone) {
		t.Errorf("keeping a chunk of what was removed: %v", err)
	}
}

func TestBudgetIsForAllAgents(t *testing.T) {
	r := newRun()
	r.Budget.KeysPerSecond = 2 * ChunkKeys
	q, _ := newQueue(t, r)
	if err := q.Create(t.Context(), r, named(6*ChunkKeys)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 6 {
		done(t, q, claim(t, q, fmt.Sprint("agent-", i%3), r), r, warming.Counts{Loaded: ChunkKeys})
	}
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("6 chunks took %v, with a budget of 2 a second", took)
	}

	// Nor do agents exceed it that begin at the same time, before any chunk is done.
	r.ID = "another"
	q = New(r.Pool, r.ID, q.at)
	t.Cleanup(q.Close)
	if err := q.Create(t.Context(), r, named(3*ChunkKeys)); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	for i := range 3 {
		claim(t, q, fmt.Sprint("agent-", i), r)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("3 chunks were claimed within %v, with a budget of 2 a second", took)
	}
}

func TestSampleIsBounded(t *testing.T) {
	r := newRun()
	q, client := newQueue(t, r)
	if err := q.Create(t.Context(), r, named(2*ChunkKeys)); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		c := claim(t, q, "a", r)
		var samples []Sample
		for j := range maxSample {
			hash := uint64(i*maxSample+j) << 40
			samples = append(samples, Sample{Key: fmt.Sprint(i, "-", j), Hash: hash, Loaded: time.Now(), Fate: Unread})
		}
		if _, err := q.Done(t.Context(), c, r, warming.Counts{Loaded: ChunkKeys}, 0, samples); err != nil {
			t.Fatal(err)
		}
	}
	known, err := client.HLen(t.Context(), q.key+":seen").Result()
	if n := client.ZCard(t.Context(), q.key+":sample").Val(); n != maxSample || known != maxSample || err != nil {
		t.Errorf("%d keys are sampled, %d known, and %d may be: %v", n, known, maxSample, err)
	}
	if !q.Wants(5<<40) || q.Wants(maxSample*2<<40) {
		t.Error("what is sampled is not those of the least hashes")
	}
}
