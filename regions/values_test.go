package regions

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// asking is a client of a region's link.
func asking(t *testing.T, r *testRegion) LinkClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+r.address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return NewLinkClient(conn)
}

func helloTo(r *testRegion) *Hello {
	return &Hello{Region: "elsewhere", Agent: "a", To: r.name, Pool: "users"}
}

func items(t *testing.T, page []byte) (all []Item) {
	t.Helper()
	for len(page) > 0 {
		i, rest, err := CutItem(page)
		if err != nil {
			t.Fatal(err)
		}
		all, page = append(all, i), rest
	}
	return all
}

// listed is all that a region lists, from an end on.
func listed(t *testing.T, c LinkClient, in *ListRequest) (all []Item) {
	t.Helper()
	ends := []string{in.GetCursor()}
	for len(ends) > 0 {
		page, err := c.List(t.Context(), &ListRequest{Hello: in.GetHello(), Prefix: in.GetPrefix(), Cursor: ends[0]})
		if err != nil {
			t.Fatal(err)
		}
		all, ends = append(all, items(t, page.GetItems())...), append(ends[1:], page.GetNext()...)
	}
	return all
}

func TestARegionListsWhatItHas(t *testing.T) {
	r := newRegion(t, "here", 2)
	r.update()

	const keys = 5000
	for i := range keys {
		for _, prefix := range []string{"user:", "local:"} {
			key := fmt.Sprint(prefix, i)
			r.nodes[r.shard(key)].client.Set(t.Context(), key, "value of "+key, time.Hour)
		}
	}
	r.nodes[0].client.Set(t.Context(), "cachemesh:secret", "x", 0)
	r.nodes[0].client.Set(t.Context(), "none:1", "x", 0)
	hash, large := "user:hash", "user:large"
	r.nodes[r.shard(hash)].client.HSet(t.Context(), hash, "a", "b")
	r.nodes[r.shard(large)].client.Set(t.Context(), large, strings.Repeat("x", MaxValue+1), 0)

	c := asking(t, r)
	begin, err := c.List(t.Context(), &ListRequest{Hello: helloTo(r), Prefix: []byte("user:")})
	if err != nil || len(begin.GetNext()) != 2 || begin.GetKeys() < keys*8/10 || begin.GetKeys() > keys*12/10 {
		t.Fatalf("the beginning: %v %v", begin, err)
	}
	seen := map[string]int{}
	for _, i := range listed(t, c, &ListRequest{Hello: helloTo(r), Prefix: []byte("user:")}) {
		key := string(i.Key)
		seen[key]++
		switch {
		case key == hash && i.Kind == ItemDump && i.TTL == 0:
		case key == large && i.Kind == ItemLarge:
		case i.Kind == ItemString && string(i.Value) == "value of "+key && i.TTL > 59*time.Minute && i.TTL <= time.Hour:
		default:
			t.Fatalf("%q is told as kind %c with %d bytes for %v", key, i.Kind, len(i.Value), i.TTL)
		}
	}
	if len(seen) != keys+2 {
		t.Errorf("%d keys are listed, and there are %d", len(seen), keys+2)
	}
	everything := listed(t, c, &ListRequest{Hello: helloTo(r)})
	if len(everything) != 2*keys+2 {
		t.Errorf("%d keys are listed in all, and there are %d", len(everything), 2*keys+2)
	}
}

// Who lists a part again does so up to where the first time ended.
func TestAListEndsWhereItIsToEnd(t *testing.T) {
	r := newRegion(t, "here", 1)
	r.update()
	const keys = 20_000
	pipe := r.nodes[0].client.Pipeline()
	for i := range keys {
		pipe.Set(t.Context(), fmt.Sprint("local:", i), i, 0)
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := asking(t, r)
	cursor, seen, again := "users-0 0", map[string]int{}, map[string]int{}
	for cursor != "" {
		page, err := c.List(t.Context(), &ListRequest{Hello: helloTo(r), Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items(t, page.GetItems()) {
			seen[string(i.Key)]++
		}
		until := ""
		if len(page.GetNext()) > 0 {
			until = page.GetNext()[0]
		}
		for from := cursor; from != until; {
			part, err := c.List(t.Context(), &ListRequest{Hello: helloTo(r), Cursor: from, Until: until})
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range items(t, part.GetItems()) {
				again[string(i.Key)]++
			}
			if from = ""; len(part.GetNext()) > 0 {
				from = part.GetNext()[0]
			}
		}
		cursor = until
	}
	for key, n := range again {
		if n != 1 || seen[key] != 1 {
			t.Fatalf("%s is listed %d times, and %d times again", key, seen[key], n)
		}
	}
	if len(seen) != keys || len(again) != keys {
		t.Errorf("%d keys are listed, and %d the second time: there are %d", len(seen), len(again), keys)
	}
}

func TestARegionTellsWhatIsUnderKeys(t *testing.T) {
	r := newRegion(t, "here", 2)
	r.update()
	set := func(key, value string) {
		t.Helper()
		if err := r.nodes[r.shard(key)].client.Set(t.Context(), key, value, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set("user:1", "one")
	set("user:2", "")
	c := asking(t, r)
	page, err := c.Fetch(t.Context(), &FetchRequest{Hello: helloTo(r), Keys: [][]byte{[]byte("user:1"), []byte("user:2"), []byte("user:3"), []byte("cachemesh:epoch"), []byte("no route")}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, i := range items(t, page.GetItems()) {
		got[string(i.Key)] = string(i.Kind) + string(i.Value)
	}
	want := map[string]string{"user:1": "sone", "user:2": "s", "user:3": "m", "cachemesh:epoch": "m", "no route": "m"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// Large values come as many at a time as fit.
	left := map[string]bool{}
	for i := range 12 {
		key := fmt.Sprint("local:", i)
		set(key, strings.Repeat("x", 1<<20))
		left[key] = true
	}
	for rounds := 0; len(left) > 0; rounds++ {
		if rounds == 12 {
			t.Fatalf("after %d rounds %d values are left", rounds, len(left))
		}
		request := &FetchRequest{Hello: helloTo(r)}
		for key := range left {
			request.Keys = append(request.Keys, []byte(key))
		}
		page, err := c.Fetch(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(page.GetItems()); n > maxTold+fetchFirst<<20 {
			t.Errorf("a page has %d bytes", n)
		}
		for _, i := range items(t, page.GetItems()) {
			if i.Kind == ItemString {
				delete(left, string(i.Key))
			}
		}
	}
}

// Times to live are not asked for while no key of a shard has one. One that gets its first is told, and so is what has it beside strings.
func TestTimesToLiveAreToldOnceThereAreAny(t *testing.T) {
	r := newRegion(t, "here", 1)
	r.update()
	c, shard := asking(t, r), r.nodes[0].client
	const keys = 3000
	for i := range keys {
		shard.Set(t.Context(), fmt.Sprint("user:", i), "value", 0)
	}
	shard.HSet(t.Context(), "user:hash", "a", "b")
	ends := func(want ...string) {
		t.Helper()
		got, n := map[string]bool{}, 0
		for _, i := range listed(t, c, &ListRequest{Hello: helloTo(r), Prefix: []byte("user:")}) {
			n++
			if i.TTL > time.Hour || i.TTL > 0 && i.TTL < 59*time.Minute {
				t.Errorf("%s lives for %v", i.Key, i.TTL)
			}
			if i.TTL > 0 {
				got[string(i.Key)] = true
			}
		}
		if n != keys+1 || len(got) != len(want) {
			t.Errorf("%d keys of %d are listed, with a time to live %v, want %v", n, keys+1, got, want)
		}
		for _, k := range want {
			if !got[k] {
				t.Errorf("%s is listed without a time to live", k)
			}
		}
	}
	pttls := func() (n int) {
		t.Helper()
		fmt.Sscanf(shard.InfoMap(t.Context(), "commandstats").Val()["Commandstats"]["cmdstat_pttl"], "calls=%d", &n)
		return n
	}
	ends()
	if n := pttls(); n > 1 { // of the hash
		t.Errorf("%d keys were asked for a time to live, and none has one", n)
	}
	shard.Expire(t.Context(), "user:7", time.Hour)
	ends("user:7")
	shard.Expire(t.Context(), "user:hash", time.Hour)
	ends("user:7", "user:hash")
	before := pttls()
	shard.Persist(t.Context(), "user:7")
	shard.Persist(t.Context(), "user:hash")
	ends()
	if n := pttls() - before; n > 1 {
		t.Errorf("%d keys were asked for a time to live, and none has one any more", n)
	}
}

func TestValuesAreForOtherRegionsOnly(t *testing.T) {
	r := newRegion(t, "here", 1)
	r.update()
	c := asking(t, r)
	for name, test := range map[string]struct {
		ask  func(context.Context) error
		want codes.Code
	}{
		"without hello": {func(ctx context.Context) error { _, err := c.List(ctx, &ListRequest{}); return err }, codes.InvalidArgument},
		"another region is meant": {func(ctx context.Context) error {
			_, err := c.Fetch(ctx, &FetchRequest{Hello: &Hello{Region: "x", To: "y"}, Keys: [][]byte{{'a'}}})
			return err
		}, codes.FailedPrecondition},
		"no keys": {func(ctx context.Context) error { _, err := c.Fetch(ctx, &FetchRequest{Hello: helloTo(r)}); return err }, codes.InvalidArgument},
		"too many keys": {func(ctx context.Context) error {
			_, err := c.Fetch(ctx, &FetchRequest{Hello: helloTo(r), Keys: make([][]byte, MaxFetch+1)})
			return err
		}, codes.InvalidArgument},
		"a cursor that is none": {func(ctx context.Context) error {
			_, err := c.List(ctx, &ListRequest{Hello: helloTo(r), Cursor: "users-0"})
			return err
		}, codes.InvalidArgument},
		"a shard that is none": {func(ctx context.Context) error {
			_, err := c.List(ctx, &ListRequest{Hello: helloTo(r), Cursor: "users-9 0"})
			return err
		}, codes.NotFound},
		"a pool that is none": {func(ctx context.Context) error {
			h := helloTo(r)
			h.Pool = "none"
			_, err := c.List(ctx, &ListRequest{Hello: h})
			return err
		}, codes.NotFound},
	} {
		if err := test.ask(t.Context()); status.Code(err) != test.want {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}
